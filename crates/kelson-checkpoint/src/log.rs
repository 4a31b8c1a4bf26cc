//! The reason in a log of CRIU.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// How much of a log's end is read, in bytes.
const TAIL: u64 = 64 << 10;
/// How many of its last errors are told.
const ERRORS: usize = 4;
/// Longest text of one error, in bytes.
const LINE: usize = 400;

/// The last errors in the log at `path`, in CRIU's own words without times and source lines; `None` when
/// there are none or the log cannot be read.
pub fn reason(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))
        .ok()?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes).ok()?;
    errors(&String::from_utf8_lossy(&bytes))
}

fn errors(text: &str) -> Option<String> {
    let mut found: Vec<String> = text.lines().filter_map(error).collect();
    found.dedup();
    let last = found.split_off(found.len().saturating_sub(ERRORS));
    (!last.is_empty()).then(|| last.join("; "))
}

/// `(00.05)      1: Error (criu/mount.c:12): mnt: what` becomes `mnt: what`. What CRIU calls an error and
/// goes on after is left out: a limit that it may not raise.
fn error(line: &str) -> Option<String> {
    let (_, after) = line.split_once("Error (")?;
    let (_, text) = after.split_once("): ")?;
    let text = text.trim();
    if text.is_empty() || text.starts_with("rlimit: ") {
        return None;
    }
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let mut text: String = text.chars().map(printable).collect();
    if text.len() > LINE {
        let end = (0..=LINE).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_errors_are_told_without_times_and_lines() {
        let text = "(00.07) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self\n\
                    (00.08) 16905 fdinfo 0: pos: 0\n\
                    (00.08)      1: Error (criu/files-reg.c:1790): Can't lookup mount=24 for fd=0\n\
                    (00.09) Error (criu/cr-dump.c:2111): Dumping FAILED.\n";
        assert_eq!(
            errors(text).unwrap(),
            "Can't lookup mount=24 for fd=0; Dumping FAILED."
        );
        assert_eq!(errors("(00.1) Dumping finished successfully\n"), None);
    }

    #[test]
    fn what_is_told_is_bounded() {
        let text = format!("Error (a:1): {}\n", "ä".repeat(10_000)).repeat(100);
        let many: String = (0..100).map(|n| format!("Error (a:1): {n}\n")).collect();
        assert!(errors(&text).unwrap().len() <= ERRORS * (LINE + 2));
        assert_eq!(errors(&many).unwrap(), "96; 97; 98; 99");
    }
}
