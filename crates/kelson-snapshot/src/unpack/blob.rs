//! A layer's bytes as they arrive: counted, hashed, and decompressed by what they look like.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};

use crate::{Digest, Expected, UnpackError, Which};

const BUFFER: usize = 128 << 10;
/// The largest window that a zstd frame may ask for: 128 MiB, what the zstd tool accepts.
const ZSTD_WINDOW_LOG: u32 = 27;

/// The blob: never yields more bytes than were announced.
pub(super) struct Blob<'a> {
    inner: &'a mut (dyn Read + Send),
    hash: Sha256,
    got: u64,
    expected: Expected,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Why reading failed; the decompressor only passes an [`io::Error`] on.
    failure: Option<UnpackError>,
}

impl<'a> Blob<'a> {
    pub(super) fn new(inner: &'a mut (dyn Read + Send), expected: Expected) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
            got: 0,
            expected,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            failure: None,
        }
    }

    fn receive(&mut self) -> Result<(), UnpackError> {
        let wanted = (self.expected.size - self.got).saturating_add(1);
        let room = usize::try_from(wanted)
            .unwrap_or(usize::MAX)
            .min(BUFFER - self.end);
        let count = loop {
            match self.inner.read(&mut self.buffer[self.end..self.end + room]) {
                Err(source) if source.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(UnpackError::Read {
                        got: self.got,
                        source,
                    });
                }
                Ok(count) => break count,
            }
        };
        self.got += count as u64;
        if self.got > self.expected.size {
            self.got = self.expected.size;
            return Err(UnpackError::TooLong {
                expected: self.expected.size,
            });
        }
        self.hash.update(&self.buffer[self.end..self.end + count]);
        self.end += count;
        Ok(())
    }

    /// The first bytes, fewer than four only if the blob is that short.
    fn magic(&mut self) -> Result<[u8; 4], UnpackError> {
        while self.end < 4 {
            let before = self.end;
            self.receive()?;
            if self.end == before {
                break;
            }
        }
        let mut magic = [0; 4];
        let count = self.end.min(4);
        magic[..count].copy_from_slice(&self.buffer[..count]);
        Ok(magic)
    }

    /// What to report when the bytes could not be decompressed.
    pub(super) fn explain(&mut self, offset: u64, source: io::Error) -> UnpackError {
        self.failure.take().unwrap_or_else(|| UnpackError::Format {
            offset,
            reason: "it cannot be decompressed".into(),
            source: Some(source),
        })
    }

    /// Reads what the decompressor left and checks size and digest.
    pub(super) fn finish(&mut self) -> Result<(), UnpackError> {
        loop {
            self.start = 0;
            self.end = 0;
            let before = self.got;
            self.receive()?;
            if self.got == before {
                break;
            }
        }
        if self.got < self.expected.size {
            return Err(UnpackError::Truncated {
                got: self.got,
                expected: self.expected.size,
            });
        }
        let got = Digest::from_bytes(self.hash.finalize_reset().into());
        let expected = self.expected.blob;
        if got != expected {
            return Err(UnpackError::DigestMismatch {
                which: Which::Blob,
                expected,
                got,
            });
        }
        Ok(())
    }
}

impl BufRead for Blob<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            if let Err(failure) = self.receive() {
                self.failure = Some(failure);
                return Err(io::ErrorKind::Other.into());
            }
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
    }
}

impl Read for Blob<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut available = self.fill_buf()?;
        let count = available.read(out)?;
        self.consume(count);
        Ok(count)
    }
}

/// The uncompressed bytes of a [`Blob`].
pub(super) enum Decoder<'b, 'a> {
    Plain(&'b mut Blob<'a>),
    /// Every member of the file, not the first only: parallel and seekable compressors write many.
    Gzip(Box<MultiGzDecoder<&'b mut Blob<'a>>>),
    /// All frames.
    Zstd(Box<zstd::stream::read::Decoder<'static, &'b mut Blob<'a>>>),
}

impl<'b, 'a> Decoder<'b, 'a> {
    /// Chooses by the first bytes; a media type is a claim, they are the fact.
    pub(super) fn detect(blob: &'b mut Blob<'a>) -> Result<Self, UnpackError> {
        let unsupported = |name: &str| UnpackError::Format {
            offset: 0,
            reason: format!("{name} compression is not supported, only gzip and zstd are"),
            source: None,
        };
        match blob.magic()? {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip(Box::new(MultiGzDecoder::new(blob)))),
            // A frame of data, or one to be skipped.
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
                let start = || {
                    let mut decoder = zstd::stream::read::Decoder::with_buffer(blob)?;
                    decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                    Ok(decoder)
                };
                let decoder = start().map_err(|source: io::Error| UnpackError::Format {
                    offset: 0,
                    reason: "the decompressor cannot be set up".into(),
                    source: Some(source),
                })?;
                Ok(Self::Zstd(Box::new(decoder)))
            }
            [b'B', b'Z', b'h', _] => Err(unsupported("bzip2")),
            [0xfd, b'7', b'z', b'X'] => Err(unsupported("xz")),
            _ => Ok(Self::Plain(blob)),
        }
    }
}

impl Read for Decoder<'_, '_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(blob) => blob.read(out),
            Self::Gzip(decoder) => decoder.read(out),
            Self::Zstd(decoder) => decoder.read(out),
        }
    }
}
