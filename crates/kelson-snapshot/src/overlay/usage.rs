//! Measures the space that a tree takes.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, OFlags};
use rustix::io::{Errno, Result};

use crate::error::on;
use crate::limits::SEVERAL_NAMES;
use crate::{SnapshotError, Usage, tree};

/// Levels of directories open at once; deeper ones wait until these are closed.
const LEVELS: usize = 64;
/// Directories that wait, at most.
const WAITING: usize = 1024;

/// Sums up the tree at `root`, which others may be changing meanwhile.
pub(super) fn measure(root: &Path) -> std::result::Result<Usage, SnapshotError> {
    let mut walk = Walk::default();
    let mut run = || {
        let root = tree::open_dir(root)?;
        walk.count(&rustix::fs::fstat(&root)?);
        walk.directory(&root, 0)?;
        while let Some(directory) = walk.waiting.pop() {
            walk.directory(&directory, 0)?;
        }
        Ok(())
    };
    let result: Result<()> = run();
    match walk.exceeded {
        Some((what, limit)) => Err(SnapshotError::Limit {
            path: root.into(),
            what,
            limit,
        }),
        None => result.map(|()| walk.usage).map_err(on("measure", root)),
    }
}

#[derive(Default)]
struct Walk {
    usage: Usage,
    /// Files with several names that were counted.
    counted: HashSet<(u64, u64)>,
    waiting: Vec<OwnedFd>,
    exceeded: Option<(&'static str, u64)>,
}

impl Walk {
    fn count(&mut self, stat: &rustix::fs::Stat) {
        self.usage.inodes += 1;
        self.usage.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
    }

    fn directory(&mut self, directory: &OwnedFd, level: usize) -> Result<()> {
        tree::for_each(directory, |name, _| {
            let stat = match tree::stat(directory, name.to_bytes()) {
                Err(Errno::NOENT) => return Ok(()),
                result => result?,
            };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                self.count(&stat);
                return self.enter(directory, name.to_bytes(), level + 1);
            }
            if stat.st_nlink > 1 {
                if self.counted.len() as u64 >= SEVERAL_NAMES {
                    return self.exceed("files with several names", SEVERAL_NAMES);
                }
                if !self.counted.insert((stat.st_dev, stat.st_ino)) {
                    return Ok(());
                }
            }
            self.count(&stat);
            Ok(())
        })
    }

    fn enter(&mut self, parent: impl AsFd, name: &[u8], level: usize) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let directory = match tree::open_below(parent, name, flags) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            result => result?,
        };
        if level < LEVELS {
            return self.directory(&directory, level);
        }
        if self.waiting.len() == WAITING {
            return self.exceed("deep directories", WAITING as u64);
        }
        self.waiting.push(directory);
        Ok(())
    }

    fn exceed(&mut self, what: &'static str, limit: u64) -> Result<()> {
        self.exceeded = Some((what, limit));
        Err(Errno::OVERFLOW)
    }
}
