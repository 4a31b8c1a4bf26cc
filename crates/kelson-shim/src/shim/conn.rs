//! A connection to the shim: frames in, frames out, never blocking, with bounded buffers.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::poll::{Poll, Token};
use crate::proto::frame::{self, FrameError, HEADER, Kind, MAX_DATA};

/// How much is read at once.
const READ_SIZE: usize = 16 << 10;

/// The most that may wait to be sent; a reader that lets more pile up is dropped. What the pipes of
/// a container hold at its end fits, as nobody can be waited for then.
const MAX_UNSENT: usize = 768 << 10;

/// The room beyond that for the message which says why.
const LAST_WORDS: usize = 4 << 10;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Its request has not come completely.
    Request,
    /// Its call is under way.
    Waiting,
    /// It gets events.
    Events,
    /// It carries the input and output of an exec.
    Exec(u64),
    /// It carries the output of a container, and input for it.
    Attach(u64),
    /// It is closed as soon as everything is sent.
    Closing,
}

/// The connection is over.
#[derive(Debug)]
pub(super) struct Gone;

/// A frame that has been received and not taken yet.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    len: usize,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) role: Role,
    socket: OwnedFd,
    token: Token,
    received: Vec<u8>,
    unsent: Vec<u8>,
    /// How much of `unsent` has been sent.
    sent: usize,
    /// Whether it is waited for input.
    reading: bool,
    interest: EventFlags,
}

impl Conn {
    pub(super) fn new(
        socket: OwnedFd,
        serial: u64,
        role: Role,
        poll: &Poll,
    ) -> rustix::io::Result<Self> {
        let token = Token::Connection(serial);
        let interest = EventFlags::IN | EventFlags::RDHUP;
        poll.add(&socket, token, interest)?;
        let (received, unsent) = (Vec::new(), Vec::new());
        Ok(Self {
            role,
            socket,
            token,
            received,
            unsent,
            sent: 0,
            reading: true,
            interest,
        })
    }

    /// Whether sent frames would have to wait.
    pub(super) fn is_blocked(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Starts or stops waiting for input. A peer that leaves is noticed all the same.
    pub(super) fn set_reading(&mut self, reading: bool, poll: &Poll) {
        self.reading = reading;
        self.update(poll);
    }

    fn update(&mut self, poll: &Poll) {
        let mut interest = EventFlags::RDHUP;
        interest.set(EventFlags::IN, self.reading);
        interest.set(EventFlags::OUT, self.is_blocked());
        // Modifying what is registered fails only when memory is short; then the next change
        // tries again.
        if interest != self.interest && poll.modify(&self.socket, self.token, interest).is_ok() {
            self.interest = interest;
        }
    }

    /// Reads what is there, once.
    pub(super) fn receive(&mut self) -> Result<(), Gone> {
        self.received.reserve(READ_SIZE);
        let buffer = spare_capacity(&mut self.received);
        match rustix::net::recv(&self.socket, buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => Err(Gone),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(_) => Err(Gone),
        }
    }

    /// The frame that has been received completely and is next, if there is one.
    pub(super) fn frame(&self) -> Result<Option<Frame>, FrameError> {
        let Some((head, payload)) = self.received.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let (kind, len) = frame::parse_header(*head)?;
        Ok((payload.len() >= len).then_some(Frame { kind, len }))
    }

    /// The payload of the next frame.
    pub(super) fn payload(&self, frame: &Frame) -> &[u8] {
        &self.received[HEADER..HEADER + frame.len]
    }

    /// Takes the next frame away.
    pub(super) fn consume(&mut self, frame: &Frame) {
        if self.received.len() == HEADER + frame.len {
            self.received = Vec::new();
        } else {
            self.received.drain(..HEADER + frame.len);
        }
    }

    /// Sends a message, or keeps what cannot be sent yet.
    pub(super) fn message(
        &mut self,
        value: &impl serde::Serialize,
        poll: &Poll,
    ) -> Result<(), Gone> {
        // A message of the shim is small and has a JSON form.
        let bytes = frame::message(value).map_err(|_| Gone)?;
        self.send_within(MAX_UNSENT + LAST_WORDS, &bytes, poll)
    }

    /// Sends a message with a descriptor beside it, as the first of a connection.
    pub(super) fn message_with(
        &mut self,
        value: &impl serde::Serialize,
        fd: BorrowedFd<'_>,
    ) -> Result<(), Gone> {
        let bytes = frame::message(value).map_err(|_| Gone)?;
        // Nothing was sent before, so that a small message has room.
        match kelson_sys::fdpass::send_with_fds(self.socket.as_fd(), &bytes, &[fd]) {
            Ok(count) if count == bytes.len() => Ok(()),
            Ok(_) | Err(_) => Err(Gone),
        }
    }

    /// Sends whole frames, or keeps what cannot be sent yet.
    pub(super) fn send(&mut self, bytes: &[u8], poll: &Poll) -> Result<(), Gone> {
        self.send_within(MAX_UNSENT, bytes, poll)
    }

    fn send_within(&mut self, limit: usize, bytes: &[u8], poll: &Poll) -> Result<(), Gone> {
        let mut rest = bytes;
        while !rest.is_empty() && !self.is_blocked() {
            match rustix::net::send(
                &self.socket,
                rest,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return Err(Gone),
            }
        }
        if self.unsent.len() + rest.len() > limit {
            return Err(Gone);
        }
        self.unsent.extend_from_slice(rest);
        self.update(poll);
        Ok(())
    }

    /// Goes on sending what was kept.
    pub(super) fn flush(&mut self, poll: &Poll) -> Result<(), Gone> {
        while self.sent < self.unsent.len() {
            let rest = &self.unsent[self.sent..];
            match rustix::net::send(
                &self.socket,
                rest,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(_) => return Err(Gone),
            }
        }
        self.unsent = Vec::new();
        self.sent = 0;
        self.update(poll);
        Ok(())
    }

    /// Sends what was kept, waiting for the peer a little. For the last words of a shim.
    pub(super) fn flush_last(&mut self, poll: &Poll) {
        let _ = rustix::io::ioctl_fionbio(&self.socket, false);
        let _ = rustix::net::sockopt::set_socket_timeout(
            &self.socket,
            rustix::net::sockopt::Timeout::Send,
            Some(std::time::Duration::from_secs(1)),
        );
        while self.is_blocked() {
            let rest = &self.unsent[self.sent..];
            match rustix::net::send(&self.socket, rest, SendFlags::NOSIGNAL) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
            if self.sent == self.unsent.len() {
                self.unsent = Vec::new();
            }
        }
        self.update(poll);
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

const _: () = assert!(
    MAX_UNSENT > 2 * (MAX_DATA + HEADER),
    "an output frame must fit"
);

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair(poll: &Poll) -> (Conn, OwnedFd) {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        (Conn::new(ours, 1, Role::Events, poll).unwrap(), theirs)
    }

    #[test]
    fn frames_come_in_pieces() {
        let poll = Poll::new().unwrap();
        let (mut conn, peer) = pair(&poll);
        let bytes = [
            &frame::header(Kind::Stdin, 3)[..],
            b"abc",
            &frame::header(Kind::Stdin, 0),
        ]
        .concat();
        for byte in &bytes[..7] {
            rustix::io::write(&peer, &[*byte]).unwrap();
            conn.receive().unwrap();
            assert!(conn.frame().unwrap().is_none());
        }
        rustix::io::write(&peer, &bytes[7..]).unwrap();
        conn.receive().unwrap();
        let frame = conn.frame().unwrap().unwrap();
        assert_eq!(conn.payload(&frame), b"abc");
        conn.consume(&frame);
        let frame = conn.frame().unwrap().unwrap();
        assert_eq!(conn.payload(&frame), b"");
        conn.consume(&frame);
        assert!(conn.frame().unwrap().is_none());
        drop(peer);
        assert!(conn.receive().is_err());
    }

    #[test]
    fn a_reader_that_does_not_read_is_dropped_at_the_limit() {
        let poll = Poll::new().unwrap();
        let (mut conn, peer) = pair(&poll);
        let chunk = vec![b'x'; 32 << 10];
        let mut sent = 0;
        while !conn.is_blocked() {
            conn.send(&chunk, &poll).unwrap();
            sent += chunk.len();
        }
        let mut extra = 0;
        while conn.send(&chunk, &poll).is_ok() {
            extra += chunk.len();
            assert!(extra <= MAX_UNSENT);
        }
        assert!(extra + chunk.len() > MAX_UNSENT - chunk.len());
        let mut got = 0;
        let mut buffer = vec![0; 64 << 10];
        while conn.is_blocked() {
            got += rustix::io::read(&peer, &mut buffer).unwrap();
            conn.flush(&poll).unwrap();
        }
        drop(conn);
        loop {
            match rustix::io::read(&peer, &mut buffer).unwrap() {
                0 => break,
                count => got += count,
            }
        }
        assert_eq!(got, sent + extra);
    }
}
