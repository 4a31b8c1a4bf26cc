//! The keys that leave a session: their form on the command line, and finding them in what is typed.

/// A sequence of keys; empty: there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Keys(Vec<u8>);

impl Keys {
    /// Reads `ctrl-p,ctrl-q`: single characters, and `ctrl-` with a letter or one of `@[\]^_`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let key = |part: &str| {
            let usage = || {
                format!("{part:?} is no key: write a character, or ctrl- with one of a-z@[\\]^_")
            };
            match (
                part.strip_prefix("ctrl-").map(str::as_bytes),
                part.as_bytes(),
            ) {
                (Some(&[key]), _) => match key.to_ascii_uppercase() {
                    key @ b'@'..=b'_' => Ok(key & 0x1f),
                    _ => Err(usage()),
                },
                (None, &[key]) if key.is_ascii_graphic() => Ok(key),
                _ => Err(usage()),
            }
        };
        text.split(',').map(key).collect::<Result<_, _>>().map(Self)
    }

    /// Looks for the keys from now on.
    pub(super) fn watch(&self) -> Watch<'_> {
        Watch {
            keys: &self.0,
            seen: 0,
        }
    }
}

/// How much of the keys has been typed.
#[derive(Debug)]
pub(super) struct Watch<'a> {
    keys: &'a [u8],
    seen: usize,
}

impl Watch<'_> {
    /// What of the typed bytes is for the process, and whether the keys were among them. A beginning of
    /// the keys is held back until the next byte tells.
    pub(super) fn pass(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        if self.keys.is_empty() {
            return (typed.to_vec(), false);
        }
        let mut passed = Vec::with_capacity(typed.len() + self.seen);
        for &byte in typed {
            // The longest beginning of the keys that the held bytes and this one end with.
            let mut held = self.keys[..self.seen].to_vec();
            held.push(byte);
            let fits = (0..=held.len()).find(|&from| self.keys.starts_with(&held[from..]));
            let from = fits.unwrap_or(held.len());
            passed.extend_from_slice(&held[..from]);
            self.seen = held.len() - from;
            if self.seen == self.keys.len() {
                return (passed, true);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_from_their_names() {
        let keys = |text| Keys::parse(text).map(|keys| keys.0);
        assert_eq!(keys("ctrl-p,ctrl-q").unwrap(), [16, 17]);
        assert_eq!(keys("a,ctrl-[,ctrl-@,ctrl-Z").unwrap(), [b'a', 27, 0, 26]);
        assert!(keys("").unwrap().is_empty());
        for bad in ["ctrl-", "ctrl-1", "ab", "a,,b", "ctrl-pq", "\u{e4}", " "] {
            assert!(keys(bad).is_err(), "{bad:?}");
        }
    }

    fn pass(keys: &str, typed: &[&[u8]]) -> (Vec<u8>, bool) {
        let keys = Keys::parse(keys).unwrap();
        let mut watch = keys.watch();
        let mut all = Vec::new();
        for piece in typed {
            let (passed, leave) = watch.pass(piece);
            all.extend(passed);
            if leave {
                return (all, true);
            }
        }
        (all, false)
    }

    #[test]
    fn keys_are_found_however_they_are_cut() {
        assert_eq!(
            pass("ctrl-p,ctrl-q", &[b"ab\x10\x11cd"]),
            (b"ab".to_vec(), true)
        );
        assert_eq!(
            pass("ctrl-p,ctrl-q", &[b"ab\x10", b"\x11"]),
            (b"ab".to_vec(), true)
        );
        assert_eq!(
            pass("ctrl-p,ctrl-q", &[b"\x10", b"x"]),
            (b"\x10x".to_vec(), false)
        );
        assert_eq!(
            pass("ctrl-p,ctrl-q", &[b"\x10\x10\x11"]),
            (b"\x10".to_vec(), true)
        );
        assert_eq!(
            pass("a,a,b", &[b"a", b"a", b"a", b"b"]),
            (b"a".to_vec(), true)
        );
        assert_eq!(pass("a,b,a,c", &[b"ababac"]), (b"ab".to_vec(), true));
        assert_eq!(pass("", &[b"\x10\x11"]), (b"\x10\x11".to_vec(), false));
    }
}
