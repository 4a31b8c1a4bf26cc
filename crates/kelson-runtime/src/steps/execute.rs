//! The last steps: the seccomp filter, and the program.

use std::ffi::CStr;

use kelson_sys::process;

use super::{Failure, NewProcess, OrFail, command};
use crate::progress::Message;

/// Without no_new_privs loading a filter takes a capability that is about to go.
pub(super) fn load_filter_early(process: &mut NewProcess<'_>) -> Result<(), Failure> {
    if process.plan.no_new_privileges {
        Ok(())
    } else {
        load_filter(process)
    }
}

/// With no_new_privs the filter comes last, so that it need not permit what is done before.
pub(super) fn load_filter_late(process: &mut NewProcess<'_>) -> Result<(), Failure> {
    // Said before the filter is there: it may not permit saying anything.
    process.channel.tell(&Message::Executing);
    // Only what the program is meant to inherit passes; the channel ends with the execution.
    process::cloexec_from(3 + process.options.preserve_fds)
        .or_fail(|| "cannot close descriptors".into())?;
    if !process.plan.no_new_privileges {
        return Ok(());
    }
    rustix::thread::set_no_new_privs(true).or_fail(|| "cannot set no_new_privs".into())?;
    load_filter(process)
}

fn load_filter(process: &NewProcess<'_>) -> Result<(), Failure> {
    let Some(program) = process.seccomp else {
        return Ok(());
    };
    process::load_seccomp(program.filter(), program.flags().into())
        .or_fail(|| "cannot load the seccomp filter".into())
        .map(drop)
}

/// Executes the program.
pub(super) fn execute(process: &mut NewProcess<'_>) -> Result<(), Failure> {
    let args: Vec<&CStr> = process.plan.args.iter().map(AsRef::as_ref).collect();
    let env = process.plan.env.iter().chain(&process.extra_env);
    let env: Vec<&CStr> = env.map(AsRef::as_ref).collect();
    let errno = process::execve(&process.program, &args, &env);
    let program = process.program.to_string_lossy();
    Err(command::failure(format!("cannot execute {program}"), errno))
}
