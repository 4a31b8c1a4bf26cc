//! Processor time that a runtime has used: the daemon, its shims, and the programs that they have executed.
//!
//! Where the daemon has a cgroup to itself that cgroup has counted all of it, also of processes that are gone
//! (shims stay in it; what runs in containers does not). Elsewhere it is the time of the processes that are
//! there, and of their children that have been waited for.

use std::fs;
use std::path::PathBuf;

use super::peer::Peer;
use super::pod::Up;
use super::processes::Processes;

/// How the processor time of a peer is found out.
#[derive(Debug)]
pub(super) enum Clock {
    /// The file of its cgroup, and whether that is of cgroup v2.
    Cgroup(PathBuf, bool),
    Processes,
}

impl Clock {
    /// Looks whether the daemon has a cgroup to itself. No pod may be up.
    pub(super) fn of(peer: &Peer) -> Self {
        let processes = Processes::of(peer.daemon(), &[]);
        cgroup(peer.daemon())
            .filter(|(directory, _)| {
                let pids = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
                let pids: Vec<u32> = pids.lines().filter_map(|pid| pid.parse().ok()).collect();
                pids.contains(&peer.daemon()) && pids.iter().all(|pid| processes.contains(*pid))
            })
            .map_or(Self::Processes, |(directory, unified)| {
                let file = if unified { "cpu.stat" } else { "cpuacct.usage" };
                Self::Cgroup(directory.join(file), unified)
            })
    }

    /// How it is found out, for people.
    pub(super) fn describe(&self) -> &'static str {
        match self {
            Self::Cgroup(..) => "counted by the cgroup of the daemon",
            Self::Processes => {
                "from /proc, of children in ticks: give the daemon a cgroup of its own"
            }
        }
    }

    /// The processor time so far, in nanoseconds.
    pub(super) fn read(&self, peer: &Peer, fleet: &[Up]) -> u64 {
        match self {
            Self::Cgroup(file, unified) => {
                usage(&fs::read_to_string(file).unwrap_or_default(), *unified)
            }
            Self::Processes => {
                let processes = Processes::of(peer.daemon(), fleet);
                processes.processor_nanoseconds() + processes.children_nanoseconds()
            }
        }
    }
}

fn usage(text: &str, unified: bool) -> u64 {
    let number = |text: &str| text.trim().parse::<u64>().unwrap_or_default();
    if unified {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "));
        line.map_or(0, number) * 1000
    } else {
        number(text)
    }
}

/// The directory of a process's cgroup that counts processor time, unless it is the root; and whether it is
/// of cgroup v2.
fn cgroup(pid: u32) -> Option<(PathBuf, bool)> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let lines = || {
        text.lines()
            .filter_map(|line| line.split_once(':')?.1.split_once(':'))
    };
    let v1 = lines().find(|(names, _)| names.split(',').any(|name| name == "cpuacct"));
    let (names, path) = v1.or_else(|| lines().find(|(names, _)| names.is_empty()))?;
    let path = path.trim_start_matches('/');
    let root = PathBuf::from("/sys/fs/cgroup");
    (!path.is_empty()).then(|| (root.join(names).join(path), names.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_cgroup_are_read() {
        assert_eq!(usage("12345\n", false), 12345);
        assert_eq!(usage("usage_usec 7\nuser_usec 5\n", true), 7000);
        assert_eq!(usage("", true), 0);
    }
}
