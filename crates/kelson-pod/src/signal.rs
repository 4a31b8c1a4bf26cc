//! Signals by name, as images and the CRI spell them: `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`, and the CRI's
//! own `SIGRTMINPLUS3` and `SIGRTMAXMINUS1`.

/// First and last real-time signal as glibc and musl agree to show them to programs.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

const NAMES: &[(&str, i32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// SIGTERM.
pub(crate) const TERM: i32 = 15;
/// SIGKILL.
pub(crate) const KILL: i32 = 9;

/// The number of the signal that `text` names, on x86-64 and arm64 Linux.
pub(crate) fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    real_time(name)
}

fn real_time(name: &str) -> Option<i32> {
    let offset = |rest: &str, signs: [&str; 2]| -> Option<i32> {
        if rest.is_empty() {
            return Some(0);
        }
        let digits = signs.iter().find_map(|sign| rest.strip_prefix(sign))?;
        let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        digits
            .parse::<i32>()
            .ok()
            .filter(|n| plain && *n <= RTMAX - RTMIN)
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return offset(rest, ["PLUS", "+"]).map(|n| RTMIN + n);
    }
    let rest = name.strip_prefix("RTMAX")?;
    offset(rest, ["MINUS", "-"]).map(|n| RTMAX - n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_spellings() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("15", 15),
            ("SIGCLD", 17),
            ("SIGPOLL", 29),
            ("SIGRTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMIN+3", 37),
            ("SIGRTMINPLUS15", 49),
            ("SIGRTMAXMINUS14", 50),
            ("SIGRTMAX-1", 63),
            ("SIGRTMAX", 64),
        ] {
            assert_eq!(parse(text), Some(number), "{text}");
        }
    }

    #[test]
    fn nonsense() {
        for text in [
            "",
            "0",
            "65",
            "-9",
            "SIGNOPE",
            "SIGRTMIN+31",
            "SIGRTMIN+-1",
            "RTMAX+1",
            "SIG",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
