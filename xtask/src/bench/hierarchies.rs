//! cgroup v1 hierarchies that are there and mounted nowhere.
//!
//! The runtime part mounts one for crun in a mount namespace of its own; it outlives that as long as
//! the kernel has something of it. containerd's shim cannot find its containers' cgroups meanwhile, so
//! that it answers without statistics, faster than with them.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long the kernel is waited for.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(500);

/// Waits until every hierarchy is mounted or gone.
pub(super) fn wait_for_mounted() -> Result<()> {
    let begin = Instant::now();
    loop {
        let read = |path: &str| {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
        };
        let lost = unmounted(&read("/proc/self/cgroup")?, &read("/proc/self/mountinfo")?);
        if lost.is_empty() {
            return Ok(());
        }
        lost.iter()
            .try_for_each(|controllers| let_go(controllers))?;
        if begin.elapsed() > PATIENCE {
            bail!(
                "the cgroup hierarchies {lost:?} exist and are not mounted: containerd would answer \
                 without statistics; mount them below /sys/fs/cgroup, or remove what is in them"
            );
        }
        std::thread::sleep(POLL);
    }
}

/// Mounts a hierarchy and takes it away again: one without cgroups goes with its last mount.
fn let_go(controllers: &str) -> Result<()> {
    let dir = tempfile::tempdir().context("cannot make a directory")?;
    let run = |command: &mut Command| {
        let output = command.output().context("cannot run mount or umount")?;
        anyhow::Ok(output.status.success())
    };
    // While the kernel is taking it away it cannot be mounted.
    if run(Command::new("mount")
        .args(["-t", "cgroup", "-o", controllers, "none"])
        .arg(dir.path()))?
    {
        run(Command::new("umount").arg(dir.path()))?;
    }
    Ok(())
}

/// Controllers of hierarchies in `cgroups` (proc(5), `/proc/<pid>/cgroup`) that are not in `mounts`.
fn unmounted(cgroups: &str, mounts: &str) -> Vec<String> {
    let mounted: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split_once(" - cgroup "))
        .filter_map(|(_, rest)| rest.split(' ').nth(1))
        .flat_map(|options| options.split(','))
        .collect();
    let names = cgroups.lines().filter_map(|line| line.split(':').nth(1));
    names
        .filter(|names| !names.is_empty() && !names.split(',').all(|name| mounted.contains(&name)))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_mounted_is_found() {
        let mounts = "30 20 0:31 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
             31 20 0:32 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
             32 20 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let all = "3:name=systemd:/\n2:cpu,cpuacct:/\n0::/\n";
        assert!(unmounted(all, mounts).is_empty());
        assert_eq!(
            unmounted("4:hugetlb:/\n2:cpu,cpuacct:/\n", mounts),
            ["hugetlb"]
        );
    }
}
