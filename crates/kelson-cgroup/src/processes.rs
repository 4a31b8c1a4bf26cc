//! The processes of a cgroup: listing, signalling, freezing, killing.
//!
//! Processes are held by pidfd before they are signalled, and looked up once more after that, so
//! that a recycled process id never hits a stranger.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::dir::Dir;
use crate::hierarchy::Controller;
use crate::{Cgroup, Error, Result, Version};

/// How many processes are held at once: descriptors are limited, and the rest has its turn next.
const MAX_HELD: usize = 1024;

/// How long freezing may take before it is given up: a process in uninterruptible sleep does not
/// freeze.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long killing waits for a round of killed processes before it looks again.
const KILL_ROUND: Duration = Duration::from_millis(100);

impl Cgroup {
    /// All processes here and in the cgroups beneath, as far as the caller's pid namespace shows
    /// them. Empty when the cgroup does not exist.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        self.main_dir().all_pids(&mut Vec::new(), &mut pids)?;
        Ok(pids)
    }

    /// Whether a process is here or beneath. A cgroup that does not exist has none.
    pub fn populated(&self) -> Result<bool> {
        match self.hierarchy().version() {
            Version::V1 => Ok(!self.pids()?.is_empty()),
            Version::V2 => event(&self.main_dir(), "populated"),
        }
    }

    /// Sends `signal` to every process here and beneath, in one pass: a process that is forked
    /// meanwhile may be missed ([`Cgroup::kill`] misses none).
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pids = self.pids()?;
        for some in pids.chunks(MAX_HELD) {
            self.signal_some(some, signal)?;
        }
        Ok(())
    }

    /// Kills every process here and beneath, frozen ones too, and waits until none is left. Fails
    /// with [`Error::NotEmpty`] after `timeout`. On v1 frozen cgroups beneath stay frozen.
    pub fn kill(&self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let dir = self.main_dir();
        let v2 = self.hierarchy().version() == Version::V2;
        if v2
            && dir
                .write_if_there("cgroup.kill", "1")
                .or_else(gone_is(false))?
        {
            return self.wait_empty(deadline);
        }
        for round in 0.. {
            let pids = self.pids()?;
            if pids.is_empty() {
                return Ok(());
            }
            if round > 0 && Instant::now() >= deadline {
                return Err(self.not_empty(pids.len()));
            }
            // A few processes are mostly dead at the first attempt. What forks faster than it is
            // killed has to be frozen.
            let frozen = round > 0 && self.set_frozen(true)?;
            let pids = if frozen { self.pids()? } else { pids };
            let held = self.signal_some(&pids[..pids.len().min(MAX_HELD)], Signal::KILL)?;
            self.set_frozen(false)?;
            wait_for_exit(held, deadline.min(Instant::now() + KILL_ROUND))
                .map_err(|error| Error::io("wait for the processes of", dir.path(), error))?;
        }
        Ok(())
    }

    /// Stops every process here and beneath; returns when they are stopped. When that takes longer
    /// than 2 s they run again and it fails with [`Error::NotFrozen`].
    pub fn freeze(&self) -> Result<()> {
        if !self.set_frozen(true)? {
            let dir = self.main_dir();
            return Err(Error::io("freeze", dir.path(), Errno::OPNOTSUPP));
        }
        let dir = self.main_dir();
        let deadline = Instant::now() + FREEZE_TIMEOUT;
        let mut pause = Duration::from_micros(50);
        let mut buf = Vec::new();
        loop {
            let frozen = match self.hierarchy().version() {
                Version::V2 => event(&dir, "frozen")?,
                Version::V1 => {
                    dir.read("freezer.state", &mut buf)?.map(str::trim_ascii) == Some("FROZEN")
                }
            };
            if frozen {
                return Ok(());
            }
            if Instant::now() >= deadline {
                self.set_frozen(false)?;
                return Err(Error::NotFrozen {
                    path: self.path().to_owned(),
                });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
            // v1 forgets a process that was forked at the wrong moment until it is told again.
            self.set_frozen(true)?;
        }
    }

    /// Undoes [`Cgroup::freeze`].
    pub fn thaw(&self) -> Result<()> {
        self.set_frozen(false).map(|_| ())
    }

    /// Whether [`Cgroup::freeze`] is in effect.
    pub fn frozen(&self) -> Result<bool> {
        let dir = self.main_dir();
        let mut buf = Vec::new();
        Ok(match self.hierarchy().version() {
            Version::V1 => dir
                .read("freezer.state", &mut buf)?
                .is_some_and(|state| matches!(state.trim_ascii(), "FROZEN" | "FREEZING")),
            Version::V2 => dir.read_number("cgroup.freeze", &mut buf)? == Some(1),
        })
    }

    /// `false` when the machine has no freezer or the cgroup is gone.
    fn set_frozen(&self, frozen: bool) -> Result<bool> {
        let (dir, file, value) = match self.hierarchy().version() {
            Version::V1 => {
                let Some(dir) = self.dir(Controller::Freezer) else {
                    return Ok(false);
                };
                (
                    dir,
                    "freezer.state",
                    if frozen { "FROZEN" } else { "THAWED" },
                )
            }
            Version::V2 => (
                self.main_dir(),
                "cgroup.freeze",
                if frozen { "1" } else { "0" },
            ),
        };
        dir.write_if_there(file, value).or_else(gone_is(false))
    }

    /// Signals those of `pids` that are still in the cgroup once they are held, and returns all
    /// that were.
    fn signal_some(&self, pids: &[u32], signal: Signal) -> Result<Vec<OwnedFd>> {
        let dir = self.main_dir();
        let failed = |error: Errno| Error::io("signal the processes of", dir.path(), error);
        let mut held = Vec::with_capacity(pids.len());
        for pid in pids {
            let Some(id) = i32::try_from(*pid).ok().and_then(Pid::from_raw) else {
                continue;
            };
            match rustix::process::pidfd_open(id, PidfdFlags::empty()) {
                Ok(fd) => held.push((*pid, fd)),
                // EINVAL: a thread whose leader has gone; the next listing tells.
                Err(Errno::SRCH | Errno::INVAL) => {}
                Err(Errno::MFILE | Errno::NFILE) if !held.is_empty() => break,
                Err(error) => return Err(failed(error)),
            }
        }
        let mut still = self.pids()?;
        still.sort_unstable();
        let mut signalled = Vec::with_capacity(held.len());
        for (pid, fd) in held {
            if still.binary_search(&pid).is_err() {
                continue;
            }
            match rustix::process::pidfd_send_signal(&fd, signal) {
                Ok(()) => signalled.push(fd),
                Err(Errno::SRCH) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(signalled)
    }

    /// v2: waits until no process is left.
    fn wait_empty(&self, deadline: Instant) -> Result<()> {
        let path = self.main_dir().file("cgroup.events");
        let file = match rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
            Err(error) => return Err(Error::io("open", &path, error)),
        };
        let mut text = [0; 256];
        loop {
            let read = match rustix::io::pread(&file, &mut text, 0) {
                Ok(read) => read,
                Err(Errno::NODEV) => return Ok(()),
                Err(error) => return Err(Error::io("read", &path, error)),
            };
            if text[..read]
                .split(|byte| *byte == b'\n')
                .any(|line| line == b"populated 0")
            {
                return Ok(());
            }
            let mut fds = [PollFd::new(&file, PollFlags::PRI)];
            if !poll_until(&mut fds, deadline).map_err(|error| Error::io("poll", &path, error))? {
                return Err(self.not_empty(self.pids()?.len()));
            }
        }
    }

    fn not_empty(&self, count: usize) -> Error {
        Error::NotEmpty {
            path: self.path().to_owned(),
            count,
        }
    }
}

/// Holds the processes of one directory (not those beneath) and waits until they have exited or
/// the deadline is over. Returns how many there were.
pub(crate) fn wait_for_dir(dir: &Dir, deadline: Instant) -> Result<usize> {
    let mut pids = Vec::new();
    dir.own_pids(&mut Vec::new(), &mut pids)?;
    let held = pids
        .iter()
        .take(MAX_HELD)
        .filter_map(|pid| Pid::from_raw(i32::try_from(*pid).ok()?))
        .filter_map(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok())
        .collect();
    wait_for_exit(held, deadline)
        .map_err(|error| Error::io("wait for the processes of", dir.path(), error))?;
    Ok(pids.len())
}

/// Waits until every process has exited, or the deadline.
fn wait_for_exit(mut processes: Vec<OwnedFd>, deadline: Instant) -> rustix::io::Result<()> {
    while !processes.is_empty() {
        let mut fds: Vec<_> = processes
            .iter()
            .map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN))
            .collect();
        if !poll_until(&mut fds, deadline)? {
            return Ok(());
        }
        let mut exited = fds
            .iter()
            .map(|fd| !fd.revents().is_empty())
            .collect::<Vec<_>>()
            .into_iter();
        processes.retain(|_| !exited.next().unwrap_or(false));
    }
    Ok(())
}

/// poll(2) with a deadline; `false` when it is over.
fn poll_until(fds: &mut [PollFd<'_>], deadline: Instant) -> rustix::io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        match rustix::event::poll(fds, Some(&left)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// A flag of v2's `cgroup.events`. `false` when the cgroup is gone.
fn event(dir: &Dir, key: &str) -> Result<bool> {
    let mut buf = Vec::new();
    let text = dir.read("cgroup.events", &mut buf)?.unwrap_or_default();
    Ok(crate::dir::pairs(text).any(|pair| pair == (key, 1)))
}

/// Turns "there is no such cgroup" into a value.
fn gone_is<T>(value: T) -> impl FnOnce(Error) -> Result<T> {
    move |error| match &error {
        Error::Io { source, .. }
            if error.is_not_found()
                || source.raw_os_error() == Some(Errno::NODEV.raw_os_error()) =>
        {
            Ok(value)
        }
        _ => Err(error),
    }
}
