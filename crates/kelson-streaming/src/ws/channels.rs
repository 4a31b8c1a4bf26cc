//! A WebSocket connection as a few streams: what messages do to them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::frame::{self, Decoder, Event, FrameError, Side};
use crate::connection::{Connection, Receive, Transport};
use crate::outbox::{Encode, Ending, Out, Writer};
use crate::pipe::{Feeder, Reader, pipe};

/// What closes a channel in `v5`.
const CLOSE_CHANNEL: u8 = 255;
/// Bytes of one message in base64, at most: it is read whole.
pub(crate) const MAX_BASE64: usize = 1 << 20;

/// What messages look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    /// Nothing but the bytes of one stream.
    Tunnel,
    /// A byte for the channel, then its bytes.
    Binary {
        /// Whether channels can be closed.
        closes: bool,
    },
    /// A digit for the channel, then its bytes in base64.
    Base64,
}

/// A WebSocket connection; dropping it cuts it off.
#[derive(Debug)]
pub(crate) struct Channels {
    connection: Connection,
    feeders: Vec<Feeder>,
}

impl Channels {
    /// Starts a connection with `count` channels; `side` is this one.
    pub(crate) fn start(
        transport: impl Transport,
        side: Side,
        codec: Codec,
        count: usize,
        idle: Duration,
    ) -> (Self, Vec<Reader>) {
        let (feeders, readers): (Vec<_>, Vec<_>) = (0..count).map(|_| pipe()).unzip();
        let encoder = Encoder { side, codec };
        // Nothing resets a channel.
        let (_, resets) = mpsc::unbounded_channel();
        let probes = side == Side::Server;
        let receiver = |outbox| Receiver {
            decoder: Decoder::new(match side {
                Side::Client => Side::Server,
                Side::Server => Side::Client,
            }),
            codec,
            feeders: feeders.clone(),
            message: Message::Head,
            outbox,
        };
        let connection = Connection::start(transport, encoder, idle, probes, resets, receiver);
        (
            Self {
                connection,
                feeders,
            },
            readers,
        )
    }

    /// The sending half of a channel.
    pub(crate) fn writer(&self, channel: u32) -> Writer {
        let outbox = self.connection.outbox().clone();
        let never = Arc::new(AtomicBool::new(false));
        Writer::new(channel, outbox, never, Arc::new(Unnoticed))
    }

    /// The connection's end of a channel's queue.
    pub(crate) fn feeder(&self, channel: usize) -> Option<Feeder> {
        self.feeders.get(channel).cloned()
    }

    /// Told when the connection is over.
    pub(crate) fn closed(&self) -> CancellationToken {
        self.connection.closed()
    }

    /// Says goodbye and waits a while for the other side to close.
    pub(crate) async fn close(&self) {
        self.connection.close(0).await;
    }
}

/// A WebSocket connection as one stream of bytes, and what keeps it alive.
pub(crate) fn tunnel(
    transport: impl Transport,
    side: Side,
    idle: Duration,
) -> (Channels, impl Transport) {
    let (channels, mut readers) = Channels::start(transport, side, Codec::Tunnel, 1, idle);
    let writer = channels.writer(0);
    let reader = readers.pop().unwrap_or_else(Reader::empty);
    (channels, tokio::io::join(reader, writer))
}

/// A channel that ends has no frame of its own beside what its writer sends.
#[derive(Debug)]
struct Unnoticed;

impl Ending for Unnoticed {
    fn finished(&self, _: u32) {}
    fn abandoned(&self, _: u32) {}
}

struct Encoder {
    side: Side,
    codec: Codec,
}

impl Encode for Encoder {
    fn encode(&mut self, message: Out, buf: &mut Vec<u8>) -> io::Result<()> {
        let mask = match self.side {
            Side::Client => Some(crate::random()?),
            Side::Server => None,
        };
        match message {
            Out::Data { stream, bytes, fin } => {
                let channel = u8::try_from(stream).unwrap_or(u8::MAX);
                match self.codec {
                    Codec::Binary { closes: true } if fin && self.side == Side::Client => {
                        frame::message(false, &[&[CLOSE_CHANNEL, channel]], mask, buf);
                    }
                    // Without such a message only the end of the connection tells.
                    _ if fin => {}
                    Codec::Tunnel => frame::message(false, &[&bytes], mask, buf),
                    Codec::Binary { .. } => {
                        frame::message(false, &[&[channel], &bytes], mask, buf);
                    }
                    Codec::Base64 => {
                        let text = STANDARD.encode(&bytes);
                        let digit = [b'0'.wrapping_add(channel)];
                        frame::message(true, &[&digit, text.as_bytes()], mask, buf);
                    }
                }
            }
            Out::Ping => frame::ping(&[], mask, buf),
            Out::Pong(body) => frame::pong(&body, mask, buf),
            // 1000 is a normal end, 1002 a protocol error (7.4.1).
            Out::Goodbye { fault, .. } => {
                frame::close(if fault { 1002 } else { 1000 }, mask, buf);
            }
            Out::Open { .. } | Out::Accept { .. } | Out::Reset { .. } => {}
        }
        Ok(())
    }
}

/// How much of a message is known.
#[derive(Debug)]
enum Message {
    /// Not even its channel.
    Head,
    /// It is about to close a channel.
    Closing,
    /// It has closed one, and must end.
    Closed,
    /// Bytes of a channel.
    Body(u8),
    /// Text of a channel, so far.
    Text(u8, BytesMut),
}

struct Receiver {
    decoder: Decoder,
    codec: Codec,
    feeders: Vec<Feeder>,
    message: Message,
    outbox: mpsc::Sender<Out>,
}

impl Receive for Receiver {
    async fn receive(&mut self, buf: &mut BytesMut) -> io::Result<bool> {
        while let Some(event) = self.decoder.next(buf)? {
            match event {
                Event::Piece { last, bytes, .. } => {
                    self.piece(bytes).await?;
                    if last {
                        self.last().await?;
                    }
                }
                Event::Ping(body) => self
                    .outbox
                    .send(Out::Pong(body))
                    .await
                    .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?,
                Event::Pong => {}
                Event::Close(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    fn end(&mut self, well: bool) {
        let end = if well {
            Ok(())
        } else {
            Err(io::ErrorKind::ConnectionAborted)
        };
        self.feeders.iter().for_each(|feeder| feeder.end(end));
    }
}

impl Receiver {
    /// Bytes for a channel; those for one that is not there are passed over, as Go's peers do.
    async fn push(&self, channel: u8, bytes: Bytes) {
        if let Some(feeder) = self.feeders.get(usize::from(channel)) {
            feeder.push(bytes).await;
        }
    }

    async fn piece(&mut self, mut bytes: Bytes) -> io::Result<()> {
        if self.codec == Codec::Tunnel {
            self.push(0, bytes).await;
            return Ok(());
        }
        while bytes.has_remaining() {
            match &mut self.message {
                Message::Head => {
                    let channel = bytes.get_u8();
                    self.message = match self.codec {
                        Codec::Binary { closes: true } if channel == CLOSE_CHANNEL => {
                            Message::Closing
                        }
                        Codec::Base64 => Message::Text(channel.wrapping_sub(b'0'), BytesMut::new()),
                        _ => Message::Body(channel),
                    };
                }
                Message::Closing => {
                    let channel = usize::from(bytes.get_u8());
                    let feeder = self.feeders.get(channel).ok_or(FrameError::Message)?;
                    feeder.end(Ok(()));
                    self.message = Message::Closed;
                }
                Message::Closed => return Err(FrameError::Message.into()),
                Message::Body(channel) => {
                    let channel = *channel;
                    self.push(channel, bytes.split_to(bytes.len())).await;
                }
                Message::Text(_, text) => {
                    if text.len() + bytes.len() > MAX_BASE64 {
                        return Err(FrameError::Message.into());
                    }
                    text.extend_from_slice(&bytes);
                    bytes.clear();
                }
            }
        }
        Ok(())
    }

    /// A message has ended.
    async fn last(&mut self) -> io::Result<()> {
        match std::mem::replace(&mut self.message, Message::Head) {
            Message::Closing => Err(FrameError::Message.into()),
            Message::Text(channel, text) => {
                let bytes = STANDARD.decode(&text).map_err(|_| FrameError::Message)?;
                self.push(channel, bytes.into()).await;
                Ok(())
            }
            Message::Head | Message::Closed | Message::Body(_) => Ok(()),
        }
    }
}
