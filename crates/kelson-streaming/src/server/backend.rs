//! What the server asks of a runtime: the one path that both protocols end in.

use tokio::io::{AsyncRead, AsyncWrite};

use crate::outbox::Writer;
use crate::pipe::Reader;
use crate::protocol::Streams;
use crate::resize::Sizes;

/// Why a runtime could not do it; the client is told with all causes.
pub type BackendError = Box<dyn std::error::Error + Send + Sync>;

/// A command to run in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// The container's id.
    pub container: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Which streams the client has.
    pub streams: Streams,
}

/// A container whose first process a client is to be connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// The container's id.
    pub container: String,
    /// Which streams the client has.
    pub streams: Streams,
}

/// The client's streams.
///
/// Nothing has to be shut down: the server does that when the backend returns. When the client
/// goes away, reads end and writes fail; then, once `stdin` has been read, the backend is dropped.
#[derive(Debug)]
pub struct Io {
    /// What the client types.
    pub stdin: Option<Reader>,
    /// What it is shown.
    pub stdout: Option<Writer>,
    /// What it is shown as errors.
    pub stderr: Option<Writer>,
    /// The sizes of its terminal.
    pub sizes: Option<Sizes>,
}

/// A runtime.
pub trait Backend: Send + Sync + 'static {
    /// A connection into a pod.
    type Socket: AsyncRead + AsyncWrite + Send + Unpin;

    /// Runs a command to its end and returns its exit code.
    fn exec(
        &self,
        exec: &Exec,
        io: &mut Io,
    ) -> impl Future<Output = Result<i32, BackendError>> + Send;

    /// Connects to a container until its first process ends, or the client is dropped.
    fn attach(
        &self,
        attach: &Attach,
        io: &mut Io,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Connects to a TCP port in a pod.
    fn dial(
        &self,
        pod: &str,
        port: u16,
    ) -> impl Future<Output = Result<Self::Socket, BackendError>> + Send;

    /// A client's connection is over, and what it needed is free again.
    fn ended(&self) {}
}

/// The text of an error and of all its causes.
pub(super) fn chain(error: &BackendError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
