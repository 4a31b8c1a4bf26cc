//! What a machine has of the things that pods are made of, to be compared before and after.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How long the kernel may take to let go of interfaces and namespaces: it does so in the background.
const GRACE: Duration = Duration::from_secs(5);

/// The things on a machine, each with its kind and name.
pub(crate) struct Machine(BTreeSet<String>);

impl Machine {
    /// Looks now.
    pub(crate) fn look() -> Result<Self> {
        let mut things = BTreeSet::new();
        let table =
            std::fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
        let targets = table.lines().filter_map(|line| line.split(' ').nth(4));
        things.extend(targets.map(|target| format!("mount {target}")));
        processes(&mut things)?;
        names(Path::new("/sys/class/net"), "interface", &mut things);
        names(&std::env::temp_dir(), "directory", &mut things);
        for setting in [
            "vm/overcommit_memory",
            "kernel/panic",
            "kernel/panic_on_oops",
        ] {
            let path = Path::new("/proc/sys").join(setting);
            let value = std::fs::read_to_string(path).unwrap_or_default();
            things.insert(format!("setting {setting} = {}", value.trim()));
        }
        for path in ["/var/lib/kubelet", "/var/log/containers", "/var/log/pods"] {
            if Path::new(path).exists() {
                things.insert(format!("fixed place {path}"));
            }
        }
        cgroups(Path::new("/sys/fs/cgroup"), 0, &mut things);
        let tables = Command::new("nft").args(["list", "tables"]).output();
        let tables = tables.map(|output| output.stdout).unwrap_or_default();
        let tables = String::from_utf8_lossy(&tables).into_owned();
        things.extend(tables.lines().map(|line| format!("nftables {line}")));
        Ok(Self(things))
    }

    /// What is there later, was not there now, and is of the run called `mark`; the kernel gets a
    /// little time. With `kept` the run's directory is there on purpose.
    pub(crate) fn left(&self, mark: &str, kept: bool) -> Result<Vec<String>> {
        let begin = Instant::now();
        loop {
            let later = Self::look()?;
            let left: Vec<String> = later
                .0
                .difference(&self.0)
                .filter(|thing| is_ours(thing, mark))
                .filter(|thing| !(kept && thing.starts_with("directory ")))
                .cloned()
                .collect();
            if left.is_empty() || begin.elapsed() > GRACE {
                return Ok(left);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Other programs come and go meanwhile: most of the run's things bear its name.
fn is_ours(thing: &str, mark: &str) -> bool {
    thing.contains(mark) || thing.starts_with("setting ") || thing.starts_with("fixed place ")
}

fn processes(things: &mut BTreeSet<String>) -> Result<()> {
    for entry in std::fs::read_dir("/proc").context("cannot read the processes")? {
        let path = entry.context("cannot read the processes")?.path();
        // What is no process has no command line; a process may be gone by now and is not left then.
        let Ok(command) = std::fs::read(path.join("cmdline")) else {
            continue;
        };
        let cgroup = std::fs::read_to_string(path.join("cgroup")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        // The shim's working directory or mounts do not tell; its command line and cgroup do.
        let cgroup = cgroup.replace('\n', " ");
        things.insert(format!("process {} {command} {cgroup}", path.display()));
    }
    Ok(())
}

fn names(folder: &Path, kind: &str, things: &mut BTreeSet<String>) {
    // A folder that does not exist holds nothing. The other end of a pod's interface has a name of
    // the kernel's choice; the bridge that it is on tells whose it is.
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let bridge = std::fs::read_link(entry.path().join("master")).unwrap_or_default();
        let bridge = bridge.file_name().unwrap_or_default().to_owned();
        things.insert(format!(
            "{kind} {} {}",
            entry.file_name().display(),
            bridge.display()
        ));
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
    fn what_bears_the_mark_is_seen() {
        let before = Machine::look().unwrap();
        let dir = tempfile::Builder::new()
            .prefix("kelson-left-")
            .tempdir()
            .unwrap();
        let name = dir.path().file_name().unwrap().to_str().unwrap();
        assert_eq!(before.left(name, true).unwrap(), [""; 0]);
        let left = before.left(name, false).unwrap();
        assert!(left[0].starts_with("directory"), "{left:?}");
    }
}
