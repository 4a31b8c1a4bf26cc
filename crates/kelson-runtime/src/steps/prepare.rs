//! First of all: nothing of the maker's may reach the program, nothing of the container may reach
//! the maker.

use kelson_sys::process;

use super::{Failure, NewProcess, OrFail};

/// Becomes untraceable, drops the maker's signal handling, and leads a session of its own.
pub(super) fn run(process: &mut NewProcess<'_>) -> Result<(), Failure> {
    process::set_dumpable(false).or_fail(|| "cannot become untraceable".into())?;
    process::reset_signals().or_fail(|| "cannot reset the signal mask".into())?;
    rustix::process::setsid().or_fail(|| "cannot make a session".into())?;
    rustix::process::umask(rustix::fs::Mode::empty());
    if process.waits_for_word && !process.channel.wait_for_word() {
        return Err(Failure::new("the process that started this one is gone"));
    }
    if !process.options.no_new_keyring {
        match process::new_session_keyring() {
            // A kernel without keyrings, or a filter that denies them: there is no key to protect.
            Ok(()) | Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {}
            Err(e) => return Err(Failure::errno("cannot make a session keyring", e)),
        }
    }
    Ok(())
}
