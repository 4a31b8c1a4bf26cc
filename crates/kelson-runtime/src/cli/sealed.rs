//! Running from a file that nobody can change: a container must not get hold of the program of the
//! host, not even through `/proc/<pid>/exe` of a process that is about to become it.
//!
//! The program is executed again from a read-only overlay of its directory, which is attached
//! nowhere and costs next to nothing, or where that cannot be from a sealed copy in memory.

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use kelson_sys::mount::Filesystem;
use kelson_sys::{memfd, process};
use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;

use super::error::CliError;

const EXE: &str = "/proc/self/exe";
/// Set for the program when it runs from an overlay of ours.
const MARK: &str = "_KELSON_OCI_SEALED";
/// An overlay without an upper directory needs two lower ones; this one has nothing to execute.
const SECOND: &std::ffi::CStr = c"/sys/kernel";
/// The type of an overlay, as fstatfs(2) has it.
const OVERLAYFS_MAGIC: i64 = 0x794c_7630;

/// Returns when the program runs from a file that nobody can change; executes it again from one
/// otherwise.
pub(super) fn ensure() -> Result<(), CliError> {
    let failed = |e: Errno| CliError::io("protect the program", EXE, e);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let exe = rustix::fs::open(EXE, flags, Mode::empty()).map_err(failed)?;
    if memfd::is_sealed(&exe) || is_overlay_of_ours(&exe).map_err(failed)? {
        return Ok(());
    }
    let (file, mark) = match overlay() {
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

fn is_overlay_of_ours(exe: &OwnedFd) -> rustix::io::Result<bool> {
    let on_overlay = rustix::fs::fstatfs(exe)?.f_type == OVERLAYFS_MAGIC;
    let read_only = rustix::fs::fstatvfs(exe)?
        .f_flag
        .contains(StatVfsMountFlags::RDONLY);
    Ok(on_overlay && read_only && std::env::var_os(MARK).is_some())
}

/// The program in a read-only overlay of its directory.
fn overlay() -> rustix::io::Result<OwnedFd> {
    let path = rustix::fs::readlink(EXE, Vec::new())?;
    let path = Path::new(OsStr::from_bytes(path.to_bytes()));
    let (dir, name) = path.parent().zip(path.file_name()).ok_or(Errno::INVAL)?;
    let dir = CString::new(dir.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
    let fs = Filesystem::open(c"overlay")?;
    fs.set(c"lowerdir+", &dir)?;
    fs.set(c"lowerdir+", SECOND)?;
    let mount = fs.mount(libc::MOUNT_ATTR_RDONLY)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&mount, name, flags, Mode::empty())?;
    // The name may stand for another file by now.
    let same = |a: rustix::fs::Stat, b: rustix::fs::Stat| {
        (a.st_size, a.st_mtime, a.st_ino) == (b.st_size, b.st_mtime, b.st_ino)
    };
    if same(rustix::fs::fstat(&file)?, rustix::fs::stat(EXE)?) {
        Ok(file)
    } else {
        Err(Errno::STALE)
    }
}
