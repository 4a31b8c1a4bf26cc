//! Waiting for a process in the foreground: signals are passed on, a terminal is joined to ours.

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions};
use rustix::termios::{OptionalActions, Termios};

use super::error::CliError;
use crate::Launched;

/// What is passed on to the process.
const FORWARDED: [i32; 6] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
];
/// Bytes copied at once between terminals.
const CHUNK: usize = 16 * 1024;

/// Waits for the end of a process and returns its exit code, 128 plus the signal's number if one
/// ended it.
pub(super) fn wait(launched: &Launched, terminal: Option<OwnedFd>) -> Result<u8, CliError> {
    let failed = |e: Errno| CliError::io("wait for", "the process", e);
    let signals = signal_descriptor().map_err(failed)?;
    let own = rustix::stdio::stdin();
    let raw = match &terminal {
        Some(master) => RawTerminal::enter(own, master).map_err(failed)?,
        None => None,
    };
    let mut input_open = terminal.is_some();
    loop {
        let mut poll = vec![
            PollFd::new(&launched.pidfd, PollFlags::IN),
            PollFd::new(&signals, PollFlags::IN),
        ];
        if let Some(master) = &terminal {
            poll.push(PollFd::new(master, PollFlags::IN));
            if input_open {
                poll.push(PollFd::new(&own, PollFlags::IN));
            }
        }
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut poll, None)).map_err(failed)?;
        let ready: Vec<bool> = poll.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[1] {
            forward(&signals, launched, terminal.as_ref()).map_err(failed)?;
        }
        if let Some(master) = &terminal {
            if ready[2] {
                copy(master.as_fd(), rustix::stdio::stdout());
            }
            if ready.get(3) == Some(&true) {
                input_open = copy(own, master.as_fd());
            }
        }
        if ready[0] {
            if let Some(master) = &terminal {
                while copy(master.as_fd(), rustix::stdio::stdout()) {}
            }
            drop(raw);
            return reap(launched).map_err(failed);
        }
    }
}

/// Takes the exit code of a process that ends.
pub(super) fn reap(launched: &Launched) -> rustix::io::Result<u8> {
    let wait =
        || rustix::process::waitid(WaitId::PidFd(launched.pidfd.as_fd()), WaitIdOptions::EXITED);
    let status = rustix::io::retry_on_intr(wait)?.ok_or(Errno::CHILD)?;
    let code = match status.exit_status() {
        Some(code) => code,
        None => 128 + status.terminating_signal().unwrap_or(0),
    };
    Ok(u8::try_from(code & 0xff).unwrap_or(u8::MAX))
}

/// Blocks the signals that are passed on and returns a descriptor that reads them.
fn signal_descriptor() -> rustix::io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before it is used, and outlives the calls.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in FORWARDED.into_iter().chain([libc::SIGWINCH]) {
            libc::sigaddset(&raw mut set, signal);
        }
        let blocked = libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if blocked == -1 || fd == -1 {
            let error = std::io::Error::last_os_error();
            return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

fn forward(
    signals: &OwnedFd,
    launched: &Launched,
    terminal: Option<&OwnedFd>,
) -> rustix::io::Result<()> {
    let mut info = [0; size_of::<libc::signalfd_siginfo>()];
    while let Ok(n) = rustix::io::read(signals, &mut info) {
        // The number of the signal is the first field.
        let Some(number) = info[..n].first_chunk().copied().map(u32::from_ne_bytes) else {
            break;
        };
        match (number.cast_signed(), terminal) {
            (libc::SIGWINCH, Some(master)) => copy_size(rustix::stdio::stdin(), master),
            (libc::SIGWINCH, None) => {}
            (signal, _) => {
                match kelson_sys::process::pidfd_send_signal(launched.pidfd.as_fd(), signal) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(e) => return Err(e),
                }
            }
        }
    }
    Ok(())
}

/// Copies what is there; false at the end of the source or when the target is gone.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> bool {
    let mut buffer = [0; CHUNK];
    let Ok(n @ 1..) = rustix::io::retry_on_intr(|| rustix::io::read(from, &mut buffer)) else {
        return false;
    };
    let mut rest = &buffer[..n];
    while !rest.is_empty() {
        match rustix::io::retry_on_intr(|| rustix::io::write(to, rest)) {
            Ok(written) => rest = &rest[written..],
            Err(_) => return false,
        }
    }
    true
}

fn copy_size(from: BorrowedFd<'_>, to: &OwnedFd) {
    // A terminal without a size keeps the one it has.
    if let Ok(size) = rustix::termios::tcgetwinsize(from) {
        let _ = rustix::termios::tcsetwinsize(to, size);
    }
}

/// Our terminal in raw mode; restored when dropped.
struct RawTerminal<'a> {
    own: BorrowedFd<'a>,
    before: Termios,
}

impl<'a> RawTerminal<'a> {
    /// `None` when our input is no terminal.
    fn enter(own: BorrowedFd<'a>, master: &OwnedFd) -> rustix::io::Result<Option<Self>> {
        if !rustix::termios::isatty(own) {
            return Ok(None);
        }
        copy_size(own, master);
        let before = rustix::termios::tcgetattr(own)?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(own, OptionalActions::Now, &raw)?;
        Ok(Some(Self { own, before }))
    }
}

impl Drop for RawTerminal<'_> {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = rustix::termios::tcsetattr(self.own, OptionalActions::Now, &self.before);
    }
}
