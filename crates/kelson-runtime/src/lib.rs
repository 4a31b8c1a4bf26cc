//! An OCI runtime as a library: a runtime specification goes in, a process comes out.
//!
//! [`launch`] makes a container, [`exec`] starts a further process in one; both execute nothing
//! but the container's own program. What happens between the clone and the execution is a table of
//! ordered steps (`steps`). [`cli`] is the same library behind runc's command line.
//!
//! The caller must be single-threaded: the steps run in a clone of it. Whoever launches reaps: the
//! crate never waits for a process that it has handed out, and keeps no state of its own outside
//! [`cli`].

#![allow(
    unsafe_code,
    reason = "clone3 and what a process does to itself before it executes"
)]

pub mod cli;
pub mod seccomp;

mod error;
mod exec;
mod hook;
mod launch;
mod plan;
mod progress;
mod restore;
mod steps;

pub use error::{Kind, LaunchError, Step, StepError};
pub use exec::{Exec, exec};
pub use launch::{HookContext, Launch, Launched, Options, Rootfs, Stdio, launch};
pub use progress::{Event, Progress};
pub use restore::{Restore, check, restore, restored};

/// The version of the OCI runtime specification that this crate follows.
pub const OCI_VERSION: &str = "1.2.1";

/// The limits of `linux.resources`, without those of devices, in the cgroup crate's own terms.
pub fn limits(spec: &oci_spec::runtime::LinuxResources) -> kelson_cgroup::Resources {
    let mut limits = plan::resources::from_spec(spec, &[]);
    limits.devices.clear();
    limits
}
