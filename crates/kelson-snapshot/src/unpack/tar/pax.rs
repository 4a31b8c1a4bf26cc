//! PAX extended headers: records that replace or extend fields of the next header.
//!
//! Strict where programs have disagreed with each other: a record whose length is wrong, a NUL in a
//! name, or a number that is none, refuses the layer.

use super::sparse::PaxSparse;
use crate::limits::{LINK, PATH, XATTR_NAME, XATTR_VALUE, XATTRS};
use crate::{UnpackError, limits::Bound};

/// What an extended header says.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: PaxSparse,
}

/// Why a record cannot be used.
pub(super) enum Fault {
    Malformed(&'static str),
    Other(UnpackError),
}

impl From<UnpackError> for Fault {
    fn from(error: UnpackError) -> Self {
        Self::Other(error)
    }
}

impl Pax {
    /// Reads all records of `data`.
    pub(super) fn parse(mut data: &[u8]) -> Result<Self, Fault> {
        let mut pax = Self::default();
        while !data.is_empty() {
            let (key, value, rest) =
                record(data).ok_or(Fault::Malformed("extended header record is malformed"))?;
            pax.take(key, value)?;
            data = rest;
        }
        Ok(pax)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        match key {
            b"path" => self.path = name(value, PATH)?,
            b"linkpath" => self.link = name(value, LINK)?,
            b"size" => self.size = optional(value, decimal, "size is not a number")?,
            b"uid" => self.uid = optional(value, signed, "user id is not a number")?,
            b"gid" => self.gid = optional(value, signed, "group id is not a number")?,
            b"mtime" => self.mtime = optional(value, time, "time is not a number")?,
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.take(key, value)?;
                } else if let Some(key) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattr(key, value)?;
                }
            }
        }
        Ok(())
    }

    fn xattr(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        if key.is_empty() {
            return Err(Fault::Malformed("extended attribute has no name"));
        }
        XATTR_NAME.check(key.len() as u64)?;
        XATTR_VALUE.check(value.len() as u64)?;
        // The last record of a name counts.
        self.xattrs.retain(|(known, _)| known != key);
        XATTRS.check(self.xattrs.len() as u64 + 1)?;
        self.xattrs.push((key.to_vec(), value.to_vec()));
        Ok(())
    }
}

/// Splits `"<length> <key>=<value>\n"` off; the length counts the whole record.
fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(8).position(|&byte| byte == b' ')?;
    let length = usize::try_from(decimal(&data[..space])?).ok()?;
    if length > data.len() || length < space + 4 {
        return None;
    }
    let (record, rest) = data.split_at(length);
    let body = record[space + 1..].strip_suffix(b"\n")?;
    let equals = body.iter().position(|&byte| byte == b'=')?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    (!key.is_empty() && !key.contains(&0)).then_some((key, value, rest))
}

/// A path; an empty one withdraws what an earlier record said.
fn name(value: &[u8], bound: Bound) -> Result<Option<Vec<u8>>, Fault> {
    if value.contains(&0) {
        return Err(Fault::Malformed("extended header has a NUL in a name"));
    }
    bound.check(value.len() as u64)?;
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

fn optional<T>(
    value: &[u8],
    parse: impl Fn(&[u8]) -> Option<T>,
    fault: &'static str,
) -> Result<Option<T>, Fault> {
    if value.is_empty() {
        return Ok(None);
    }
    parse(value).map(Some).ok_or(Fault::Malformed(fault))
}

/// Digits only, and it must fit.
pub(super) fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0_u64, |number, &digit| match digit {
        b'0'..=b'9' => number.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

fn signed(value: &[u8]) -> Option<i64> {
    match value.strip_prefix(b"-") {
        Some(value) => i64::try_from(decimal(value)?).ok()?.checked_neg(),
        None => i64::try_from(decimal(value)?).ok(),
    }
}

/// Seconds since the epoch and nanoseconds, as `-?digits(.digits)?`; finer digits are dropped.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let (whole, fraction) = match value.iter().position(|&byte| byte == b'.') {
        Some(dot) => (&value[..dot], &value[dot + 1..]),
        None => (value, &b""[..]),
    };
    let seconds = signed(whole)?;
    let mut nanoseconds = 0;
    for position in 0..9 {
        let digit = fraction.get(position).unwrap_or(&b'0');
        nanoseconds = nanoseconds * 10 + u32::from(digit.checked_sub(b'0').filter(|d| *d < 10)?);
    }
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    if whole.starts_with(b"-") && nanoseconds > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (value, expected) in [
            (&b"0"[..], Some((0, 0))),
            (b"12.5", Some((12, 500_000_000))),
            (b"12.0000000019", Some((12, 1))),
            (b"-1", Some((-1, 0))),
            (b"-1.5", Some((-2, 500_000_000))),
            (b"-62135596800", Some((-62_135_596_800, 0))),
            (b"1.", Some((1, 0))),
            (b"", None),
            (b".5", None),
            (b"1.5x", None),
            (b"1.00000000000x", None),
            (b"9223372036854775808", None),
        ] {
            assert_eq!(time(value), expected, "{value:?}");
        }
    }

    #[test]
    fn records() {
        let good = b"12 path=abc\n30 mtime=1350244992.023960108\n14 path=defgh\n";
        let pax = Pax::parse(good).ok().unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"defgh"[..]));
        assert_eq!(pax.mtime, Some((1_350_244_992, 23_960_108)));
        for bad in [
            &b"12 path=abcd\n"[..],
            b"13 path=abc\n",
            b"11 path=abc\n",
            b"0 path=abc\n",
            b"3 a=\n",
            b"-12 path=abc\n",
            b"99999999999999999999 path=abc\n",
            b"path=abc\n",
            b"6 abc\n",
            b"6 =bc\n",
            b"13 path=ab\0d\n",
            b"12 size=1a2\n",
            b"12 size=-12\n",
        ] {
            assert!(Pax::parse(bad).is_err(), "{bad:?}");
        }
    }
}
