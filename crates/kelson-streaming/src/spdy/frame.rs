//! SPDY/3.1 frames: bytes in, frames out, and back. Knows no streams and does no I/O.
//!
//! SPDY protocol draft 3.1, section 2. A control frame is read whole and has a limit; the payload
//! of a data frame is handed out in the pieces in which it arrives, so that it needs none.

use std::io;

use bytes::{Buf, Bytes, BytesMut};

use super::headers::{Deflate, Headers, Inflate};
use crate::outbox::{Encode, Out};

/// Bytes of a control frame, at most.
pub const MAX_CONTROL_FRAME: usize = 32 * 1024;
/// Entries of a SETTINGS frame, at most.
const MAX_SETTINGS: u32 = 256;

const VERSION: u16 = 3;
const FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Why a stream is reset (2.6.3).
pub mod status {
    /// The other side broke the protocol.
    pub const PROTOCOL_ERROR: u32 = 1;
    /// There is no such stream.
    pub const INVALID_STREAM: u32 = 2;
    /// The stream is not wanted.
    pub const REFUSED_STREAM: u32 = 3;
    /// Whoever asked for the stream needs it no longer.
    pub const CANCEL: u32 = 5;
}

/// What makes a connection unusable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A control frame above its limit.
    #[error("a control frame is longer than {MAX_CONTROL_FRAME} bytes")]
    FrameTooLong,
    /// A frame of another version of SPDY.
    #[error("a frame of SPDY version {0} instead of {VERSION}")]
    Version(u16),
    /// A control frame whose length or flags are wrong for its type.
    #[error("a malformed control frame of type {0}")]
    Malformed(u16),
    /// A frame for stream 0.
    #[error("a frame for stream 0, which is none")]
    StreamZero,
    /// A header block that cannot be decompressed.
    #[error("a header block that is not compressed as SPDY says")]
    Compression,
    /// A header block that grows above its limit.
    #[error(
        "a header block is longer than {} bytes",
        super::headers::MAX_HEADER_BLOCK
    )]
    HeadersTooLong,
    /// A header block with too many headers.
    #[error("a header block has more than {} headers", super::headers::MAX_HEADERS)]
    TooManyHeaders,
    /// A header block with a wrong length, a repeated name or one in upper case.
    #[error("a malformed header block")]
    Header,
}

impl From<FrameError> for io::Error {
    fn from(error: FrameError) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

/// One frame, or a piece of a data frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// The other side asks for a stream.
    SynStream {
        /// Its id.
        stream: u32,
        /// Whether the other side will send nothing on it.
        fin: bool,
        /// What it is for.
        headers: Headers,
    },
    /// The other side takes a stream.
    SynReply {
        /// Its id.
        stream: u32,
        /// Whether the other side will send nothing on it.
        fin: bool,
    },
    /// A stream is ended at once.
    RstStream {
        /// Its id.
        stream: u32,
        /// Why.
        status: u32,
    },
    /// More headers of a stream, which have no meaning here.
    Headers {
        /// Its id.
        stream: u32,
        /// Whether the other side will send nothing more on it.
        fin: bool,
    },
    /// Settings, which have no meaning here.
    Settings,
    /// A sign of life to send back.
    Ping(u32),
    /// No more streams will be taken.
    GoAway {
        /// The last stream that was.
        last_stream: u32,
    },
    /// More may be sent; Go's peers neither send nor honour it, so it has no effect.
    WindowUpdate,
    /// A control frame of an unknown type, to be passed over (2.2.1).
    Unknown(u16),
    /// Bytes of a stream.
    Data {
        /// Its id.
        stream: u32,
        /// Whether they are its last.
        fin: bool,
        /// The bytes.
        bytes: Bytes,
    },
}

/// A data frame whose payload is still arriving.
#[derive(Debug, Clone, Copy)]
struct Payload {
    stream: u32,
    fin: bool,
    left: usize,
}

/// Cuts what arrives into frames.
pub struct Decoder {
    inflate: Inflate,
    payload: Option<Payload>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder for a new connection.
    pub fn new() -> Self {
        Self {
            inflate: Inflate::new(),
            payload: None,
        }
    }

    /// Takes the next frame off the front of `buf`; `None` when more has to arrive.
    ///
    /// # Errors
    /// After an error the connection cannot be used: what follows has no meaning.
    pub fn next(&mut self, buf: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        if let Some(payload) = self.payload {
            return Ok(self.piece(payload, buf));
        }
        let Some((head, _)) = buf.split_first_chunk::<8>() else {
            return Ok(None);
        };
        let [a, b, c, d, flags, e, f, g] = *head;
        let word = u32::from_be_bytes([a, b, c, d]);
        let length = usize::try_from(u32::from_be_bytes([0, e, f, g])).unwrap_or(usize::MAX);
        if word >> 31 == 0 {
            if word == 0 {
                return Err(FrameError::StreamZero);
            }
            buf.advance(8);
            let payload = Payload {
                stream: word,
                fin: flags & FIN != 0,
                left: length,
            };
            return Ok(self.piece(payload, buf));
        }
        let version = u16::from_be_bytes([a & 0x7f, b]);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if length > MAX_CONTROL_FRAME {
            return Err(FrameError::FrameTooLong);
        }
        if buf.len() < 8 + length {
            return Ok(None);
        }
        buf.advance(8);
        let body = buf.split_to(length);
        self.control(u16::from_be_bytes([c, d]), flags, &body)
            .map(Some)
    }

    /// The part of a data frame that is there; an empty frame is one empty part.
    fn piece(&mut self, mut payload: Payload, buf: &mut BytesMut) -> Option<Frame> {
        let here = payload.left.min(buf.len());
        if here == 0 && payload.left > 0 {
            self.payload = Some(payload);
            return None;
        }
        payload.left -= here;
        self.payload = (payload.left > 0).then_some(payload);
        Some(Frame::Data {
            stream: payload.stream,
            fin: payload.fin && payload.left == 0,
            bytes: buf.split_to(here).freeze(),
        })
    }

    fn control(&mut self, kind: u16, flags: u8, body: &[u8]) -> Result<Frame, FrameError> {
        let fin = flags & FIN != 0;
        let malformed = FrameError::Malformed(kind);
        match kind {
            SYN_STREAM => {
                let (head, block) = body.split_first_chunk::<10>().ok_or(malformed)?;
                let stream = id(&head[..4])?;
                let headers = self.inflate.block(block)?;
                Ok(Frame::SynStream {
                    stream,
                    fin,
                    headers,
                })
            }
            SYN_REPLY | HEADERS => {
                let (head, block) = body.split_first_chunk::<4>().ok_or(malformed)?;
                let stream = id(head)?;
                // The block is part of the connection's zlib stream, whatever it says.
                self.inflate.block(block)?;
                Ok(match kind {
                    SYN_REPLY => Frame::SynReply { stream, fin },
                    _ => Frame::Headers { stream, fin },
                })
            }
            RST_STREAM => match words(body) {
                Some([stream, status]) if flags == 0 && status != 0 => Ok(Frame::RstStream {
                    stream: id(&stream.to_be_bytes())?,
                    status,
                }),
                _ => Err(malformed),
            },
            SETTINGS => {
                let (count, rest) = body.split_first_chunk::<4>().ok_or(malformed)?;
                let count = u32::from_be_bytes(*count);
                let fits = count <= MAX_SETTINGS && rest.len() == count as usize * 8;
                fits.then_some(Frame::Settings).ok_or(malformed)
            }
            PING => match words(body) {
                Some([id]) if flags == 0 => Ok(Frame::Ping(id)),
                _ => Err(malformed),
            },
            GOAWAY => match words(body) {
                Some([last_stream, _]) if flags == 0 => Ok(Frame::GoAway {
                    last_stream: last_stream & 0x7fff_ffff,
                }),
                _ => Err(malformed),
            },
            WINDOW_UPDATE => match words(body) {
                Some([_, delta]) if flags == 0 && delta & 0x7fff_ffff != 0 => {
                    Ok(Frame::WindowUpdate)
                }
                _ => Err(malformed),
            },
            _ => Ok(Frame::Unknown(kind)),
        }
    }
}

fn id(bytes: &[u8]) -> Result<u32, FrameError> {
    let id = bytes
        .iter()
        .fold(0_u32, |id, byte| id << 8 | u32::from(*byte))
        & 0x7fff_ffff;
    if id == 0 {
        Err(FrameError::StreamZero)
    } else {
        Ok(id)
    }
}

/// Exactly `N` numbers of four bytes.
fn words<const N: usize>(body: &[u8]) -> Option<[u32; N]> {
    if body.len() != N * 4 {
        return None;
    }
    let mut words = [0; N];
    for (word, bytes) in words.iter_mut().zip(body.chunks_exact(4)) {
        *word = bytes
            .iter()
            .fold(0_u32, |word, byte| word << 8 | u32::from(*byte));
    }
    Some(words)
}

/// Writes frames; header blocks depend on those before them, so there is one for a connection.
pub struct Encoder {
    deflate: Deflate,
}

impl Encoder {
    /// An encoder for a new connection.
    ///
    /// # Errors
    /// When the compressor refuses its dictionary.
    pub fn new() -> Result<Self, FrameError> {
        Ok(Self {
            deflate: Deflate::new()?,
        })
    }

    /// Adds a SYN_STREAM to `buf`.
    ///
    /// # Errors
    /// When the headers cannot be compressed.
    pub fn syn_stream(
        &mut self,
        stream: u32,
        headers: &Headers,
        buf: &mut Vec<u8>,
    ) -> Result<(), FrameError> {
        let mut body = Vec::with_capacity(64);
        body.extend(stream.to_be_bytes());
        body.extend([0; 6]);
        self.deflate.block(headers, &mut body)?;
        control(SYN_STREAM, &body, buf);
        Ok(())
    }

    fn syn_reply(&mut self, stream: u32, buf: &mut Vec<u8>) -> Result<(), FrameError> {
        let mut body = Vec::with_capacity(64);
        body.extend(stream.to_be_bytes());
        self.deflate.block(&Vec::new(), &mut body)?;
        control(SYN_REPLY, &body, buf);
        Ok(())
    }
}

impl Encode for Encoder {
    fn encode(&mut self, message: Out, buf: &mut Vec<u8>) -> io::Result<()> {
        match message {
            Out::Data { stream, bytes, fin } => data(stream, &bytes, fin, buf),
            Out::Open { stream, headers } => self.syn_stream(stream, &headers, buf)?,
            Out::Accept { stream } => self.syn_reply(stream, buf)?,
            Out::Reset { stream, status } => {
                let body = [stream.to_be_bytes(), status.to_be_bytes()].concat();
                control(RST_STREAM, &body, buf);
            }
            // Only servers ask; theirs are even (2.6.5).
            Out::Ping => control(PING, &2_u32.to_be_bytes(), buf),
            Out::Pong(id) => control(PING, &id, buf),
            Out::Goodbye { fault, last_stream } => {
                // 0 is OK, 1 is PROTOCOL_ERROR (2.6.6).
                let body = [last_stream.to_be_bytes(), u32::from(fault).to_be_bytes()].concat();
                control(GOAWAY, &body, buf);
            }
        }
        Ok(())
    }
}

/// Adds a data frame of at most 2^24 - 1 bytes to `buf`.
pub fn data(stream: u32, bytes: &[u8], fin: bool, buf: &mut Vec<u8>) {
    buf.extend(stream.to_be_bytes());
    length(if fin { FIN } else { 0 }, bytes.len(), buf);
    buf.extend(bytes);
}

fn control(kind: u16, body: &[u8], buf: &mut Vec<u8>) {
    buf.extend((0x8000 | VERSION).to_be_bytes());
    buf.extend(kind.to_be_bytes());
    length(0, body.len(), buf);
    buf.extend(body);
}

fn length(flags: u8, length: usize, buf: &mut Vec<u8>) {
    let [_, a, b, c] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    buf.extend([flags, a, b, c]);
}

#[cfg(test)]
mod tests;
