//! One line of a CRI log, `<RFC 3339 time> <stream> <tags> <text>`, and how it is printed.
//!
//! The first tag is `F` where the text ends a line of the container's output and `P` where the line goes
//! on in the next record of that stream.

use std::io::{self, Write};

use jiff::Timestamp;

use crate::ui::Io;

/// A record of a log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) time: &'a str,
    pub(crate) stream: Stream,
    pub(crate) partial: bool,
    pub(crate) text: &'a [u8],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl<'a> Record<'a> {
    /// Reads a line without its newline; nothing if it is not of the format.
    pub(crate) fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(4, |&byte| byte == b' ');
        let time = std::str::from_utf8(fields.next()?).ok()?;
        let stream = match fields.next()? {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        let partial = match fields.next()?.split(|&byte| byte == b':').next()? {
            b"F" => false,
            b"P" => true,
            _ => return None,
        };
        // An empty line may be written without the space before it.
        let text = fields.next().unwrap_or_default();
        Some(Self {
            time,
            stream,
            partial,
            text,
        })
    }
}

impl Record<'_> {
    /// Whether the container wrote it to its standard output.
    pub(crate) fn is_stdout(&self) -> bool {
        self.stream == Stream::Stdout
    }
}

/// Prints records: standard output and standard error of the container to those of this program.
#[derive(Debug, Default)]
pub(crate) struct Printer {
    /// Put the time before each line.
    pub(crate) timestamps: bool,
    /// Leave out what was written before.
    pub(crate) since: Option<Timestamp>,
    /// Whether the last record of each stream was a partial one, so that the next goes on in its line.
    within: [bool; 2],
}

impl Printer {
    /// A printer that starts with a new line.
    pub(crate) fn new(timestamps: bool, since: Option<Timestamp>) -> Self {
        Self {
            timestamps,
            since,
            within: [false; 2],
        }
    }

    /// Prints a line of the log file, given without its newline. What is no record is shown on standard
    /// error as it is.
    pub(crate) fn print(&mut self, line: &[u8], io: &mut Io<'_>) -> io::Result<()> {
        let Some(record) = Record::parse(line) else {
            io.err.write_all(b"not a CRI log record: ")?;
            io.err.write_all(line)?;
            return io.err.write_all(b"\n");
        };
        if self.since.is_some_and(|since| {
            record
                .time
                .parse()
                .is_ok_and(|time: Timestamp| time < since)
        }) {
            return Ok(());
        }
        let out: &mut dyn Write = match record.stream {
            Stream::Stdout => io.out,
            Stream::Stderr => io.err,
        };
        let within = &mut self.within[record.stream as usize];
        if self.timestamps && !*within {
            write!(out, "{} ", record.time)?;
        }
        out.write_all(record.text)?;
        if !record.partial {
            out.write_all(b"\n")?;
        }
        *within = record.partial;
        Ok(())
    }
}
