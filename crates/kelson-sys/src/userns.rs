//! User namespaces as descriptors: made with their mappings, and looked into.
//!
//! A namespace needs a process to be made in and to be asked about. Here that is a clone that makes
//! system calls only and is gone when the function returns, so these functions are safe in programs
//! with threads too.

use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result, retry_on_intr};
use rustix::pipe::PipeFlags;

use crate::process::{Child, Cloned, clone3, exit_now, ns, setns};

/// Most lines of a mapping that the kernel takes.
pub const MAX_RANGES: usize = 340;

/// Ids that follow each other: one line of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// The first id in the namespace.
    pub inside: u32,
    /// What the caller's namespace calls it.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

impl IdRange {
    /// What `id` of the namespace is outside; `None`: it is not of this range.
    pub fn outside_of(&self, id: u32) -> Option<u32> {
        let offset = id.checked_sub(self.inside).filter(|at| *at < self.count)?;
        self.outside.checked_add(offset)
    }
}

/// What `id` of a namespace with this mapping is outside.
pub fn outside_of(ranges: &[IdRange], id: u32) -> Option<u32> {
    ranges.iter().find_map(|range| range.outside_of(id))
}

/// A new user namespace beneath the caller's, with these mappings of user and group ids. It exists
/// as long as something refers to it.
pub fn make(uids: &[IdRange], gids: &[IdRange]) -> Result<OwnedFd> {
    if uids.len() > MAX_RANGES || gids.len() > MAX_RANGES {
        return Err(Errno::TOOBIG);
    }
    let holder = Holder::start(None)?;
    for (name, ranges) in [("uid_map", uids), ("gid_map", gids)] {
        let text: String = ranges
            .iter()
            .map(|r| format!("{} {} {}\n", r.inside, r.outside, r.count))
            .collect();
        // The kernel takes a mapping in one write.
        let mut file = std::fs::File::options()
            .write(true)
            .open(holder.path(name))
            .map_err(errno)?;
        file.write_all(text.as_bytes()).map_err(errno)?;
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(holder.path("ns/user"), flags, Mode::empty())
}

/// The mappings of the user and group ids of a user namespace, as the caller's namespace has them.
pub fn mappings(namespace: BorrowedFd<'_>) -> Result<(Vec<IdRange>, Vec<IdRange>)> {
    let holder = Holder::start(Some(namespace))?;
    Ok((
        parse(&read(&holder.path("uid_map"))?)?,
        parse(&read(&holder.path("gid_map"))?)?,
    ))
}

/// As [`mappings`], of the user namespace of process `pid`.
pub fn mappings_of_process(pid: u32) -> Result<(Vec<IdRange>, Vec<IdRange>)> {
    let of = |name: &str| parse(&read(&format!("/proc/{pid}/{name}"))?);
    Ok((of("uid_map")?, of("gid_map")?))
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(path).map_err(errno)
}

fn parse(text: &str) -> Result<Vec<IdRange>> {
    let line = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(IdRange {
            inside: next()?,
            outside: next()?,
            count: next()?,
        })
    };
    let ranges: Option<Vec<IdRange>> = text.lines().map(line).collect();
    ranges.ok_or(Errno::INVAL)
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// A process that does nothing in a user namespace; it ends when this is dropped.
struct Holder(Child);

impl Holder {
    /// In a new namespace, or in an existing one.
    fn start(namespace: Option<BorrowedFd<'_>>) -> Result<Self> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let flags = if namespace.is_none() { ns::USER } else { 0 };
        // SAFETY: the child makes system calls only, so it needs no lock that a thread may hold.
        match unsafe { clone3(flags, None) }? {
            Cloned::Child => {
                // SAFETY: the arguments are numbers.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
                let joined = namespace.is_none_or(|namespace| setns(namespace, ns::USER).is_ok());
                if !joined || rustix::io::write(&write, b"j") != Ok(1) {
                    exit_now(1);
                }
                loop {
                    // SAFETY: pause has no preconditions.
                    unsafe { libc::pause() };
                }
            }
            Cloned::Parent(child) => {
                let holder = Self(child);
                drop(write);
                let mut word = [0; 1];
                match retry_on_intr(|| rustix::io::read(&read, &mut word))? {
                    1 => Ok(holder),
                    _ => Err(Errno::PERM),
                }
            }
        }
    }

    fn path(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.0.pid)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let pidfd = self.0.pidfd.as_fd();
        let _ = crate::process::pidfd_send_signal(pidfd, libc::SIGKILL);
        // SAFETY: a null pointer asks for no information. Where children are reaped by the kernel,
        // the call fails when the process is gone.
        while unsafe {
            libc::waitid(
                libc::P_PIDFD,
                pidfd.as_raw_fd().cast_unsigned(),
                std::ptr::null_mut(),
                libc::WEXITED,
            )
        } == -1
            && Errno::from_io_error(&std::io::Error::last_os_error()) == Some(Errno::INTR)
        {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: IdRange = IdRange {
        inside: 10,
        outside: 1000,
        count: 5,
    };

    #[test]
    fn ids_are_found_in_ranges() {
        assert_eq!(RANGE.outside_of(9), None);
        assert_eq!(RANGE.outside_of(10), Some(1000));
        assert_eq!(RANGE.outside_of(14), Some(1004));
        assert_eq!(RANGE.outside_of(15), None);
        assert_eq!(outside_of(&[RANGE], 12), Some(1002));
        let last = IdRange {
            outside: u32::MAX,
            ..RANGE
        };
        assert_eq!(last.outside_of(11), None);
    }

    #[test]
    fn mappings_are_read() {
        let text = "         0       1000        100\n        200      5000         1\n";
        let ranges = parse(text).unwrap();
        assert_eq!((ranges.len(), ranges[1].outside), (2, 5000));
        assert_eq!(parse("0 1\n").unwrap_err(), Errno::INVAL);
        assert_eq!(parse("0 1 x\n").unwrap_err(), Errno::INVAL);
    }

    #[test]
    fn a_namespace_has_the_mappings_it_was_made_with() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let uids = [IdRange {
            inside: 0,
            outside: 70_000,
            count: 100,
        }];
        let gids = [
            IdRange {
                inside: 0,
                outside: 80_000,
                count: 10,
            },
            IdRange {
                inside: 50,
                outside: 90_000,
                count: 1,
            },
        ];
        let namespace = make(&uids, &gids).unwrap();
        let (u, g) = mappings(namespace.as_fd()).unwrap();
        assert_eq!((u.as_slice(), g.as_slice()), (&uids[..], &gids[..]));
        let overlapping = [gids[0], gids[0]];
        assert_eq!(make(&uids, &overlapping).unwrap_err(), Errno::INVAL);
        assert_eq!(
            make(&uids, &[gids[0]; MAX_RANGES + 1]).unwrap_err(),
            Errno::TOOBIG
        );
    }
}
