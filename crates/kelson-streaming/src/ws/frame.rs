//! WebSocket frames (RFC 6455, section 5): bytes in, pieces of messages out, and back.
//!
//! A control frame is read whole (its limit is 125 bytes); the payload of a message is handed out
//! in the pieces in which it arrives, so that a message of any length needs no buffer.

use std::io;

use bytes::{Buf, Bytes, BytesMut};

/// Bytes of a control frame's payload, at most (5.5).
const MAX_CONTROL: usize = 125;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// What makes a connection unusable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Bits or an operation that were not agreed on.
    #[error("a frame with reserved bits or the reserved operation {0}")]
    Reserved(u8),
    /// A client must mask, a server must not.
    #[error("a frame that is masked the wrong way for its sender")]
    Mask,
    /// A control frame that is long or in parts.
    #[error("a control frame above {MAX_CONTROL} bytes or in parts")]
    Control,
    /// A continuation of nothing, or a message within a message.
    #[error("the parts of a message are out of order")]
    Order,
    /// A length with the highest bit set.
    #[error("a frame of an impossible length")]
    Length,
    /// A message for a channel that is broken by itself.
    #[error("a malformed message")]
    Message,
}

impl From<FrameError> for io::Error {
    fn from(error: FrameError) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Masks what it sends.
    Client,
    /// Does not.
    Server,
}

/// What has arrived.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A piece of a message.
    Piece {
        /// Whether a message begins with it.
        first: bool,
        /// Whether a message ends with it.
        last: bool,
        /// Its bytes.
        bytes: Bytes,
    },
    /// To be answered with the same bytes.
    Ping(Bytes),
    /// The answer to a ping.
    Pong,
    /// The other side is done; the code says why, if it told one.
    Close(Option<u16>),
}

#[derive(Debug, Clone, Copy)]
struct Payload {
    first: bool,
    fin: bool,
    left: u64,
    mask: Option<[u8; 4]>,
}

/// Cuts what arrives into events.
#[derive(Debug)]
pub struct Decoder {
    from: Side,
    payload: Option<Payload>,
    /// A message has begun and not ended.
    within: bool,
}

impl Decoder {
    /// A decoder of what this side sends.
    pub fn new(from: Side) -> Self {
        Self {
            from,
            payload: None,
            within: false,
        }
    }

    /// Takes the next event off the front of `buf`; `None` when more has to arrive.
    ///
    /// # Errors
    /// After an error the connection cannot be used: what follows has no meaning.
    pub fn next(&mut self, buf: &mut BytesMut) -> Result<Option<Event>, FrameError> {
        if let Some(payload) = self.payload {
            return Ok(self.piece(payload, buf));
        }
        let Some((head, length, fin, operation, mask)) = self.head(buf)? else {
            return Ok(None);
        };
        if operation >= CLOSE {
            if length > MAX_CONTROL as u64 || !fin {
                return Err(FrameError::Control);
            }
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if buf.len() < head + length {
                return Ok(None);
            }
            buf.advance(head);
            let mut body = buf.split_to(length);
            if let Some(mut mask) = mask {
                apply(&mut mask, &mut body);
            }
            return Ok(Some(match operation {
                PING => Event::Ping(body.freeze()),
                PONG => Event::Pong,
                _ => Event::Close(body.first_chunk().map(|code| u16::from_be_bytes(*code))),
            }));
        }
        if (operation == CONTINUATION) != self.within {
            return Err(FrameError::Order);
        }
        buf.advance(head);
        self.within = !fin;
        let payload = Payload {
            first: operation != CONTINUATION,
            fin,
            left: length,
            mask,
        };
        Ok(self.piece(payload, buf))
    }

    /// The head of the next frame: its length, that of its payload, and what it says.
    #[expect(clippy::type_complexity, reason = "used in one place")]
    fn head(
        &self,
        buf: &BytesMut,
    ) -> Result<Option<(usize, u64, bool, u8, Option<[u8; 4]>)>, FrameError> {
        let [flags, length, ..] = buf[..] else {
            return Ok(None);
        };
        let operation = flags & 0x0f;
        if flags & 0x70 != 0
            || !matches!(
                operation,
                CONTINUATION | TEXT | BINARY | CLOSE | PING | PONG
            )
        {
            return Err(FrameError::Reserved(operation));
        }
        if (length & 0x80 != 0) != (self.from == Side::Client) {
            return Err(FrameError::Mask);
        }
        let (mut head, length) = match length & 0x7f {
            126 => match buf[2..].first_chunk() {
                Some(bytes) => (4, u64::from(u16::from_be_bytes(*bytes))),
                None => return Ok(None),
            },
            127 => match buf[2..].first_chunk() {
                Some(bytes) => (10, u64::from_be_bytes(*bytes)),
                None => return Ok(None),
            },
            short => (2, u64::from(short)),
        };
        if length >> 63 != 0 {
            return Err(FrameError::Length);
        }
        let mut mask = None;
        if self.from == Side::Client {
            let Some(bytes) = buf[head..].first_chunk() else {
                return Ok(None);
            };
            mask = Some(*bytes);
            head += 4;
        }
        Ok(Some((head, length, flags & 0x80 != 0, operation, mask)))
    }

    /// The part of a payload that is there; an empty frame is one empty part.
    fn piece(&mut self, mut payload: Payload, buf: &mut BytesMut) -> Option<Event> {
        let here = usize::try_from(payload.left)
            .unwrap_or(usize::MAX)
            .min(buf.len());
        if here == 0 && payload.left > 0 {
            self.payload = Some(payload);
            return None;
        }
        let mut bytes = buf.split_to(here);
        if let Some(mask) = &mut payload.mask {
            apply(mask, &mut bytes);
        }
        payload.left -= here as u64;
        let first = std::mem::take(&mut payload.first);
        let last = payload.fin && payload.left == 0;
        self.payload = (payload.left > 0).then_some(payload);
        Some(Event::Piece {
            first,
            last,
            bytes: bytes.freeze(),
        })
    }
}

/// Masks or unmasks, and turns the mask so that it fits what follows (5.3).
fn apply(mask: &mut [u8; 4], bytes: &mut [u8]) {
    for chunk in bytes.chunks_mut(4) {
        for (byte, key) in chunk.iter_mut().zip(*mask) {
            *byte ^= key;
        }
    }
    mask.rotate_left(bytes.len() % 4);
}

/// Adds a binary or a text message in one frame to `buf`; clients give a fresh mask.
pub fn message(text: bool, parts: &[&[u8]], mask: Option<[u8; 4]>, buf: &mut Vec<u8>) {
    frame(if text { TEXT } else { BINARY }, parts, mask, buf);
}

/// Adds the answer to a ping to `buf`.
pub fn pong(body: &[u8], mask: Option<[u8; 4]>, buf: &mut Vec<u8>) {
    frame(PONG, &[body], mask, buf);
}

/// Adds a ping to `buf`.
pub fn ping(body: &[u8], mask: Option<[u8; 4]>, buf: &mut Vec<u8>) {
    frame(PING, &[body], mask, buf);
}

/// Adds a close frame to `buf`.
pub fn close(code: u16, mask: Option<[u8; 4]>, buf: &mut Vec<u8>) {
    frame(CLOSE, &[&code.to_be_bytes()], mask, buf);
}

fn frame(operation: u8, parts: &[&[u8]], mask: Option<[u8; 4]>, buf: &mut Vec<u8>) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let masked = if mask.is_some() { 0x80 } else { 0 };
    buf.push(0x80 | operation);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ 0..126), _) => buf.push(masked | short),
        (_, Ok(medium)) => {
            buf.push(masked | 126);
            buf.extend(medium.to_be_bytes());
        }
        _ => {
            buf.push(masked | 127);
            buf.extend((length as u64).to_be_bytes());
        }
    }
    buf.extend(
        mask.unwrap_or_default()
            .iter()
            .take(if masked == 0 { 0 } else { 4 }),
    );
    let body = buf.len();
    parts.iter().for_each(|part| buf.extend(*part));
    if let Some(mut mask) = mask {
        apply(&mut mask, &mut buf[body..]);
    }
}

#[cfg(test)]
mod tests;
