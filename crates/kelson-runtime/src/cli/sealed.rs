//! Running from a copy that nobody can change: a container must not get hold of the program of the
//! host, not even through `/proc/<pid>/exe` of a process that is about to become it.

use std::ffi::{CString, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use kelson_sys::{memfd, process};

use super::error::CliError;

const EXE: &str = "/proc/self/exe";

/// Returns when the program runs from a sealed copy; executes it again from one otherwise.
pub(super) fn ensure() -> Result<(), CliError> {
    let failed = |e: std::io::Error| CliError::io("copy the program", EXE, e);
    if memfd::is_sealed(std::fs::File::open(EXE).map_err(failed)?) {
        return Ok(());
    }
    let copy = memfd::sealed_copy_of(Path::new(EXE), "kelson-oci").map_err(|e| failed(e.into()))?;
    let strings = |list: Vec<OsString>| -> Vec<CString> {
        // Arguments and variables came as C strings.
        list.into_iter()
            .filter_map(|text| CString::new(text.into_vec()).ok())
            .collect()
    };
    let args = strings(std::env::args_os().collect());
    let variable = |(name, value): (OsString, OsString)| {
        let mut text = name;
        text.push("=");
        text.push(value);
        text
    };
    let env = strings(std::env::vars_os().map(variable).collect());
    let args: Vec<_> = args.iter().map(CString::as_c_str).collect();
    let env: Vec<_> = env.iter().map(CString::as_c_str).collect();
    let error = process::fexecve(copy.as_fd(), &args, &env);
    Err(failed(error.into()))
}
