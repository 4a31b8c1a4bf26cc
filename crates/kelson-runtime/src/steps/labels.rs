//! Security labels that take effect at execution.

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
    if let Some(label) = &process.plan.selinux {
        write_proc(process, "thread-self/attr/exec", label.as_bytes())?;
    }
    Ok(())
}
