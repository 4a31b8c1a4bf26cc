//! Ids of pods and containers: 64 lower-case hexadecimal characters.
//!
//! A value of these types is always well formed, so it may be used as a file or cgroup name.
//! Shortened ids that people type are resolved elsewhere.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The number of characters of an id.
pub const ID_LEN: usize = 64;

/// Text that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an id has {ID_LEN} lower-case hexadecimal characters, {text:?} is not one")]
pub struct InvalidId {
    /// The text, cut to 80 characters.
    pub text: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; ID_LEN]);

        impl $name {
            /// A new random id.
            ///
            /// # Errors
            /// When the kernel's random source cannot be read.
            pub fn random() -> std::io::Result<Self> {
                random().map(Self)
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                std::str::from_utf8(&self.0).expect("an id is ASCII")
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                parse(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.as_str())
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id!(
    /// The id of a pod (the CRI's sandbox).
    PodId
);
id!(
    /// The id of a container.
    ContainerId
);

fn parse(text: &str) -> Result<[u8; ID_LEN], InvalidId> {
    match <[u8; ID_LEN]>::try_from(text.as_bytes()) {
        Ok(bytes) if bytes.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) => Ok(bytes),
        _ => Err(InvalidId {
            text: text.chars().take(80).collect(),
        }),
    }
}

fn random() -> std::io::Result<[u8; ID_LEN]> {
    let mut raw = [0_u8; ID_LEN / 2];
    // A read of at most 256 bytes is never short.
    rustix::rand::getrandom(&mut raw, rustix::rand::GetRandomFlags::empty())?;
    let mut text = [0_u8; ID_LEN];
    for (pair, byte) in text.chunks_exact_mut(2).zip(raw) {
        pair[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
        pair[1] = b"0123456789abcdef"[usize::from(byte & 15)];
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_are_well_formed_and_differ() {
        let a = PodId::random().unwrap();
        let b = PodId::random().unwrap();
        assert_ne!(a, b);
        assert_eq!(a.to_string().parse::<PodId>().unwrap(), a);
        let json = serde_json::to_string(&a).unwrap();
        assert_eq!(serde_json::from_str::<PodId>(&json).unwrap(), a);
    }

    #[test]
    fn anything_else_is_refused() {
        let upper = "A".repeat(64);
        let long = "a".repeat(65);
        let path = format!("../{}", "a".repeat(61));
        for text in ["", "abc", &upper, &long, &path, &"é".repeat(32)] {
            assert!(text.parse::<ContainerId>().is_err(), "{text}");
        }
        assert!(
            "é".repeat(1000)
                .parse::<PodId>()
                .unwrap_err()
                .text
                .chars()
                .count()
                == 80
        );
    }
}
