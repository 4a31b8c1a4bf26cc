//! cgroup v1 and v2: creation, limits, statistics, killing, through cgroupfs; and as units of systemd.
//!
//! A [`Hierarchy`] is what the machine has mounted, a [`Cgroup`] is a path in it. On cgroup v1 one
//! `Cgroup` stands for the same path in every controller's hierarchy; on v2 it is one directory.
//! Values are those of the OCI runtime specification (v1 units); they are converted for v2.
//!
//! This crate never follows a path that leaves the hierarchy, never caches what the kernel may
//! change, and has no background work: whoever wants to hear of an OOM polls the descriptor that
//! [`Cgroup::oom_watch`] returns.

mod cgroup;
mod controllers;
mod dir;
mod error;
mod hierarchy;
mod mountinfo;
mod oom;
mod path;
mod processes;
mod remove;
mod resources;
mod stats;
pub mod systemd;

pub use cgroup::{Cgroup, Entry};
pub use error::{Error, Result};
pub use hierarchy::{Hierarchy, Version};
pub use resources::{
    Access, DeviceKind, DeviceRule, HugepageLimit, IoThrottle, IoWeight, Resources,
};
pub use stats::{Cpu, Hugepages, Io, IoDevice, Memory, Pids, Pressure, Psi, PsiSet, Stats};
