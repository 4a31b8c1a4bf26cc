//! A connection to a shim: frames over a tokio stream. Never interprets what a frame says.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::ShimError;
use crate::proto::SOCKET_NAME;
use crate::proto::frame::{self, HEADER, Kind, MAX_DATA};

/// How much is read from the socket at once: a whole frame of output. Memory that nothing is read into
/// takes no room.
const READ_SIZE: usize = HEADER + MAX_DATA;

/// Both directions of a connection; reading keeps what is not a whole frame yet, so that a read
/// that is given up loses nothing.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Arc<UnixStream>,
    socket: PathBuf,
    received: Vec<u8>,
    taken: usize,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, socket: PathBuf) -> Self {
        Self {
            stream: Arc::new(stream),
            socket,
            received: Vec::new(),
            taken: 0,
        }
    }

    /// Connects to the socket in a pod's directory, however long that directory's path is.
    pub(super) async fn open(dir: &Path) -> Result<Self, ShimError> {
        let socket = dir.join(SOCKET_NAME);
        let gone = |source| ShimError::Gone {
            socket: socket.clone(),
            source: Some(source),
        };
        let dir = rustix::fs::open(
            dir,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| gone(e.into()))?;
        let dir = File::from(dir);
        let short = format!("/proc/self/fd/{}/{SOCKET_NAME}", dir.as_raw_fd());
        let stream = UnixStream::connect(&short).await.map_err(gone)?;
        Ok(Self::new(stream, socket))
    }

    pub(super) fn stream(&self) -> &Arc<UnixStream> {
        &self.stream
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(super) fn gone(&self, source: Option<io::Error>) -> ShimError {
        ShimError::Gone {
            socket: self.socket.clone(),
            source,
        }
    }

    /// Sends a whole message.
    pub(super) async fn send(&self, message: &impl serde::Serialize) -> Result<(), ShimError> {
        let bytes =
            frame::message(message).map_err(|error| ShimError::Protocol(error.to_string()))?;
        write_all(&self.stream, &bytes)
            .await
            .map_err(|error| self.gone(Some(error)))
    }

    /// The next frame; none when the peer has closed between two frames. May be dropped and
    /// called again.
    pub(super) async fn next_frame(&mut self) -> Result<Option<(Kind, Vec<u8>)>, ShimError> {
        loop {
            if let Some(frame) = self.take_frame()? {
                return Ok(Some(frame));
            }
            self.stream
                .readable()
                .await
                .map_err(|error| self.gone(Some(error)))?;
            self.received.reserve(READ_SIZE);
            match self.stream.try_read_buf(&mut self.received) {
                Ok(0) if self.received.len() == self.taken => return Ok(None),
                Ok(0) => return Err(self.gone(Some(io::ErrorKind::UnexpectedEof.into()))),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(self.gone(Some(error))),
            }
        }
    }

    /// The next message, with the descriptor that came beside it.
    pub(super) async fn next_message_with_fd<T: DeserializeOwned>(
        &mut self,
    ) -> Result<(T, Option<OwnedFd>), ShimError> {
        let mut passed = None;
        loop {
            if let Some((Kind::Message, payload)) = self.take_frame()? {
                return Ok((parse(&payload)?, passed));
            }
            let mut buffer = [0; 4096];
            let receive = || {
                let received = kelson_sys::fdpass::recv_with_fds(self.stream.as_fd(), &mut buffer);
                received.map_err(io::Error::from)
            };
            let received = self.stream.async_io(Interest::READABLE, receive).await;
            match received.map_err(|error| self.gone(Some(error)))? {
                (0, _) => return Err(self.gone(None)),
                (count, fds) => {
                    self.received.extend_from_slice(&buffer[..count]);
                    passed = fds.into_iter().next().or(passed);
                }
            }
        }
    }

    fn take_frame(&mut self) -> Result<Option<(Kind, Vec<u8>)>, ShimError> {
        let rest = &self.received[self.taken..];
        let Some((head, payload)) = rest.split_first_chunk::<HEADER>() else {
            self.compact();
            return Ok(None);
        };
        let (kind, len) =
            frame::parse_header(*head).map_err(|error| ShimError::Protocol(error.to_string()))?;
        if payload.len() < len {
            self.compact();
            return Ok(None);
        }
        let payload = payload[..len].to_vec();
        self.taken += HEADER + len;
        Ok(Some((kind, payload)))
    }

    fn compact(&mut self) {
        self.received.drain(..self.taken);
        self.taken = 0;
    }

    /// The next message; none when the peer has closed.
    pub(super) async fn next_message<T: DeserializeOwned>(
        &mut self,
    ) -> Result<Option<T>, ShimError> {
        match self.next_frame().await? {
            None => Ok(None),
            Some((Kind::Message, payload)) => parse(&payload).map(Some),
            Some((kind, _)) => Err(ShimError::Protocol(format!(
                "the shim sent a {kind:?} frame where a message was due"
            ))),
        }
    }
}

/// Reads a message from its JSON form.
pub(super) fn parse<T: DeserializeOwned>(payload: &[u8]) -> Result<T, ShimError> {
    serde_json::from_slice(payload)
        .map_err(|error| ShimError::Protocol(format!("an unreadable message: {error}")))
}

/// Writes everything, waiting while the peer is slow.
pub(super) async fn write_all(stream: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
