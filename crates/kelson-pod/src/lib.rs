//! The heart: one task owns one pod and its containers.
//!
//! [`Pods`] is the handle. Reads come from an immutable [`Snapshot`]; changes go to the pod's task.

mod admission;
mod apparmor;
mod bandwidth;
mod checkpoint;
pub mod config;
mod effects;
mod error;
mod events;
mod exec;
mod files;
mod filters;
mod janitor;
mod journal;
mod machine;
mod metrics;
mod mountinfo;
mod outside;
mod pods;
mod real;
mod record;
mod recover;
mod registry;
mod restore;
mod selinux;
mod signal;
mod spec;
mod stats;
mod task;
mod units;
mod users;
mod validate;
mod view;
mod world;

pub use error::{
    Ambiguous, Cause, DialError, ErrorKind, ExecError, Mistake, Mistakes, OpenError, PodError,
};
pub use events::{BACKLOG, Event, EventKind, Events, Received};
pub use kelson_shim::client::{Output, Resizer, Session, ShimError, Stdin};
pub use kelson_shim::ids::{ContainerId, InvalidId, PodId};
pub use kelson_shim::proto::{ExecExit, RefusalKind, TerminalSize};
pub use metrics::{ContainerMetrics, PodMetrics, Processes};
pub use pods::{CgroupDriver, ExecOutput, MAX_EXEC_OUTPUT, Pods, PodsConfig};
pub use selinux::SelinuxError;
pub use stats::{ContainerStats, PodStats, WritableUsage};
pub use validate::is_handler;
pub use view::{
    Container, ContainerState, ExitReason, Exited, InPod, Pod, PodState, Resolved, Snapshot, User,
};

#[cfg(test)]
mod tests;
