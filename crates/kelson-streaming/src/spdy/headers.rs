//! Header blocks: names and values, compressed with one zlib stream for the whole connection.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary::DICTIONARY;
use super::frame::FrameError;

/// Bytes of one header block after decompression, at most.
pub const MAX_HEADER_BLOCK: usize = 64 * 1024;
/// Headers in one block, at most.
pub const MAX_HEADERS: usize = 64;

/// Names in lower case and their values, in the order of the wire.
pub type Headers = Vec<(String, String)>;

/// The value of a header, by its name in lower case.
pub fn value<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers
        .iter()
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.as_str())
}

/// Compresses the blocks of one connection, in the order in which they are sent.
pub(super) struct Deflate(Compress);

impl Deflate {
    pub(super) fn new() -> Result<Self, FrameError> {
        let mut zlib = Compress::new(Compression::default(), true);
        zlib.set_dictionary(DICTIONARY)
            .map_err(|_| FrameError::Compression)?;
        Ok(Self(zlib))
    }

    /// Adds the compressed block to `buf`.
    pub(super) fn block(&mut self, headers: &Headers, buf: &mut Vec<u8>) -> Result<(), FrameError> {
        let mut plain = Vec::new();
        plain.extend(length(headers.len()).to_be_bytes());
        for (name, value) in headers {
            for text in [name, value] {
                plain.extend(length(text.len()).to_be_bytes());
                plain.extend(text.as_bytes());
            }
        }
        let mut taken = 0;
        loop {
            buf.reserve(plain.len() - taken + 64);
            let before = self.0.total_in();
            self.0
                .compress_vec(&plain[taken..], buf, FlushCompress::Sync)
                .map_err(|_| FrameError::Compression)?;
            taken += usize::try_from(self.0.total_in() - before).unwrap_or(usize::MAX);
            // Room that is left means that the flush is complete.
            if taken >= plain.len() && buf.len() < buf.capacity() {
                return Ok(());
            }
        }
    }
}

/// Decompresses the blocks of one connection, in the order in which they came.
pub(super) struct Inflate(Decompress);

impl Inflate {
    pub(super) fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// Reads one whole block.
    pub(super) fn block(&mut self, compressed: &[u8]) -> Result<Headers, FrameError> {
        // One byte more than is allowed tells a block that is too long from one that just fits.
        let mut plain = Vec::with_capacity(1024);
        let mut rest = compressed;
        loop {
            if plain.len() == plain.capacity() {
                plain.reserve((plain.capacity()).min(MAX_HEADER_BLOCK + 1 - plain.len()));
            }
            let before = (self.0.total_in(), plain.len());
            let outcome = self
                .0
                .decompress_vec(rest, &mut plain, FlushDecompress::Sync);
            let taken = usize::try_from(self.0.total_in() - before.0).unwrap_or(usize::MAX);
            rest = rest.get(taken..).ok_or(FrameError::Compression)?;
            if plain.len() > MAX_HEADER_BLOCK {
                return Err(FrameError::HeadersTooLong);
            }
            match outcome {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(DICTIONARY)
                        .map_err(|_| FrameError::Compression)?;
                }
                Err(_) | Ok(Status::StreamEnd) => return Err(FrameError::Compression),
                // Everything is read, and what could be told of it fitted.
                Ok(_) if rest.is_empty() && plain.len() < plain.capacity() => break,
                Ok(_)
                    if taken == 0 && plain.len() == before.1 && plain.len() < plain.capacity() =>
                {
                    return Err(FrameError::Compression);
                }
                Ok(_) => {}
            }
        }
        parse(&plain)
    }
}

fn parse(plain: &[u8]) -> Result<Headers, FrameError> {
    let mut rest = plain;
    let count = number(&mut rest)?;
    if count > MAX_HEADERS {
        return Err(FrameError::TooManyHeaders);
    }
    let mut headers: Headers = Vec::with_capacity(count);
    for _ in 0..count {
        let name = text(&mut rest)?;
        let value = text(&mut rest)?;
        let lower = !name.is_empty() && !name.bytes().any(|byte| byte.is_ascii_uppercase());
        if !lower || headers.iter().any(|(known, _)| *known == name) {
            return Err(FrameError::Header);
        }
        headers.push((name, value));
    }
    if rest.is_empty() {
        Ok(headers)
    } else {
        Err(FrameError::Header)
    }
}

fn number(rest: &mut &[u8]) -> Result<usize, FrameError> {
    let (bytes, after) = rest.split_first_chunk().ok_or(FrameError::Header)?;
    *rest = after;
    usize::try_from(u32::from_be_bytes(*bytes)).map_err(|_| FrameError::Header)
}

fn text(rest: &mut &[u8]) -> Result<String, FrameError> {
    let length = number(rest)?;
    let (bytes, after) = rest.split_at_checked(length).ok_or(FrameError::Header)?;
    *rest = after;
    String::from_utf8(bytes.to_vec()).map_err(|_| FrameError::Header)
}

/// A length in a header block; blocks that Kelson makes are short.
fn length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn blocks_go_round_trip_one_after_the_other() {
        let (mut deflate, mut inflate) = (Deflate::new().unwrap(), Inflate::new());
        for value in ["stdin", "stdout", "", "ä", &"x".repeat(20_000)] {
            let headers = vec![header("streamtype", value), header("port", "80")];
            let mut block = Vec::new();
            deflate.block(&headers, &mut block).unwrap();
            assert_eq!(inflate.block(&block).unwrap(), headers);
        }
        let mut block = Vec::new();
        deflate.block(&Vec::new(), &mut block).unwrap();
        assert_eq!(inflate.block(&block).unwrap(), Vec::new());
    }

    #[test]
    fn a_bomb_is_refused_before_it_grows() {
        let mut deflate = Deflate::new().unwrap();
        let mut block = Vec::new();
        let bomb = vec![header("a", &"\0".repeat(10 << 20))];
        deflate.block(&bomb, &mut block).unwrap();
        assert!(block.len() < 16 * 1024, "{}", block.len());
        let error = Inflate::new().block(&block).unwrap_err();
        assert!(matches!(error, FrameError::HeadersTooLong), "{error}");
    }

    #[test]
    fn the_longest_block_fits_and_one_byte_more_does_not() {
        // A count, two lengths and the name are 13 bytes.
        for (length, fits) in [
            (MAX_HEADER_BLOCK - 13, true),
            (MAX_HEADER_BLOCK - 12, false),
        ] {
            let headers = vec![header("a", &"x".repeat(length))];
            let mut block = Vec::new();
            Deflate::new().unwrap().block(&headers, &mut block).unwrap();
            assert_eq!(Inflate::new().block(&block).is_ok(), fits, "{length}");
        }
    }

    #[test]
    fn what_is_no_block_is_refused() {
        let refused = |plain: &[u8]| parse(plain).unwrap_err();
        assert!(matches!(refused(&[0, 0]), FrameError::Header));
        assert!(matches!(
            refused(&1000_u32.to_be_bytes()),
            FrameError::TooManyHeaders
        ));
        assert!(matches!(
            refused(b"\0\0\0\x01\0\0\0\x01A\0\0\0\0"),
            FrameError::Header
        ));
        assert!(matches!(
            refused(b"\0\0\0\x01\xff\xff\xff\xffa"),
            FrameError::Header
        ));
        assert!(matches!(refused(b"\0\0\0\0x"), FrameError::Header));
        let twice = b"\0\0\0\x02\0\0\0\x01a\0\0\0\0\0\0\0\x01a\0\0\0\0";
        assert!(matches!(refused(twice), FrameError::Header));
        assert!(Inflate::new().block(b"no zlib at all").is_err());
        assert!(Inflate::new().block(b"").is_err());
    }
}
