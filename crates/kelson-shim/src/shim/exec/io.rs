//! The input and output of an exec, from and to its connection.

use std::time::Instant;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::{DRAIN, Phase};
use crate::log::Stream;
use crate::proto::frame::{self, HEADER, Kind, MAX_DATA};
use crate::shim::Shim;
use crate::shim::poll::Token;
use crate::shim::streams::{self, Read};

impl Shim {
    /// Sends output on, once; stops reading while the connection is slow. Returns whether there
    /// may be more right now.
    pub(super) fn exec_forward(&mut self, serial: u64, stream: Stream) -> bool {
        let Some(exec) = self.execs.get_mut(&serial) else {
            return false;
        };
        let Some(conn) = self.connections.get_mut(&exec.connection) else {
            return false;
        };
        let Some(fd) = exec.outputs.get(stream) else {
            return false;
        };
        if conn.is_blocked() {
            if !exec.held {
                exec.held = true;
                exec.outputs.unwatch(&self.poll);
            }
            return false;
        }
        let buffer = &mut self.input.buffer()[..HEADER + MAX_DATA];
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
            let frame = match conn.frame() {
                Ok(None) => break,
                Ok(Some(frame)) if frame.kind == Kind::Stdin => frame,
                Ok(Some(_)) | Err(_) => return self.close(connection),
            };
            let payload = &conn.payload(&frame)[exec.written..];
            let Some(stdin) = &exec.stdin else {
                conn.consume(&frame);
                continue;
            };
            if conn.payload(&frame).is_empty() {
                exec.stdin = None;
            } else if !payload.is_empty() {
                match rustix::io::retry_on_intr(|| rustix::io::write(stdin, payload)) {
                    Ok(count) => exec.written += count,
                    Err(Errno::AGAIN) => {
                        let token = Token::ExecInput(serial);
                        match self.poll.add(stdin, token, EventFlags::OUT) {
                            Ok(()) | Err(Errno::EXIST) => {}
                            Err(_) => return self.close(connection),
                        }
                        return conn.set_reading(false, &self.poll);
                    }
                    // It does not read any more.
                    Err(_) => exec.stdin = None,
                }
                if exec.stdin.is_some() && exec.written < conn.payload(&frame).len() {
                    continue;
                }
            }
            exec.written = 0;
            conn.consume(&frame);
        }
        if let Some(stdin) = &exec.stdin {
            self.poll.remove(stdin);
        }
        conn.set_reading(true, &self.poll);
    }
}
