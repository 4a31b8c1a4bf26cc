//! The heart: one task owns one pod and its containers.
//!
//! [`Pods`] is the handle. Reads come from an immutable [`Snapshot`]; changes go to the pod's task.

pub mod config;
mod error;
mod events;
mod pods;
mod signal;
mod spec;
mod stats;
mod users;
mod validate;
mod view;

pub use error::{Ambiguous, Cause, ErrorKind, ExecError, Mistake, Mistakes, OpenError, PodError};
pub use events::{BACKLOG, Event, EventKind, Events, Received};
pub use kelson_shim::ids::{ContainerId, InvalidId, PodId};
pub use pods::{ExecOutput, MAX_EXEC_OUTPUT, Pods, PodsConfig};
pub use stats::{ContainerStats, PodStats, WritableUsage};
pub use view::{
    Container, ContainerState, ExitReason, Exited, Pod, PodState, Resolved, Snapshot, User,
};
