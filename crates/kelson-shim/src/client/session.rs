//! A process or container with its input and output: what exec and attach give.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::Mutex;

use super::ShimError;
use super::shim::unexpected;
use super::wire::{Connection, parse};
use crate::proto::frame::{self, HEADER, Kind, MAX_DATA};
use crate::proto::{ExecExit, Reply, Started, TerminalSize};

/// The output of an exec'd process or an attached container, and the way to its input. Dropping it
/// closes the connection: an exec is killed with everything it has started unless it was asked for
/// with [`ExecRequest::detach`](crate::proto::ExecRequest::detach); a container goes on.
///
/// At most a frame of output (64 KiB) and one of input wait in it; a process whose output is not
/// taken waits, a container does so for a moment and then drops the session.
#[derive(Debug)]
pub struct Session {
    connection: Connection,
    started: Started,
    writer: Arc<Writer>,
    stdin: bool,
}

/// What comes out of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Written to the standard output, or to the terminal.
    Stdout(Vec<u8>),
    /// Written to the standard error.
    Stderr(Vec<u8>),
    /// The process or the container is gone; nothing follows.
    Exited(ExecExit),
}

/// The whole of an exec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecResult {
    /// The standard output, up to the limit.
    pub stdout: Vec<u8>,
    /// The standard error, up to the limit.
    pub stderr: Vec<u8>,
    /// How the process ended.
    pub exit: ExecExit,
}

impl Session {
    pub(super) fn new(connection: Connection, started: Started, stdin: bool) -> Self {
        let writer = Arc::new(Writer {
            stream: Arc::clone(connection.stream()),
            unsent: Mutex::default(),
        });
        Self {
            connection,
            started,
            writer,
            stdin,
        }
    }

    /// A session over any stream whose other end sends and takes frames ([`frame`]), for tests of
    /// those who use sessions.
    pub fn over(stream: UnixStream, started: Started, stdin: bool) -> Self {
        Self::new(Connection::new(stream, PathBuf::new()), started, stdin)
    }

    /// The process, or the container's first one.
    pub fn started(&self) -> Started {
        self.started
    }

    /// The writing end of the standard input or terminal, once, if the request asked for one.
    pub fn take_stdin(&mut self) -> Option<Stdin> {
        let writer = Arc::clone(&self.writer);
        std::mem::take(&mut self.stdin).then_some(Stdin { writer })
    }

    /// What sets the size of the terminal, if there is one.
    pub fn resizer(&self) -> Resizer {
        let writer = Arc::clone(&self.writer);
        Resizer { writer }
    }

    /// What comes next. May be dropped and called again without losing output.
    ///
    /// # Errors
    /// [`ShimError::Gone`] when the shim goes away before the end is reported, and a refusal of
    /// the kind [`RefusalKind::Slow`](crate::proto::RefusalKind::Slow) when the output of a
    /// container was not taken in time.
    pub async fn next(&mut self) -> Result<Output, ShimError> {
        match self.connection.next_frame().await? {
            None => Err(self.connection.gone(None)),
            Some((Kind::Stdout, bytes)) => Ok(Output::Stdout(bytes)),
            Some((Kind::Stderr, bytes)) => Ok(Output::Stderr(bytes)),
            Some((Kind::Message, bytes)) => match parse(&bytes)? {
                Reply::Exited(exit) => Ok(Output::Exited(exit)),
                Reply::Refused(refusal) => Err(refusal.into()),
                other => Err(unexpected(&other)),
            },
            Some((kind @ (Kind::Stdin | Kind::Resize), _)) => Err(ShimError::Protocol(format!(
                "the shim sent a {kind:?} frame"
            ))),
        }
    }

    /// Runs to the end and gathers the output, at most `limit` bytes of each stream; what is
    /// beyond is read and dropped.
    ///
    /// # Errors
    /// [`ShimError::Timeout`] when the deadline passes; the session is dropped then.
    pub async fn collect(
        mut self,
        limit: usize,
        deadline: Duration,
    ) -> Result<ExecResult, ShimError> {
        let socket = self.connection.socket().to_owned();
        let all = async {
            let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
            loop {
                let (stream, bytes) = match self.next().await? {
                    Output::Stdout(bytes) => (&mut stdout, bytes),
                    Output::Stderr(bytes) => (&mut stderr, bytes),
                    Output::Exited(exit) => {
                        return Ok(ExecResult {
                            stdout,
                            stderr,
                            exit,
                        });
                    }
                };
                let room = limit.saturating_sub(stream.len()).min(bytes.len());
                stream.extend_from_slice(&bytes[..room]);
            }
        };
        tokio::time::timeout(deadline, all)
            .await
            .unwrap_or(Err(ShimError::Timeout {
                socket,
                call: "exec",
                after: deadline,
            }))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The input half may outlive the session; the shim must see the end all the same. A
        // failure means that it has closed already.
        let _ = rustix::net::shutdown(self.connection.stream(), rustix::net::Shutdown::Both);
    }
}

/// The sending direction of a session: whole frames, whoever sends and whoever gives up.
#[derive(Debug)]
struct Writer {
    stream: Arc<UnixStream>,
    /// What is left of a frame whose sender has been dropped.
    unsent: Mutex<Vec<u8>>,
}

impl Writer {
    async fn frame(&self, kind: Kind, payload: &[u8]) -> std::io::Result<()> {
        let mut unsent = self.unsent.lock().await;
        self.flush(&mut unsent).await?;
        unsent.reserve_exact(HEADER + payload.len());
        unsent.extend_from_slice(&frame::header(kind, payload.len()));
        unsent.extend_from_slice(payload);
        self.flush(&mut unsent).await
    }

    /// Sends what is there; when it is given up, what was sent is gone and the rest is kept.
    async fn flush(&self, unsent: &mut Vec<u8>) -> std::io::Result<()> {
        let mut sent = Sent { unsent, count: 0 };
        while sent.count < sent.unsent.len() {
            self.stream.writable().await?;
            match self.stream.try_write(&sent.unsent[sent.count..]) {
                Ok(count) => sent.count += count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

struct Sent<'a> {
    unsent: &'a mut Vec<u8>,
    count: usize,
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        self.unsent.drain(..self.count);
        if self.unsent.is_empty() {
            *self.unsent = Vec::new();
        }
    }
}

/// The writing end of a standard input or terminal. Dropping it leaves the input open;
/// [`Stdin::close`] ends it.
#[derive(Debug)]
pub struct Stdin {
    writer: Arc<Writer>,
}

impl Stdin {
    /// Writes all bytes; waits while the process does not read. When it is dropped in the middle,
    /// some of the bytes have been or will be written.
    ///
    /// # Errors
    /// When the session is over.
    pub async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        for chunk in bytes.chunks(MAX_DATA) {
            self.writer.frame(Kind::Stdin, chunk).await?;
        }
        Ok(())
    }

    /// Ends the input. A terminal's reader is told as by typing the end of a file; an attached
    /// container's input ends only if it is to end with its first client.
    ///
    /// # Errors
    /// When the session is over.
    pub async fn close(self) -> std::io::Result<()> {
        self.writer.frame(Kind::Stdin, &[]).await
    }
}

/// What sets the size of a session's terminal.
#[derive(Debug, Clone)]
pub struct Resizer {
    writer: Arc<Writer>,
}

impl Resizer {
    /// Sets the size in characters; one with a zero in it is ignored, and so is any where there is
    /// no terminal.
    ///
    /// # Errors
    /// When the session is over.
    pub async fn resize(&self, rows: u16, cols: u16) -> std::io::Result<()> {
        match TerminalSize::new(rows, cols) {
            Some(size) => self.writer.frame(Kind::Resize, &frame::resize(size)).await,
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_stay_whole_when_a_write_is_given_up() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let started = Started {
            pid: 1,
            started_at: 0,
        };
        let mut session = Session::over(ours, started, true);
        let mut stdin = session.take_stdin().unwrap();
        let block = vec![b'x'; 60_000];
        let mut given_up = 0;
        // Until the socket is full, and then twice more.
        while given_up < 3 {
            let write = tokio::time::timeout(Duration::from_millis(20), stdin.write(&block));
            given_up += u32::from(write.await.is_err());
        }
        let resizer = session.resizer();
        resizer.resize(0, 5).await.unwrap();
        let resize = tokio::spawn(async move { resizer.resize(24, 80).await });
        let mut peer = Connection::new(theirs, PathBuf::new());
        let mut blocks = 0;
        loop {
            let (kind, payload) = peer.next_frame().await.unwrap().unwrap();
            match kind {
                Kind::Stdin => {
                    assert!(payload == block);
                    blocks += 1;
                }
                Kind::Resize => {
                    let size = frame::parse_resize(&payload).unwrap();
                    assert_eq!((size.rows, size.cols), (24, 80));
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(blocks >= 2);
        resize.await.unwrap().unwrap();
        drop(session);
        assert!(stdin.write(b"x").await.is_err());
        assert!(peer.next_frame().await.unwrap().is_none());
    }
}
