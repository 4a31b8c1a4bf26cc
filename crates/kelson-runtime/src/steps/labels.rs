//! Security labels that take effect at execution.

use std::os::fd::OwnedFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::namespaces::write_proc;
use super::{Failure, NewProcess};

/// Asks for the AppArmor profile and the SELinux label. What is asked for and cannot be had is an
/// error: running without it would be less protected than the specification says.
pub(super) fn apply(process: &mut NewProcess<'_>) -> Result<(), Failure> {
    if let Some(profile) = &process.plan.apparmor
        && profile != "unconfined"
    {
        let request = format!("exec {profile}");
        write_proc(
            process,
            "thread-self/attr/apparmor/exec",
            request.as_bytes(),
        )
        .or_else(|_| write_proc(process, "thread-self/attr/exec", request.as_bytes()))?;
    }
    match &process.plan.selinux {
        Some(label) => ask(process, "thread-self/attr/exec", label),
        None => Ok(()),
    }
}

/// Asks for the SELinux label of keyrings that this process makes. Executing a program ends that.
pub(super) fn apply_to_keys(process: &NewProcess<'_>) -> Result<(), Failure> {
    match &process.plan.selinux {
        Some(label) => ask(process, "thread-self/attr/keycreate", label),
        None => Ok(()),
    }
}

fn ask(process: &NewProcess<'_>, file: &str, label: &str) -> Result<(), Failure> {
    write_proc(process, file, label.as_bytes()).map_err(|failure| {
        failure.because(&format!(
            "cannot set the SELinux label {label:?}; SELinux must be on and its policy know the label"
        ))
    })
}

/// Gives what is open an SELinux label; a file system without labels has none to set.
pub(super) fn set(file: &OwnedFd, label: &str) -> Result<(), Failure> {
    match rustix::fs::fsetxattr(
        file,
        c"security.selinux",
        label.as_bytes(),
        XattrFlags::empty(),
    ) {
        Ok(()) | Err(Errno::NOTSUP) => Ok(()),
        Err(e) => Err(Failure::errno(
            format!("cannot set the SELinux label {label:?}"),
            e,
        )),
    }
}
