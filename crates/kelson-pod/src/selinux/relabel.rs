//! Giving files a label. What is in a directory may be changed by others meanwhile, so everything is opened
//! beneath its directory without following links, and labelled by its descriptor.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use crate::world::FileError;

const NAME: &CStr = c"security.selinux";
/// Deepest directory below the first that is labelled.
const MAX_DEPTH: usize = 1000;

/// Directories whose labels the whole machine depends on: they, and those in the root, keep theirs.
const PROTECTED: &[&str] = &[
    "/etc/passwd",
    "/etc/pki",
    "/etc/shadow",
    "/etc/ssl",
    "/usr/bin",
    "/usr/lib",
    "/usr/lib64",
    "/usr/libexec",
    "/usr/local",
    "/usr/sbin",
    "/usr/share",
    "/var/cache",
    "/var/lib",
    "/var/lib/kubelet",
    "/var/lib/kubelet/pods",
    "/var/log",
    "/var/run",
    "/var/spool",
    "/var/tmp",
];

/// What is labelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The file or directory.
    Itself,
    /// With everything in it.
    Tree,
}

/// Whether a path of the host, without links in it, is not to be given a container's label.
pub(crate) fn is_protected(path: &Path) -> bool {
    path.components().count() <= 2 || PROTECTED.iter().any(|one| Path::new(one) == path)
}

/// Gives what is at `path` the label. A file system without labels has none to set.
pub(crate) fn relabel(path: &Path, label: &str, scope: Scope) -> Result<(), FileError> {
    let fd = rustix::fs::open(
        path,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| FileError::on("open", path)(error.into()))?;
    label_one(&fd, label).map_err(|error| FileError::on("label", path)(error.into()))?;
    if scope == Scope::Tree && is_directory(&fd) {
        label_below(&fd, c".", &mut path.to_owned(), label, 0)?;
    }
    Ok(())
}

fn is_directory(fd: &OwnedFd) -> bool {
    let kind = rustix::fs::fstat(fd).map(|stat| FileType::from_raw_mode(stat.st_mode));
    kind == Ok(FileType::Directory)
}

/// Labels what is in the directory `name` of `parent`; `path` is for errors.
fn label_below(
    parent: &OwnedFd,
    name: &CStr,
    path: &mut PathBuf,
    label: &str,
    depth: usize,
) -> Result<(), FileError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error: Errno| FileError::on("label", &path)(error.into())
    };
    if depth > MAX_DEPTH {
        return Err(failed(path)(Errno::NAMETOOLONG));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        // It was removed, or replaced by something that was labelled in its own turn.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        opened => opened.map_err(failed(path))?,
    };
    let mut names: Vec<CString> = Vec::new();
    for entry in Dir::read_from(&dir).map_err(failed(path))? {
        let entry = entry.map_err(failed(path))?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    for name in names {
        path.push(name.to_string_lossy().as_ref());
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&dir, &name, flags, Mode::empty()) {
            Err(Errno::NOENT) => {}
            Err(error) => return Err(failed(path)(error)),
            Ok(fd) => {
                label_one(&fd, label).map_err(failed(path))?;
                if is_directory(&fd) {
                    drop(fd);
                    label_below(&dir, &name, path, label, depth + 1)?;
                }
            }
        }
        path.pop();
    }
    Ok(())
}

/// Labels what is open, which may be a link itself.
fn label_one(fd: &OwnedFd, label: &str) -> rustix::io::Result<()> {
    // A descriptor that only names a file takes no attributes but by this path.
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let mut has = [0_u8; 1024];
    if let Ok(length) = rustix::fs::getxattr(path.as_str(), NAME, &mut has)
        && has[..length].strip_suffix(b"\0").unwrap_or(&has[..length]) == label.as_bytes()
    {
        return Ok(());
    }
    match rustix::fs::setxattr(path.as_str(), NAME, label.as_bytes(), XattrFlags::empty()) {
        Err(Errno::NOTSUP) => Ok(()),
        set => set,
    }
}
