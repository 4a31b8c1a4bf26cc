//! `kill`, and the names of signals.

use std::os::fd::AsFd;

use super::args::{Global, KillArgs};
use super::error::CliError;
use super::record::{Container, Status};

/// The names of the signals from 1 on.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// The real-time signals that programs may use.
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// Sends a signal to a container.
pub(super) fn kill(global: &Global, args: &KillArgs) -> Result<u8, CliError> {
    let signal = parse(&args.signal).ok_or_else(|| {
        CliError::Usage(format!(
            "{:?} is no signal; use a name or a number",
            args.signal
        ))
    })?;
    let container = Container::open(global, &args.id)?;
    let failed = |e: rustix::io::Errno| CliError::io("signal", &args.id, e);
    if args.all {
        // SAFETY: the number is one of the kernel's signals, see `parse`; it is sent, not handled.
        let signal = unsafe { rustix::process::Signal::from_raw_unchecked(signal) };
        container.cgroup()?.signal(signal)?;
        return Ok(0);
    }
    let Some(pidfd) = container.pidfd()? else {
        let (id, status) = (args.id.clone(), Status::Stopped);
        return Err(CliError::State {
            id,
            status,
            needed: "there is nothing to signal",
        });
    };
    kelson_sys::process::pidfd_send_signal(pidfd.as_fd(), signal).map_err(failed)?;
    Ok(0)
}

/// The number of a signal by its number or name, with or without `SIG`, `RTMIN+n` and `RTMAX-n`.
fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(at) = NAMES.iter().position(|known| *known == name) {
        return i32::try_from(at + 1).ok();
    }
    let offset = |text: &str, sign| match text {
        "" => Some(0),
        text => text.strip_prefix(sign)?.parse::<u8>().ok().map(i32::from),
    };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        REAL_TIME.start() + offset(rest, '+')?
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        REAL_TIME.end() - offset(rest, '-')?
    } else {
        return match name {
            "IOT" => Some(libc::SIGABRT),
            "POLL" => Some(libc::SIGIO),
            "CLD" => Some(libc::SIGCHLD),
            _ => None,
        };
    };
    REAL_TIME.contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_number_and_name() {
        for (text, number) in [
            ("9", Some(9)),
            ("64", Some(64)),
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("SIGSYS", Some(31)),
            ("SIGRTMIN", Some(34)),
            ("RTMIN+3", Some(37)),
            ("RTMAX-14", Some(50)),
            ("RTMAX", Some(64)),
            ("0", None),
            ("65", None),
            ("RTMIN+31", None),
            ("RTMAX-31", None),
            ("SIG", None),
            ("NOPE", None),
            ("", None),
        ] {
            assert_eq!(parse(text), number, "{text}");
        }
    }
}
