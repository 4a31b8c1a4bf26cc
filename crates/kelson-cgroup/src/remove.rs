//! Removing a cgroup and what is beneath it.

use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::dir::Dir;
use crate::processes::wait_for_dir;
use crate::{Cgroup, Error, Result};

/// How long processes that are dying already may keep their cgroup.
const TIMEOUT: Duration = Duration::from_millis(500);

impl Cgroup {
    /// Removes the cgroup and those beneath it. Succeeds when it is gone already. Processes are not
    /// killed: those that do not exit within half a second make it fail with [`Error::NotEmpty`].
    pub fn remove(&self) -> Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        self.dirs().try_for_each(|dir| remove_tree(&dir, deadline))
    }
}

fn remove_tree(dir: &Dir, deadline: Instant) -> Result<()> {
    let mut pause = Duration::from_micros(200);
    loop {
        match rustix::fs::rmdir(dir.path()) {
            Ok(()) | Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
            Err(Errno::BUSY | Errno::NOTEMPTY) => {}
            Err(error) => return Err(Error::io("remove", dir.path(), error)),
        }
        let children = dir.children()?;
        for child in &children {
            remove_tree(child, deadline)?;
        }
        // However long that took, it may be the children alone that were in the way.
        if !children.is_empty() && rustix::fs::rmdir(dir.path()).is_ok() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let path = dir.path().display().to_string();
            return match wait_for_dir(dir, deadline)? {
                0 => Err(Error::io("remove", dir.path(), Errno::BUSY)),
                count => Err(Error::NotEmpty { path, count }),
            };
        }
        if wait_for_dir(dir, deadline)? == 0 && rustix::fs::rmdir(dir.path()).is_err() {
            // The kernel is still taking the last process or child away, and tells nobody when.
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }
}
