//! cgroups as units of systemd: what is different from plain cgroups.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kelson_cgroup::systemd::{Systemd, is_unit};
use kelson_cgroup::{Cgroup, Error, Hierarchy, Resources, Result, Stats};

use crate::outside::{Cgroups, Prepared};

/// The word after the program's name that makes it a [`Holder`].
pub(crate) const HOLD: &str = "hold";

/// cgroups that systemd makes and keeps the limits of.
pub(crate) struct Units {
    files: Hierarchy,
    systemd: Systemd,
    program: PathBuf,
}

impl Units {
    /// Fails where systemd does not manage the machine's cgroups. `program` is Kelson's own.
    pub(crate) fn new(files: Hierarchy, program: &Path) -> Result<Self> {
        Ok(Self {
            systemd: Systemd::find(&files)?,
            files,
            program: program.to_owned(),
        })
    }

    fn cgroup(&self, path: &str) -> Result<Cgroup> {
        Cgroup::new(&self.files, path)
    }
}

/// A process that does nothing until it is dropped: a scope needs one to begin with, and the
/// container's comes later. It ends with the daemon, too. While it is there the container's limit of
/// processes has to be one higher; it sets the limit right when it ends.
struct Holder(Child);

impl Holder {
    fn start(program: &Path, limit: Option<(PathBuf, u64)>) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.arg(HOLD).env_clear().stdin(Stdio::piped());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        if let Some((file, limit)) = limit {
            command.arg(file).arg(limit.to_string());
        }
        command.spawn().map(Self)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Its input ends here. It may have been killed with the container already.
        let _ = self.0.wait();
    }
}

/// How many processes there may be, as the cgroup's file will say when the limits are applied.
fn processes(limits: &Resources) -> Option<u64> {
    match limits.unified.get("pids.max") {
        Some(value) => value.trim().parse().ok(),
        None => u64::try_from(limits.pids_limit?).ok().map(|n| n.max(1)),
    }
}

impl Cgroups for Units {
    fn create(&self, path: &str) -> Result<()> {
        match is_unit(path) {
            true => self.systemd.start_slice(&self.cgroup(path)?),
            false => self.files.create(path),
        }
    }

    fn prepare(&self, path: &str, limits: &Resources) -> Result<Option<Prepared>> {
        if !is_unit(path) {
            return Ok(None);
        }
        let cgroup = self.cgroup(path)?;
        let limit = processes(limits).and_then(|limit| {
            let (_, folder) = cgroup.directories().into_iter().next()?;
            Some((folder.join("pids.max"), limit))
        });
        let holder = Holder::start(&self.program, limit).map_err(|source| Error::Io {
            operation: "start a process of".to_owned(),
            path: self.program.clone(),
            source,
        })?;
        self.systemd.start_scope(&cgroup, holder.0.id(), limits)?;
        Ok(Some(Box::new(holder)))
    }

    fn kill(&self, path: &str, timeout: Duration) -> Result<()> {
        self.files.kill(path, timeout)
    }

    fn populated(&self, path: &str) -> Result<bool> {
        self.files.populated(path)
    }

    fn remove(&self, path: &str) -> Result<()> {
        if is_unit(path) {
            self.systemd.stop(&self.cgroup(path)?)?;
        }
        self.files.remove(path)
    }

    fn stats(&self, path: &str) -> Result<Option<Stats>> {
        self.files.stats(path)
    }

    fn usage(&self, path: &str) -> Result<Option<Stats>> {
        self.files.usage(path)
    }

    /// systemd first: it rounds, and what is exact is then in the files.
    fn apply(&self, path: &str, limits: &Resources) -> Result<()> {
        if is_unit(path) {
            self.systemd.limit(&self.cgroup(path)?, limits)?;
        }
        self.files.apply(path, limits)
    }

    fn pids(&self, path: &str) -> Result<Vec<u32>> {
        self.files.pids(path)
    }

    fn oom_kills(&self, path: &str) -> Result<u64> {
        self.files.oom_kills(path)
    }

    fn signal(&self, path: &str, pid: u32, signal: i32) -> Result<()> {
        Cgroups::signal(&self.files, path, pid, signal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_ends_when_it_is_dropped() {
        // Reads its input to the end, as the real one.
        let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let proc = PathBuf::from(format!("/proc/{}", child.id()));
        assert!(proc.exists());
        drop(Holder(child));
        assert!(!proc.exists());
    }

    #[test]
    fn the_limit_of_processes_is_what_the_file_will_say() {
        for (limit, file, expected) in [
            (None, None, None),
            (Some(-1), None, None),
            (Some(0), None, Some(1)),
            (Some(7), None, Some(7)),
            (Some(7), Some("3"), Some(3)),
            (Some(7), Some("max"), None),
        ] {
            let file = file.map(|value: &str| ("pids.max".to_owned(), value.to_owned()));
            let limits = Resources {
                pids_limit: limit,
                unified: file.into_iter().collect(),
                ..Resources::default()
            };
            assert_eq!(processes(&limits), expected);
        }
    }
}
