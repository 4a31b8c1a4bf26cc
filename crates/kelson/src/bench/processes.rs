//! The processes that a runtime needs for its pods: daemon, shims, monitors, pause processes. What runs in
//! the containers does not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::pod::Up;

/// The roots of what is read; tests have their own.
const PROC: &str = "/proc";
/// Ticks in a second, as Linux tells times to programs on every architecture but Alpha.
const USER_HZ: u64 = 100;

/// Process ids, and where to read about them.
#[derive(Debug)]
pub(super) struct Processes {
    root: PathBuf,
    ids: BTreeMap<u32, Role>,
}

/// What a process is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Daemon,
    /// A shim, a monitor, or a helper of those or of the daemon.
    Shim,
    /// Holds the namespaces of a pod.
    Pause,
}

/// What is known about one process.
#[derive(Debug)]
struct Process {
    parent: u32,
    name: String,
    command_line: String,
    /// Identity of its pid namespace; empty if it cannot be read.
    pid_namespace: String,
}

impl Processes {
    /// The daemon, its descendants, and those whose command line names a pod or container of the fleet (a
    /// shim is often a child of process 1), with their descendants.
    pub(super) fn of(daemon: u32, fleet: &[Up]) -> Self {
        Self::find(Path::new(PROC), daemon, fleet)
    }

    fn find(root: &Path, daemon: u32, fleet: &[Up]) -> Self {
        let all = all(root);
        let ids = fleet.iter().flat_map(|up| [&up.pod, &up.container]);
        let ids: Vec<&String> = ids.collect();
        let named = |process: &Process| ids.iter().any(|id| process.command_line.contains(*id));
        let mut found: BTreeSet<u32> = all
            .iter()
            .filter(|(_, process)| named(process))
            .map(|(pid, _)| *pid)
            .collect();
        found.insert(daemon);
        loop {
            let more: Vec<u32> = all
                .iter()
                .filter(|(pid, p)| !found.contains(pid) && found.contains(&p.parent))
                .map(|(pid, _)| *pid)
                .collect();
            if more.is_empty() {
                break;
            }
            found.extend(more);
        }
        let own = all
            .get(&daemon)
            .map(|process| process.pid_namespace.clone());
        let role = |pid: u32| {
            if pid == daemon {
                return Some(Role::Daemon);
            }
            let process = all.get(&pid)?;
            if process.pid_namespace != *own.as_ref()? {
                return is_pause(&process.name).then_some(Role::Pause);
            }
            Some(Role::Shim)
        };
        let ids = found.into_iter().filter_map(|pid| Some((pid, role(pid)?)));
        Self {
            root: root.to_owned(),
            ids: ids.collect(),
        }
    }

    /// Whether a process is one of these.
    pub(super) fn contains(&self, pid: u32) -> bool {
        self.ids.contains_key(&pid)
    }

    /// Memory in bytes, shared pages divided among those who share them; of all, or of one role.
    pub(super) fn proportional_bytes(&self, of: Option<Role>) -> u64 {
        let bytes = |pid: &u32| {
            let path = self.root.join(pid.to_string()).join("smaps_rollup");
            let text = fs::read_to_string(path).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
        };
        let wanted = self
            .ids
            .iter()
            .filter(|(_, role)| of.is_none_or(|of| of == **role));
        wanted.filter_map(|(pid, _)| bytes(pid)).sum::<u64>() * 1024
    }

    /// Processor time of all threads so far, in nanoseconds.
    pub(super) fn processor_nanoseconds(&self) -> u64 {
        let tasks = self
            .ids
            .keys()
            .filter_map(|pid| fs::read_dir(self.root.join(pid.to_string()).join("task")).ok());
        let time = |task: fs::DirEntry| {
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        };
        tasks.flatten().flatten().filter_map(time).sum()
    }

    /// Processor time of the children that have been waited for, in nanoseconds; the kernel tells it in
    /// ticks.
    pub(super) fn children_nanoseconds(&self) -> u64 {
        let ticks = |pid: &u32| {
            let stat = fs::read_to_string(self.root.join(pid.to_string()).join("stat")).ok()?;
            // proc_pid_stat(5): cutime and cstime are fields 16 and 17, the state after the name is 3.
            let fields = stat.rsplit_once(')')?.1.split_whitespace();
            let times = fields
                .skip(13)
                .take(2)
                .map(|field| field.parse::<u64>().ok());
            times.sum::<Option<u64>>()
        };
        let ticks: u64 = self.ids.keys().filter_map(ticks).sum();
        ticks * (1_000_000_000 / USER_HZ)
    }
}

/// Whether a process that lives in the pid namespace of a pod or container is there for the runtime: a pause
/// process, or Kelson's init of a pod that shares its pid namespace.
fn is_pause(name: &str) -> bool {
    matches!(name, "pause" | "catatonit") || name.starts_with("kelson")
}

fn all(root: &Path) -> BTreeMap<u32, Process> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| Some((pid, read(&root.join(pid.to_string()))?)))
        .collect()
}

/// Reads one process; nothing if it has gone.
fn read(directory: &Path) -> Option<Process> {
    let stat = fs::read_to_string(directory.join("stat")).ok()?;
    // The name stands in parentheses and may hold any character, these included.
    let (before, after) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_owned();
    let parent = after.split_whitespace().nth(1)?.parse().ok()?;
    let command_line = fs::read(directory.join("cmdline")).ok()?;
    let namespace = fs::read_link(directory.join("ns/pid")).unwrap_or_default();
    Some(Process {
        parent,
        name,
        command_line: String::from_utf8_lossy(&command_line).into_owned(),
        pid_namespace: namespace.display().to_string(),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn shims_and_pauses_count_and_what_runs_in_containers_does_not() {
        let root = tempfile::tempdir().unwrap();
        let process = |pid: u32, parent: u32, name: &str, line: &str, namespace: &str| {
            let directory = root.path().join(pid.to_string());
            fs::create_dir_all(directory.join("ns")).unwrap();
            fs::create_dir_all(directory.join(format!("task/{pid}"))).unwrap();
            fs::write(
                directory.join("stat"),
                format!("{pid} ({name}) S {parent} 0 0 0 0 0 0 0 0 0 0 0 3 4 0"),
            )
            .unwrap();
            fs::write(directory.join("cmdline"), line.replace(' ', "\0")).unwrap();
            fs::write(
                directory.join("smaps_rollup"),
                "x\nPss:      10 kB\nPss_Dirty: 3 kB\n",
            )
            .unwrap();
            fs::write(
                directory.join(format!("task/{pid}/schedstat")),
                "1000 5 1\n",
            )
            .unwrap();
            symlink(namespace, directory.join("ns/pid")).unwrap();
        };
        process(1, 0, "init", "init", "host");
        process(50, 1, "containerd", "containerd", "host");
        process(51, 1, "containerd-shim", "shim -id p0d", "host");
        process(52, 51, "pause", "/pause", "a");
        process(53, 51, "sl) eep", "sleep 1", "b");
        process(60, 1, "containerd-shim", "shim -id other", "host");
        process(70, 50, "kelson-zygote", "kelson zygote", "host");
        process(71, 70, "kelson-init", "kelson", "c");
        let fleet = [Up {
            pod: "p0d".into(),
            container: "c0nt".into(),
        }];
        let found = Processes::find(root.path(), 50, &fleet);
        let expected = [
            (50, Role::Daemon),
            (51, Role::Shim),
            (52, Role::Pause),
            (70, Role::Shim),
            (71, Role::Pause),
        ];
        assert_eq!(found.ids, BTreeMap::from(expected));
        assert_eq!(found.proportional_bytes(None), 50 * 1024);
        assert_eq!(found.proportional_bytes(Some(Role::Pause)), 20 * 1024);
        assert_eq!(found.processor_nanoseconds(), 5000);
        assert_eq!(found.children_nanoseconds(), 5 * 7 * 10_000_000);
    }

    #[test]
    fn this_process_is_found_in_the_real_proc() {
        let own = Processes::of(std::process::id(), &[]);
        assert!(own.contains(std::process::id()));
        assert!(own.proportional_bytes(Some(Role::Daemon)) > 100_000);
    }
}
