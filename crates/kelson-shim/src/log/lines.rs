//! From blocks of output to lines in the CRI log format, without I/O.
//!
//! A line is `<time> <stream> <tag> <text>\n`. Text of more than [`MAX_LINE`] bytes is cut into
//! pieces with the tag `P` and a last one with `F`. Output that ends without a newline gets the tag
//! `P`, which makes the kubelet show it without one. A carriage return before the newline is
//! dropped: terminals put it there.

use super::stamp::STAMP_LEN;

/// The most bytes of text in one line of a log.
pub(crate) const MAX_LINE: usize = 16 << 10;

/// Which output a line comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// Time, a blank, the name of the stream, a blank, the tag, a blank.
const PREFIX_LEN: usize = STAMP_LEN + 10;

/// What a line may need besides its text.
pub(super) const LINE_EXTRA: usize = PREFIX_LEN + 1;

/// Takes formatted lines.
pub(super) trait Sink {
    /// A buffer with room for [`MAX_LINE`] + [`LINE_EXTRA`] bytes.
    fn room(&mut self) -> &mut Vec<u8>;
}

/// The lines of one output, and the beginning of a line that is not complete yet.
#[derive(Debug)]
pub(super) struct Lines {
    stream: Stream,
    pending: Vec<u8>,
}

/// A block's lines all have the same time, so the text in front of them differs in the tag only.
struct Prefix {
    full: [u8; PREFIX_LEN],
    part: [u8; PREFIX_LEN],
}

impl Prefix {
    fn new(stamp: &[u8; STAMP_LEN], stream: Stream) -> Self {
        let mut full = *b"1970-01-01T00:00:00.000000000Z stdout F ";
        full[..STAMP_LEN].copy_from_slice(stamp);
        if stream == Stream::Stderr {
            full[STAMP_LEN + 1..STAMP_LEN + 7].copy_from_slice(b"stderr");
        }
        let mut part = full;
        part[PREFIX_LEN - 2] = b'P';
        Self { full, part }
    }
}

impl Lines {
    pub(super) const fn new(stream: Stream) -> Self {
        Self {
            stream,
            pending: Vec::new(),
        }
    }

    /// Formats the lines that a block of output completes.
    pub(super) fn push(&mut self, block: &[u8], stamp: &[u8; STAMP_LEN], sink: &mut impl Sink) {
        let prefix = Prefix::new(stamp, self.stream);
        let mut from = 0;
        for newline in memchr::memchr_iter(b'\n', block) {
            self.complete(&block[from..newline], &prefix, sink);
            from = newline + 1;
        }
        let rest = self.cut(&block[from..], &prefix, sink);
        self.pending.extend_from_slice(rest);
    }

    /// Formats what is left when the output has ended.
    pub(super) fn finish(&mut self, stamp: &[u8; STAMP_LEN], sink: &mut impl Sink) {
        let pending = std::mem::take(&mut self.pending);
        if !pending.is_empty() {
            emit(&Prefix::new(stamp, self.stream).part, &pending, sink);
        }
    }

    fn complete(&mut self, text: &[u8], prefix: &Prefix, sink: &mut impl Sink) {
        let text = self.cut(text, prefix, sink);
        if self.pending.is_empty() {
            emit(&prefix.full, without_return(text), sink);
        } else {
            self.pending.extend_from_slice(text);
            emit(&prefix.full, without_return(&self.pending), sink);
            // Held back lines are rare; their memory is not kept.
            self.pending = Vec::new();
        }
    }

    /// Cuts off full pieces until what is pending and the returned rest fit into one line.
    fn cut<'t>(&mut self, mut text: &'t [u8], prefix: &Prefix, sink: &mut impl Sink) -> &'t [u8] {
        while self.pending.len() + text.len() > MAX_LINE {
            let (piece, rest) = text.split_at(MAX_LINE - self.pending.len());
            if self.pending.is_empty() {
                emit(&prefix.part, piece, sink);
            } else {
                self.pending.extend_from_slice(piece);
                emit(&prefix.part, &self.pending, sink);
                self.pending.clear();
            }
            text = rest;
        }
        text
    }
}

fn emit(prefix: &[u8; PREFIX_LEN], text: &[u8], sink: &mut impl Sink) {
    let room = sink.room();
    room.extend_from_slice(prefix);
    room.extend_from_slice(text);
    room.push(b'\n');
}

fn without_return(text: &[u8]) -> &[u8] {
    text.strip_suffix(b"\r").unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: &[u8; STAMP_LEN] = b"2026-01-02T03:04:05.678901234Z";

    impl Sink for Vec<u8> {
        fn room(&mut self) -> &mut Vec<u8> {
            self
        }
    }

    /// What the lines look like when the output comes in these blocks; tag and text.
    fn format(blocks: &[&[u8]]) -> Vec<(char, String)> {
        let mut lines = Lines::new(Stream::Stderr);
        let mut out = Vec::new();
        for block in blocks {
            lines.push(block, STAMP, &mut out);
        }
        lines.finish(STAMP, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        text.lines()
            .map(|line| {
                let rest = line
                    .strip_prefix("2026-01-02T03:04:05.678901234Z stderr ")
                    .unwrap();
                (rest.chars().next().unwrap(), rest[2..].to_owned())
            })
            .collect()
    }

    fn full(text: &str) -> (char, String) {
        ('F', text.to_owned())
    }

    #[test]
    fn whole_lines() {
        assert_eq!(format(&[b"a\nbc\n\n"]), [full("a"), full("bc"), full("")]);
        assert_eq!(format(&[]), []);
        assert_eq!(format(&[b""]), []);
    }

    #[test]
    fn lines_across_blocks() {
        assert_eq!(
            format(&[b"a", b"b", b"c\nd", b"\n"]),
            [full("abc"), full("d")]
        );
    }

    #[test]
    fn a_carriage_return_before_the_newline_is_dropped() {
        assert_eq!(
            format(&[b"a\r\n\rb\r", b"\n\r\n"]),
            [full("a"), full("\rb"), full("")]
        );
    }

    #[test]
    fn output_without_a_last_newline_is_partial() {
        assert_eq!(format(&[b"a\nb"]), [full("a"), ('P', "b".to_owned())]);
    }

    #[test]
    fn long_lines_are_cut() {
        let long = "x".repeat(MAX_LINE);
        let part = ('P', long.clone());
        assert_eq!(format(&[format!("{long}\n").as_bytes()]), [full(&long)]);
        assert_eq!(
            format(&[format!("{long}y\n").as_bytes()]),
            [part.clone(), full("y")]
        );
        assert_eq!(format(&[long.as_bytes(), b"\n"]), [full(&long)]);
        let three = format!("{long}{long}z");
        let last = ('P', "z".to_owned());
        assert_eq!(format(&[three.as_bytes()]), [part.clone(), part, last]);
    }

    #[test]
    fn blocks_of_any_size_make_the_same_lines() {
        let mut text = Vec::new();
        for n in 0..200_usize {
            text.extend(std::iter::repeat_n(b'a' + (n % 26) as u8, n * n));
            text.push(b'\n');
        }
        let whole = format(&[&text]);
        for size in [1, 7, 1000, 16_384, 16_385, 65_536] {
            let blocks: Vec<&[u8]> = text.chunks(size).collect();
            assert_eq!(format(&blocks), whole, "{size}");
        }
    }
}
