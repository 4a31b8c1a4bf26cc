//! Errors of the command line.

use std::io;
use std::path::PathBuf;

use super::record::Status;
use crate::hook::HookError;
use crate::seccomp::SeccompError;
use crate::{Kind, LaunchError};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum CliError {
    #[error("cannot {operation} {}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not valid", path.display())]
    Json {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("--systemd-cgroup is not supported; leave it out and give cgroupsPath as a path")]
    SystemdCgroup,
    #[error("{id:?} is no id of a container; use letters, digits, and _+-. inside, up to 1024")]
    BadId { id: String },
    #[error("container {id} does not exist; `list` shows those that do")]
    NotFound { id: String },
    #[error("a container {id} exists already; delete it or use another id")]
    Exists { id: String },
    #[error("container {id} is {status}, {needed}")]
    State {
        id: String,
        status: Status,
        needed: &'static str,
    },
    #[error("{0}")]
    Usage(String),
    #[error("cannot start the container")]
    Launch(#[from] LaunchError),
    #[error("cannot use the cgroup of the container")]
    Cgroup(#[from] kelson_cgroup::Error),
    #[error("cannot use the seccomp filter")]
    Seccomp(#[from] SeccompError),
    #[error("a hook failed")]
    Hook(#[from] HookError),
}

impl CliError {
    pub(super) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::Io {
            operation,
            path: path.into(),
            source: source.into(),
        }
    }

    /// The exit code: 127 and 126 as shells have them, 1 for everything else.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Launch(LaunchError::Step(error)) => match error.kind {
                Kind::CommandNotFound => 127,
                Kind::CommandNotExecutable => 126,
                Kind::Other => 1,
            },
            _ => 1,
        }
    }
}
