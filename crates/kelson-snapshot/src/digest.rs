//! Content digests: the names of blobs, of unpacked layers and of stacks of layers.
//!
//! Only SHA-256 is spoken, in the form `sha256:` and 64 lower-case hexadecimal characters
//! (OCI image specification, descriptors). Every other algorithm is refused by name: a digest that
//! cannot be checked is worth nothing.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Why a text is not a digest that can be checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The algorithm is another one than SHA-256.
    #[error("digest algorithm {0:?} is not supported, only sha256 is")]
    Unsupported(String),
    /// There is no `sha256:` followed by 64 lower-case hexadecimal characters.
    #[error("digest is not \"sha256:\" followed by 64 lower-case hexadecimal characters")]
    Malformed,
}

/// The SHA-256 digest of some bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// Takes the 32 bytes that a SHA-256 computation gave.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Computes the digest of `data`.
    pub fn of(data: &[u8]) -> Self {
        Self(Sha256::digest(data).into())
    }

    /// The digest of everything that `data` yields, and how many bytes that is.
    ///
    /// # Errors
    /// `data` cannot be read.
    pub fn of_stream(data: &mut dyn std::io::Read) -> std::io::Result<(Self, u64)> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 256 << 10];
        let mut length = 0;
        loop {
            match data.read(&mut buffer) {
                Ok(0) => return Ok((Self(hash.finalize().into()), length)),
                Ok(count) => {
                    hash.update(&buffer[..count]);
                    length += count as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hexadecimal characters, without the algorithm: fit for a file name.
    pub fn hex(&self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
        self.0
            .iter()
            .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
            .collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (algorithm, hex) = text.split_once(':').ok_or(DigestError::Malformed)?;
        if algorithm != "sha256" {
            // A hostile text must not make a message of any length.
            let shown = algorithm.chars().take(32).collect();
            return Err(DigestError::Unsupported(shown));
        }
        let hex: &[u8; 64] = hex
            .as_bytes()
            .try_into()
            .map_err(|_| DigestError::Malformed)?;
        let nibble = |character: u8| match character {
            b'0'..=b'9' => Ok(character - b'0'),
            b'a'..=b'f' => Ok(character - b'a' + 10),
            _ => Err(DigestError::Malformed),
        };
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

macro_rules! digest_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Digest);

        impl $name {
            /// The digest itself.
            pub const fn digest(&self) -> &Digest {
                &self.0
            }
        }

        impl From<Digest> for $name {
            fn from(digest: Digest) -> Self {
                Self(digest)
            }
        }

        impl FromStr for $name {
            type Err = DigestError;

            fn from_str(text: &str) -> Result<Self, DigestError> {
                text.parse().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

digest_newtype! {
    /// The digest of one layer's uncompressed tar stream, as `rootfs.diff_ids` of an image
    /// configuration lists it.
    DiffId
}

digest_newtype! {
    /// The name of a stack of layers (OCI image specification, "Layer ChainID"): it names the
    /// layer on top together with everything below it.
    ChainId
}

impl ChainId {
    /// The chain that `diff` makes on top of `parent`, or alone.
    pub fn new(parent: Option<&ChainId>, diff: &DiffId) -> Self {
        match parent {
            None => Self(diff.0),
            Some(parent) => Self(Digest::of(format!("{parent} {diff}").as_bytes())),
        }
    }

    /// The chain ids of an image's layers, bottom first, in the order of `diff_ids`.
    pub fn chain(diff_ids: &[DiffId]) -> Vec<Self> {
        let mut chain: Vec<Self> = Vec::with_capacity(diff_ids.len());
        for diff in diff_ids {
            chain.push(Self::new(chain.last(), diff));
        }
        chain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_agree() {
        let digest = Digest::of(b"");
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse::<Digest>(), Ok(digest));
        let json = serde_json::to_string(&DiffId::from(digest)).unwrap();
        assert_eq!(json, format!("\"{text}\""));
        assert_eq!(
            serde_json::from_str::<ChainId>(&json).unwrap().digest(),
            &digest
        );
    }

    #[test]
    fn other_forms_are_refused() {
        let upper = "sha256:E3B0C44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for text in [
            "",
            "sha256",
            "sha256:",
            "sha256:00",
            upper,
            &format!("sha256:{}é", "0".repeat(62)),
        ] {
            assert_eq!(
                text.parse::<Digest>(),
                Err(DigestError::Malformed),
                "{text}"
            );
        }
        let other = format!("sha512:{}", "0".repeat(128));
        assert_eq!(
            other.parse::<Digest>(),
            Err(DigestError::Unsupported("sha512".into()))
        );
    }

    #[test]
    fn chain_ids_follow_the_specification() {
        let diffs: Vec<DiffId> = [b"a", b"b"].map(|data| Digest::of(data).into()).to_vec();
        let chain = ChainId::chain(&diffs);
        assert_eq!(chain[0].digest(), diffs[0].digest());
        let joined = format!("{} {}", diffs[0], diffs[1]);
        assert_eq!(chain[1].digest(), &Digest::of(joined.as_bytes()));
    }
}
