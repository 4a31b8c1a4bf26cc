//! The D-Bus wire format (D-Bus Specification, "Message Protocol"), as far as systemd's calls need it:
//! little endian out, both byte orders in.

use super::SystemdError;

/// The longest message that is read or written, in bytes. The specification allows 128 MiB; what
/// systemd answers here is below 1 KiB.
pub(super) const MAX_MESSAGE: usize = 64 << 10;

/// The fixed part of a header, up to and with the length of the fields.
pub(super) const PREFIX: usize = 16;

/// What kind a message is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Call,
    Return,
    Error,
    Signal,
    /// One that is to be ignored.
    Other,
}

/// Bytes being written; alignment counts from their beginning.
#[derive(Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn align(&mut self, to: usize) {
        let length = self.0.len().next_multiple_of(to);
        self.0.resize(length, 0);
    }

    pub(super) fn byte(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.align(8);
        self.0.extend(value.to_le_bytes());
    }

    /// A string or an object path.
    pub(super) fn text(&mut self, value: &str) {
        // Longer ones are refused with the whole message.
        self.u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        self.0.extend(value.as_bytes());
        self.0.push(0);
    }

    pub(super) fn signature(&mut self, value: &str) {
        self.byte(u8::try_from(value.len()).unwrap_or(u8::MAX));
        self.0.extend(value.as_bytes());
        self.0.push(0);
    }

    /// An array of what `content` writes, whose elements are aligned to `to`.
    pub(super) fn array(&mut self, to: usize, content: impl FnOnce(&mut Self)) {
        self.u32(0);
        let length_at = self.0.len() - 4;
        self.align(to);
        let begin = self.0.len();
        content(self);
        let length = u32::try_from(self.0.len() - begin).unwrap_or(u32::MAX);
        self.0[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }
}

/// A method call, without its body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
    /// The types of the body; empty for none.
    pub(super) signature: &'a str,
}

impl Call<'_> {
    /// The bytes of the message.
    pub(super) fn encode(&self, serial: u32, body: &[u8]) -> Result<Vec<u8>, SystemdError> {
        let mut to = Writer::default();
        to.0.extend([b'l', 1, 0, 1]);
        to.u32(u32::try_from(body.len()).unwrap_or(u32::MAX));
        to.u32(serial);
        to.array(8, |to| {
            for (code, kind, value) in [
                (1, "o", self.path),
                (2, "s", self.interface),
                (3, "s", self.member),
                (6, "s", self.destination),
                (8, "g", self.signature),
            ] {
                if value.is_empty() {
                    continue;
                }
                to.align(8);
                to.byte(code);
                to.signature(kind);
                match kind {
                    "g" => to.signature(value),
                    _ => to.text(value),
                }
            }
        });
        to.align(8);
        to.0.extend(body);
        if to.0.len() > MAX_MESSAGE {
            return Err(SystemdError::TooLong);
        }
        Ok(to.0)
    }
}

/// A message that came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: Kind,
    /// The serial of the call that it answers.
    pub(super) reply_to: Option<u32>,
    pub(super) interface: String,
    pub(super) member: String,
    /// The name of an error.
    pub(super) error: String,
    big: bool,
    body: Vec<u8>,
}

impl Message {
    /// The length of a whole message, of its first [`PREFIX`] bytes.
    pub(super) fn length(prefix: &[u8; PREFIX]) -> Result<usize, SystemdError> {
        let big = order(prefix[0])?;
        let mut from = Reader::new(&prefix[..], big);
        from.at = 4;
        let body = from.u32()?;
        from.at = 12;
        let fields = from.u32()?;
        let sum = [body, fields].iter().try_fold(PREFIX, |sum, part| {
            sum.checked_add(usize::try_from(*part).ok()?)
        });
        match sum {
            // Eight more bytes at most align the body.
            Some(sum) if sum <= MAX_MESSAGE - 8 => {
                let header = sum - body as usize;
                Ok(header.next_multiple_of(8) + body as usize)
            }
            _ => Err(SystemdError::TooLong),
        }
    }

    /// Reads a whole message.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, SystemdError> {
        let big = order(*bytes.first().ok_or(MALFORMED)?)?;
        let mut from = Reader::new(bytes, big);
        from.at = 1;
        let kind = match from.byte()? {
            1 => Kind::Call,
            2 => Kind::Return,
            3 => Kind::Error,
            4 => Kind::Signal,
            _ => Kind::Other,
        };
        from.at = 4;
        let body_length = from.u32()? as usize;
        from.at = 12;
        let mut message = Self {
            kind,
            reply_to: None,
            interface: String::new(),
            member: String::new(),
            error: String::new(),
            big,
            body: Vec::new(),
        };
        let length = from.u32()? as usize;
        let end = from.at.checked_add(length).ok_or(MALFORMED)?;
        while from.at < end {
            from.align(8)?;
            message.field(&mut from)?;
        }
        from.align(8)?;
        let rest = bytes.get(from.at..).unwrap_or_default();
        if rest.len() != body_length {
            return Err(MALFORMED);
        }
        message.body = rest.to_vec();
        Ok(message)
    }

    fn field(&mut self, from: &mut Reader<'_>) -> Result<(), SystemdError> {
        let code = from.byte()?;
        let kind = from.signature()?;
        match (code, kind.as_str()) {
            (2, "s") => self.interface = from.text()?,
            (3, "s") => self.member = from.text()?,
            (4, "s") => self.error = from.text()?,
            (5, "u") => self.reply_to = Some(from.u32()?),
            (_, "s" | "o") => drop(from.text()?),
            (_, "g") => drop(from.signature()?),
            (_, "u") => drop(from.u32()?),
            _ => return Err(MALFORMED),
        }
        Ok(())
    }

    /// Reads the body from its beginning.
    pub(super) fn body(&self) -> Reader<'_> {
        Reader::new(&self.body, self.big)
    }
}

const MALFORMED: SystemdError = SystemdError::Malformed;

fn order(byte: u8) -> Result<bool, SystemdError> {
    match byte {
        b'l' => Ok(false),
        b'B' => Ok(true),
        _ => Err(MALFORMED),
    }
}

/// Bytes being read; never beyond their end.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    big: bool,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8], big: bool) -> Self {
        Self { bytes, at: 0, big }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], SystemdError> {
        let end = self.at.checked_add(count).ok_or(MALFORMED)?;
        let taken = self.bytes.get(self.at..end).ok_or(MALFORMED)?;
        self.at = end;
        Ok(taken)
    }

    fn align(&mut self, to: usize) -> Result<(), SystemdError> {
        let padding = self.at.next_multiple_of(to) - self.at;
        self.take(padding).map(|_| ())
    }

    fn byte(&mut self) -> Result<u8, SystemdError> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn u32(&mut self) -> Result<u32, SystemdError> {
        self.align(4)?;
        let bytes = self.take(4)?.try_into().map_err(|_| MALFORMED)?;
        Ok(match self.big {
            true => u32::from_be_bytes(bytes),
            false => u32::from_le_bytes(bytes),
        })
    }

    /// A string or an object path.
    pub(super) fn text(&mut self) -> Result<String, SystemdError> {
        let length = self.u32()? as usize;
        self.terminated(length)
    }

    pub(super) fn signature(&mut self) -> Result<String, SystemdError> {
        let length = usize::from(self.byte()?);
        self.terminated(length)
    }

    fn terminated(&mut self, length: usize) -> Result<String, SystemdError> {
        let text = self.take(length)?;
        if self.byte()? != 0 {
            return Err(MALFORMED);
        }
        String::from_utf8(text.to_vec()).map_err(|_| MALFORMED)
    }
}

#[cfg(test)]
pub(super) mod testing {
    //! What the other side of a connection writes.

    use super::*;

    /// A message of this kind with string and number fields, in either byte order.
    pub(in crate::systemd) fn message(
        big: bool,
        kind: u8,
        fields: &[(u8, &str, &str)],
        reply_to: Option<u32>,
        body: &[u8],
    ) -> Vec<u8> {
        assert!(!big || fields.is_empty(), "texts are written little endian");
        let mut to = Writer::default();
        to.0.extend([if big { b'B' } else { b'l' }, kind, 0, 1]);
        let mut header = Writer::default();
        for (code, kind, value) in fields {
            header.align(8);
            header.byte(*code);
            header.signature(kind);
            match *kind {
                "g" => header.signature(value),
                _ => header.text(value),
            }
        }
        let number = |value: u32| match big {
            true => value.to_be_bytes(),
            false => value.to_le_bytes(),
        };
        if let Some(serial) = reply_to {
            header.align(8);
            header.byte(5);
            header.signature("u");
            header.align(4);
            header.0.extend(number(serial));
        }
        to.0.extend(number(u32::try_from(body.len()).unwrap()));
        to.0.extend(number(1));
        to.0.extend(number(u32::try_from(header.0.len()).unwrap()));
        to.0.extend(header.0);
        to.align(8);
        to.0.extend(body);
        to.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: Call<'_> = Call {
        destination: "a.b",
        path: "/c",
        interface: "d.e",
        member: "Do",
        signature: "su",
    };

    #[test]
    fn a_call_is_what_the_specification_says() {
        let mut body = Writer::default();
        body.text("hi");
        body.u32(7);
        let bytes = CALL.encode(3, &body.0).unwrap();
        // Written out by hand from the specification.
        let expected = [
            &b"l\x01\x00\x01\x0c\x00\x00\x00\x03\x00\x00\x00\x48\x00\x00\x00"[..],
            b"\x01\x01o\x00\x02\x00\x00\x00/c\x00\x00\x00\x00\x00\x00",
            b"\x02\x01s\x00\x03\x00\x00\x00d.e\x00\x00\x00\x00\x00",
            b"\x03\x01s\x00\x02\x00\x00\x00Do\x00\x00\x00\x00\x00\x00",
            b"\x06\x01s\x00\x03\x00\x00\x00a.b\x00\x00\x00\x00\x00",
            b"\x08\x01g\x00\x02su\x00",
            b"\x02\x00\x00\x00hi\x00\x00\x07\x00\x00\x00",
        ];
        assert_eq!(bytes, expected.concat());
        let prefix = bytes[..PREFIX].try_into().unwrap();
        assert_eq!(Message::length(&prefix).unwrap(), bytes.len());
        let message = Message::decode(&bytes).unwrap();
        assert_eq!((message.kind, message.member.as_str()), (Kind::Call, "Do"));
        let mut body = message.body();
        assert_eq!(
            (body.text().unwrap().as_str(), body.u32().unwrap()),
            ("hi", 7)
        );
        assert!(body.u32().is_err());
    }

    #[test]
    fn arrays_are_aligned_and_counted() {
        let mut to = Writer::default();
        to.array(8, |to| to.u64(5));
        to.array(4, |_| ());
        assert_eq!(to.0, b"\x08\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\0\0\0\0");
    }

    #[test]
    fn answers_in_both_byte_orders() {
        for big in [false, true] {
            let number = if big {
                9_u32.to_be_bytes()
            } else {
                9_u32.to_le_bytes()
            };
            let bytes = testing::message(big, 2, &[], Some(77), &number);
            let prefix = bytes[..PREFIX].try_into().unwrap();
            assert_eq!(Message::length(&prefix).unwrap(), bytes.len());
            let message = Message::decode(&bytes).unwrap();
            assert_eq!((message.kind, message.reply_to), (Kind::Return, Some(77)));
            assert_eq!(message.body().u32().unwrap(), 9);
        }
    }

    #[test]
    fn what_is_too_long_is_refused() {
        let mut prefix = *b"l\x02\x00\x01\xff\xff\xff\xff\x01\x00\x00\x00\xff\xff\xff\xff";
        assert!(matches!(
            Message::length(&prefix),
            Err(SystemdError::TooLong)
        ));
        prefix[0] = b'x';
        assert!(matches!(
            Message::length(&prefix),
            Err(SystemdError::Malformed)
        ));
        let body = vec![0; MAX_MESSAGE];
        assert!(matches!(CALL.encode(1, &body), Err(SystemdError::TooLong)));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(mut bytes: Vec<u8>, real: bool, at: usize) {
            if real {
                let mut message = CALL.encode(1, &[1, 2, 3]).unwrap();
                if let Some(byte) = bytes.first() {
                    let at = at % message.len();
                    message[at] = *byte;
                }
                bytes = message;
            }
            if let Ok(message) = Message::decode(&bytes) {
                let _ = message.body().text();
            }
            if let Some(prefix) = bytes.first_chunk() {
                let _ = Message::length(prefix);
            }
        }
    }
}
