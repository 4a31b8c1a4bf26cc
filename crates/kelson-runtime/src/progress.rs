//! What a new process tells its maker until it executes its program.
//!
//! The channel is a pair of packet sockets, close-on-exec in the new process: its end, after the
//! word that execution is next, means that the program runs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use crate::{Kind, LaunchError, Step, StepError};

/// Largest message; longer texts are cut by the sender.
const MAX_MESSAGE: usize = 64 * 1024;
/// Longest text in a message.
const MAX_TEXT: usize = 8 * 1024;

/// Something a new process has told.
#[derive(Debug)]
pub enum Event {
    /// A limit or request was reduced to what is permitted; for the log.
    Note(String),
    /// The master side of its terminal.
    Terminal(OwnedFd),
    /// It is another process from now on, a child of the same maker: the one before only prepared
    /// it, and ends. The caller reaps both.
    Process {
        /// Its number in the caller's PID namespace.
        pid: u32,
        /// Its pidfd.
        pidfd: OwnedFd,
    },
    /// Its namespaces exist and [`crate::Options::hooks`] asked to be told: it waits for
    /// [`Progress::resume`].
    HooksDue,
    /// It is ready and waits at [`crate::Options::gate`].
    Waiting,
    /// It has executed its program; nothing follows. A process that is killed at the very moment
    /// of execution is also reported so: its exit status tells.
    Executed,
    /// It has failed and is ending; nothing follows.
    Failed(StepError),
}

/// What goes over the wire.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Message {
    Note(String),
    Terminal,
    Process,
    HooksDue,
    Waiting,
    Executing,
    Failed {
        step: Step,
        kind: Kind,
        what: String,
        errno: Option<i32>,
    },
}

/// The channel from a new process. Poll it for reading, then call [`Progress::try_next`] until `None`.
#[derive(Debug)]
pub struct Progress {
    socket: OwnedFd,
    executing: bool,
    failed: bool,
}

impl Progress {
    /// A channel and the end that belongs to the new process.
    pub(crate) fn pair() -> rustix::io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self::from_socket(ours), theirs))
    }

    /// The channel of a connection to a gate, see [`crate::Options::gate`].
    pub fn from_socket(socket: OwnedFd) -> Self {
        Self {
            socket,
            executing: false,
            failed: false,
        }
    }

    /// The next event, or `None` when there is none right now. Never blocks.
    pub fn try_next(&mut self) -> Result<Option<Event>, LaunchError> {
        let mut poll = [PollFd::new(&self.socket, PollFlags::IN)];
        let now = rustix::time::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let ready = rustix::io::retry_on_intr(|| rustix::event::poll(&mut poll, Some(&now)));
        match ready.map_err(|e| LaunchError::system("poll the new process", e))? {
            0 => Ok(None),
            _ => match self.read()? {
                None => self.try_next(),
                event => Ok(event),
            },
        }
    }

    /// Waits for the next event; fails with [`LaunchError::TimedOut`] at the deadline.
    pub fn wait(&mut self, deadline: Option<Instant>) -> Result<Event, LaunchError> {
        loop {
            let mut poll = [PollFd::new(&self.socket, PollFlags::IN)];
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let left = left.map(|left| rustix::time::Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            });
            match rustix::event::poll(&mut poll, left.as_ref()) {
                Ok(0) => return Err(LaunchError::TimedOut),
                Ok(_) => {
                    if let Some(event) = self.read()? {
                        return Ok(event);
                    }
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(LaunchError::system("poll the new process", e)),
            }
        }
    }

    /// Lets the process go on after [`Event::HooksDue`].
    pub fn resume(&mut self) -> Result<(), LaunchError> {
        rustix::net::send(&self.socket, b"g", SendFlags::NOSIGNAL)
            .map(drop)
            .map_err(|e| LaunchError::system("talk to the new process", e))
    }

    /// Reads one message; `None` for the one that is no event.
    fn read(&mut self) -> Result<Option<Event>, LaunchError> {
        let mut buffer = vec![0; MAX_MESSAGE];
        let received = kelson_sys::fdpass::recv_with_fds(self.socket.as_fd(), &mut buffer);
        let (n, mut fds) = match received {
            Ok(received) => received,
            Err(Errno::CONNRESET) => (0, Vec::new()),
            Err(e) => return Err(LaunchError::system("hear from the new process", e)),
        };
        if n == 0 {
            return Ok(Some(self.end()));
        }
        let message = serde_json::from_slice(&buffer[..n])
            .map_err(|e| LaunchError::system("understand the new process", io::Error::other(e)))?;
        Ok(Some(match message {
            Message::Note(text) => Event::Note(text),
            Message::HooksDue => Event::HooksDue,
            Message::Waiting => Event::Waiting,
            Message::Terminal => match fds.pop() {
                Some(master) => Event::Terminal(master),
                None => return Err(LaunchError::system("get the terminal", Errno::BADMSG)),
            },
            Message::Process => match fds.pop() {
                Some(pidfd) => Event::Process {
                    pid: crate::exec::pid_of(pidfd.as_fd())?,
                    pidfd,
                },
                None => return Err(LaunchError::system("get the new process", Errno::BADMSG)),
            },
            Message::Executing => {
                self.executing = true;
                return Ok(None);
            }
            Message::Failed {
                step,
                kind,
                what,
                errno,
            } => {
                self.failed = true;
                let source = errno.map(io::Error::from_raw_os_error);
                Event::Failed(StepError {
                    step,
                    kind,
                    what,
                    source,
                })
            }
        }))
    }

    fn end(&self) -> Event {
        if self.executing && !self.failed {
            return Event::Executed;
        }
        Event::Failed(StepError {
            step: Step::Prepare,
            kind: Kind::Other,
            what: "the process ended before it executed its program".to_owned(),
            source: None,
        })
    }
}

impl AsFd for Progress {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The new process's side.
#[derive(Debug)]
pub(crate) struct Channel {
    sockets: Vec<OwnedFd>,
}

impl Channel {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            sockets: vec![socket],
        }
    }

    /// Adds a listener; what follows is told to it too.
    pub(crate) fn add(&mut self, socket: OwnedFd) {
        self.sockets.push(socket);
    }

    /// Tells. That nobody listens any more is no error: the process goes on by itself.
    pub(crate) fn tell(&self, message: &Message) {
        self.tell_with(message, &[]);
    }

    /// Tells and hands descriptors over.
    pub(crate) fn tell_with(&self, message: &Message, fds: &[BorrowedFd<'_>]) {
        // Messages are plain data with text of limited length: turning them into JSON cannot fail.
        let Ok(bytes) = serde_json::to_vec(message) else {
            return;
        };
        for socket in &self.sockets {
            let _ = kelson_sys::fdpass::send_with_fds(socket.as_fd(), &bytes, fds);
        }
    }

    /// Tells of a reduced request.
    pub(crate) fn note(&self, text: String) {
        self.tell(&Message::Note(cut(text)));
    }

    /// Waits for the maker's word. False: the maker is gone.
    pub(crate) fn wait_for_word(&self) -> bool {
        let mut word = [0; 1];
        let received = self.sockets.first().map(|socket| {
            let flags = rustix::net::RecvFlags::empty();
            rustix::io::retry_on_intr(|| rustix::net::recv(socket, &mut word, flags))
        });
        matches!(received, Some(Ok((1, _))))
    }
}

/// Cuts a text to what a message may carry.
pub(crate) fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT)
            .rev()
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_after_the_word_is_execution() {
        let (mut progress, theirs) = Progress::pair().unwrap();
        assert!(progress.try_next().unwrap().is_none());
        let channel = Channel::new(theirs);
        channel.note("clamped".into());
        channel.tell(&Message::Executing);
        assert!(
            matches!(progress.try_next().unwrap(), Some(Event::Note(text)) if text == "clamped")
        );
        drop(channel);
        assert!(matches!(progress.wait(None).unwrap(), Event::Executed));
    }

    #[test]
    fn the_end_without_a_word_is_a_failure() {
        let (mut progress, theirs) = Progress::pair().unwrap();
        drop(theirs);
        assert!(matches!(progress.wait(None).unwrap(), Event::Failed(_)));
    }

    #[test]
    fn a_failure_keeps_its_type() {
        let (mut progress, theirs) = Progress::pair().unwrap();
        let channel = Channel::new(theirs);
        channel.tell(&Message::Executing);
        channel.tell(&Message::Failed {
            step: Step::Execute,
            kind: Kind::CommandNotExecutable,
            what: "cannot execute /x".into(),
            errno: Some(libc::EACCES),
        });
        let Event::Failed(error) = progress.wait(None).unwrap() else {
            panic!()
        };
        assert_eq!(
            (error.step, error.kind),
            (Step::Execute, Kind::CommandNotExecutable)
        );
        assert_eq!(
            error.source.unwrap().kind(),
            io::ErrorKind::PermissionDenied
        );
    }

    #[test]
    fn a_deadline_is_kept() {
        let (mut progress, _theirs) = Progress::pair().unwrap();
        assert!(matches!(
            progress.wait(Some(Instant::now())),
            Err(LaunchError::TimedOut)
        ));
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let text = cut("é".repeat(MAX_TEXT));
        assert_eq!(text.len(), MAX_TEXT);
    }
}
