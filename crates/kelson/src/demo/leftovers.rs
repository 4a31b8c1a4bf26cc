//! What a machine has of the things that pods are made of, to be compared before and after.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context;

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

    /// What is there later and was not there now, as far as it can be the demo's.
    pub(super) fn compare(&self, later: &Self) -> Vec<String> {
        later.0.difference(&self.0).filter(|thing| ours(thing)).cloned().collect()
    }
}

/// Other programs come and go meanwhile: only what bears our names counts, and every new interface
/// or mount.
fn ours(thing: &str) -> bool {
    thing.contains("kelson") || thing.starts_with("interface") || thing.starts_with("network namespace")
}

fn mounts(things: &mut BTreeSet<String>) -> anyhow::Result<()> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
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
        let is_process = path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
        if !is_process {
            continue;
        }
        // A process may be gone by now; then it is not left.
        if let (Ok(name), Ok(pid)) =
            (std::fs::read_to_string(path.join("comm")), path.strip_prefix("/proc"))
        {
            things.insert(format!("process {} ({})", name.trim_end(), pid.display()));
        }
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
    fn a_new_directory_with_our_name_is_seen() {
        let before = Machine::look().unwrap();
        let dir = tempfile::Builder::new().prefix("kelson-left-").tempdir().unwrap();
        let left = before.compare(&Machine::look().unwrap());
        let name = dir.path().file_name().unwrap().to_str().unwrap();
        assert!(left.iter().any(|thing| thing.contains(name)), "{left:?}");
    }
}
