//! Fits a staged layer onto its parents: what could not be known while it was unpacked alone.
//!
//! A directory that the layer's archive does not describe looks like the parents' directory, and a
//! hard link to a file that only the parents have becomes one to a copy of it, as if the layer had
//! been unpacked on top of them.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use crate::error::{at, shown};
use crate::file;
use crate::tree::{is_whiteout, open_below, open_child, open_dir_below, stat};
use crate::unpack::{Extracted, Meta};
use crate::{UnpackError, Usage};

/// Longest list of names, and longest value, of extended attributes that the kernel gives.
const XATTR: usize = 64 << 10;
const READ: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK);

/// Completes the layer at `layer` from `parents`, the merged tree of what is below it. Returns the
/// space that copies took.
pub(super) fn graft(
    layer: &OwnedFd,
    parents: Option<&OwnedFd>,
    extracted: &Extracted,
) -> Result<Usage, UnpackError> {
    let graft = Graft { layer, parents };
    let mut copied = Usage::default();
    for (name, target) in &extracted.links {
        graft.link(name, target, &mut copied)?;
    }
    for path in &extracted.undescribed {
        graft.directory(path)?;
    }
    Ok(copied)
}

struct Graft<'a> {
    layer: &'a OwnedFd,
    parents: Option<&'a OwnedFd>,
}

impl Graft<'_> {
    /// Makes the layer's directory `path` look like the parents'.
    fn directory(&self, path: &[u8]) -> Result<(), UnpackError> {
        let Some(below) = self.below(path)? else {
            return Ok(());
        };
        let Ok(below) = open_dir_below(below, path) else {
            return Ok(());
        };
        match open_dir_below(self.layer, path) {
            Ok(directory) => resemble(&directory, &below).map_err(at("describe", path)),
            Err(errno) => Err(at("open directory", path)(errno)),
        }
    }

    fn link(&self, name: &[u8], target: &[u8], copied: &mut Usage) -> Result<(), UnpackError> {
        let (to, base) = split(name);
        let to = match open_dir_below(self.layer, to) {
            Ok(to) => to,
            // A later entry took the place of the directory.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(errno) => return Err(at("open directory", name)(errno)),
        };
        match stat(&to, base) {
            // A later entry of the same name.
            Ok(_) => return Ok(()),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(at("look at", name)(errno)),
        }
        let (from, target_base) = self.source(target, copied)?;
        keep_time(&to, || {
            rustix::fs::linkat(&from, target_base, &to, base, AtFlags::empty())
        })
        .map_err(at("link", name))
    }

    /// The directory in the layer that has the link's target, copied there if need be.
    fn source<'t>(
        &self,
        target: &'t [u8],
        copied: &mut Usage,
    ) -> Result<(OwnedFd, &'t [u8]), UnpackError> {
        let missing = || UnpackError::Format {
            offset: 0,
            reason: format!("hard link to {:?}, which is not there", shown(target)),
            source: None,
        };
        let (parent, base) = split(target);
        if let Ok(directory) = open_dir_below(self.layer, parent)
            && let Ok(found) = stat(&directory, base)
        {
            let usable = !is_whiteout(&found) && !is_directory(&found);
            return if usable {
                Ok((directory, base))
            } else {
                Err(missing())
            };
        }
        let below = self.below(target)?.ok_or_else(missing)?;
        let from = open_dir_below(below, parent).map_err(|_| missing())?;
        let found = stat(&from, base).map_err(|_| missing())?;
        if is_directory(&found) || is_whiteout(&found) {
            return Err(missing());
        }
        let to = self.make_parents(below, parent, copied)?;
        keep_time(&to, || copy(&from, &to, base, &found)).map_err(at("copy", target))?;
        copied.inodes += 1;
        copied.bytes += u64::try_from(found.st_blocks).unwrap_or(0) * 512;
        Ok((to, base))
    }

    /// The parents, unless the layer hides what they have at `path`.
    fn below(&self, path: &[u8]) -> Result<Option<&OwnedFd>, UnpackError> {
        for (end, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let ancestor = match open_dir_below(self.layer, &path[..end]) {
                Ok(ancestor) => ancestor,
                Err(Errno::NOENT) => break,
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(errno) => return Err(at("open directory", path)(errno)),
            };
            let mut value = [0; 1];
            if rustix::fs::fgetxattr(&ancestor, file::OPAQUE, &mut value[..]) == Ok(1) {
                return Ok(None);
            }
        }
        Ok(self.parents)
    }

    /// Makes the directories down to `path` that the layer lacks, each like the parents'.
    fn make_parents(
        &self,
        below: &OwnedFd,
        path: &[u8],
        copied: &mut Usage,
    ) -> Result<OwnedFd, UnpackError> {
        let describe = at("make directory", path);
        let mut make = || {
            let mut here = open_dir_below(self.layer, b"")?;
            let mut there = open_dir_below(below, b"")?;
            for name in path
                .split(|&byte| byte == b'/')
                .filter(|name| !name.is_empty())
            {
                there = open_child(&there, name)?;
                let made = keep_time(&here, || rustix::fs::mkdirat(&here, name, Mode::RWXU));
                if made != Err(Errno::EXIST) {
                    made?;
                    copied.inodes += 1;
                    copied.bytes += 4096;
                    resemble(open_child(&here, name)?, &there)?;
                }
                here = open_child(&here, name)?;
            }
            Ok(here)
        };
        make().map_err(describe)
    }
}

/// Copies `name`, which is no directory, with all that it carries.
pub(super) fn copy(
    from: &OwnedFd,
    to: &OwnedFd,
    name: &[u8],
    found: &Stat,
) -> rustix::io::Result<()> {
    match FileType::from_raw_mode(found.st_mode) {
        FileType::RegularFile => {
            let mut from = File::from(open_below(from, name, READ)?);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mode = Mode::RUSR | Mode::WUSR;
            let mut to = File::from(rustix::fs::openat(to, name, flags, mode)?);
            std::io::copy(&mut from, &mut to)
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            resemble(&to, &from)
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(&target, to, name)?;
            file::describe_at(to, name, &meta(found), true)
        }
        kind => {
            rustix::fs::mknodat(to, name, kind, Mode::empty(), found.st_rdev)?;
            file::describe_at(to, name, &meta(found), false)
        }
    }
}

/// Gives `to` the extended attributes that layers may have, owner, mode and time of `from`.
pub(super) fn resemble(to: impl AsFd, from: impl AsFd) -> rustix::io::Result<()> {
    let mut names = vec![0; XATTR];
    let mut value = vec![0; XATTR];
    let meta = meta(&rustix::fs::fstat(&from)?);
    file::describe(&to, &meta)?;
    let length = match rustix::fs::flistxattr(&from, &mut names[..]) {
        Err(Errno::NOTSUP) => 0,
        result => result?,
    };
    for name in names[..length]
        .split(|&byte| byte == 0)
        .filter(|name| file::is_allowed(name))
    {
        let length = rustix::fs::fgetxattr(&from, name, &mut value[..])?;
        file::set_xattr(&to, name, &value[..length])?;
    }
    Ok(())
}

pub(super) fn meta(stat: &Stat) -> Meta {
    Meta {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (
            stat.st_mtime,
            u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        ),
    }
}

/// Does something in a directory that must not show in its time.
fn keep_time<T>(
    directory: &OwnedFd,
    change: impl FnOnce() -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    let before = rustix::fs::fstat(directory)?;
    let done = change()?;
    let time = |tv_sec, nanoseconds: u64| Timespec {
        tv_sec,
        tv_nsec: nanoseconds.cast_signed(),
    };
    let times = Timestamps {
        last_access: time(before.st_atime, before.st_atime_nsec),
        last_modification: time(before.st_mtime, before.st_mtime_nsec),
    };
    rustix::fs::futimens(directory, &times)?;
    Ok(done)
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// A path's directory and its last component.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}
