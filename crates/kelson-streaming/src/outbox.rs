//! What a connection sends: one bounded queue of messages, and the halves of streams that fill it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

/// Bytes of one message, at most; Go's peers write in pieces of this size too.
pub(crate) const MAX_MESSAGE: usize = 32 * 1024;
/// Messages of one connection that wait to be sent, at most, over all of its streams.
pub(crate) const OUTBOX: usize = 8;

/// One message to send.
#[derive(Debug)]
pub(crate) enum Out {
    /// Bytes of a stream, and whether they are its last.
    Data {
        stream: u32,
        bytes: Bytes,
        fin: bool,
    },
    /// Asks for a new stream with these headers (SPDY).
    Open {
        stream: u32,
        headers: Vec<(String, String)>,
    },
    /// Takes a stream that the other side has asked for (SPDY).
    Accept { stream: u32 },
    /// Refuses or ends a stream with this status (SPDY).
    Reset { stream: u32, status: u32 },
    /// Asks for a sign of life.
    Ping,
    /// Answers a ping with what it carried.
    Pong(Bytes),
    /// The last message, and whether it is because the other side broke the protocol.
    Goodbye { fault: bool, last_stream: u32 },
}

/// How one protocol writes a message.
pub(crate) trait Encode: Send + 'static {
    fn encode(&mut self, message: Out, buf: &mut Vec<u8>) -> io::Result<()>;
}

/// What a stream's end means to its connection.
pub(crate) trait Ending: Send + Sync + std::fmt::Debug {
    /// Everything was written and the last message is queued.
    fn finished(&self, stream: u32);
    /// Whoever wrote went away before that.
    fn abandoned(&self, stream: u32);
}

/// The sending half of a stream.
///
/// Writing waits while the connection has `OUTBOX` messages to send. Shutting it down tells the
/// other side that everything has been sent; dropping it without that resets the stream.
#[derive(Debug)]
pub struct Writer {
    stream: u32,
    queue: PollSender<Out>,
    reset: Arc<AtomicBool>,
    ending: Arc<dyn Ending>,
    finished: bool,
}

impl Writer {
    pub(crate) fn new(
        stream: u32,
        queue: mpsc::Sender<Out>,
        reset: Arc<AtomicBool>,
        ending: Arc<dyn Ending>,
    ) -> Self {
        Self {
            stream,
            queue: PollSender::new(queue),
            reset,
            ending,
            finished: false,
        }
    }

    fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        data: &[u8],
        fin: bool,
    ) -> Poll<io::Result<usize>> {
        if self.finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = ready!(self.queue.poll_reserve(context));
        if room.is_err() || self.reset.load(Ordering::Acquire) {
            self.queue.abort_send();
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let taken = data.len().min(MAX_MESSAGE);
        let message = Out::Data {
            stream: self.stream,
            bytes: Bytes::copy_from_slice(&data[..taken]),
            fin,
        };
        let sent = self.queue.send_item(message);
        Poll::Ready(
            sent.map(|()| taken)
                .map_err(|_| io::ErrorKind::BrokenPipe.into()),
        )
    }

    /// Sends a message without bytes, which tells a WebSocket client that the channel is there.
    pub(crate) async fn touch(&mut self) -> io::Result<()> {
        std::future::poll_fn(|context| self.poll_send(context, &[], false))
            .await
            .map(drop)
    }
}

impl AsyncWrite for Writer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.poll_send(context, buf, false)
    }

    /// What is queued is sent without being asked.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.finished {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_send(context, &[], true))?;
        self.finished = true;
        self.ending.finished(self.stream);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.finished {
            self.ending.abandoned(self.stream);
        }
    }
}
