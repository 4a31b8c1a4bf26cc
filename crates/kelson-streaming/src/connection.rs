//! One connection of either protocol: reads, writes, idles and ends. Knows no streams.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::outbox::{Encode, OUTBOX, Out};

/// Bytes that are read at once, and that are put together for one write.
const CHUNK: usize = 64 * 1024;
/// How long an ending connection waits for the other side to close, or to hear why it ends.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long input waits to be taken before the other side is asked whether it is still there, and again.
const PROBE: Duration = Duration::from_secs(10);
/// How long a slow client may take for what is queued when its connection ends.
const FLUSH: Duration = Duration::from_secs(60);

/// What a connection runs over.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + 'static> Transport for T {}

/// What a protocol does with what arrives.
pub(crate) trait Receive: Send + 'static {
    /// Takes all whole frames off `buf`. `false` says that the other side is done.
    fn receive(&mut self, buf: &mut BytesMut) -> impl Future<Output = io::Result<bool>> + Send;

    /// Ends every stream: well, if the other side said goodbye as the protocol wants it.
    fn end(&mut self, well: bool);
}

/// A running connection; dropping it cuts the connection off.
#[derive(Debug)]
pub(crate) struct Connection {
    task: JoinHandle<()>,
    outbox: mpsc::Sender<Out>,
    closed: CancellationToken,
}

impl Connection {
    /// Starts a connection that ends when nothing moves for `idle`.
    ///
    /// With `probes`, the other side is pinged while its input waits: nothing is read then, and the end
    /// of a client that has gone waits behind its data; sending to it makes its kernel say so.
    /// `resets` are streams to be reset whoever else waits for room to send.
    pub(crate) fn start<R: Receive>(
        transport: impl Transport,
        encoder: impl Encode,
        idle: Duration,
        probes: bool,
        resets: mpsc::UnboundedReceiver<u32>,
        receiver: impl FnOnce(mpsc::Sender<Out>) -> R,
    ) -> Self {
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let closed = CancellationToken::new();
        let guard = closed.clone().drop_guard();
        let mut receiver = receiver(outbox.clone());
        let goodbye = outbox.clone();
        let task = tokio::spawn(async move {
            let _guard = guard;
            let (read, write) = tokio::io::split(transport);
            let activity = Activity::default();
            let writing = write_all(write, encoder, messages, resets, &activity);
            let well = drive(
                read,
                writing,
                &mut receiver,
                goodbye,
                &activity,
                (idle, probes),
            )
            .await;
            receiver.end(well);
        });
        Self {
            task,
            outbox,
            closed,
        }
    }

    /// The queue of what is sent.
    pub(crate) fn outbox(&self) -> &mpsc::Sender<Out> {
        &self.outbox
    }

    /// Told when the connection is over, whoever ended it.
    pub(crate) fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }

    /// Sends what is queued, says goodbye, and waits a while for the other side to close.
    pub(crate) async fn close(&self, last_stream: u32) {
        let goodbye = Out::Goodbye {
            fault: false,
            last_stream,
        };
        // An error says that the connection is over already.
        let _ = timeout(FLUSH, self.outbox.send(goodbye)).await;
        let _ = timeout(FLUSH, self.closed.cancelled()).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// When something moved last.
#[derive(Debug)]
struct Activity(Mutex<Instant>);

impl Default for Activity {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

impl Activity {
    fn touch(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    async fn idle(&self, limit: Duration) {
        loop {
            let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // A limit beyond the end of time is none.
            let Some(end) = last.checked_add(limit) else {
                return std::future::pending().await;
            };
            if Instant::now() >= end {
                return;
            }
            sleep_until(end).await;
        }
    }
}

/// Runs until either side ends the connection; whether it ended well.
async fn drive<T: Transport>(
    mut read: ReadHalf<T>,
    writing: impl Future<Output = io::Result<()>>,
    receiver: &mut impl Receive,
    goodbye: mpsc::Sender<Out>,
    activity: &Activity,
    (idle, probes): (Duration, bool),
) -> bool {
    let probe = probes.then_some(&goodbye);
    let reading = read_all(&mut read, receiver, activity, probe);
    let (mut reading, mut writing) = (std::pin::pin!(reading), std::pin::pin!(writing));
    let outcome = tokio::select! {
        outcome = &mut reading => outcome,
        sent = &mut writing => {
            // The other side reads the rest before it closes; cutting it off would lose that.
            if sent.is_ok() && !matches!(timeout(PATIENCE, &mut reading).await, Ok(Ok(_))) {
                debug!("the other side does not close");
            }
            return sent.is_ok();
        }
        () = activity.idle(idle) => {
            debug!("nothing moved for {} s", idle.as_secs());
            Err(io::ErrorKind::TimedOut.into())
        }
    };
    let fault = match &outcome {
        Ok(true) => return false,
        Ok(false) => false,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            debug!(%error, "the protocol was broken");
            true
        }
        Err(error) => {
            debug!(%error, "the connection is lost");
            return false;
        }
    };
    let last = async {
        let message = Out::Goodbye {
            fault,
            last_stream: 0,
        };
        // An error says that there is nobody to tell.
        let _ = goodbye.send(message).await;
        std::future::pending::<()>().await;
    };
    let farewell = async {
        tokio::select! { _ = &mut writing => {}, () = last => {} }
    };
    let _ = timeout(PATIENCE, farewell).await;
    outcome.is_ok()
}

/// Reads until the other side is done (`false`) or gone (`true`).
async fn read_all<T: Transport>(
    read: &mut ReadHalf<T>,
    receiver: &mut impl Receive,
    activity: &Activity,
    probe: Option<&mpsc::Sender<Out>>,
) -> io::Result<bool> {
    let mut buf = BytesMut::new();
    loop {
        buf.reserve(CHUNK);
        if read.read_buf(&mut buf).await? == 0 {
            return Ok(true);
        }
        activity.touch();
        let mut taking = std::pin::pin!(receiver.receive(&mut buf));
        let more = loop {
            tokio::select! {
                more = &mut taking => break more?,
                () = sleep(PROBE) => {
                    // A queue that is full is being sent, which is as good.
                    let _ = probe.map(|outbox| outbox.try_send(Out::Ping));
                }
            }
        };
        if !more {
            return Ok(false);
        }
    }
}

/// Writes what is queued until the goodbye is written.
async fn write_all<T: Transport>(
    mut write: WriteHalf<T>,
    mut encoder: impl Encode,
    mut messages: mpsc::Receiver<Out>,
    mut resets: mpsc::UnboundedReceiver<u32>,
    activity: &Activity,
) -> io::Result<()> {
    let mut buf = Vec::new();
    let mut last = false;
    while !last {
        let first = tokio::select! {
            Some(message) = messages.recv() => message,
            Some(stream) = resets.recv() => reset(stream),
        };
        last = matches!(first, Out::Goodbye { .. });
        let mut moves = !matches!(first, Out::Ping);
        encoder.encode(first, &mut buf)?;
        while !last && buf.len() < CHUNK {
            let Ok(message) = messages.try_recv() else {
                break;
            };
            last = matches!(message, Out::Goodbye { .. });
            moves = true;
            encoder.encode(message, &mut buf)?;
        }
        write.write_all(&buf).await?;
        write.flush().await?;
        if moves {
            activity.touch();
        }
        buf.clear();
    }
    write.shutdown().await
}

fn reset(stream: u32) -> Out {
    Out::Reset {
        stream,
        status: crate::spdy::status::CANCEL,
    }
}
