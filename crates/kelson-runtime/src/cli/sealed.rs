//! Running from a file that nobody can change: a container must not get hold of the program of the
//! host, not even through `/proc/<pid>/exe` of a process that is about to become it.
//!
//! The program is executed again from a read-only mount of its file, which is attached nowhere, so that
//! nobody can make it writable, and costs next to nothing; where that cannot be, from a sealed copy in
//! memory.

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use kelson_sys::mount::{self, Attributes};
use kelson_sys::{memfd, process};
use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;

use super::error::CliError;

const EXE: &str = "/proc/self/exe";
/// Set for the program when it runs from a mount of ours.
const MARK: &str = "_KELSON_OCI_SEALED";

/// Returns when the program runs from a file that nobody can change; executes it again from one
/// otherwise.
pub(super) fn ensure() -> Result<(), CliError> {
    let failed = |e: Errno| CliError::io("protect the program", EXE, e);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let exe = rustix::fs::open(EXE, flags, Mode::empty()).map_err(failed)?;
    if memfd::is_sealed(&exe) || is_read_only_by_us(&exe).map_err(failed)? {
        return Ok(());
    }
    let (file, mark) = match read_only(&exe) {
        Ok(file) => (file, true),
        Err(_) => {
            let copy = memfd::sealed_copy_of(Path::new(EXE), "kelson-oci").map_err(failed)?;
            (copy, false)
        }
    };
    let args: Vec<CString> = std::env::args_os().filter_map(c_string).collect();
    let variables = std::env::vars_os().filter(|(name, _)| name != MARK);
    let mark = mark.then(|| (OsString::from(MARK), OsString::from("1")));
    let env: Vec<CString> = variables
        .chain(mark)
        .filter_map(|(name, value)| {
            c_string(
                [name.as_os_str(), OsStr::new("="), value.as_os_str()]
                    .into_iter()
                    .collect(),
            )
        })
        .collect();
    let args: Vec<_> = args.iter().map(CString::as_c_str).collect();
    let env: Vec<_> = env.iter().map(CString::as_c_str).collect();
    Err(failed(process::fexecve(file.as_fd(), &args, &env)))
}

/// Arguments and variables came as C strings, so none is left out.
fn c_string(text: OsString) -> Option<CString> {
    CString::new(text.into_vec()).ok()
}

fn is_read_only_by_us(exe: &OwnedFd) -> rustix::io::Result<bool> {
    let flags = rustix::fs::fstatvfs(exe)?.f_flag;
    Ok(flags.contains(StatVfsMountFlags::RDONLY) && std::env::var_os(MARK).is_some())
}

/// The program in a read-only mount of nothing but its file.
fn read_only(exe: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let mount = mount::clone_tree(exe.as_fd(), false)?;
    let attributes = Attributes {
        set: libc::MOUNT_ATTR_RDONLY,
        ..Attributes::default()
    };
    mount::set_attributes(mount.as_fd(), &attributes, false)?;
    Ok(mount)
}
