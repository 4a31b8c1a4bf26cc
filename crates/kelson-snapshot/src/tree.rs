//! Walking, deleting and opening in directory trees, by descriptors only.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat};
use rustix::io::{Errno, Result};

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// Levels of directories that are open at once while a tree is deleted.
const LEVELS: usize = 300;

/// Opens the directory `name`, a single component, without following a link.
pub(crate) fn open_child(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())
}

/// Opens what `path` names below `root`, following no link at all and leaving no file system. An
/// empty path names the root itself.
pub(crate) fn open_below(root: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Opens the directory that `path` names below `root`, as [`open_below`] does.
pub(crate) fn open_dir_below(root: impl AsFd, path: &[u8]) -> Result<OwnedFd> {
    open_below(root, path, DIRECTORY)
}

/// What `name` in `parent` is, not following a link.
pub(crate) fn stat(parent: impl AsFd, name: &[u8]) -> Result<Stat> {
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// Whether this is overlayfs' mark for "not there": a character device with number 0:0.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Calls `each` with name and type of every entry of `dir`.
pub(crate) fn for_each(
    dir: impl AsFd,
    mut each: impl FnMut(&CStr, FileType) -> Result<()>,
) -> Result<()> {
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            each(name, entry.file_type())?;
        }
    }
    Ok(())
}

/// Deletes `name` in `parent` with everything below it, following no link and entering no other
/// file system. A directory that lies too deep is first moved up into `parent`, so that any depth
/// is deleted with a bounded number of descriptors. It is no error if nothing is there.
pub(crate) fn remove(parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    let mut moved = Moved {
        parent,
        names: Vec::new(),
        count: 0,
    };
    remove_one(parent, name, 0, &mut moved)?;
    while let Some(name) = moved.names.pop() {
        remove_one(parent, name.to_bytes(), 0, &mut moved)?;
    }
    Ok(())
}

/// Directories that were moved up.
struct Moved<'a> {
    parent: BorrowedFd<'a>,
    names: Vec<CString>,
    count: u64,
}

impl Moved<'_> {
    fn take(&mut self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        loop {
            self.count += 1;
            let text = format!(".deep-{}-{}", std::process::id(), self.count);
            let to = CString::new(text).map_err(|_| Errno::INVAL)?;
            let flags = rustix::fs::RenameFlags::NOREPLACE;
            match rustix::fs::renameat_with(dir, name, self.parent, &to, flags) {
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    self.names.push(to);
                    return Ok(());
                }
            }
        }
    }
}

fn remove_one(
    parent: BorrowedFd<'_>,
    name: &[u8],
    level: usize,
    moved: &mut Moved<'_>,
) -> Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    if level == LEVELS {
        return moved.take(parent, name);
    }
    loop {
        match open_below(parent, name, DIRECTORY) {
            // Somebody else deletes the same: listing a directory that is gone fails so.
            Ok(dir) => match empty(&dir, level, moved) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            },
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error),
        }
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // Listing a directory while deleting from it may skip entries.
            Err(Errno::NOTEMPTY) => {}
            Err(error) => return Err(error),
        }
    }
}

fn empty(dir: &OwnedFd, level: usize, moved: &mut Moved<'_>) -> Result<()> {
    for_each(dir, |name, kind| {
        if kind != FileType::Directory {
            match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
                // The type is a hint, and the entry may be gone.
                Err(Errno::ISDIR | Errno::PERM | Errno::NOENT) => {}
                result => return result,
            }
        }
        remove_one(dir.as_fd(), name.to_bytes(), level + 1, moved)
    })
}

/// Deletes what one of the snapshotter's own paths names, as [`remove`] does.
pub(crate) fn remove_path(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::ffi::OsStrExt as _;

    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL.into());
    };
    Ok(remove(open_dir(parent)?.as_fd(), name.as_bytes())?)
}

/// Opens a directory of the snapshotter's own.
pub(crate) fn open_dir(path: &std::path::Path) -> Result<OwnedFd> {
    rustix::fs::open(path, DIRECTORY, Mode::empty())
}
