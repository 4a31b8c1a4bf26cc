//! Stop signals: the CRI numbers them by its own enumeration, Kelson names and numbers them as Linux does.

use kelson_cri::v1::Signal;

/// Names of the signals 1 to 31 on Linux, in order; the same on x86-64, arm64 and riscv64.
const CLASSIC: [&str; 31] = [
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
];

/// The first real-time signal, as programs see it.
const RTMIN: i32 = 34;
/// The last one.
const RTMAX: i32 = 64;

/// The signal's name (`SIGTERM`, `SIGRTMIN+3`); empty for "the runtime's default".
pub(crate) fn signal_name(signal: Signal) -> String {
    if signal == Signal::RuntimeDefault {
        return String::new();
    }
    signal
        .as_str_name()
        .replace("MINPLUS", "MIN+")
        .replace("MAXMINUS", "MAX-")
}

/// The CRI's number for a signal of Linux; 0 for one that the CRI does not have.
pub(crate) fn signal_number(linux: i32) -> i32 {
    let name = match linux {
        1..=31 => usize::try_from(linux - 1)
            .map(|index| CLASSIC[index].to_owned())
            .unwrap_or_default(),
        RTMIN => "SIGRTMIN".to_owned(),
        RTMAX => "SIGRTMAX".to_owned(),
        _ if (RTMIN..=RTMIN + 15).contains(&linux) => format!("SIGRTMINPLUS{}", linux - RTMIN),
        _ if (RTMAX - 14..RTMAX).contains(&linux) => format!("SIGRTMAXMINUS{}", RTMAX - linux),
        _ => return Signal::RuntimeDefault.into(),
    };
    Signal::from_str_name(&name)
        .unwrap_or(Signal::RuntimeDefault)
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_of_linux_has_a_number_in_the_cri() {
        for linux in (1..=31).chain(RTMIN..=RTMAX) {
            assert_ne!(signal_number(linux), 0, "{linux}");
        }
        assert_eq!(signal_number(15), i32::from(Signal::Sigterm));
        assert_eq!(signal_number(37), i32::from(Signal::Sigrtminplus3));
        assert_eq!(signal_number(63), i32::from(Signal::Sigrtmaxminus1));
        assert_eq!(
            (signal_number(0), signal_number(32), signal_number(65)),
            (0, 0, 0)
        );
    }

    #[test]
    fn names_are_those_that_people_write() {
        assert_eq!(signal_name(Signal::Sigrtminplus3), "SIGRTMIN+3");
        assert_eq!(signal_name(Signal::RuntimeDefault), "");
    }
}
