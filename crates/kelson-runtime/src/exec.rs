//! Starting a further process in a container.

use std::os::fd::BorrowedFd;

use kelson_cgroup::Cgroup;
use oci_spec::runtime::Process;

use crate::{LaunchError, Launched, Options, Stdio, seccomp};

/// A process to start in a running container.
#[derive(Debug)]
pub struct Exec<'a> {
    /// The pidfd of the container's first process.
    pub init: BorrowedFd<'a>,
    /// What to run, as whom and how.
    pub process: &'a Process,
    /// The container's cgroup, or one beneath it; it must exist.
    pub cgroup: &'a Cgroup,
    /// Its standard streams.
    pub stdio: Stdio,
    /// Its seccomp filter.
    pub seccomp: Option<&'a seccomp::Program>,
    /// The rest; `gate`, `hooks` and `no_pivot` have no meaning here.
    pub options: Options,
}

/// Starts a process in all namespaces of a running container. Returns as soon as the process
/// exists; [`Launched::progress`] tells the rest.
pub fn exec(_exec: Exec<'_>) -> Result<Launched, LaunchError> {
    unimplemented!()
}
