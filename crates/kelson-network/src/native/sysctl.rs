//! Kernel switches of the network namespace that the calling thread is in.

use std::fs;
use std::path::Path;

use crate::error::Error;

/// Sets `name` (a path below `sys/net`) unless it has the value already.
pub(crate) fn ensure(proc_root: &Path, name: &str, value: &str) -> Result<(), Error> {
    let path = proc_root.join("sys/net").join(name);
    if fs::read_to_string(&path).is_ok_and(|found| found.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value).map_err(Error::io("write", &path))
}
