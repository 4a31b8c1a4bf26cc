//! What a file of a layer carries besides its data: owner, mode, time, extended attributes.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::{Errno, Result};

use crate::unpack::Meta;

/// Overlayfs' mark on a directory that hides those below.
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

/// Gives an open file owner, mode and time. Most have the right owner and mode from the start, and
/// looking is cheaper than changing.
pub(crate) fn describe(fd: impl AsFd, meta: &Meta) -> Result<()> {
    let fd = fd.as_fd();
    let stat = rustix::fs::fstat(fd)?;
    let owned = (stat.st_uid, stat.st_gid) == (meta.uid, meta.gid);
    if !owned {
        rustix::fs::fchown(
            fd,
            Some(Uid::from_raw(meta.uid)),
            Some(Gid::from_raw(meta.gid)),
        )?;
    }
    // After the owner: a change of owner takes the set-id bits away.
    if !owned || stat.st_mode & 0o7777 != meta.mode {
        rustix::fs::fchmod(fd, Mode::from_raw_mode(meta.mode))?;
    }
    rustix::fs::futimens(fd, &times(meta))
}

/// Gives the file `name` owner, mode and time, for what cannot be opened without side effects:
/// links, devices, fifos. The directory must be one into which nobody else can write.
pub(crate) fn describe_at(dir: impl AsFd, name: &[u8], meta: &Meta, link: bool) -> Result<()> {
    let dir = dir.as_fd();
    let owner = (Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)));
    rustix::fs::chownat(dir, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
    if !link {
        rustix::fs::chmodat(dir, name, Mode::from_raw_mode(meta.mode), AtFlags::empty())?;
    }
    rustix::fs::utimensat(dir, name, &times(meta), AtFlags::SYMLINK_NOFOLLOW)
}

/// The times of a file; a container sees its access time as that of its last change.
pub(crate) fn times(meta: &Meta) -> Timestamps {
    let time = Timespec {
        tv_sec: meta.mtime.0,
        tv_nsec: meta.mtime.1.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Whether a layer may set this extended attribute: those of users, and file capabilities. Others
/// are dropped, because they mean something to the host: `trusted.overlay.*` steers overlayfs,
/// `security.selinux` and `security.ima` belong to the node's policy, and access control lists do
/// not come in this form from the field's builders.
pub(crate) fn is_allowed(name: &[u8]) -> bool {
    name == b"security.capability"
        || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

/// Sets an extended attribute if a layer may; a file system without them is no error.
pub(crate) fn set_xattr(fd: impl AsFd, name: &[u8], value: &[u8]) -> Result<()> {
    if !is_allowed(name) {
        return Ok(());
    }
    match rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()) {
        Err(Errno::NOTSUP) => {
            tracing::warn!(
                name = %String::from_utf8_lossy(name),
                "the file system has no such extended attributes; one of a layer is lost"
            );
            Ok(())
        }
        result => result,
    }
}
