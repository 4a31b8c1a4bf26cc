//! One directory of a cgroup hierarchy, and reading and writing its files.
//!
//! Files are opened by name for each access: kernfs files answer afresh on every open, and nothing
//! is kept open that would hold a removed cgroup.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::{Error, Result};

/// Longest file that is read, in bytes. A `cgroup.procs` with the four million processes a kernel
/// can have is shorter.
const MAX_FILE: usize = 64 << 20;

/// A cgroup's directory in one hierarchy.
#[derive(Debug, Clone)]
pub(crate) struct Dir {
    path: PathBuf,
}

impl Dir {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Reads a file into `buf`. `None` when the file or the cgroup is not there.
    pub(crate) fn read<'b>(&self, name: &str, buf: &'b mut Vec<u8>) -> Result<Option<&'b str>> {
        let path = self.file(name);
        match read_file(&path, buf) {
            Ok(()) => {}
            // ENODEV: removed between open and read. EOPNOTSUPP: a file the kernel switched off.
            Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => return Ok(None),
            Err(error) => return Err(Error::io("read", &path, error)),
        }
        match std::str::from_utf8(buf) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(malformed(&path, &String::from_utf8_lossy(buf))),
        }
    }

    /// Reads a file that holds one number; `None` when there is no such file or it says `max`.
    pub(crate) fn read_number(&self, name: &str, buf: &mut Vec<u8>) -> Result<Option<u64>> {
        let Some(text) = self.read(name, buf)? else {
            return Ok(None);
        };
        match text.trim_ascii() {
            "max" => Ok(None),
            // v1 shows "no limit" as -1 in some files.
            "-1" => Ok(None),
            digits => match digits.parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(malformed(&self.file(name), text)),
            },
        }
    }

    /// Writes a value in one write(2).
    pub(crate) fn write(&self, name: &str, value: &str) -> Result<()> {
        let path = self.file(name);
        write_file(&path, value)
            .map_err(|error| Error::io(format!("write {value:?} to"), &path, error))
    }

    /// As [`Dir::write`]; `false` when there is no such file.
    pub(crate) fn write_if_there(&self, name: &str, value: &str) -> Result<bool> {
        match self.write(name, value) {
            Ok(()) => Ok(true),
            Err(error) if error.is_not_found() && self.exists() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes values that bound each other (a quota and its period, memory and memory with swap).
    /// What the kernel refuses with EINVAL is tried again after the others, as long as that helps,
    /// so no order has to be known here. Files that are not there are left out.
    pub(crate) fn write_together(&self, mut writes: Vec<(&str, String)>) -> Result<()> {
        while !writes.is_empty() {
            let before = writes.len();
            let mut refused = None;
            let mut left = Vec::new();
            for (name, value) in writes {
                match self.write_if_there(name, &value) {
                    Ok(_) => {}
                    Err(error) if is_invalid(&error) => {
                        refused.get_or_insert(error);
                        left.push((name, value));
                    }
                    Err(error) => return Err(error),
                }
            }
            match refused {
                Some(error) if left.len() == before => return Err(error),
                _ => writes = left,
            }
        }
        Ok(())
    }

    pub(crate) fn exists(&self) -> bool {
        rustix::fs::access(&self.path, rustix::fs::Access::EXISTS).is_ok()
    }

    /// The directories beneath, one level.
    pub(crate) fn children(&self) -> Result<Vec<Dir>> {
        let entries = match std::fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("list", &self.path, error)),
        };
        let mut children = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| Error::io("list", &self.path, error))?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                children.push(Dir::new(entry.path()));
            }
        }
        Ok(children)
    }

    /// Adds the ids of the processes here (not beneath) to `pids`. Processes that the caller's pid
    /// namespace does not show are left out.
    pub(crate) fn own_pids(&self, buf: &mut Vec<u8>, pids: &mut Vec<u32>) -> Result<()> {
        if let Some(text) = self.read("cgroup.procs", buf)? {
            let ids = text.lines().filter_map(|line| line.parse::<u32>().ok());
            pids.extend(ids.filter(|pid| *pid != 0));
        }
        Ok(())
    }

    /// Adds the ids of all processes here and beneath.
    pub(crate) fn all_pids(&self, buf: &mut Vec<u8>, pids: &mut Vec<u32>) -> Result<()> {
        self.own_pids(buf, pids)?;
        for child in self.children()? {
            child.all_pids(buf, pids)?;
        }
        Ok(())
    }
}

/// The lines of a `key value` file as pairs; lines of another form are left out.
pub(crate) fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim_ascii().parse().ok()?))
    })
}

/// Appends `item` to a comma-less, space-separated list.
pub(crate) fn push_word(list: &mut String, item: impl std::fmt::Display) {
    let space = if list.is_empty() { "" } else { " " };
    // Writing to a String cannot fail.
    let _ = write!(list, "{space}{item}");
}

fn is_invalid(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. }
        if source.raw_os_error() == Some(Errno::INVAL.raw_os_error()))
}

pub(crate) fn malformed(path: &Path, content: &str) -> Error {
    Error::Malformed {
        path: path.to_owned(),
        content: content.chars().take(80).collect(),
    }
}

fn read_file(path: &Path, buf: &mut Vec<u8>) -> rustix::io::Result<()> {
    buf.clear();
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    loop {
        buf.reserve(4096);
        let read = rustix::io::read(&file, rustix::buffer::spare_capacity(buf));
        match read {
            Ok(0) => return Ok(()),
            Ok(_) if buf.len() > MAX_FILE => return Err(Errno::FBIG),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

fn write_file(path: &Path, value: &str) -> rustix::io::Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::retry_on_intr(|| rustix::io::write(&file, value.as_bytes()))?;
    Ok(())
}
