//! The 512-byte tar header: POSIX ustar, GNU, star and the nameless form before them.
//!
//! Reads fields and judges numbers; knows nothing of extended headers or of files.

/// Bytes of a header, and the unit to which everything is padded.
pub(in crate::unpack) const BLOCK: usize = 512;

/// A header whose checksum is right.
pub(super) struct Header([u8; BLOCK]);

/// Where the part of a long name is that does not fit into the name field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl Header {
    /// Takes a block that is not all zero; `None` if its checksum is wrong.
    pub(super) fn check(block: [u8; BLOCK]) -> Option<Self> {
        let stored = number(&block[148..156])?;
        let (mut unsigned, mut signed) = (0_i64, 0_i64);
        for (position, &byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&position) {
                b' '
            } else {
                byte
            };
            unsigned += i64::from(byte);
            // Some early programs summed signed characters.
            signed += i64::from(byte.cast_signed());
        }
        (stored == unsigned || stored == signed).then_some(Self(block))
    }

    fn dialect(&self) -> Dialect {
        match &self.0[257..265] {
            b"ustar\x0000" if &self.0[508..512] == b"tar\0" => Dialect::Star,
            b"ustar\x0000" => Dialect::Ustar,
            b"ustar  \0" => Dialect::Gnu,
            _ => Dialect::V7,
        }
    }

    pub(super) fn is_gnu(&self) -> bool {
        self.dialect() == Dialect::Gnu
    }

    pub(super) fn kind(&self) -> u8 {
        self.0[156]
    }

    /// The name, with its prefix where the dialect has one.
    pub(super) fn name(&self) -> Vec<u8> {
        let prefix = match self.dialect() {
            Dialect::Ustar => text(&self.0[345..500]),
            Dialect::Star => text(&self.0[345..476]),
            // Programs built with Go before 1.8 put a prefix where GNU has its access time.
            Dialect::Gnu if number(&self.0[345..357]).is_none() => text(&self.0[345..500]),
            Dialect::V7 | Dialect::Gnu => &[],
        };
        let name = text(&self.0[..100]);
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    pub(super) fn link(&self) -> &[u8] {
        text(&self.0[157..257])
    }

    pub(super) fn mode(&self) -> Option<i64> {
        number(&self.0[100..108])
    }

    pub(super) fn uid(&self) -> Option<i64> {
        number(&self.0[108..116])
    }

    pub(super) fn gid(&self) -> Option<i64> {
        number(&self.0[116..124])
    }

    pub(super) fn size(&self) -> Option<i64> {
        number(&self.0[124..136])
    }

    pub(super) fn mtime(&self) -> Option<i64> {
        number(&self.0[136..148])
    }

    /// Major and minor number.
    pub(super) fn device(&self) -> Option<(i64, i64)> {
        if self.dialect() == Dialect::V7 {
            return None;
        }
        Some((number(&self.0[329..337])?, number(&self.0[337..345])?))
    }

    /// The length of an old GNU sparse file.
    pub(super) fn sparse_length(&self) -> Option<i64> {
        number(&self.0[483..495])
    }

    /// The segments in the header of an old GNU sparse file, and whether blocks with more follow.
    pub(super) fn sparse_table(&self) -> (&[u8], bool) {
        (&self.0[386..482], self.0[482] != 0)
    }
}

/// A field up to its first NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(field.len());
    &field[..end]
}

/// A number in octal digits, or in base 256 if the highest bit is set. An empty field is zero.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        return base256(field);
    }
    let start = field
        .iter()
        .position(|byte| !matches!(byte, 0 | b' '))
        .unwrap_or(field.len());
    let digits = text(&field[start..]).trim_ascii_end();
    digits.iter().try_fold(0_i64, |value, &digit| match digit {
        b'0'..=b'7' => Some(value.checked_mul(8)? + i64::from(digit - b'0')),
        _ => None,
    })
}

/// Two's complement, big endian; the highest bit is only the mark, the next one is the sign.
fn base256(field: &[u8]) -> Option<i64> {
    let negative = field[0] & 0x40 != 0;
    let first = if negative {
        i128::from(field[0]) - 0x100
    } else {
        i128::from(field[0] & 0x7f)
    };
    // At most 12 bytes: it cannot overflow 128 bits.
    let value = field[1..]
        .iter()
        .fold(first, |value, &byte| value << 8 | i128::from(byte));
    i64::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"00000000010 ", Some(8)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"12345678", None),
            (b"-0000001", None),
            (b"0x12    ", None),
            (b"77777777777\0", Some(0o77777777777)),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (
                b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe",
                Some(-2),
            ),
            (
                b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
                Some(i64::MAX),
            ),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ] {
            assert_eq!(number(field), value, "{field:?}");
        }
    }
}
