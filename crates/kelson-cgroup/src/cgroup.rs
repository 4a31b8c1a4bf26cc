//! One cgroup: its life, its processes, its limits and statistics.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::{Hierarchy, Resources, Result, Stats};

/// A path in a [`Hierarchy`]. Making one does no I/O, and it need not exist.
#[derive(Debug, Clone)]
pub struct Cgroup {
    #[expect(dead_code)]
    hierarchy: Hierarchy,
    path: String,
}

impl Cgroup {
    /// The cgroup at `path` beneath the mounted root; a leading slash makes no difference.
    /// Refuses an empty path, empty components, `.` and `..`, and NUL.
    pub fn new(_hierarchy: &Hierarchy, _path: &str) -> Result<Self> {
        unimplemented!()
    }

    /// The cgroup `name` beneath this one.
    pub fn child(&self, _name: &str) -> Result<Self> {
        unimplemented!()
    }

    /// Its path from the root of the hierarchy, with a leading slash.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Makes the cgroup and its parents. Succeeds when it is there already.
    pub fn create(&self) -> Result<()> {
        unimplemented!()
    }

    /// Sets limits. A limit whose controller the machine lacks is skipped.
    pub fn apply(&self, _resources: &Resources) -> Result<()> {
        unimplemented!()
    }

    /// Moves the process `pid` (as the caller's pid namespace numbers it) into the cgroup. On v1
    /// this may wait for an RCU grace period (10 ms and more): where the process is the caller's
    /// own fresh child, use [`Cgroup::entry`].
    pub fn add(&self, _pid: u32) -> Result<()> {
        unimplemented!()
    }

    /// The way in for a child process that is about to be cloned.
    pub fn entry(&self) -> Result<Entry> {
        unimplemented!()
    }

    /// v2: the directory, for `CLONE_INTO_CGROUP`. v1: `None`.
    pub fn clone_fd(&self) -> Result<Option<OwnedFd>> {
        unimplemented!()
    }

    /// All processes here and in the cgroups beneath.
    pub fn pids(&self) -> Result<Vec<u32>> {
        unimplemented!()
    }

    /// Kills every process here and beneath and waits until none is left, or fails with
    /// [`crate::Error::NotEmpty`] after `timeout`.
    pub fn kill(&self, _timeout: Duration) -> Result<()> {
        unimplemented!()
    }

    /// Sends `signal` to every process here and beneath.
    pub fn signal(&self, _signal: rustix::process::Signal) -> Result<()> {
        unimplemented!()
    }

    /// Stops every process here and beneath; returns when they are stopped.
    pub fn freeze(&self) -> Result<()> {
        unimplemented!()
    }

    /// Undoes [`Cgroup::freeze`].
    pub fn thaw(&self) -> Result<()> {
        unimplemented!()
    }

    /// Whether a process is here or beneath. A cgroup that does not exist has none.
    pub fn populated(&self) -> Result<bool> {
        unimplemented!()
    }

    /// How many processes here and beneath the OOM killer has killed.
    pub fn oom_kills(&self) -> Result<u64> {
        unimplemented!()
    }

    /// A descriptor that becomes readable when an OOM happened (and possibly at other times: read
    /// it empty, then ask [`Cgroup::oom_kills`]). `None` where the machine cannot tell.
    pub fn oom_watch(&self) -> Result<Option<OwnedFd>> {
        unimplemented!()
    }

    /// What the cgroup uses. Files of controllers that the machine lacks read as zero.
    pub fn stats(&self) -> Result<Stats> {
        unimplemented!()
    }

    /// Removes the cgroup and those beneath it. Succeeds when it is gone already; fails with
    /// [`crate::Error::NotEmpty`] when a process is left in it.
    pub fn remove(&self) -> Result<()> {
        unimplemented!()
    }

    /// Whether it exists.
    pub fn exists(&self) -> bool {
        unimplemented!()
    }
}

/// Open descriptors by which a cloned child puts itself into a cgroup, without allocation and
/// without waiting: on v1 the child calls [`Entry::enter`] first thing after clone; on v2 the
/// parent passes [`Entry::clone_into`] to clone3 with `CLONE_INTO_CGROUP` (or, where it forks
/// otherwise, the child calls `enter`).
#[derive(Debug)]
pub struct Entry {
    #[expect(dead_code)]
    files: Vec<OwnedFd>,
}

impl Entry {
    /// v2: the descriptor for `CLONE_INTO_CGROUP`; the child need not call `enter` then.
    pub fn clone_into(&self) -> Option<BorrowedFd<'_>> {
        unimplemented!()
    }

    /// Moves the calling thread, which must be its process's only one, into the cgroup. Only
    /// write(2) is called: safe between fork and exec.
    pub fn enter(&self) -> io::Result<()> {
        unimplemented!()
    }
}
