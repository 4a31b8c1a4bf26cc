//! What clients type: from the frames of a connection into a pipe or a terminal, never blocking.

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::termios::{LocalModes, SpecialCodeIndex, Winsize};

use super::conn::Conn;
use crate::proto::TerminalSize;
use crate::proto::frame::{self, Kind};

/// How far the input of a connection has come.
#[derive(Debug, Default)]
pub(super) struct Inlet {
    /// How much of the next frame has been written.
    written: usize,
    /// Whether the last byte was in the middle of a line.
    in_line: bool,
}

/// Why pumping has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pumped {
    /// Everything that has come is taken.
    Empty,
    /// The process does not read now; the frame waits.
    Full,
    /// The client has ended its input. There may be more frames.
    End,
    /// The process will never read again. There may be more frames.
    Unread,
    /// The terminal is to have another size. There may be more frames.
    Resize(TerminalSize),
    /// A frame that has no place here.
    Broken,
}

impl Inlet {
    /// Writes received input to `stdin`, or drops it if there is none.
    pub(super) fn pump(&mut self, conn: &mut Conn, stdin: Option<impl AsFd>) -> Pumped {
        loop {
            let frame = match conn.frame() {
                Ok(None) => return Pumped::Empty,
                Ok(Some(frame)) => frame,
                Err(_) => return Pumped::Broken,
            };
            let payload = conn.payload(&frame);
            match frame.kind {
                Kind::Stdin if payload.is_empty() => {
                    conn.consume(&frame);
                    return Pumped::End;
                }
                Kind::Stdin => {}
                Kind::Resize => {
                    let size = frame::parse_resize(payload);
                    conn.consume(&frame);
                    match size {
                        Some(size) => return Pumped::Resize(size),
                        None => continue,
                    }
                }
                Kind::Message | Kind::Stdout | Kind::Stderr => return Pumped::Broken,
            }
            let mut unread = false;
            if let Some(stdin) = &stdin {
                let rest = &payload[self.written..];
                match rustix::io::retry_on_intr(|| rustix::io::write(stdin, rest)) {
                    Ok(count) => self.written += count,
                    Err(Errno::AGAIN) => return Pumped::Full,
                    Err(_) => unread = true,
                }
                if !unread && self.written < payload.len() {
                    continue;
                }
                self.in_line = payload.last() != Some(&b'\n');
            }
            self.written = 0;
            conn.consume(&frame);
            if unread {
                return Pumped::Unread;
            }
        }
    }

    /// Tells the reader of a terminal that nothing more will be typed, if it reads lines: what was
    /// typed of a line comes first, then the end. There is no way to tell others.
    pub(super) fn end_terminal(&self, master: impl AsFd) {
        let Ok(modes) = rustix::termios::tcgetattr(&master) else {
            return;
        };
        if modes.local_modes.contains(LocalModes::ICANON) {
            let end = [modes.special_codes[SpecialCodeIndex::VEOF]; 2];
            // A terminal that takes no more has a reader that does not read.
            let _ = rustix::io::write(master, if self.in_line { &end } else { &end[..1] });
        }
    }
}

/// Gives a terminal its size; its process is told by the kernel.
pub(super) fn resize(master: impl AsFd, TerminalSize { rows, cols }: TerminalSize) {
    let size = Winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // A terminal that has hung up needs none.
    let _ = rustix::termios::tcsetwinsize(master, size);
}
