//! The signals of a shim: children that have ended, and the request to end, as a descriptor.

use std::os::fd::{FromRawFd, OwnedFd};

use rustix::io::{Errno, Result};

/// What signals have said since they were last asked.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Received {
    /// A child has ended, or several.
    pub(super) child: bool,
    /// The shim is asked to end, and its pod with it.
    pub(super) terminate: bool,
}

/// Undoes what the zygote has set, ignores what a terminal or a closed pipe may send, and turns
/// SIGCHLD and SIGTERM into a descriptor.
pub(super) fn install() -> Result<OwnedFd> {
    kelson_sys::process::reset_signals()?;
    for ignored in [libc::SIGPIPE, libc::SIGHUP, libc::SIGINT] {
        // SAFETY: SIG_IGN installs no handler.
        unsafe { libc::signal(ignored, libc::SIG_IGN) };
    }
    // SAFETY: the set is initialised by sigemptyset before it is used, and outlives the calls.
    let fd = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
            return Err(last_errno());
        }
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if fd < 0 {
        return Err(last_errno());
    }
    // SAFETY: signalfd has returned a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Empties the descriptor.
pub(super) fn receive(fd: &OwnedFd) -> Received {
    const RECORD: usize = size_of::<libc::signalfd_siginfo>();
    let mut received = Received::default();
    let mut records = [0_u8; 4 * RECORD];
    while let Ok(count @ 1..) = rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut records)) {
        for record in records[..count].chunks_exact(RECORD) {
            // The number of the signal is the first field.
            match record
                .first_chunk::<4>()
                .map(|number| i32::from_ne_bytes(*number))
            {
                Some(libc::SIGCHLD) => received.child = true,
                Some(libc::SIGTERM) => received.terminate = true,
                _ => {}
            }
        }
    }
    received
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
