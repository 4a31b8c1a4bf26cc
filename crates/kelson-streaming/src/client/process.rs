//! Exec and attach from the client's side: the streams of a process, and how it ended.

use std::io;

use tokio::io::AsyncReadExt;

use super::dial::{ConnectError, Dialed, Options, dial};
use super::{CREATION, IDLE, SourceError};
use crate::outbox::Writer;
use crate::pipe::Reader;
use crate::protocol::{STREAM_TYPE, Streams, V4, V5, channel};
use crate::resize::Resizer;
use crate::spdy::{Duplex, Role, Session};
use crate::status::{MAX_STATUS, Outcome};
use crate::ws::{Channels, Codec, Side};

/// Why it is not known how a process ended.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The connection went away first.
    #[error("the connection was lost before the end of the process was told")]
    Lost(#[source] io::Error),
    /// What was told cannot be read.
    #[error("the runtime tells the end of the process in a way that cannot be read")]
    Unreadable,
}

/// A process that the client is connected to.
///
/// All readers have to be read at the same time: a full one stops the connection.
#[derive(Debug)]
pub struct Process {
    /// Writes to the process; shut it down to close its stdin.
    pub stdin: Option<Writer>,
    /// What it prints; ends with the process.
    pub stdout: Option<Reader>,
    /// What it prints as errors; ends with the process.
    pub stderr: Option<Reader>,
    /// Tells the terminal's size, if it has one.
    pub resizer: Option<Resizer>,
    /// How it ends; dropping this cuts the connection off.
    pub waiting: Waiting,
}

#[derive(Debug)]
enum Carrier {
    Spdy(Session),
    WebSocket(Channels),
}

/// Waits for the end of a process.
#[derive(Debug)]
pub struct Waiting {
    carrier: Carrier,
    status: Reader,
}

impl Process {
    /// Connects to the address that `Exec` or `Attach` of the CRI has given for `streams`.
    ///
    /// `urls` is asked for an address for every attempt, twice at most.
    ///
    /// # Errors
    /// When neither protocol leads to a connection.
    pub async fn connect<F>(
        urls: impl FnMut() -> F,
        streams: Streams,
        options: &Options,
    ) -> Result<Self, ConnectError>
    where
        F: Future<Output = Result<String, SourceError>>,
    {
        // Before v5 a WebSocket cannot close stdin, so that only SPDY does for older servers.
        match dial(urls, options, V5, V4).await? {
            Dialed::WebSocket(io) => Ok(by_websocket(io, streams)),
            Dialed::Spdy(io) => {
                let (session, _) = Session::start(io, Role::Client, IDLE)
                    .map_err(|error| ConnectError::Begin(error.into()))?;
                by_spdy(session, streams)
                    .await
                    .map_err(ConnectError::Streams)
            }
        }
    }
}

fn by_websocket(io: impl crate::connection::Transport, streams: Streams) -> Process {
    let codec = Codec::Binary { closes: true };
    let (channels, mut readers) = Channels::start(io, Side::Client, codec, channel::COUNT, IDLE);
    let mut reader = |number: u32| {
        let reader = readers.get_mut(number as usize);
        reader.map_or_else(Reader::empty, |place| {
            std::mem::replace(place, Reader::empty())
        })
    };
    Process {
        stdin: streams.stdin.then(|| channels.writer(channel::STDIN)),
        stdout: streams.stdout.then(|| reader(channel::STDOUT)),
        stderr: streams.stderr.then(|| reader(channel::STDERR)),
        resizer: streams
            .tty
            .then(|| Resizer(channels.writer(channel::RESIZE))),
        waiting: Waiting {
            status: reader(channel::ERROR),
            carrier: Carrier::WebSocket(channels),
        },
    }
}

async fn by_spdy(session: Session, streams: Streams) -> Result<Process, crate::spdy::OpenError> {
    let open = async |wanted: bool, kind: &str| -> Result<Option<Duplex>, _> {
        if !wanted {
            return Ok(None);
        }
        let headers = vec![(STREAM_TYPE.to_owned(), kind.to_owned())];
        session.open(headers, CREATION).await.map(Some)
    };
    let error = open(true, "error").await?;
    let stdin = open(streams.stdin, "stdin").await?;
    let stdout = open(streams.stdout, "stdout").await?;
    let stderr = open(streams.stderr, "stderr").await?;
    let resize = open(streams.tty, "resize").await?;
    let mut kept = Vec::new();
    let mut reader = |stream: Option<Duplex>| {
        stream.map(|Duplex { reader, writer, .. }| {
            kept.push(writer);
            reader
        })
    };
    let (status, stdout, stderr) = (
        reader(error).unwrap_or_else(Reader::empty),
        reader(stdout),
        reader(stderr),
    );
    for mut writer in kept {
        // This side sends nothing on them; an error is told by reading them.
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut writer).await;
    }
    Ok(Process {
        stdin: stdin.map(|stream| stream.writer),
        stdout,
        stderr,
        resizer: resize.map(|stream| Resizer(stream.writer)),
        waiting: Waiting {
            status,
            carrier: Carrier::Spdy(session),
        },
    })
}

impl Waiting {
    /// Waits until the process has ended and everything that it printed has arrived.
    ///
    /// # Errors
    /// When the connection is lost before that is told.
    pub async fn outcome(mut self) -> Result<Outcome, ProcessError> {
        let mut text = Vec::new();
        let limit = u64::try_from(MAX_STATUS).unwrap_or(u64::MAX);
        let read = (&mut self.status).take(limit).read_to_end(&mut text).await;
        match self.carrier {
            Carrier::Spdy(session) => session.close().await,
            Carrier::WebSocket(channels) => channels.close().await,
        }
        match (Outcome::from_wire(&text), read) {
            (Some(outcome), _) => Ok(outcome),
            (None, Err(error)) => Err(ProcessError::Lost(error)),
            (None, Ok(_)) if text.is_empty() => {
                Err(ProcessError::Lost(io::ErrorKind::UnexpectedEof.into()))
            }
            (None, Ok(_)) => Err(ProcessError::Unreadable),
        }
    }
}
