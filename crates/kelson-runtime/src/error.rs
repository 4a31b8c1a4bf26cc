//! Errors of starting a process, on both sides of the clone.

use std::io;

use serde::{Deserialize, Serialize};

/// The step at which a new process failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Getting ready: signals, session, what the other steps need of the host.
    Prepare,
    /// Entering the cgroup.
    Cgroup,
    /// Joining and making namespaces.
    Namespaces,
    /// Mounting the root file system.
    Rootfs,
    /// Mounting what the specification lists.
    Mounts,
    /// Making device nodes.
    Devices,
    /// Hiding and write-protecting paths.
    Masks,
    /// Running hooks.
    Hooks,
    /// Making the container's root the root.
    Pivot,
    /// Kernel parameters and the names of the machine.
    Sysctl,
    /// Standard streams and the terminal.
    Console,
    /// Limits, priorities, `oom_score_adj`.
    Limits,
    /// AppArmor and SELinux labels, the keyring.
    Labels,
    /// Looking the program up and entering the working directory.
    Command,
    /// Waiting to be started.
    Gate,
    /// User, groups, capabilities.
    Identity,
    /// The seccomp filter.
    Seccomp,
    /// Executing the program.
    Execute,
}

/// What kind of failure a caller may want to tell apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The program does not exist: exit code 127 by convention.
    CommandNotFound,
    /// The program exists and cannot be executed: exit code 126 by convention.
    CommandNotExecutable,
    /// Any other.
    #[default]
    Other,
}

/// A failure in the new process, before it executed its program.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct StepError {
    /// Where.
    pub step: Step,
    /// What kind.
    pub kind: Kind,
    /// What was tried, in words.
    pub what: String,
    /// The kernel's answer, where a system call failed.
    #[source]
    pub source: Option<io::Error>,
}

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The specification asks for something impossible.
    #[error("the runtime specification is not usable: {field}: {reason}")]
    Spec {
        /// The field, in the specification's notation.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The cgroup could not be made, limited or entered.
    #[error("cannot set up the cgroup of the container")]
    Cgroup(#[from] kelson_cgroup::Error),
    /// A system call failed in the caller.
    #[error("cannot {operation}")]
    System {
        /// What was tried.
        operation: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A step failed in the new process.
    #[error(transparent)]
    Step(#[from] StepError),
    /// A restored container is not what its specification says.
    #[error("the checkpoint makes something else than the request asks for: {what}")]
    Restored {
        /// What differs.
        what: String,
    },
    /// The new process did not execute its program in time.
    #[error("the container's process did not start its program in time")]
    TimedOut,
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl LaunchError {
    /// An unusable specification.
    pub(crate) fn spec(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Spec {
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// A failed system call.
    pub(crate) fn system(operation: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System {
            operation: operation.into(),
            source: source.into(),
        }
    }
}
