//! Real layers, containers and mounts.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use kelson_sys::mount::Filesystem;

/// A detached tmpfs of `bytes`.
pub(crate) fn small_file_system(bytes: u64) -> Option<OwnedFd> {
    let tmpfs = Filesystem::open(c"tmpfs").ok()?;
    tmpfs.set(c"size", &CString::new(bytes.to_string()).ok()?).ok()?;
    tmpfs.mount(0).ok()
}
