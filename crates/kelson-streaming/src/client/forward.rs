//! Port-forward from the client's side: one connection to the runtime, many through it.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

use super::dial::{ConnectError, Dialed, Options, dial};
use super::{CREATION, IDLE, SourceError};
use crate::outbox::{MAX_MESSAGE, Writer};
use crate::pipe::Reader;
use crate::protocol::{PORT, PORT_FORWARD, REQUEST_ID, STREAM_TYPE, TUNNEL};
use crate::spdy::{Duplex, OpenError, Role, Session};
use crate::status::MAX_STATUS;
use crate::ws::{Channels, Side, tunnel};

/// Why a forwarded connection failed.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The runtime takes no connection.
    #[error("the runtime does not take a connection to port {port}")]
    Open {
        /// The port in the pod.
        port: u16,
        /// Why.
        #[source]
        source: OpenError,
    },
    /// The runtime cannot connect to the port, or says why it could not go on.
    #[error("port {port} of the pod: {text}")]
    Refused {
        /// The port in the pod.
        port: u16,
        /// The runtime's words.
        text: String,
    },
    /// One of both sides broke off.
    #[error("the connection to port {port} was broken off")]
    Broken {
        /// The port in the pod.
        port: u16,
        /// How it was noticed.
        #[source]
        source: io::Error,
    },
}

/// A connection to the runtime for one pod; dropping it cuts everything off.
#[derive(Debug)]
pub struct Forwarder {
    session: Session,
    /// What carries the session, if it is not the session itself.
    tunnel: Option<Channels>,
    requests: AtomicU32,
}

impl Forwarder {
    /// Connects to the address that `PortForward` of the CRI has given.
    ///
    /// `urls` is asked for an address for every attempt, twice at most.
    ///
    /// # Errors
    /// When neither protocol leads to a connection.
    pub async fn connect<F>(
        urls: impl FnMut() -> F,
        options: &Options,
    ) -> Result<Self, ConnectError>
    where
        F: Future<Output = Result<String, SourceError>>,
    {
        let begun = match dial(urls, options, TUNNEL, PORT_FORWARD).await? {
            Dialed::Spdy(io) => Session::start(io, Role::Client, IDLE).map(|begun| (begun.0, None)),
            Dialed::WebSocket(io) => {
                let (channels, io) = tunnel(io, Side::Client, IDLE);
                Session::start(io, Role::Client, IDLE).map(|begun| (begun.0, Some(channels)))
            }
        };
        let (session, tunnel) = begun.map_err(|error| ConnectError::Begin(error.into()))?;
        Ok(Self {
            session,
            tunnel,
            requests: AtomicU32::new(0),
        })
    }

    /// Waits until the runtime has ended the connection.
    pub async fn closed(&self) {
        let session = self.session.closed();
        match &self.tunnel {
            Some(tunnel) => tokio::select! {
                () = session.cancelled() => {},
                () = tunnel.closed().cancelled_owned() => {},
            },
            None => session.cancelled().await,
        }
    }

    /// Connects `local` to a port in the pod until both sides have sent everything.
    ///
    /// When one side has, the other is told and may go on sending.
    ///
    /// # Errors
    /// When the port takes no connections, or either side breaks off.
    pub async fn relay(
        &self,
        port: u16,
        local: impl AsyncRead + AsyncWrite + Send,
    ) -> Result<(), ForwardError> {
        let open = |source| ForwardError::Open { port, source };
        let id = self.requests.fetch_add(1, Ordering::Relaxed);
        let error = self.open(port, id, "error").await.map_err(open)?;
        let Duplex {
            reader: words,
            writer: mut silent,
            ..
        } = error;
        // This side says nothing on it; an error is told by the streams that matter.
        let _ = silent.shutdown().await;
        let data = self.open(port, id, "data").await.map_err(open)?;
        let number = data.id;
        let (copied, text) = relay(data, words, local).await;
        // Nothing when both sides are done with it.
        self.session.reset(number);
        match (copied, text.is_empty()) {
            (_, false) => Err(ForwardError::Refused { port, text }),
            (Err(source), true) => Err(ForwardError::Broken { port, source }),
            (Ok(()), true) => Ok(()),
        }
    }

    async fn open(&self, port: u16, id: u32, kind: &str) -> Result<Duplex, OpenError> {
        let headers = vec![
            (STREAM_TYPE.to_owned(), kind.to_owned()),
            (PORT.to_owned(), port.to_string()),
            (REQUEST_ID.to_owned(), id.to_string()),
        ];
        self.session.open(headers, CREATION).await
    }
}

/// Copies both ways; also gives what the runtime said on the error stream.
async fn relay(
    data: Duplex,
    words: Reader,
    local: impl AsyncRead + AsyncWrite + Send,
) -> (io::Result<()>, String) {
    let Duplex {
        mut reader,
        mut writer,
        ..
    } = data;
    let (from, mut to) = tokio::io::split(local);
    let mut from = BufReader::with_capacity(MAX_MESSAGE, from);
    let down = async {
        while let Some(piece) = reader.next().await? {
            to.write_all(&piece).await?;
        }
        to.shutdown().await
    };
    let up = send(&mut from, &mut writer);
    let mut text = Vec::new();
    let limit = u64::try_from(MAX_STATUS).unwrap_or(u64::MAX);
    let mut words = words.take(limit);
    let copied = {
        let mut both = std::pin::pin!(async { tokio::try_join!(down, up).map(drop) });
        let mut told = std::pin::pin!(words.read_to_end(&mut text));
        tokio::select! {
            copied = &mut both => {
                // A failure is explained there; an error of this stream explains nothing.
                if copied.is_err() {
                    let _ = tokio::time::timeout(CREATION, &mut told).await;
                }
                copied
            }
            // The runtime is done with this connection: what it sent is there or on its way.
            _ = &mut told => {
                let rest = tokio::time::timeout(CREATION, &mut both).await;
                rest.unwrap_or(Ok(()))
            }
        }
    };
    (copied, String::from_utf8_lossy(&text).into_owned())
}

async fn send(from: &mut (impl AsyncBufRead + Unpin), writer: &mut Writer) -> io::Result<()> {
    tokio::io::copy_buf(from, writer).await?;
    writer.shutdown().await
}
