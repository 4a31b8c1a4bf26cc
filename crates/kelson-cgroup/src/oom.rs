//! Hearing of OOM kills.

use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::event::EventfdFlags;
use rustix::fs::{Mode, OFlags, inotify};
use rustix::io::Errno;

use crate::dir::{Dir, pairs};
use crate::hierarchy::Controller;
use crate::{Cgroup, Error, Result, Version};

impl Cgroup {
    /// How many processes here and beneath the OOM killer has killed. 0 when the cgroup does not
    /// exist or memory is not accounted.
    pub fn oom_kills(&self) -> Result<u64> {
        let Some(dir) = self.dir(Controller::Memory) else {
            return Ok(0);
        };
        let mut buf = Vec::new();
        match self.hierarchy().version() {
            Version::V1 => v1_kills(&dir, &mut buf),
            Version::V2 => Ok(value(&dir, "memory.events", &mut buf)?),
        }
    }

    /// A descriptor that becomes readable when an OOM happened here or above. It may do so a moment
    /// before the kill is counted, and on v1 when the cgroup is removed: read it empty, then ask
    /// [`Cgroup::oom_kills`], and ask again when a process has died. `None` where the machine
    /// cannot tell.
    pub fn oom_watch(&self) -> Result<Option<OwnedFd>> {
        let Some(dir) = self.dir(Controller::Memory) else {
            return Ok(None);
        };
        match self.hierarchy().version() {
            Version::V1 => v1_watch(&dir),
            Version::V2 => v2_watch(&dir),
        }
    }
}

fn value(dir: &Dir, file: &str, buf: &mut Vec<u8>) -> Result<u64> {
    let text = dir.read(file, buf)?.unwrap_or_default();
    Ok(pairs(text)
        .find_map(|(key, value)| (key == "oom_kill").then_some(value))
        .unwrap_or(0))
}

/// v1 counts each cgroup for itself.
fn v1_kills(dir: &Dir, buf: &mut Vec<u8>) -> Result<u64> {
    let mut kills = value(dir, "memory.oom_control", buf)?;
    for child in dir.children()? {
        kills += v1_kills(&child, buf)?;
    }
    Ok(kills)
}

fn v1_watch(dir: &Dir) -> Result<Option<OwnedFd>> {
    let path = dir.file("memory.oom_control");
    let file = match rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) if dir.exists() => return Ok(None),
        Err(error) => return Err(Error::io("open", &path, error)),
    };
    let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|error| Error::io("make an eventfd for", &path, error))?;
    let request = format!("{} {}", event.as_raw_fd(), file.as_raw_fd());
    let known = dir.write_if_there("cgroup.event_control", &request)?;
    Ok(known.then_some(event))
}

fn v2_watch(dir: &Dir) -> Result<Option<OwnedFd>> {
    let path = dir.file("memory.events");
    let failed = |error: Errno| Error::io("watch", &path, error);
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
        .map_err(failed)?;
    match inotify::add_watch(&watch, &path, inotify::WatchFlags::MODIFY) {
        Ok(_) => Ok(Some(watch)),
        Err(Errno::NOENT) if dir.exists() => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::Hierarchy;

    fn cgroup(root: &Path) -> Cgroup {
        std::fs::create_dir(root.join("a")).unwrap();
        Cgroup::new(&Hierarchy::v2_at(root), "a").unwrap()
    }

    #[test]
    fn v2_events_are_counted_and_watched() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = cgroup(root.path());
        assert_eq!(cgroup.oom_kills().unwrap(), 0);
        assert!(cgroup.oom_watch().unwrap().is_none());
        let events = root.path().join("a/memory.events");
        std::fs::write(&events, "oom 0\noom_kill 0\noom_group_kill 0\n").unwrap();
        let watch = cgroup.oom_watch().unwrap().unwrap();
        let mut buf = [0; 64];
        assert_eq!(rustix::io::read(&watch, &mut buf), Err(Errno::AGAIN));
        std::fs::write(&events, "oom 3\noom_kill 2\n").unwrap();
        assert!(rustix::io::read(&watch, &mut buf).unwrap() > 0);
        assert_eq!(cgroup.oom_kills().unwrap(), 2);
    }

    #[test]
    fn a_cgroup_that_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = cgroup(root.path());
        std::fs::remove_dir(root.path().join("a")).unwrap();
        assert!(cgroup.oom_watch().unwrap_err().is_not_found());
    }
}
