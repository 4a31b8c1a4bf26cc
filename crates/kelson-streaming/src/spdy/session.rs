//! A session: one SPDY connection, its streams, and what its frames do to them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::frame::{Decoder, Encoder, Frame, FrameError, status};
use super::headers::Headers;
use super::table::{Duplex, Table};
use crate::connection::{Connection, Receive, Transport};
use crate::outbox::Out;

/// Streams of one session that are open at once, at most; a port-forward has two a connection.
pub const MAX_STREAMS: usize = 2048;
/// Streams that the other side asked for and nobody has looked at yet, at most.
const BACKLOG: usize = 16;

/// Who began the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// This side; its streams have odd numbers.
    Client,
    /// The other side.
    Server,
}

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The other side refused it.
    #[error("the server refused a stream")]
    Refused,
    /// The other side did not answer.
    #[error("the server did not take a stream within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The connection is over.
    #[error("the connection is closed")]
    Closed,
}

/// What breaks a session beside frames that are wrong by themselves.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("stream {0} is out of order")]
    Order(u32),
    #[error("a frame for stream {0}, which never was")]
    Unknown(u32),
}

impl From<SessionError> for io::Error {
    fn from(error: SessionError) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

/// A stream that the other side asks for; dropping it without an answer resets it.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) headers: Headers,
    stream: Duplex,
    outbox: mpsc::Sender<Out>,
}

impl Incoming {
    pub(crate) fn id(&self) -> u32 {
        self.stream.id
    }

    /// Takes the stream.
    pub(crate) async fn accept(self) -> io::Result<Duplex> {
        let message = Out::Accept {
            stream: self.stream.id,
        };
        self.outbox
            .send(message)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(self.stream)
    }
}

/// One connection with its streams; dropping it cuts them all off.
#[derive(Debug)]
pub(crate) struct Session {
    connection: Connection,
    table: Arc<Table>,
    /// The id of the next stream of this side.
    next: Mutex<u32>,
    last_received: Arc<AtomicU32>,
    gone: Arc<AtomicBool>,
}

impl Session {
    /// Starts a session; also gives the streams that the other side asks for.
    pub(crate) fn start(
        transport: impl Transport,
        role: Role,
        idle: Duration,
    ) -> Result<(Self, mpsc::Receiver<Incoming>), FrameError> {
        let (resets, to_reset) = mpsc::unbounded_channel();
        let table = Table::new(resets);
        let (arrivals, incoming) = mpsc::channel(BACKLOG);
        let last_received = Arc::new(AtomicU32::new(0));
        let gone = Arc::new(AtomicBool::new(false));
        let encoder = Encoder::new()?;
        let probes = role == Role::Server;
        let receiver = |outbox| Receiver {
            decoder: Decoder::new(),
            role,
            table: Arc::clone(&table),
            arrivals,
            outbox,
            last_received: Arc::clone(&last_received),
            gone: Arc::clone(&gone),
        };
        let connection = Connection::start(transport, encoder, idle, probes, to_reset, receiver);
        let session = Self {
            connection,
            table,
            next: Mutex::new(if role == Role::Client { 1 } else { 2 }),
            last_received,
            gone,
        };
        Ok((session, incoming))
    }

    /// Opens a stream and waits until the other side takes it.
    pub(crate) async fn open(
        &self,
        headers: Headers,
        limit: Duration,
    ) -> Result<Duplex, OpenError> {
        if self.gone.load(Ordering::Acquire) {
            return Err(OpenError::Closed);
        }
        let (reply, replied) = oneshot::channel();
        let stream = {
            // Ids must reach the wire in their order.
            let mut next = self.next.lock().await;
            let id = *next;
            let room = self.connection.outbox().reserve().await;
            let room = room.map_err(|_| OpenError::Closed)?;
            *next += 2;
            let outbox = self.connection.outbox().clone();
            let stream = self.table.add(id, false, Some(reply), outbox);
            room.send(Out::Open {
                stream: id,
                headers,
            });
            stream
        };
        match timeout(limit, replied).await {
            Ok(Ok(())) => Ok(stream),
            Ok(Err(_)) if self.connection.closed().is_cancelled() => Err(OpenError::Closed),
            Ok(Err(_)) => Err(OpenError::Refused),
            Err(_) => Err(OpenError::Timeout(limit)),
        }
    }

    /// Resets a stream unless it is over at both sides.
    pub(crate) fn reset(&self, stream: u32) {
        self.table.reset(stream);
    }

    /// Told when the connection is over.
    pub(crate) fn closed(&self) -> CancellationToken {
        self.connection.closed()
    }

    /// Waits until nobody will read more of a stream.
    pub(crate) fn feeder(&self, stream: u32) -> Option<crate::pipe::Feeder> {
        self.table.feeder(stream)
    }

    /// Says goodbye and waits a while for the other side to close.
    pub(crate) async fn close(&self) {
        let last = self.last_received.load(Ordering::Acquire);
        self.connection.close(last).await;
    }
}

/// What arrives.
struct Receiver {
    decoder: Decoder,
    role: Role,
    table: Arc<Table>,
    arrivals: mpsc::Sender<Incoming>,
    outbox: mpsc::Sender<Out>,
    last_received: Arc<AtomicU32>,
    gone: Arc<AtomicBool>,
}

impl Receive for Receiver {
    async fn receive(&mut self, buf: &mut BytesMut) -> io::Result<bool> {
        while let Some(frame) = self.decoder.next(buf)? {
            self.frame(frame).await?;
        }
        Ok(true)
    }

    fn end(&mut self, _: bool) {
        self.table.end();
    }
}

impl Receiver {
    async fn frame(&mut self, frame: Frame) -> io::Result<()> {
        match frame {
            Frame::SynStream {
                stream,
                fin,
                headers,
            } => return self.arrival(stream, fin, headers).await,
            Frame::SynReply { stream, fin } => {
                self.table.replied(stream);
                if fin {
                    self.table.received(stream);
                }
            }
            Frame::RstStream { stream, .. } => self.table.was_reset(stream),
            Frame::Headers { stream, fin } => {
                if fin {
                    self.table.received(stream);
                }
            }
            Frame::Data { stream, fin, bytes } => {
                // A stream that is over may still be written to by who has not heard of it.
                match self.table.feeder(stream) {
                    Some(feeder) => feeder.push(bytes).await,
                    None => self.was(stream).await?,
                }
                if fin {
                    self.table.received(stream);
                }
            }
            Frame::Ping(id) => {
                // Those with this side's parity answer pings of this side.
                let ours = (id % 2 == 1) == (self.role == Role::Client);
                if !ours {
                    let answer = Bytes::copy_from_slice(&id.to_be_bytes());
                    self.send(Out::Pong(answer)).await?;
                }
            }
            Frame::GoAway { .. } => self.gone.store(true, Ordering::Release),
            Frame::Settings | Frame::WindowUpdate | Frame::Unknown(_) => {}
        }
        Ok(())
    }

    /// The other side asks for a stream.
    async fn arrival(&mut self, stream: u32, fin: bool, headers: Headers) -> io::Result<()> {
        let theirs = (stream % 2 == 1) == (self.role == Role::Server);
        if !theirs || stream <= self.last_received.load(Ordering::Acquire) {
            return Err(SessionError::Order(stream).into());
        }
        self.last_received.store(stream, Ordering::Release);
        if self.table.len() >= MAX_STREAMS || self.arrivals.is_closed() {
            return self
                .send(Out::Reset {
                    stream,
                    status: status::REFUSED_STREAM,
                })
                .await;
        }
        let incoming = Incoming {
            headers,
            stream: self.table.add(stream, fin, None, self.outbox.clone()),
            outbox: self.outbox.clone(),
        };
        // One that nobody takes any more is reset by being dropped.
        let _ = self.arrivals.send(incoming).await;
        Ok(())
    }

    /// Whether the stream was there once; a frame for one that never was breaks the session.
    async fn was(&self, stream: u32) -> io::Result<()> {
        let theirs = (stream % 2 == 1) == (self.role == Role::Server);
        if theirs && stream > self.last_received.load(Ordering::Acquire) {
            return Err(SessionError::Unknown(stream).into());
        }
        Ok(())
    }

    async fn send(&self, message: Out) -> io::Result<()> {
        self.outbox
            .send(message)
            .await
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
