//! The errors that callers see.

use std::path::PathBuf;

/// Why the network cannot take pods, in the form of the CRI's `NetworkReady` condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct NotReady {
    /// Always `NetworkPluginNotReady`, the word that kubelets know.
    pub reason: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

/// Why an attachment could not be made or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no usable configuration.
    #[error("the pod network is not ready")]
    NotReady(#[from] NotReady),
    /// A file operation failed.
    #[error("cannot {op} {path}", path = path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// Why statistics could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read interface counters from {path}", path = path.display())]
pub struct StatsError {
    /// The file.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: std::io::Error,
}
