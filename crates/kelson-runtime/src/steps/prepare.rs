//! First of all: nothing of the maker's may reach the program, nothing of the container may reach
//! the maker.

use kelson_sys::process;

use super::{Failure, NewProcess, OrFail, labels};

/// Becomes untraceable and drops the maker's signal handling.
pub(super) fn run(_: &mut NewProcess<'_>) -> Result<(), Failure> {
    process::set_dumpable(false).or_fail(|| "cannot become untraceable".into())?;
    process::reset_signals().or_fail(|| "cannot reset the signal mask".into())?;
    rustix::process::umask(rustix::fs::Mode::empty());
    Ok(())
}

/// Leads a session of its own, with keys of its own.
pub(super) fn session(process: &mut NewProcess<'_>) -> Result<(), Failure> {
    rustix::process::setsid().or_fail(|| "cannot make a session".into())?;
    if !process.options.no_new_keyring {
        labels::apply_to_keys(process)?;
        match process::new_session_keyring() {
            // A kernel without keyrings, or a filter that denies them: there is no key to protect.
            Ok(()) | Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {}
            Err(e) => return Err(Failure::errno("cannot make a session keyring", e)),
        }
    }
    Ok(())
}
