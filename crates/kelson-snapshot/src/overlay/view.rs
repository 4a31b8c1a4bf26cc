//! The merged tree of some layers as a directory descriptor. Nothing enters a mount table.

use std::ffi::CString;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use kelson_sys::mount::Filesystem;
use rustix::io::{Errno, Result};
use rustix::mount::MountAttrFlags;

use crate::tree;

/// Opens the merged tree of `lower`, top first. A single layer is its own directory: what it marks
/// as not there shows as devices with number 0:0, which hide nothing.
pub(super) fn merged(lower: &[PathBuf]) -> Result<OwnedFd> {
    match lower {
        [only] => tree::open_dir(only),
        lower => by_layers(lower).or_else(|error| match error {
            // Linux before 6.8 takes all layers as one option.
            Errno::INVAL => by_list(lower),
            error => Err(error),
        }),
    }
}

fn by_layers(lower: &[PathBuf]) -> Result<OwnedFd> {
    let overlay = Filesystem::open(c"overlay")?;
    for layer in lower {
        overlay.set(c"lowerdir+", &cstring(layer.as_os_str().as_bytes())?)?;
    }
    finish(&overlay)
}

/// The option has 256 bytes at most; by descriptors that is some 14 layers.
pub(super) fn by_list(lower: &[PathBuf]) -> Result<OwnedFd> {
    let opened = lower
        .iter()
        .map(|layer| tree::open_dir(layer))
        .collect::<Result<Vec<_>>>()?;
    let paths: Vec<_> = opened
        .iter()
        .map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .collect();
    let overlay = Filesystem::open(c"overlay")?;
    overlay.set(c"lowerdir", &cstring(paths.join(":").as_bytes())?)?;
    finish(&overlay)
}

fn finish(overlay: &Filesystem) -> Result<OwnedFd> {
    overlay.flag(c"ro")?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    overlay.mount(attributes.bits().into())
}

fn cstring(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| Errno::INVAL)
}
