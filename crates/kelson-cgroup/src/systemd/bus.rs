//! A connection to systemd: authentication, calls, and the jobs that calls begin.
//!
//! systemd's own socket is used where it is there, as systemctl does: it needs no message broker.
//! Else it is the system bus. A connection lives for one operation, since signals that nobody reads
//! would pile up at the sender.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::SystemdError;
use super::wire::{Call, Kind, Message, PREFIX, Writer};

pub(super) const SYSTEMD: &str = "org.freedesktop.systemd1";
pub(super) const MANAGER: &str = "org.freedesktop.systemd1.Manager";
pub(super) const MANAGER_PATH: &str = "/org/freedesktop/systemd1";

/// Where root reaches systemd directly.
const PRIVATE: &str = "/run/systemd/private";
/// Where the system bus is by its specification.
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";

/// The most ends of jobs that are kept while an answer is waited for. They belong to other units
/// but for one.
const MAX_ENDED: usize = 1024;

/// The longest line of the authentication, in bytes.
const MAX_LINE: usize = 512;

/// A connection.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    deadline: Instant,
    serial: u32,
    /// Ends of jobs that nobody has asked for yet: path and result.
    ended: VecDeque<(String, String)>,
}

impl Bus {
    /// Connects; everything on the connection has to be done within `limit`.
    pub(super) fn connect(limit: Duration) -> Result<Self, SystemdError> {
        match UnixStream::connect(PRIVATE) {
            Ok(stream) => return Self::begin(stream, limit),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused
                ) => {}
            Err(source) => return Err(SystemdError::connect(PRIVATE, source)),
        }
        let stream = UnixStream::connect(SYSTEM_BUS)
            .map_err(|source| SystemdError::connect(SYSTEM_BUS, source))?;
        let mut bus = Self::begin(stream, limit)?;
        bus.join()?;
        Ok(bus)
    }

    /// Whether there is something to connect to.
    pub(super) fn there() -> bool {
        Path::new(PRIVATE).exists() || Path::new(SYSTEM_BUS).exists()
    }

    /// Authenticates as the user of this process.
    pub(super) fn begin(stream: UnixStream, limit: Duration) -> Result<Self, SystemdError> {
        let mut bus = Self {
            stream,
            deadline: Instant::now() + limit,
            serial: 0,
            ended: VecDeque::new(),
        };
        let uid = rustix::process::geteuid().as_raw().to_string();
        let hex: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
        // The end of it is sent along: systemd leaves a message alone that it reads together with that
        // line, until something else comes.
        bus.send(format!("\0AUTH EXTERNAL {hex}\r\nBEGIN\r\n").as_bytes())?;
        let answer = bus.line()?;
        if !answer.starts_with("OK ") {
            return Err(SystemdError::Rejected(answer));
        }
        Ok(bus)
    }

    /// On the system bus, a name and the signals of systemd have to be asked for.
    fn join(&mut self) -> Result<(), SystemdError> {
        let call = |member, signature| Call {
            destination: "org.freedesktop.DBus",
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member,
            signature,
        };
        self.call(call("Hello", ""), &[])?;
        let mut rule = Writer::default();
        rule.text(&format!(
            "type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='JobRemoved'"
        ));
        self.call(call("AddMatch", "s"), &rule.0)?;
        self.manager("Subscribe", "", &[])?;
        Ok(())
    }

    /// Calls a method of systemd's manager.
    pub(super) fn manager(
        &mut self,
        member: &str,
        signature: &str,
        body: &[u8],
    ) -> Result<Message, SystemdError> {
        let call = Call {
            destination: SYSTEMD,
            path: MANAGER_PATH,
            interface: MANAGER,
            member,
            signature,
        };
        self.call(call, body)
    }

    /// Calls a method and waits for the answer.
    pub(super) fn call(&mut self, call: Call<'_>, body: &[u8]) -> Result<Message, SystemdError> {
        self.serial += 1;
        let serial = self.serial;
        self.send(&call.encode(serial, body)?)?;
        loop {
            let message = self.receive()?;
            match message.kind {
                Kind::Return if message.reply_to == Some(serial) => return Ok(message),
                Kind::Error if message.reply_to == Some(serial) => {
                    return Err(SystemdError::Refused {
                        message: message.body().text().unwrap_or_default(),
                        name: message.error,
                    });
                }
                _ => self.note(&message),
            }
        }
    }

    /// Waits for the end of a job that a call has begun.
    pub(super) fn finish(&mut self, job: &str) -> Result<(), SystemdError> {
        loop {
            while let Some((path, result)) = self.ended.pop_front() {
                if path == job {
                    return match result.as_str() {
                        "done" => Ok(()),
                        _ => Err(SystemdError::Job(result)),
                    };
                }
            }
            let message = self.receive()?;
            self.note(&message);
        }
    }

    /// Keeps the end of a job; other signals are not of interest.
    fn note(&mut self, message: &Message) {
        if message.kind != Kind::Signal
            || message.interface != MANAGER
            || message.member != "JobRemoved"
        {
            return;
        }
        let mut body = message.body();
        let read = (|| {
            let (_id, path) = (body.u32()?, body.text()?);
            let (_unit, result) = (body.text()?, body.text()?);
            Ok::<_, SystemdError>((path, result))
        })();
        if let Ok(ended) = read {
            if self.ended.len() == MAX_ENDED {
                self.ended.pop_front();
            }
            self.ended.push_back(ended);
        }
    }

    fn receive(&mut self) -> Result<Message, SystemdError> {
        let mut prefix = [0; PREFIX];
        self.fill(&mut prefix)?;
        let mut bytes = vec![0; Message::length(&prefix)?];
        bytes[..PREFIX].copy_from_slice(&prefix);
        self.fill(&mut bytes[PREFIX..])?;
        Message::decode(&bytes)
    }

    fn line(&mut self) -> Result<String, SystemdError> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if line.len() == MAX_LINE {
                return Err(SystemdError::TooLong);
            }
            let mut byte = [0];
            self.fill(&mut byte)?;
            line.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    /// What is left of the time; an error when nothing is.
    fn left(&self) -> Result<Duration, SystemdError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(SystemdError::Timeout);
        }
        Ok(left)
    }

    fn fill(&mut self, mut bytes: &mut [u8]) -> Result<(), SystemdError> {
        while !bytes.is_empty() {
            let left = self.left()?;
            self.stream
                .set_read_timeout(Some(left))
                .map_err(SystemdError::Lost)?;
            match self.stream.read(bytes) {
                Ok(0) => return Err(SystemdError::Lost(ErrorKind::UnexpectedEof.into())),
                Ok(count) => bytes = &mut bytes[count..],
                Err(error) => later(error)?,
            }
        }
        Ok(())
    }

    fn send(&mut self, mut bytes: &[u8]) -> Result<(), SystemdError> {
        while !bytes.is_empty() {
            let left = self.left()?;
            self.stream
                .set_write_timeout(Some(left))
                .map_err(SystemdError::Lost)?;
            match self.stream.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) => later(error)?,
            }
        }
        Ok(())
    }
}

/// An interruption, or a time limit, after which the deadline decides.
fn later(error: io::Error) -> Result<(), SystemdError> {
    match error.kind() {
        ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut => Ok(()),
        _ => Err(SystemdError::Lost(error)),
    }
}
