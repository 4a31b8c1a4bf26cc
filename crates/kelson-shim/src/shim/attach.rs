//! Those who are attached to a container: they see what it writes from then on, and may write to it.
//!
//! Every block of output goes to the log first, then to each of them. Who cannot take a block has at
//! most that one waiting ([`MAX_DATA`] bytes, beside what its socket holds), and the container's
//! output is left in its pipes meanwhile: for [`PATIENCE`] altogether, regained at a twentieth of
//! the time, so that a container writes at nineteen twentieths of its speed or more whoever looks
//! on. Then the client is told and dropped. A terminal writes at the speed of those who watch it, and
//! only who does not catch up within [`TERMINAL_PATIENCE`] is dropped.
//!
//! [`MAX_DATA`]: crate::proto::frame::MAX_DATA

use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::Shim;
use super::conn::Role;
use super::input::{self, Inlet, Pumped};
use super::poll::Token;
use crate::log::Stream;
use crate::proto::frame::{self, HEADER, Kind};
use crate::proto::{AttachRequest, Refusal, RefusalKind, Reply, StdinPolicy};

/// The most who are attached to one container at once.
const MAX_ATTACHED: usize = 32;

/// How long a container waits for one of them.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long a terminal waits for one of them to take what it has not taken yet, some 200 KiB at most:
/// a person behind a slow line must not lose the session.
const TERMINAL_PATIENCE: Duration = Duration::from_secs(5);

/// Which part of the time is regained.
const REGAIN: u32 = 20;

/// Somebody who is attached.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) connection: u64,
    /// Whether it writes to the container.
    stdin: bool,
    inlet: Inlet,
    patience: Patience,
}

/// How long a client may still be waited for.
#[derive(Debug)]
struct Patience {
    left: Duration,
    /// When `left` was right.
    at: Instant,
    /// Whether it is waited for.
    waiting: bool,
}

impl Patience {
    fn new(now: Instant, terminal: bool) -> Self {
        let left = match terminal {
            true => TERMINAL_PATIENCE,
            false => PATIENCE,
        };
        Self {
            left,
            at: now,
            waiting: false,
        }
    }

    fn begin(&mut self, now: Instant) {
        if !self.waiting {
            let gained = now.saturating_duration_since(self.at) / REGAIN;
            self.left = (self.left + gained).min(self.left.max(PATIENCE));
            self.at = now;
            self.waiting = true;
        }
    }

    fn end(&mut self, now: Instant, terminal: bool) {
        if std::mem::take(&mut self.waiting) {
            let waited = now.saturating_duration_since(self.at);
            self.left = match terminal {
                true => TERMINAL_PATIENCE,
                false => self.left.saturating_sub(waited),
            };
            self.at = now;
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.waiting.then(|| self.at + self.left)
    }
}

impl Attached {
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.patience.deadline()
    }
}

impl Shim {
    /// Attaches a connection to a running container.
    pub(super) fn attach(
        &mut self,
        connection: u64,
        request: AttachRequest,
    ) -> Result<(), Refusal> {
        self.room_for_stream()?;
        let AttachRequest {
            container: id,
            stdin,
        } = request;
        let (serial, container) = self.running(id)?;
        let invalid = |message| Refusal {
            kind: RefusalKind::Invalid,
            message,
        };
        if stdin && container.policy == StdinPolicy::None {
            return Err(invalid(format!(
                "stdin: container {id} was created without it; attach without stdin"
            )));
        }
        if stdin && container.stdin.is_none() {
            return Err(invalid(format!(
                "stdin: that of container {id} is closed for good; attach without stdin"
            )));
        }
        if container.attached.len() >= MAX_ATTACHED {
            return Err(Refusal {
                kind: RefusalKind::Busy,
                message: format!(
                    "{MAX_ATTACHED} clients are attached to container {id}; end one of them first"
                ),
            });
        }
        let started = container.started().map(Reply::Started);
        if let (Some(started), Some(conn)) = (started, self.connections.get_mut(&connection)) {
            conn.role = Role::Attach(serial);
            if conn.message(&started, &self.poll).is_err() {
                self.close(connection);
                return Ok(());
            }
        }
        if let Some(container) = self.containers.get_mut(&serial) {
            container.attached.push(Attached {
                connection,
                stdin,
                inlet: Inlet::default(),
                patience: Patience::new(Instant::now(), container.terminal),
            });
        }
        // Input may have come with the request.
        self.attach_input(serial, connection);
        Ok(())
    }

    /// Sends the `count` bytes behind the room for a header in the buffer to all who are attached.
    pub(super) fn show(&mut self, serial: u64, stream: Stream, count: usize) {
        let Some(container) = self.containers.get_mut(&serial) else {
            return;
        };
        let kind = match stream {
            Stream::Stdout => Kind::Stdout,
            Stream::Stderr => Kind::Stderr,
        };
        let block = &mut self.input.buffer()[..HEADER + count];
        block[..HEADER].copy_from_slice(&frame::header(kind, count));
        let (ending, now) = (container.is_ending(), Instant::now());
        let waited_before = container.attached.iter().any(|one| one.patience.waiting);
        let (mut gone, mut waits) = (Vec::new(), false);
        for attached in &mut container.attached {
            let Some(conn) = self.connections.get_mut(&attached.connection) else {
                continue;
            };
            if conn.send(block, &self.poll).is_err() {
                gone.push(attached.connection);
            } else if conn.is_blocked() && !ending {
                attached.patience.begin(now);
                waits = true;
            }
        }
        if waits && !waited_before {
            container.outputs.unwatch(&self.poll);
        }
        for connection in gone {
            self.attach_drop(serial, connection);
        }
    }

    /// A connection takes output again.
    pub(super) fn attach_resume(&mut self, serial: u64, connection: u64) {
        let Some(container) = self.containers.get_mut(&serial) else {
            return;
        };
        let terminal = container.terminal;
        let of = container
            .attached
            .iter_mut()
            .find(|one| one.connection == connection);
        let Some(attached) = of else { return };
        if attached.patience.waiting {
            attached.patience.end(Instant::now(), terminal);
            self.attach_go_on(serial);
        }
    }

    /// Reads the container's output again unless somebody is still waited for.
    fn attach_go_on(&mut self, serial: u64) {
        let Some(container) = self.containers.get_mut(&serial) else {
            return;
        };
        if container.is_ending() || container.attached.iter().any(|one| one.patience.waiting) {
            return;
        }
        let token = |stream| Token::ContainerOutput(serial, stream);
        if container.outputs.watch(&self.poll, token).is_err() {
            // Memory is short: soon again.
            if let Some(attached) = container.attached.first_mut() {
                container.outputs.unwatch(&self.poll);
                attached.patience.begin(Instant::now());
            }
        }
    }

    /// The time of some is over.
    pub(super) fn attach_due(&mut self, serial: u64) {
        let Some(container) = self.containers.get(&serial) else {
            return;
        };
        let now = Instant::now();
        let due = container.attached.iter().filter(|one| {
            let deadline = one.deadline();
            deadline.is_some_and(|deadline| deadline <= now)
        });
        for connection in due.map(|one| one.connection).collect::<Vec<_>>() {
            self.attach_drop(serial, connection);
        }
    }

    /// Tells one who is too slow that it is dropped.
    fn attach_drop(&mut self, serial: u64, connection: u64) {
        self.refuse(
            connection,
            Refusal {
                kind: RefusalKind::Slow,
                message: "this client did not take the container's output in time and was \
                          detached; the container and its log go on"
                    .to_owned(),
            },
        );
        self.attach_gone(serial, connection);
    }

    /// Somebody is not attached any more.
    pub(super) fn attach_gone(&mut self, serial: u64, connection: u64) {
        let Some(container) = self.containers.get_mut(&serial) else {
            return;
        };
        let place = |one: &Attached| one.connection == connection;
        let Some(place) = container.attached.iter().position(place) else {
            return;
        };
        let attached = container.attached.remove(place);
        if container.attached.is_empty() {
            container.attached = Vec::new();
        }
        if attached.stdin {
            self.attach_input_ends(serial, &attached.inlet);
        }
        if attached.patience.waiting {
            self.attach_go_on(serial);
        }
    }

    /// The first process of the container is gone: nobody is waited for, and all that is left is read.
    pub(super) fn attach_ends(&mut self, serial: u64) {
        let Some(container) = self.containers.get_mut(&serial) else {
            return;
        };
        container.stdin = None;
        let mut waited = false;
        for attached in &mut container.attached {
            waited |= std::mem::take(&mut attached.patience.waiting);
        }
        if waited {
            // Failing that, it is read when the wait for it is over.
            let token = |stream| Token::ContainerOutput(serial, stream);
            let _ = container.outputs.watch(&self.poll, token);
        }
    }

    /// Writes received input; while the container does not read, no more is received.
    pub(super) fn attach_input(&mut self, serial: u64, connection: u64) {
        loop {
            let Some(container) = self.containers.get_mut(&serial) else {
                return;
            };
            let place = |one: &&mut Attached| one.connection == connection;
            let Some(attached) = container.attached.iter_mut().find(place) else {
                return;
            };
            let Some(conn) = self.connections.get_mut(&connection) else {
                return;
            };
            let stdin = container.stdin.as_ref().filter(|_| attached.stdin);
            match attached.inlet.pump(conn, stdin) {
                Pumped::Empty => return conn.set_reading(true, &self.poll),
                Pumped::Full => {
                    let token = Token::ContainerInput(serial);
                    let watched = stdin.map(|stdin| self.poll.add(stdin, token, EventFlags::OUT));
                    return match watched {
                        Some(Err(error)) if error != Errno::EXIST => self.close(connection),
                        _ => conn.set_reading(false, &self.poll),
                    };
                }
                Pumped::End if attached.stdin => {
                    attached.stdin = false;
                    let inlet = std::mem::take(&mut attached.inlet);
                    self.attach_input_ends(serial, &inlet);
                }
                Pumped::End => {}
                Pumped::Unread => container.stdin = None,
                Pumped::Resize(size) => {
                    if container.terminal
                        && let Some(master) = container.outputs.get(Stream::Stdout)
                    {
                        input::resize(master, size);
                    }
                }
                Pumped::Broken => return self.close(connection),
            }
        }
    }

    /// One who could write has ended its input.
    fn attach_input_ends(&mut self, serial: u64, inlet: &Inlet) {
        if let Some(container) = self.containers.get_mut(&serial)
            && container.policy == StdinPolicy::Once
            && let Some(stdin) = container.stdin.take()
        {
            if container.terminal {
                inlet.end_terminal(stdin);
            }
            // What others have sent is of no use now.
            self.container_input(serial);
        }
    }

    /// The container reads its input again, or never will.
    pub(super) fn container_input(&mut self, serial: u64) {
        let Some(container) = self.containers.get(&serial) else {
            return;
        };
        if let Some(stdin) = &container.stdin {
            self.poll.remove(stdin);
        }
        let all: Vec<u64> = container
            .attached
            .iter()
            .map(|one| one.connection)
            .collect();
        for connection in all {
            self.attach_input(serial, connection);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends_and_comes_back_slowly() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut patience = Patience::new(start, false);
        assert_eq!(patience.deadline(), None);
        patience.begin(after(0));
        patience.begin(after(100));
        assert_eq!(patience.deadline(), Some(start + PATIENCE));
        patience.end(after(400), false);
        assert_eq!(patience.deadline(), None);
        patience.begin(after(2400));
        assert_eq!(patience.deadline(), Some(after(2400 + 100 + 100)));
        patience.end(after(9000), false);
        patience.begin(after(9000));
        assert_eq!(patience.deadline(), Some(after(9000)));
    }

    #[test]
    fn a_terminal_is_patient_every_time() {
        let start = Instant::now();
        let mut patience = Patience::new(start, true);
        for begin in [start, start + TERMINAL_PATIENCE] {
            patience.begin(begin);
            assert_eq!(patience.deadline(), Some(begin + TERMINAL_PATIENCE));
            patience.end(begin + TERMINAL_PATIENCE / 2, true);
        }
    }
}
