//! What a machine has of the things that pods are made of, to be compared before and after.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;

/// How long the kernel may take to let go of interfaces and namespaces: it does so in the background.
const GRACE: Duration = Duration::from_secs(3);

/// The things on a machine, each with its kind and name.
pub(super) struct Machine(BTreeSet<String>);

impl Machine {
    /// Looks now.
    pub(super) fn look() -> anyhow::Result<Self> {
        let mut things = BTreeSet::new();
        mounts(&mut things)?;
        processes(&mut things)?;
        names(Path::new("/sys/class/net"), "interface", &mut things);
        names(Path::new("/run/netns"), "network namespace", &mut things);
        cgroups(Path::new("/sys/fs/cgroup"), 0, &mut things);
        names(&std::env::temp_dir(), "directory", &mut things);
        Ok(Self(things))
    }

    /// What is there later and was not there now, and bears `mark`; with a little patience.
    pub(super) fn left(&self, mark: &str) -> anyhow::Result<Vec<String>> {
        let begin = Instant::now();
        loop {
            let later = Self::look()?;
            let new = later.0.difference(&self.0);
            let left: Vec<String> = new.filter(|thing| is_ours(thing, mark)).cloned().collect();
            if left.is_empty() || begin.elapsed() > GRACE {
                return Ok(left);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Other programs come and go meanwhile; the demo's things bear its mark, except that an interface
/// or a network namespace has a name of the kernel's choice.
fn is_ours(thing: &str, mark: &str) -> bool {
    thing.contains(mark)
        || thing.starts_with("interface veth")
        || thing.starts_with("network namespace")
}

fn mounts(things: &mut BTreeSet<String>) -> anyhow::Result<()> {
    let table =
        std::fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    for line in table.lines() {
        if let Some(target) = line.split(' ').nth(4) {
            things.insert(format!("mount {target}"));
        }
    }
    Ok(())
}

fn processes(things: &mut BTreeSet<String>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir("/proc").context("cannot read the processes")? {
        let path = entry.context("cannot read the processes")?.path();
        // What is no process has no command line; a process may be gone by now and is not left then.
        let Ok(command) = std::fs::read(path.join("cmdline")) else {
            continue;
        };
        let cgroup = std::fs::read_to_string(path.join("cgroup")).unwrap_or_default();
        let cgroup = cgroup
            .lines()
            .find(|line| !line.ends_with(":/"))
            .unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        things.insert(format!("process {} {command}{cgroup}", path.display()));
    }
    Ok(())
}

fn names(folder: &Path, kind: &str, things: &mut BTreeSet<String>) {
    // A folder that does not exist holds nothing.
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        things.insert(format!("{kind} {}", entry.file_name().display()));
    }
}

fn cgroups(folder: &Path, depth: usize, things: &mut BTreeSet<String>) {
    if depth > 3 {
        return;
    }
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            things.insert(format!("cgroup {}", entry.path().display()));
            cgroups(&entry.path(), depth + 1, things);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_directory_with_the_mark_is_seen() {
        let before = Machine::look().unwrap();
        let dir = tempfile::Builder::new()
            .prefix("kelson-left-")
            .tempdir()
            .unwrap();
        let name = dir.path().file_name().unwrap().to_str().unwrap();
        let left = before.left(name).unwrap();
        assert!(
            left.iter().any(|thing| thing.starts_with("directory")),
            "{left:?}"
        );
    }
}
