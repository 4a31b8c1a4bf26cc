//! A log file that grows, is renamed and made anew, or is truncated while it is read.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::record::Record;

/// Read at once.
const BLOCK: usize = 256 << 10;
/// Read before the caller gets its turn again, so that a busy log cannot keep it from an interrupt.
const ROUND: u64 = 8 << 20;
/// The longest record; runtimes split lines at 16 KiB or at what one read returns.
const MAX_RECORD: usize = 4 << 20;

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// The system says no.
    #[error("{operation} the log {}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// There is no end of a line for too long.
    #[error("the log {} has a record of more than {MAX_RECORD} bytes: it is no CRI log", path.display())]
    TooLong { path: PathBuf },
    /// What a record is printed to.
    #[error("cannot print")]
    Print(#[source] io::Error),
}

/// A log at a path: the file that is there, or will be.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: Option<File>,
    /// A record whose end is not written yet.
    rest: Vec<u8>,
    block: Vec<u8>,
}

impl LogFile {
    /// The log at `path`, from its beginning. The file need not be there yet.
    pub(crate) fn open(path: &Path) -> Result<Self, LogError> {
        let mut log = Self {
            path: path.to_owned(),
            file: None,
            rest: Vec::new(),
            block: vec![0; BLOCK],
        };
        log.file = log.reopen()?;
        Ok(log)
    }

    /// Skips all but the last `count` lines of the container's output; partial records count together
    /// with the one that ends their line.
    pub(crate) fn seek_to_last(&mut self, count: usize) -> Result<(), LogError> {
        let mut starts = VecDeque::new();
        let (mut offset, mut within) = (0, false);
        while self.read_new(&mut |line| {
            if !within {
                if starts.len() == count {
                    starts.pop_front();
                }
                if count > 0 {
                    starts.push_back(offset);
                }
            }
            within = Record::parse(line).is_some_and(|record| record.partial);
            offset += line.len() as u64 + 1;
            Ok(())
        })? {}
        let start = starts.front().copied().unwrap_or(offset);
        self.rest.clear();
        match &mut self.file {
            Some(file) => file
                .seek(SeekFrom::Start(start))
                .map(|_| ())
                .map_err(io_error("seek in", &self.path)),
            None => Ok(()),
        }
    }

    /// Hands out the complete lines that were appended, in order and without their newlines. Returns
    /// whether there is more to read at once.
    pub(crate) fn read_new(
        &mut self,
        line: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<bool, LogError> {
        if self.read_file(line)? {
            return Ok(true);
        }
        self.follow_rotation(line)
    }

    /// Reads the open file to its end, or for one round.
    fn read_file(
        &mut self,
        line: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<bool, LogError> {
        let mut total = 0;
        while total < ROUND {
            let Some(file) = &mut self.file else {
                return Ok(false);
            };
            let count = file
                .read(&mut self.block)
                .map_err(io_error("read", &self.path))?;
            if count == 0 {
                return Ok(false);
            }
            total += count as u64;
            let mut block = &self.block[..count];
            while let Some(end) = block.iter().position(|&byte| byte == b'\n') {
                let (head, tail) = (&block[..end], &block[end + 1..]);
                if self.rest.is_empty() {
                    line(head).map_err(LogError::Print)?;
                } else {
                    self.rest.extend_from_slice(head);
                    line(&self.rest).map_err(LogError::Print)?;
                    self.rest.clear();
                }
                block = tail;
            }
            self.rest.extend_from_slice(block);
            if self.rest.len() > MAX_RECORD {
                return Err(LogError::TooLong {
                    path: self.path.clone(),
                });
            }
        }
        Ok(true)
    }

    /// At the end of the open file: sees whether another one has taken its place. A writer that has begun
    /// a new file writes nothing to the old one any more, so what is left there is read first.
    fn follow_rotation(
        &mut self,
        line: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<bool, LogError> {
        let Some(open) = &mut self.file else {
            self.file = self.reopen()?;
            return Ok(self.file.is_some());
        };
        let metadata = open.metadata().map_err(io_error("examine", &self.path))?;
        let position = open
            .stream_position()
            .map_err(io_error("seek in", &self.path))?;
        if metadata.len() < position {
            open.rewind().map_err(io_error("seek in", &self.path))?;
            self.rest.clear();
            return Ok(true);
        }
        match std::fs::metadata(&self.path) {
            Ok(now) if (now.dev(), now.ino()) != (metadata.dev(), metadata.ino()) => {
                while self.read_file(line)? {}
                self.rest.clear();
                self.file = self.reopen()?;
                Ok(true)
            }
            // Renamed, and the new file not made yet.
            _ => Ok(false),
        }
    }

    fn reopen(&self) -> Result<Option<File>, LogError> {
        match File::open(&self.path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("open", &self.path)(error)),
        }
    }
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError {
    let path = path.to_owned();
    move |source| LogError::Io {
        operation,
        path,
        source,
    }
}
