//! A process that runs in a container, with its input and output.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;

use super::ShimError;
use super::shim::unexpected;
use super::wire::{Connection, parse, write_all};
use crate::proto::frame::{self, Kind, MAX_DATA};
use crate::proto::{ExecExit, Reply, Started};

/// A running exec. Dropping it kills the process and everything it has started.
#[derive(Debug)]
pub struct ExecSession {
    connection: Connection,
    started: Started,
    stdin: bool,
}

/// What an exec'd process does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecOutput {
    /// It wrote to its standard output, or to its terminal.
    Stdout(Vec<u8>),
    /// It wrote to its standard error.
    Stderr(Vec<u8>),
    /// It is gone; nothing follows.
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

impl ExecSession {
    pub(super) fn new(connection: Connection, started: Started, stdin: bool) -> Self {
        Self {
            connection,
            started,
            stdin,
        }
    }

    /// The process.
    pub fn started(&self) -> Started {
        self.started
    }

    /// The writing end of its standard input, once, if the request asked for one.
    pub fn take_stdin(&mut self) -> Option<ExecStdin> {
        std::mem::take(&mut self.stdin).then(|| ExecStdin {
            stream: Arc::clone(self.connection.stream()),
        })
    }

    /// What comes next. The process waits while nobody calls this. May be dropped and called
    /// again without losing output.
    ///
    /// # Errors
    /// [`ShimError::Gone`] when the shim goes away before the process is reported to be gone.
    pub async fn next(&mut self) -> Result<ExecOutput, ShimError> {
        match self.connection.next_frame().await? {
            None => Err(self.connection.gone(None)),
            Some((Kind::Stdout, bytes)) => Ok(ExecOutput::Stdout(bytes)),
            Some((Kind::Stderr, bytes)) => Ok(ExecOutput::Stderr(bytes)),
            Some((Kind::Message, bytes)) => match parse(&bytes)? {
                Reply::Exited(exit) => Ok(ExecOutput::Exited(exit)),
                Reply::Refused(refusal) => Err(refusal.into()),
                other => Err(unexpected(&other)),
            },
            Some((Kind::Stdin, _)) => Err(ShimError::Protocol(
                "the shim sent standard input".to_owned(),
            )),
        }
    }

    /// Runs to the end and gathers the output, at most `limit` bytes of each stream; what is
    /// beyond is read and dropped.
    ///
    /// # Errors
    /// [`ShimError::Timeout`] when the deadline passes; the process tree is killed then, as the
    /// session is dropped.
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
                    ExecOutput::Stdout(bytes) => (&mut stdout, bytes),
                    ExecOutput::Stderr(bytes) => (&mut stderr, bytes),
                    ExecOutput::Exited(exit) => {
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

impl Drop for ExecSession {
    fn drop(&mut self) {
        // The input half may outlive the session; the shim must see the end all the same. A
        // failure means that it has closed already.
        let _ = rustix::net::shutdown(self.connection.stream(), rustix::net::Shutdown::Both);
    }
}

/// The writing end of an exec'd process's standard input. Dropping it leaves the input open;
/// [`ExecStdin::close`] ends it.
#[derive(Debug)]
pub struct ExecStdin {
    stream: Arc<UnixStream>,
}

impl ExecStdin {
    /// Writes all bytes; waits while the process does not read.
    ///
    /// # Errors
    /// When the session is over.
    pub async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        for chunk in bytes.chunks(MAX_DATA) {
            self.frame(chunk).await?;
        }
        Ok(())
    }

    /// Ends the input.
    ///
    /// # Errors
    /// When the session is over.
    pub async fn close(mut self) -> std::io::Result<()> {
        self.frame(&[]).await
    }

    async fn frame(&mut self, payload: &[u8]) -> std::io::Result<()> {
        write_all(&self.stream, &frame::header(Kind::Stdin, payload.len())).await?;
        write_all(&self.stream, payload).await
    }
}
