//! The input and output of an exec, from and to its connection.

use std::time::Instant;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::{DRAIN, Phase};
use crate::log::Stream;
use crate::proto::frame::{self, HEADER, Kind, MAX_DATA};
use crate::shim::Shim;
use crate::shim::input::{self, Pumped};
use crate::shim::poll::Token;
use crate::shim::streams::{self, Read};

impl Shim {
    /// Sends output on, once; stops reading while the connection is slow. Returns whether there
    /// may be more right now.
    pub(super) fn exec_forward(&mut self, serial: u64, stream: Stream) -> bool {
        let Some(exec) = self.execs.get_mut(&serial) else {
            return false;
        };
        let Some(fd) = exec.outputs.get(stream) else {
            return false;
        };
        let buffer = &mut self.input.buffer()[..HEADER + MAX_DATA];
        let Some(conn) = self.connections.get_mut(&exec.connection) else {
            // Nobody is left to read it: it is discarded.
            if let Read::End = streams::read(fd, buffer) {
                exec.outputs.close(stream);
            }
            return false;
        };
        if conn.is_blocked() {
            if !exec.held {
                exec.held = true;
                exec.outputs.unwatch(&self.poll);
            }
            return false;
        }
        match streams::read(fd, &mut buffer[HEADER..]) {
            Read::Bytes(count) => {
                let kind = match stream {
                    Stream::Stdout => Kind::Stdout,
                    Stream::Stderr => Kind::Stderr,
                };
                buffer[..HEADER].copy_from_slice(&frame::header(kind, count));
                let sent = conn.send(&buffer[..HEADER + count], &self.poll);
                if sent.is_err() {
                    let connection = exec.connection;
                    self.close(connection);
                    return false;
                }
                true
            }
            Read::Nothing => false,
            Read::End => {
                exec.outputs.close(stream);
                false
            }
        }
    }

    pub(in crate::shim) fn exec_output(&mut self, serial: u64, stream: Stream) {
        self.exec_forward(serial, stream);
        self.exec_ends(serial);
    }

    /// The connection takes output again.
    pub(in crate::shim) fn exec_resume(&mut self, serial: u64) {
        let Some(exec) = self.execs.get_mut(&serial) else {
            return;
        };
        if std::mem::take(&mut exec.held) {
            let watched = exec
                .outputs
                .watch(&self.poll, |stream| Token::ExecOutput(serial, stream));
            if let Phase::Ending { until, .. } = &mut exec.phase {
                *until = Instant::now() + DRAIN;
            }
            let connection = exec.connection;
            if watched.is_err() {
                self.close(connection);
            }
        }
        self.exec_ends(serial);
    }

    /// Writes received input; while the process does not read, no more is received.
    pub(in crate::shim) fn exec_input(&mut self, serial: u64) {
        let Some(exec) = self.execs.get_mut(&serial) else {
            return;
        };
        let connection = exec.connection;
        let Some(conn) = self.connections.get_mut(&connection) else {
            return;
        };
        if matches!(exec.phase, Phase::Starting { .. }) {
            // One frame may wait in the connection's buffer until the process runs.
            return conn.set_reading(false, &self.poll);
        }
        loop {
            match exec.inlet.pump(conn, exec.stdin.as_ref()) {
                Pumped::Empty => break,
                Pumped::Full => {
                    let token = Token::ExecInput(serial);
                    return match exec
                        .stdin
                        .as_ref()
                        .map(|stdin| self.poll.add(stdin, token, EventFlags::OUT))
                    {
                        Some(Err(error)) if error != Errno::EXIST => self.close(connection),
                        _ => conn.set_reading(false, &self.poll),
                    };
                }
                Pumped::End => {
                    if exec.terminal
                        && let Some(master) = exec.stdin.take()
                    {
                        exec.inlet.end_terminal(master);
                    }
                    exec.stdin = None;
                }
                Pumped::Unread => exec.stdin = None,
                Pumped::Resize(size) => {
                    if exec.terminal
                        && let Some(master) = exec.outputs.get(Stream::Stdout)
                    {
                        input::resize(master, size);
                    }
                }
                Pumped::Broken => return self.close(connection),
            }
        }
        if let Some(stdin) = &exec.stdin {
            self.poll.remove(stdin);
        }
        conn.set_reading(true, &self.poll);
    }
}
