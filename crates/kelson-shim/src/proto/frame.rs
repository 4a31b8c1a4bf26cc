//! Frames: a little-endian `u32` length, a `u8` kind, and that many bytes of payload.

use super::TerminalSize;

/// The bytes in front of a payload.
pub const HEADER: usize = 5;

/// The greatest payload of a JSON message; a runtime specification fits.
pub const MAX_MESSAGE: usize = 4 << 20;

/// The greatest payload of an input or output frame.
pub const MAX_DATA: usize = 64 << 10;

/// The payload of a frame for a terminal's size: rows and columns, each a little-endian `u16`.
pub const RESIZE: usize = 4;

/// What a frame carries. Kinds from 5 on are reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A JSON message.
    Message = 0,
    /// Bytes for the standard input; no bytes: the end of it.
    Stdin = 1,
    /// Bytes from the standard output.
    Stdout = 2,
    /// Bytes from the standard error.
    Stderr = 3,
    /// The size of the terminal; one with a zero in it is ignored. Since version 2.
    Resize = 4,
}

/// A frame that cannot be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The kind is not known.
    #[error("a frame of the unknown kind {0}")]
    UnknownKind(u8),
    /// The payload is too long.
    #[error("a frame of {len} bytes is longer than the limit of {limit} for {kind:?}")]
    TooLong {
        /// The kind of the frame.
        kind: Kind,
        /// Its length.
        len: usize,
        /// The limit for its kind.
        limit: usize,
    },
}

impl Kind {
    fn from_byte(byte: u8) -> Result<Self, FrameError> {
        match byte {
            0 => Ok(Self::Message),
            1 => Ok(Self::Stdin),
            2 => Ok(Self::Stdout),
            3 => Ok(Self::Stderr),
            4 => Ok(Self::Resize),
            other => Err(FrameError::UnknownKind(other)),
        }
    }

    fn limit(self) -> usize {
        match self {
            Self::Message => MAX_MESSAGE,
            Self::Stdin | Self::Stdout | Self::Stderr => MAX_DATA,
            Self::Resize => RESIZE,
        }
    }
}

/// The header of a frame.
pub fn header(kind: Kind, len: usize) -> [u8; HEADER] {
    let length = u32::try_from(len)
        .expect("a payload is far below 4 GiB")
        .to_le_bytes();
    [length[0], length[1], length[2], length[3], kind as u8]
}

/// Reads a header.
///
/// # Errors
/// When the kind is unknown or the length is above the limit of the kind.
pub fn parse_header(bytes: [u8; HEADER]) -> Result<(Kind, usize), FrameError> {
    let [a, b, c, d, kind] = bytes;
    let kind = Kind::from_byte(kind)?;
    let len = u32::from_le_bytes([a, b, c, d]) as usize;
    if len > kind.limit() {
        return Err(FrameError::TooLong {
            kind,
            len,
            limit: kind.limit(),
        });
    }
    Ok((kind, len))
}

/// The payload of a resize frame.
pub fn resize(size: TerminalSize) -> [u8; RESIZE] {
    let ([a, b], [c, d]) = (size.rows.to_le_bytes(), size.cols.to_le_bytes());
    [a, b, c, d]
}

/// Reads the payload of a resize frame; none when it has the wrong length or a zero in it.
pub fn parse_resize(payload: &[u8]) -> Option<TerminalSize> {
    let [a, b, c, d] = *<&[u8; RESIZE]>::try_from(payload).ok()?;
    TerminalSize::new(u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))
}

/// A whole message frame.
///
/// # Errors
/// When the message does not fit into a frame or cannot be written as JSON.
pub fn message(value: &impl serde::Serialize) -> Result<Vec<u8>, MessageError> {
    let mut bytes = vec![0; HEADER];
    serde_json::to_writer(&mut bytes, value).map_err(MessageError::Json)?;
    let len = bytes.len() - HEADER;
    if len > MAX_MESSAGE {
        return Err(MessageError::TooLong(len));
    }
    bytes[..HEADER].copy_from_slice(&header(Kind::Message, len));
    Ok(bytes)
}

/// A message that cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// It is too long.
    #[error("a message of {0} bytes is longer than the limit of {MAX_MESSAGE}")]
    TooLong(usize),
    /// It has no JSON form.
    #[error("a message cannot be written as JSON")]
    Json(#[source] serde_json::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_the_way() {
        for kind in [Kind::Message, Kind::Stdin, Kind::Stdout, Kind::Stderr] {
            for len in [0, 1, 65_535, MAX_DATA] {
                assert_eq!(parse_header(header(kind, len)).unwrap(), (kind, len));
            }
        }
    }

    #[test]
    fn limits_hold() {
        assert_eq!(
            parse_header(header(Kind::Stdout, MAX_DATA + 1)),
            Err(FrameError::TooLong {
                kind: Kind::Stdout,
                len: MAX_DATA + 1,
                limit: MAX_DATA
            })
        );
        assert!(parse_header(header(Kind::Message, MAX_MESSAGE)).is_ok());
        assert!(parse_header(header(Kind::Message, MAX_MESSAGE + 1)).is_err());
        assert_eq!(
            parse_header([0, 0, 0, 0, 9]),
            Err(FrameError::UnknownKind(9))
        );
        let long = "x".repeat(MAX_MESSAGE);
        assert!(matches!(message(&long), Err(MessageError::TooLong(_))));
        assert!(parse_header(header(Kind::Resize, RESIZE + 1)).is_err());
    }

    #[test]
    fn sizes_survive_the_way_and_zeros_are_none() {
        let size = TerminalSize::new(300, 7).unwrap();
        assert_eq!(parse_resize(&resize(size)), Some(size));
        for bad in [
            &[0, 0, 1, 0][..],
            &[1, 0, 0, 0],
            &[1, 0, 1],
            &[1, 0, 1, 0, 0],
        ] {
            assert_eq!(parse_resize(bad), None, "{bad:?}");
        }
    }
}
