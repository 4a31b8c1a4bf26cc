//! The zygote: a process with next to no memory of its own that forks shims.
//!
//! It is started with a socket of packets as its standard input. Each packet is a
//! [`PodSetup`] with one descriptor beside it: the socket for what the new
//! shim has to say. The zygote reads nothing of it; it forks, and the child does everything, so
//! that neither a slow nor a broken request is in the way of the next one. It ends when the daemon
//! closes the socket; the shims live on.

use std::os::fd::{AsFd, IntoRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use kelson_cgroup::Hierarchy;
use kelson_sys::process::Cloned;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::memory;
use crate::proto::{PodSetup, Refusal, RefusalKind};

/// The longest request.
const MAX_REQUEST: usize = 64 << 10;

/// Where a shim keeps the socket it was given; above it, everything is closed.
const EVENT_FD: RawFd = 3;

/// Runs the zygote. Must be called first thing in `main`, before anything makes a thread, in a
/// program that was started by [`crate::client::Zygote`].
pub fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve() -> rustix::io::Result<()> {
    memory::keep_large_apart();
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), EVENT_FD + 1)?;
    let null = rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    // A session of its own: what is typed at the daemon's terminal is not for the pods.
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"kelson-zygote");
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // SAFETY: SIG_IGN installs no handler; the kernel reaps children of who ignores SIGCHLD.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    // Found once; shims share it.
    let hierarchy =
        Hierarchy::detect().map_err(|error| crate::shim::refusal(RefusalKind::Setup, &error));
    let mut request = vec![0; MAX_REQUEST];
    memory::release();
    loop {
        match kelson_sys::fdpass::recv_with_fds(socket.as_fd(), &mut request) {
            Ok((0, _)) => return Ok(()),
            Ok((len, fds)) => {
                let Ok([events]) = <[OwnedFd; 1]>::try_from(fds) else {
                    continue;
                };
                // SAFETY: the zygote has a single thread.
                let Ok(Cloned::Child) = (unsafe { kelson_sys::process::clone3(0, None) }) else {
                    // The caller sees its socket closed when there was no room for a process.
                    continue;
                };
                // The socket and the standard input are closed by number.
                let _ = socket.into_raw_fd();
                let _ = null.into_raw_fd();
                become_shim(&request[..len], events, hierarchy);
            }
            // What is too long is no request.
            Err(Errno::MSGSIZE) => {}
            Err(error) => return Err(error),
        }
    }
}

fn become_shim(request: &[u8], events: OwnedFd, hierarchy: Result<Hierarchy, Refusal>) -> ! {
    let _ = rustix::thread::set_name(c"kelson-shim");
    if let Ok(events) = keep_only(events) {
        match serde_json::from_slice::<PodSetup>(request) {
            Ok(setup) => crate::shim::run(&setup, events, hierarchy),
            Err(error) => crate::shim::fail(
                events,
                Refusal {
                    kind: RefusalKind::Invalid,
                    message: format!("the pod's set-up cannot be read: {error}"),
                },
            ),
        }
    }
    kelson_sys::process::exit_now(0)
}

/// Closes everything but the socket for events, and turns away from the daemon's output.
fn keep_only(events: OwnedFd) -> rustix::io::Result<OwnedFd> {
    let null = rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    // Both were opened after 0, 1 and 2, so neither of them is one of these.
    let _ = null.into_raw_fd();
    let events = events.into_raw_fd();
    // SAFETY: the descriptor was taken out of its owner just above.
    let events = unsafe { std::os::fd::BorrowedFd::borrow_raw(events) };
    // SAFETY: nobody owns descriptor 3: everything from 3 on is about to be closed by number, and
    // what owned it has been given up.
    unsafe {
        kelson_sys::process::replace_fd(events, EVENT_FD)?;
        kelson_sys::process::close_fds(EVENT_FD.cast_unsigned() + 1, u32::MAX)?;
    }
    // SAFETY: the descriptor is open, and nobody else owns it.
    let events = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(EVENT_FD) };
    rustix::io::fcntl_setfd(&events, rustix::io::FdFlags::CLOEXEC)?;
    Ok(events)
}
