//! The numbers that a hostile or absurd layer meets. Each is named in the error that it causes.

use crate::UnpackError;

/// Limits of one layer that an operator may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the uncompressed tar stream, and of the length of a single file in it. It is what
    /// guards against compression bombs. Default: 256 GiB.
    pub unpacked_bytes: u64,
    /// Entries of the archive. Default: 4,000,000.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            unpacked_bytes: 256 << 30,
            entries: 4_000_000,
        }
    }
}

/// A number that no configuration changes, and what it limits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bound {
    what: &'static str,
    pub(crate) limit: u64,
}

impl Bound {
    const fn new(what: &'static str, limit: u64) -> Self {
        Self { what, limit }
    }

    /// Entries of a layer.
    pub(crate) const fn entries(limit: u64) -> Self {
        Self::new("entries of a layer", limit)
    }

    /// Bytes of the uncompressed layer.
    pub(crate) const fn unpacked(limit: u64) -> Self {
        Self::new("uncompressed bytes of a layer", limit)
    }

    /// Bytes of one file.
    pub(crate) const fn file(limit: u64) -> Self {
        Self::new("bytes of a file", limit)
    }

    /// The error of exceeding it.
    pub(crate) fn exceeded(self) -> UnpackError {
        UnpackError::Limit {
            what: self.what,
            limit: self.limit,
        }
    }

    /// Fails if `value` exceeds it.
    pub(crate) fn check(self, value: u64) -> Result<(), UnpackError> {
        if value > self.limit {
            Err(self.exceeded())
        } else {
            Ok(())
        }
    }
}

/// `PATH_MAX` without the final NUL.
pub(crate) const PATH: Bound = Bound::new("bytes of a path", 4095);
pub(crate) const LINK: Bound = Bound::new("bytes of a link target", 4095);
/// `NAME_MAX`.
pub(crate) const NAME: Bound = Bound::new("bytes of a file name", 255);
/// Directories are opened level by level, so depth costs descriptors when a tree is removed.
pub(crate) const DEPTH: Bound = Bound::new("depth of a path", 256);
/// Symbolic links followed while resolving one path, as the kernel's own limit.
pub(crate) const LINKS_FOLLOWED: Bound = Bound::new("symbolic links in a path", 40);
/// Directories are remembered by their paths until the layer is complete.
pub(crate) const DIRECTORIES: Bound = Bound::new("bytes of all directory names", 64 << 20);
pub(crate) const PAX: Bound = Bound::new("bytes of an extended header", 1 << 20);
/// `XATTR_SIZE_MAX`.
pub(crate) const XATTR_VALUE: Bound = Bound::new("bytes of an extended attribute", 64 << 10);
/// `XATTR_NAME_MAX`.
pub(crate) const XATTR_NAME: Bound = Bound::new("bytes of an extended attribute's name", 255);
pub(crate) const XATTRS: Bound = Bound::new("extended attributes of a file", 128);
pub(crate) const SEGMENTS: Bound = Bound::new("segments of a sparse file", 65_536);
/// They are remembered until the layer is committed.
pub(crate) const LOWER_LINKS: Bound =
    Bound::new("bytes of all hard links into the layers below", 8 << 20);
/// Lower layers that overlayfs takes in one mount.
pub(crate) const LAYERS: u64 = 500;
/// Files with several names in a container's directory, remembered while it is measured.
pub(crate) const SEVERAL_NAMES: u64 = 1 << 20;
