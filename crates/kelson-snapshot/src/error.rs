//! The errors of unpacking a layer and of keeping layers and containers.

use std::io;
use std::path::PathBuf;

use crate::digest::{ChainId, Digest};

/// Which of a layer's two digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Of the bytes as they were sent.
    Blob,
    /// Of the uncompressed tar stream (diff id).
    Uncompressed,
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Blob => "blob",
            Self::Uncompressed => "uncompressed layer",
        })
    }
}

/// Why a layer could not be unpacked. Paths are those inside the layer, cut to a readable length.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The bytes end before the layer does: the connection broke, or the blob is damaged.
    #[error("layer ends after {got} bytes of {expected}")]
    Truncated {
        /// Bytes received.
        got: u64,
        /// Bytes announced.
        expected: u64,
    },
    /// More bytes arrive than the manifest announced.
    #[error("layer is longer than the {expected} bytes that its manifest announces")]
    TooLong {
        /// Bytes announced.
        expected: u64,
    },
    /// The bytes are not those that the manifest or the image configuration names.
    #[error("digest of the {which} is {got}, expected {expected}")]
    DigestMismatch {
        /// Which of the two digests.
        which: Which,
        /// What the image names.
        expected: Digest,
        /// What the bytes give.
        got: Digest,
    },
    /// An entry would be written outside the layer.
    #[error("layer entry {path:?} leads out of the layer")]
    Escape {
        /// The entry's name or link target.
        path: String,
    },
    /// The layer exceeds a limit.
    #[error("layer exceeds the limit of {limit} for {what}")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// The number.
        limit: u64,
    },
    /// The compressed data, the archive or one of its entries is malformed.
    #[error("layer is malformed at byte {offset} of its archive: {reason}")]
    Format {
        /// Position in the uncompressed stream.
        offset: u64,
        /// What is wrong.
        reason: String,
        /// What the decompressor said, if it was the one that failed.
        #[source]
        source: Option<io::Error>,
    },
    /// The file system has no space, or the user's quota is used up.
    #[error("no space left to unpack the layer; free some, or remove unused images")]
    DiskFull(#[source] io::Error),
    /// Reading the blob failed: a matter of the connection, not of the layer.
    #[error("reading the layer failed after {got} bytes")]
    Read {
        /// Bytes received before.
        got: u64,
        /// What the reader said.
        #[source]
        source: io::Error,
    },
    /// A file operation failed.
    #[error("{op} {path:?} failed while unpacking the layer")]
    Io {
        /// The operation.
        op: &'static str,
        /// Inside the layer, or of the staging directory.
        path: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Why layers or containers could not be kept, prepared or removed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// No such chain is committed.
    #[error("layer {0} is not on disk; pull the image again")]
    UnknownLayer(ChainId),
    /// No such container is prepared.
    #[error("container {0:?} has no snapshot")]
    UnknownContainer(String),
    /// The container is prepared already.
    #[error("container {0:?} has a snapshot already; remove it first")]
    ContainerExists(String),
    /// The container's name is empty, too long, or not made of letters, digits, `-`, `_` and `.`.
    #[error("container name {0:?} cannot name a directory")]
    ContainerName(String),
    /// The layer is needed by something else.
    #[error("layer {layer} is in use by {by}")]
    InUse {
        /// The layer.
        layer: ChainId,
        /// Who needs it.
        by: String,
    },
    /// An entry of the layer needs something of its parents that is not there or not safe.
    #[error("layer does not fit on its parents")]
    Unfit(#[source] UnpackError),
    /// Another process works in the same directories.
    #[error("{0} is in use by another process; stop it, or use another root directory")]
    Busy(PathBuf),
    /// A stack of layers is too high, or a directory tree too large to be measured.
    #[error("{path} exceeds the limit of {limit} for {what}")]
    Limit {
        /// The tree.
        path: PathBuf,
        /// What is limited.
        what: &'static str,
        /// The number.
        limit: u64,
    },
    /// What the image declares as a volume is no directory in it, or cannot be reached.
    #[error("volume {volume:?} of the image is no directory in it")]
    Volume {
        /// The path.
        volume: String,
        /// Why.
        #[source]
        source: kelson_sys::root::RootError,
    },
    /// The file system has no space.
    #[error("no space left on the file system of {path}; free some, or remove unused images")]
    DiskFull {
        /// What was written.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A file operation failed.
    #[error("cannot {op} {path}")]
    Io {
        /// The operation.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A path inside a layer as an error shows it: readable, and of bounded length.
pub(crate) fn shown(path: &[u8]) -> String {
    const LONGEST: usize = 256;
    if path.len() <= LONGEST {
        return String::from_utf8_lossy(path).into_owned();
    }
    format!("{}…", String::from_utf8_lossy(&path[..LONGEST]))
}

/// Names the operation and the path inside a layer of a failed system call.
pub(crate) fn at(op: &'static str, path: &[u8]) -> impl FnOnce(rustix::io::Errno) -> UnpackError {
    let path = shown(path);
    move |errno| {
        if is_full(errno) {
            UnpackError::DiskFull(errno.into())
        } else {
            UnpackError::Io {
                op,
                path,
                source: errno.into(),
            }
        }
    }
}

/// Names the operation and the path of a failed file operation of the snapshotter's own.
pub(crate) fn on<E: Into<io::Error>>(
    op: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(E) -> SnapshotError {
    let path = path.into();
    move |error| {
        let source: io::Error = error.into();
        if rustix::io::Errno::from_io_error(&source).is_some_and(is_full) {
            SnapshotError::DiskFull { path, source }
        } else {
            SnapshotError::Io { op, path, source }
        }
    }
}

fn is_full(errno: rustix::io::Errno) -> bool {
    matches!(errno, rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT)
}
