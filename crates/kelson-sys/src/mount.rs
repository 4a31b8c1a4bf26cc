//! Mounts by descriptor: made detached, given their attributes, attached last.
//!
//! No function here takes a path inside a container; a target is always an open descriptor.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD};
use rustix::io::{Errno, Result};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

/// How events of mounting spread between a mount and its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// None.
    Private,
    /// Received from the master only.
    Slave,
    /// Both ways.
    Shared,
    /// None, and it cannot be bound elsewhere.
    Unbindable,
}

impl Propagation {
    fn flag(self) -> u64 {
        match self {
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::Slave => libc::MS_SLAVE,
            Propagation::Shared => libc::MS_SHARED,
            Propagation::Unbindable => libc::MS_UNBINDABLE,
        }
    }
}

/// What [`set_attributes`] changes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attributes<'a> {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear. To change an access time mode, clear `MOUNT_ATTR__ATIME` too.
    pub clear: u64,
    /// New propagation.
    pub propagation: Option<Propagation>,
    /// A user namespace by whose mapping ids are shown; only on a detached mount.
    pub id_map: Option<BorrowedFd<'a>>,
}

impl Attributes<'_> {
    /// Whether nothing would change.
    pub fn is_empty(&self) -> bool {
        self.set == 0 && self.clear == 0 && self.propagation.is_none() && self.id_map.is_none()
    }
}

/// Changes the attributes of the mount behind `mount`, and of those beneath it if `recursive`.
pub fn set_attributes(
    mount: BorrowedFd<'_>,
    attributes: &Attributes<'_>,
    recursive: bool,
) -> Result<()> {
    let mut set = attributes.set;
    if attributes.id_map.is_some() {
        set |= libc::MOUNT_ATTR_IDMAP;
    }
    let attr = libc::mount_attr {
        attr_set: set,
        attr_clr: attributes.clear,
        propagation: attributes.propagation.map_or(0, Propagation::flag),
        userns_fd: attributes.id_map.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated constant, and `attr` outlives the call with its size.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of_val(&attr),
        )
    };
    if ret == -1 { Err(last_errno()) } else { Ok(()) }
}

/// A detached copy of the mount at `path` beneath `dir` (absolute paths ignore `dir`), with the
/// mounts beneath it if `recursive`. The last component is followed if it is a symlink.
pub fn clone_tree_at(dir: BorrowedFd<'_>, path: &Path, recursive: bool) -> Result<OwnedFd> {
    rustix::mount::open_tree(dir, path, clone_flags(recursive))
}

/// As [`clone_tree_at`], of the file or directory behind `fd` (opened with `O_PATH` or otherwise).
pub fn clone_tree(fd: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd> {
    rustix::mount::open_tree(
        fd,
        c"",
        clone_flags(recursive) | OpenTreeFlags::AT_EMPTY_PATH,
    )
}

fn clone_flags(recursive: bool) -> OpenTreeFlags {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags | OpenTreeFlags::AT_RECURSIVE
    } else {
        flags
    }
}

/// Attaches the detached mount `mount` on the file or directory behind `target`.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", target, c"", flags)
}

/// As [`attach`], on a path of the host that the caller chose.
pub fn attach_at(mount: BorrowedFd<'_>, target: &Path) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
    rustix::mount::move_mount(mount, c"", CWD, target, flags)
}

/// Takes what is mounted at `path` out of the tree now, and frees it when its last user is gone.
pub fn detach(path: &Path) -> Result<()> {
    rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
}

/// Makes the directory `.`, which must be a mount point, the root of the mount namespace, and
/// detaches the old root.
pub fn pivot_to_cwd() -> Result<()> {
    rustix::process::pivot_root(c".", c".")?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")
}

/// A filesystem being configured. The kernel's explanation of a failure, where it gives one, is
/// kept: see [`Filesystem::explanation`].
#[derive(Debug)]
pub struct Filesystem {
    context: OwnedFd,
}

impl Filesystem {
    /// Starts the configuration of a filesystem of type `kind`.
    pub fn open(kind: &CStr) -> Result<Self> {
        let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        Ok(Self { context })
    }

    /// Sets `key` to `value`.
    pub fn set(&self, key: &CStr, value: &CStr) -> Result<()> {
        rustix::mount::fsconfig_set_string(&self.context, key, value)
    }

    /// Sets `key`, which takes no value.
    pub fn flag(&self, key: &CStr) -> Result<()> {
        rustix::mount::fsconfig_set_flag(&self.context, key)
    }

    /// Sets an option as mount(8) takes it: `key` or `key=value`.
    pub fn option(&self, option: &str) -> Result<()> {
        match option.split_once('=') {
            Some((key, value)) => self.set(&cstring(key)?, &cstring(value)?),
            None => self.flag(&cstring(option)?),
        }
    }

    /// Makes the filesystem and a detached mount of it with `MOUNT_ATTR_*` attributes.
    pub fn mount(&self, attributes: u64) -> Result<OwnedFd> {
        rustix::mount::fsconfig_create(&self.context)?;
        let attributes = MountAttrFlags::from_bits_retain(attributes as u32);
        rustix::mount::fsmount(&self.context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    }

    /// What the kernel has said about the last failure, if anything.
    pub fn explanation(&self) -> Option<String> {
        let mut last = None;
        let mut buffer = [0_u8; 1024];
        while let Ok(n) = rustix::io::read(&self.context, &mut buffer) {
            let text = String::from_utf8_lossy(buffer.get(2..n)?).trim().to_owned();
            last = Some(text);
        }
        last
    }
}

impl AsFd for Filesystem {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.context.as_fd()
    }
}

/// Whether `fd` is the root of a mount (kernel 5.8 and later).
pub fn is_mount_root(fd: BorrowedFd<'_>) -> Result<bool> {
    const STATX_ATTR_MOUNT_ROOT: u64 = 0x2000;
    let stat = rustix::fs::statx(
        fd,
        c"",
        AtFlags::EMPTY_PATH,
        rustix::fs::StatxFlags::empty(),
    )?;
    Ok(stat.stx_attributes.bits() & STATX_ATTR_MOUNT_ROOT != 0)
}

fn cstring(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Errno::INVAL)
}

fn last_errno() -> Errno {
    let code = std::io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO);
    Errno::from_raw_os_error(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags};

    fn is_root() -> bool {
        let root = rustix::process::geteuid().is_root();
        if !root {
            eprintln!("skipped: needs root");
        }
        root
    }

    #[test]
    fn a_detached_tmpfs_is_written_to_and_then_read_only() {
        if !is_root() {
            return;
        }
        let fs = Filesystem::open(c"tmpfs").unwrap();
        fs.option("size=64k").unwrap();
        let mount = fs.mount(libc::MOUNT_ATTR_NODEV).unwrap();
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(&mount, c"a", flags, Mode::RUSR).unwrap();
        assert!(is_mount_root(mount.as_fd()).unwrap());
        let ro = Attributes {
            set: libc::MOUNT_ATTR_RDONLY,
            ..Attributes::default()
        };
        set_attributes(mount.as_fd(), &ro, false).unwrap();
        let error = rustix::fs::openat(&mount, c"b", flags, Mode::RUSR).unwrap_err();
        assert_eq!(error, Errno::ROFS);
    }

    #[test]
    fn the_kernel_explains_a_bad_option() {
        if !is_root() {
            return;
        }
        let fs = Filesystem::open(c"tmpfs").unwrap();
        assert!(fs.option("nonsense=1").is_err());
        assert!(fs.explanation().unwrap().contains("nonsense"));
    }

    #[test]
    fn an_option_with_nul_is_refused() {
        if !is_root() {
            return;
        }
        let fs = Filesystem::open(c"tmpfs").unwrap();
        assert_eq!(fs.option("size=\0").unwrap_err(), Errno::INVAL);
    }
}
