//! What a new process tells its maker until it executes its program.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use crate::{LaunchError, StepError};

/// Something a new process has told.
#[derive(Debug)]
pub enum Event {
    /// A limit or request was reduced to what is permitted; for the log.
    Note(String),
    /// The master side of its terminal.
    Terminal(OwnedFd),
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

/// The channel from a new process. Poll it for reading, then call [`Progress::next`] until `None`.
#[derive(Debug)]
pub struct Progress {
    socket: OwnedFd,
}

impl Progress {
    /// The next event, or `None` when there is none right now. Never blocks.
    pub fn next(&mut self) -> Result<Option<Event>, LaunchError> {
        unimplemented!()
    }

    /// Waits for the next event; fails with [`LaunchError::TimedOut`] at the deadline.
    pub fn wait(&mut self, _deadline: Option<Instant>) -> Result<Event, LaunchError> {
        unimplemented!()
    }

    /// Lets the process go on after [`Event::HooksDue`].
    pub fn resume(&mut self) -> Result<(), LaunchError> {
        unimplemented!()
    }
}

impl AsFd for Progress {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
