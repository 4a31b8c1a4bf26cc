//! Image references: how people and the kubelet name an image.
//!
//! The grammar is Docker's (`[domain/]path[:tag][@digest]`), with its defaults: the domain is
//! `docker.io`, a path of one component on it gets `library/`, and a reference with neither tag nor
//! digest gets the tag `latest`. A [`Reference`] is always complete; its `Display` is the canonical
//! form that the field shows, such as `docker.io/library/busybox:latest`.
//!
//! Nothing here looks at a registry or at the image store.

use std::fmt;
use std::str::FromStr;

use kelson_snapshot::{Digest, DigestError};

/// The domain of a reference that names none.
pub const DEFAULT_DOMAIN: &str = "docker.io";
/// The tag of a reference that names neither tag nor digest.
pub const DEFAULT_TAG: &str = "latest";
/// Longest repository path in bytes, without the domain.
pub const MAX_PATH: usize = 255;
/// Longest tag in bytes.
pub const MAX_TAG: usize = 128;
/// Longest domain in bytes, port included.
pub const MAX_DOMAIN: usize = 261;

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The text is empty.
    #[error("image reference is empty; give a name such as \"busybox:1.36\"")]
    Empty,
    /// A part is longer than it may be.
    #[error("{part} of the image reference is longer than the limit of {limit} bytes")]
    TooLong {
        /// Which part.
        part: &'static str,
        /// Its limit.
        limit: usize,
    },
    /// A part has characters or a form that it may not have.
    #[error("{part} {value:?} of the image reference is invalid: {rule}")]
    Invalid {
        /// Which part.
        part: &'static str,
        /// The offending text.
        value: String,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// The path has upper-case letters, the commonest mistake.
    #[error("repository {0:?} has upper-case letters; write it in lower case")]
    UpperCase(String),
    /// The text is 64 hexadecimal characters, which is an image id.
    #[error("image reference is an image id; put \"sha256:\" before it, or give a name")]
    BareId,
    /// The digest is malformed or of another algorithm.
    #[error("digest of the image reference is invalid")]
    Digest(#[source] DigestError),
}

/// A complete reference to an image in a registry.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry's domain with its port, as people name it: `docker.io`, `localhost:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository's path below the domain: `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag; `None` only if there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest. When there is one, it alone decides what is pulled.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Domain and path, without tag and digest: `docker.io/library/busybox`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The name of this repository's content `digest`: `docker.io/library/busybox@sha256:…`.
    pub fn at(&self, digest: &Digest) -> String {
        format!("{}/{}@{digest}", self.domain, self.path)
    }

    /// The name under which the image is kept: with its digest if there is one (a tag beside a
    /// digest is decoration), otherwise with its tag.
    pub fn name(&self) -> String {
        match &self.digest {
            Some(digest) => self.at(digest),
            None => self.to_string(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() == 64
            && text
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        {
            return Err(ReferenceError::BareId);
        }
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => (
                rest,
                Some(digest.parse::<Digest>().map_err(ReferenceError::Digest)?),
            ),
        };
        let (domain, remote) = split_domain(rest);
        check_domain(domain)?;
        let (path, tag) = match remote.rsplit_once(':') {
            None => (remote, None),
            Some((path, tag)) => (path, Some(tag)),
        };
        if let Some(tag) = tag {
            check_tag(tag)?;
        }
        let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
            check_path(path)?;
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        check_path(&path)?;
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some(DEFAULT_TAG.to_owned()),
        };
        Ok(Self {
            domain: domain.to_owned(),
            path,
            tag,
            digest,
        })
    }
}

/// The first component is a domain if nothing else can look like it: it has a dot, a colon or an
/// upper-case letter, or is `localhost`.
fn split_domain(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':', '['])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            let first = if first == "index.docker.io" {
                DEFAULT_DOMAIN
            } else {
                first
            };
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, text),
    }
}

fn invalid(part: &'static str, value: &str, rule: &'static str) -> ReferenceError {
    // A hostile text must not make a message of any length.
    ReferenceError::Invalid {
        part,
        value: value.chars().take(64).collect(),
        rule,
    }
}

fn check_domain(domain: &str) -> Result<(), ReferenceError> {
    if domain.len() > MAX_DOMAIN {
        return Err(ReferenceError::TooLong {
            part: "domain",
            limit: MAX_DOMAIN,
        });
    }
    let bad = |rule| Err(invalid("domain", domain, rule));
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else {
                return bad("an IPv6 address is closed by ']'");
            };
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return bad("there is no IPv6 address in the brackets");
            }
            match (port, port.strip_prefix(':')) {
                ("", _) => (None, None),
                (_, Some(port)) => (None, Some(port)),
                _ => return bad("only a port may follow ']'"),
            }
        }
        None => match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        },
    };
    if let Some(port) = port
        && (!port.bytes().all(|b| b.is_ascii_digit()) || !port.parse::<u16>().is_ok_and(|p| p > 0))
    {
        return bad("the port is a number from 1 to 65535");
    }
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if host.is_some_and(|host| !host.split('.').all(label)) {
        return bad("a host name is letters, digits and inner hyphens, separated by dots");
    }
    Ok(())
}

fn check_tag(tag: &str) -> Result<(), ReferenceError> {
    if tag.len() > MAX_TAG {
        return Err(ReferenceError::TooLong {
            part: "tag",
            limit: MAX_TAG,
        });
    }
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let mut bytes = tag.bytes();
    if !bytes.next().is_some_and(word) || !bytes.all(|b| word(b) || b == b'.' || b == b'-') {
        let rule =
            "a tag is letters, digits, '_', '.' and '-', and starts with none of the last two";
        return Err(invalid("tag", tag, rule));
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), ReferenceError> {
    if path.len() > MAX_PATH {
        return Err(ReferenceError::TooLong {
            part: "repository",
            limit: MAX_PATH,
        });
    }
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(ReferenceError::UpperCase(path.to_owned()));
    }
    if !path.split('/').all(is_component) {
        let rule =
            "each part is lower-case letters and digits, separated by '.', '_', '__' or '-'s";
        return Err(invalid("repository", path, rule));
    }
    Ok(())
}

/// Runs of letters and digits with one separator between two of them: `.`, `_`, `__` or hyphens.
fn is_component(part: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separator = |s: &str| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-');
    part.starts_with(alphanumeric)
        && part.ends_with(alphanumeric)
        && part
            .split(alphanumeric)
            .filter(|between| !between.is_empty())
            .all(separator)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn defaults_are_filled_in() {
        for (text, canonical) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            (
                "index.docker.io/busybox",
                "docker.io/library/busybox:latest",
            ),
            ("me/app", "docker.io/me/app:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/a/b:x", "localhost:5000/a/b:x"),
            ("127.0.0.1:5000/app", "127.0.0.1:5000/app:latest"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("[fd00::1]/app", "[fd00::1]/app:latest"),
            ("Host/app", "Host/app:latest"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("a__b/c--d/e.f", "docker.io/a__b/c--d/e.f:latest"),
        ] {
            assert_eq!(
                text.parse::<Reference>().unwrap().to_string(),
                canonical,
                "{text}"
            );
        }
    }

    #[test]
    fn digests_win_over_tags() {
        let both: Reference = format!("busybox:1.36@{DIGEST}").parse().unwrap();
        assert_eq!(both.tag(), Some("1.36"));
        assert_eq!(
            both.to_string(),
            format!("docker.io/library/busybox:1.36@{DIGEST}")
        );
        assert_eq!(both.name(), format!("docker.io/library/busybox@{DIGEST}"));
        let only: Reference = format!("busybox@{DIGEST}").parse().unwrap();
        assert_eq!(only.tag(), None);
    }

    #[test]
    fn bad_references_are_refused() {
        for text in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "a:",
            "a:-x",
            "a:x y",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a._b",
            "localhost:0/a",
            "localhost:x/a",
            "localhost:99999/a",
            "[::1/a",
            "[::1]x/a",
            "[zz]/a",
            "-bad.com/a",
            "bad..com/a",
            "busybox@",
            "busybox@sha256:00",
            "busybox@md5:00",
            "a b",
            "Busybox",
            "docker.io/Busybox",
            "é",
            "a\n",
            "http://host/a",
            "user@host/a",
            "../a",
            "a/../b",
            &"a".repeat(64),
            &"0".repeat(64),
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn limits_are_exact() {
        assert!(
            format!("h.io/{}", "a".repeat(MAX_PATH))
                .parse::<Reference>()
                .is_ok()
        );
        let too_long = format!("h.io/{}", "a".repeat(MAX_PATH + 1)).parse::<Reference>();
        assert_eq!(
            too_long,
            Err(ReferenceError::TooLong {
                part: "repository",
                limit: MAX_PATH
            })
        );
        assert!(
            format!("a:{}", "t".repeat(MAX_TAG))
                .parse::<Reference>()
                .is_ok()
        );
        let too_long = format!("a:{}", "t".repeat(MAX_TAG + 1)).parse::<Reference>();
        assert_eq!(
            too_long,
            Err(ReferenceError::TooLong {
                part: "tag",
                limit: MAX_TAG
            })
        );
    }

    proptest! {
        #[test]
        fn canonical_forms_are_fixed_points(
            text in "([a-z0-9]{1,5}\\.[a-z]{2}(:[1-9][0-9]{0,3})?/)?[a-z0-9]{1,8}([._-][a-z0-9]{1,3})?\
                     (/[a-z0-9]{1,8}){0,2}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,8})?"
        ) {
            let reference: Reference = text.parse().unwrap();
            let again: Reference = reference.to_string().parse().unwrap();
            prop_assert_eq!(&reference, &again);
            let named: Reference = reference.at(&Digest::of(b"x")).parse().unwrap();
            prop_assert_eq!(named.repository(), reference.repository());
        }

        #[test]
        fn nothing_panics(text in "\\PC{0,300}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
            }
        }
    }
}
