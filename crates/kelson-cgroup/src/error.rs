//! The errors of cgroup operations. Each names the operation and the file or path.

use std::path::{Path, PathBuf};

/// Result of a cgroup operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a cgroup operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call on a cgroup file or directory failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried: "create", "read", `write "5" to`, …
        operation: String,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The path of a cgroup cannot be used.
    #[error("{path:?} is no cgroup path: {reason}")]
    Path {
        /// The path as given.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Processes are left after the deadline.
    #[error("{count} processes are still in cgroup {path}; kill them first")]
    NotEmpty {
        /// The cgroup.
        path: String,
        /// How many processes.
        count: usize,
    },
    /// Not every process could be stopped in time.
    #[error("the processes in cgroup {path} did not freeze; they run again")]
    NotFrozen {
        /// The cgroup.
        path: String,
    },
    /// No cgroup hierarchy is mounted.
    #[error("no cgroup hierarchy is mounted; mount cgroup2 on /sys/fs/cgroup")]
    NotMounted,
    /// A limit has a value that cannot be set.
    #[error("cannot set {limit} to {value:?}: {reason}")]
    Limit {
        /// The name of the limit in the OCI specification.
        limit: &'static str,
        /// The value.
        value: String,
        /// Why not.
        reason: &'static str,
    },
    /// A cgroup v2 directory with processes cannot hand controllers on to its children.
    #[error(
        "cgroup {} has processes of its own, so its children get no controllers; \
         move them into a cgroup beneath it",
        path.display()
    )]
    Occupied {
        /// The directory.
        path: PathBuf,
    },
    /// systemd did not do what it was asked for.
    #[error("cannot {operation} the unit {unit}")]
    Systemd {
        /// What it was asked for.
        operation: &'static str,
        /// The unit.
        unit: String,
        /// Why not.
        #[source]
        source: crate::systemd::SystemdError,
    },
    /// A cgroup file has a content that this version does not understand.
    #[error("{} has an unexpected content: {content:?}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// How it begins.
        content: String,
    },
}

impl Error {
    /// An I/O error with its operation and path.
    pub(crate) fn io(
        operation: impl Into<String>,
        path: &Path,
        source: impl Into<std::io::Error>,
    ) -> Self {
        Self::Io {
            operation: operation.into(),
            path: path.to_owned(),
            source: source.into(),
        }
    }

    /// A value that a limit cannot have.
    pub(crate) fn limit(limit: &'static str, value: impl ToString, reason: &'static str) -> Self {
        Self::Limit {
            limit,
            value: value.to_string(),
            reason,
        }
    }

    /// Whether the cgroup (or file) is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    }
}
