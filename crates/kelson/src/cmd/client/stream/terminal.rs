//! This program's terminal.

use rustix::io::Result;
use rustix::stdio::{stderr, stdin, stdout};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// Whether standard input is a terminal.
pub(super) fn is_there() -> bool {
    isatty(stdin())
}

/// Columns and rows of the terminal that this program reads or prints to; none when it is not known.
pub(super) fn size() -> Option<(u16, u16)> {
    [stdin(), stdout(), stderr()]
        .into_iter()
        .find_map(|fd| tcgetwinsize(fd).ok())
        .map(|size| (size.ws_col, size.ws_row))
        .filter(|&(columns, rows)| columns > 0 && rows > 0)
}

/// Standard input in raw mode: every key goes to the process. Restored when dropped, also by a panic.
#[derive(Debug)]
pub(super) struct Raw {
    before: Termios,
}

impl Raw {
    /// `None` when standard input is no terminal.
    pub(super) fn enter() -> Result<Option<Self>> {
        if !is_there() {
            return Ok(None);
        }
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Drain, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &self.before);
    }
}
