//! What the shim waits for: a thin layer over epoll that gives each descriptor a typed token.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::{Errno, Result};
use rustix::time::Timespec;

use crate::log::Stream;

/// How many events are taken at once.
const BATCH: usize = 32;

/// What a descriptor belongs to; the number is a serial that is never used twice, so an event that
/// is taken late meets nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    Listener,
    Signals,
    Connection(u64),
    ContainerProgress(u64),
    ContainerOutput(u64, Stream),
    ContainerInput(u64),
    ContainerOom(u64),
    ExecProgress(u64),
    ExecOutput(u64, Stream),
    ExecInput(u64),
}

const SERIAL_BITS: u32 = 56;

impl Token {
    fn to_u64(self) -> u64 {
        let (kind, serial) = match self {
            Self::Listener => (0, 0),
            Self::Signals => (1, 0),
            Self::Connection(serial) => (2, serial),
            Self::ContainerProgress(serial) => (3, serial),
            Self::ContainerOutput(serial, Stream::Stdout) => (4, serial),
            Self::ContainerOutput(serial, Stream::Stderr) => (5, serial),
            Self::ContainerOom(serial) => (6, serial),
            Self::ExecProgress(serial) => (7, serial),
            Self::ExecOutput(serial, Stream::Stdout) => (8, serial),
            Self::ExecOutput(serial, Stream::Stderr) => (9, serial),
            Self::ExecInput(serial) => (10, serial),
            Self::ContainerInput(serial) => (11, serial),
        };
        kind << SERIAL_BITS | serial
    }

    fn from_u64(number: u64) -> Option<Self> {
        let serial = number & ((1 << SERIAL_BITS) - 1);
        Some(match number >> SERIAL_BITS {
            0 => Self::Listener,
            1 => Self::Signals,
            2 => Self::Connection(serial),
            3 => Self::ContainerProgress(serial),
            4 => Self::ContainerOutput(serial, Stream::Stdout),
            5 => Self::ContainerOutput(serial, Stream::Stderr),
            6 => Self::ContainerOom(serial),
            7 => Self::ExecProgress(serial),
            8 => Self::ExecOutput(serial, Stream::Stdout),
            9 => Self::ExecOutput(serial, Stream::Stderr),
            10 => Self::ExecInput(serial),
            11 => Self::ContainerInput(serial),
            _ => return None,
        })
    }
}

/// What has happened to a descriptor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Happened {
    pub(super) token: Token,
    pub(super) flags: EventFlags,
}

/// The set of descriptors.
#[derive(Debug)]
pub(super) struct Poll {
    epoll: OwnedFd,
}

impl Poll {
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
        })
    }

    pub(super) fn add(&self, fd: impl AsFd, token: Token, flags: EventFlags) -> Result<()> {
        epoll::add(&self.epoll, fd, EventData::new_u64(token.to_u64()), flags)
    }

    pub(super) fn modify(&self, fd: impl AsFd, token: Token, flags: EventFlags) -> Result<()> {
        epoll::modify(&self.epoll, fd, EventData::new_u64(token.to_u64()), flags)
    }

    /// Stops waiting for a descriptor; one that is not waited for is left as it is.
    pub(super) fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits until something happens or the time is over.
    pub(super) fn wait(
        &self,
        timeout: Option<Duration>,
    ) -> Result<impl Iterator<Item = Happened> + use<>> {
        let timeout = timeout.map(|time| Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(time.subsec_nanos()),
        });
        let none = Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        };
        let mut events = [none; BATCH];
        let count = match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(error) => return Err(error),
        };
        Ok(events.into_iter().take(count).filter_map(|event| {
            Token::from_u64(event.data.u64()).map(|token| Happened {
                token,
                flags: event.flags,
            })
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_way() {
        let tokens = [
            Token::Listener,
            Token::Signals,
            Token::Connection(0),
            Token::ContainerProgress(1),
            Token::ContainerOutput(u64::MAX >> 8, Stream::Stdout),
            Token::ContainerOutput(6, Stream::Stderr),
            Token::ContainerOom(2),
            Token::ExecProgress(3),
            Token::ExecOutput(4, Stream::Stdout),
            Token::ExecOutput(4, Stream::Stderr),
            Token::ExecInput(5),
            Token::ContainerInput(7),
        ];
        for token in tokens {
            assert_eq!(Token::from_u64(token.to_u64()), Some(token));
        }
        assert_eq!(Token::from_u64(u64::MAX), None);
    }
}
