//! Names of entries: where an entry goes, and what a name with `.wh.` means.
//!
//! Whiteouts are those of the OCI image specification (layers, "Whiteouts"), which AUFS introduced.

use crate::UnpackError;
use crate::error::shown;
use crate::limits::{DEPTH, NAME, PATH};

const WHITEOUT: &[u8] = b".wh.";
/// AUFS kept its own files under such names; they are not part of the layer.
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What an entry's name asks for. Paths are relative, without empty, `.` and `..` components.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The layer's own root directory.
    Root,
    /// A file of this name in the directory `parent`.
    Entry { parent: Vec<u8>, name: Vec<u8> },
    /// `name` of the layers below is not there any more.
    Whiteout { parent: Vec<u8>, name: Vec<u8> },
    /// Nothing that the layers below have in this directory is there any more.
    Opaque(Vec<u8>),
    /// Not part of the layer.
    Nothing,
}

impl Target {
    /// Judges the name of an entry. Leading slashes are dropped, as the field's programs do; a name
    /// with `..` is refused even where it would lead back into the layer.
    pub(super) fn parse(raw: &[u8]) -> Result<Self, UnpackError> {
        let components = components(raw)?;
        let Some((&name, parents)) = components.split_last() else {
            return Ok(Self::Root);
        };
        let refused = |reason: &str| UnpackError::Format {
            offset: 0,
            reason: format!("{reason}: {:?}", shown(raw)),
            source: None,
        };
        let below = |prefix| parents.iter().any(|parent| parent.starts_with(prefix));
        if below(AUFS) || (name.starts_with(AUFS) && name != OPAQUE) {
            return Ok(Self::Nothing);
        }
        if below(WHITEOUT) {
            return Err(refused("whiteout is used as a directory"));
        }
        let parent = || parents.join(&b'/');
        if name == OPAQUE {
            return Ok(Self::Opaque(parent()));
        }
        match name.strip_prefix(WHITEOUT) {
            Some(b"" | b"." | b"..") => Err(refused("whiteout names nothing")),
            Some(name) => Ok(Self::Whiteout {
                parent: parent(),
                name: name.to_vec(),
            }),
            None => Ok(Self::Entry {
                parent: parent(),
                name: name.to_vec(),
            }),
        }
    }
}

/// The components of a name in an archive.
pub(super) fn components(raw: &[u8]) -> Result<Vec<&[u8]>, UnpackError> {
    PATH.check(raw.len() as u64)?;
    let mut components = Vec::new();
    for component in raw.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(UnpackError::Escape { path: shown(raw) }),
            component => {
                NAME.check(component.len() as u64)?;
                components.push(component);
            }
        }
    }
    DEPTH.check(components.len() as u64)?;
    Ok(components)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(parent: &str, name: &str) -> Target {
        Target::Entry {
            parent: parent.into(),
            name: name.into(),
        }
    }

    #[test]
    fn plain_names() {
        for raw in ["", "/", "./", ".", "//./"] {
            assert_eq!(
                Target::parse(raw.as_bytes()).unwrap(),
                Target::Root,
                "{raw}"
            );
        }
        for raw in ["a/b", "/a/b", "./a/b/", "a//b", "///a/./b"] {
            assert_eq!(
                Target::parse(raw.as_bytes()).unwrap(),
                entry("a", "b"),
                "{raw}"
            );
        }
        assert_eq!(Target::parse(b"a").unwrap(), entry("", "a"));
        assert_eq!(Target::parse(b"..a/b..").unwrap(), entry("..a", "b.."));
    }

    #[test]
    fn escapes() {
        for raw in ["..", "../a", "a/../b", "a/..", "/../a", "a/../../b"] {
            let error = Target::parse(raw.as_bytes()).unwrap_err();
            assert!(matches!(error, UnpackError::Escape { .. }), "{raw}");
        }
    }

    #[test]
    fn whiteouts() {
        let whiteout = Target::Whiteout {
            parent: b"a".to_vec(),
            name: b"b".to_vec(),
        };
        assert_eq!(Target::parse(b"a/.wh.b").unwrap(), whiteout);
        assert_eq!(
            Target::parse(b"./.wh..wh..opq").unwrap(),
            Target::Opaque(vec![])
        );
        assert_eq!(
            Target::parse(b"a/b/.wh..wh..opq").unwrap(),
            Target::Opaque(b"a/b".to_vec())
        );
        for raw in [
            ".wh..wh.plnk/1.2",
            ".wh..wh.aufs",
            "a/.wh..wh.orph",
            ".wh..wh.plnk/.wh.a",
        ] {
            assert_eq!(
                Target::parse(raw.as_bytes()).unwrap(),
                Target::Nothing,
                "{raw}"
            );
        }
        for raw in [
            ".wh.",
            "a/.wh.",
            ".wh..",
            ".wh...",
            ".wh.a/b",
            "a/.wh.b/.wh..wh..opq",
        ] {
            let result = Target::parse(raw.as_bytes());
            assert!(
                matches!(result, Err(UnpackError::Format { .. })),
                "{raw} {result:?}"
            );
        }
    }

    #[test]
    fn limits() {
        let limit = |raw: String| match Target::parse(raw.as_bytes()) {
            Err(UnpackError::Limit { what, .. }) => Some(what),
            _ => None,
        };
        assert_eq!(limit("a".repeat(255)), None);
        assert_eq!(limit("a".repeat(256)), Some("bytes of a file name"));
        assert_eq!(limit("a/".repeat(256)), None);
        assert_eq!(limit("a/".repeat(257)), Some("depth of a path"));
        assert_eq!(limit("./".repeat(2048)), Some("bytes of a path"));
    }
}
