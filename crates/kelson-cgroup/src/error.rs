//! The errors of cgroup operations. Each names the operation and the file or path.

use std::path::PathBuf;

/// Result of a cgroup operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a cgroup operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call on a cgroup file or directory failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried: "write", "create", "read", …
        operation: &'static str,
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
    #[error("{count} processes are still in cgroup {path}")]
    NotEmpty {
        /// The cgroup.
        path: String,
        /// How many processes.
        count: usize,
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
}
