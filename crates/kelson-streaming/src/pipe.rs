//! What one stream has received: a bounded queue between a connection and who reads the stream.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, ReadBuf};

/// Bytes of one stream that wait to be read, at most, beside the last piece that was added.
///
/// A full queue stops its connection from reading: neither SPDY as Kubernetes speaks it nor its
/// WebSocket channels let a receiver slow down one stream alone.
pub const STREAM_BUFFER: usize = 256 * 1024;

/// What a piece costs beside its bytes, so that many small ones are bounded too.
const PIECE_COST: usize = 64;
/// Pieces below this are copied, so that they do not keep a whole read buffer alive.
const SMALL: usize = 16 * 1024;

#[derive(Debug, Default)]
struct State {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    /// How the stream ended, behind all pieces.
    end: Option<Result<(), io::ErrorKind>>,
    reader_gone: bool,
    reader: Option<Waker>,
    feeder: Option<Waker>,
}

impl State {
    fn wake(waker: &mut Option<Waker>) {
        if let Some(waker) = waker.take() {
            waker.wake();
        }
    }
}

type Shared = Arc<Mutex<State>>;

fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A queue that holds [`STREAM_BUFFER`] bytes.
pub(crate) fn pipe() -> (Feeder, Reader) {
    let shared = Shared::default();
    (
        Feeder {
            shared: Arc::clone(&shared),
        },
        Reader { shared },
    )
}

/// The connection's end of a stream's queue.
#[derive(Debug, Clone)]
pub(crate) struct Feeder {
    shared: Shared,
}

impl Feeder {
    /// Adds a piece once there is room; what nobody will read any more is thrown away.
    pub(crate) async fn push(&self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        poll_fn(|context| {
            let mut state = lock(&self.shared);
            if state.reader_gone || state.end.is_some() || state.bytes < STREAM_BUFFER {
                return Poll::Ready(());
            }
            state.feeder = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
        let piece = match piece.len() {
            0..SMALL => Bytes::copy_from_slice(&piece),
            _ => piece,
        };
        let mut state = lock(&self.shared);
        if !state.reader_gone && state.end.is_none() {
            state.bytes += piece.len() + PIECE_COST;
            state.pieces.push_back(piece);
            State::wake(&mut state.reader);
        }
    }

    /// Ends the stream behind what was added; only the first end counts.
    pub(crate) fn end(&self, end: Result<(), io::ErrorKind>) {
        let mut state = lock(&self.shared);
        if state.end.is_none() {
            state.end = Some(end);
            State::wake(&mut state.reader);
            State::wake(&mut state.feeder);
        }
    }

    /// Waits until everything that was added has been read, or nobody reads.
    pub(crate) async fn drained(&self) {
        poll_fn(|context| {
            let mut state = lock(&self.shared);
            if state.reader_gone || state.bytes == 0 {
                return Poll::Ready(());
            }
            state.feeder = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// The receiving half of a stream.
///
/// It ends when the other side has said that it is done; a stream that was reset or whose
/// connection was lost ends with an error instead.
#[derive(Debug)]
pub struct Reader {
    shared: Shared,
}

impl Reader {
    /// A stream that has ended.
    pub fn empty() -> Self {
        let (feeder, reader) = pipe();
        feeder.end(Ok(()));
        reader
    }

    /// The next piece as it was received; `None` at the end.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        poll_fn(|context| self.poll_piece(context, usize::MAX)).await
    }

    fn poll_piece(
        &mut self,
        context: &mut Context<'_>,
        most: usize,
    ) -> Poll<io::Result<Option<Bytes>>> {
        let mut state = lock(&self.shared);
        let Some(first) = state.pieces.front_mut() else {
            return match state.end {
                Some(Ok(())) => Poll::Ready(Ok(None)),
                Some(Err(kind)) => Poll::Ready(Err(kind.into())),
                None => {
                    state.reader = Some(context.waker().clone());
                    Poll::Pending
                }
            };
        };
        let piece = first.split_to(most.min(first.len()));
        if !first.has_remaining() {
            state.pieces.pop_front();
            state.bytes -= PIECE_COST;
        }
        state.bytes -= piece.len();
        State::wake(&mut state.feeder);
        Poll::Ready(Ok(Some(piece)))
    }
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        self.poll_piece(context, buf.remaining())
            .map_ok(|piece| buf.put_slice(&piece.unwrap_or_default()))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = lock(&self.shared);
        state.reader_gone = true;
        state.pieces.clear();
        state.bytes = 0;
        State::wake(&mut state.feeder);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncReadExt;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_full_queue_waits_for_its_reader_and_keeps_the_order() {
        let (feeder, mut reader) = pipe();
        feeder.push(Bytes::from(vec![1; STREAM_BUFFER])).await;
        let more = feeder.push(Bytes::from_static(&[2]));
        let mut more = std::pin::pin!(more);
        assert!(timeout(Duration::from_millis(20), &mut more).await.is_err());
        let mut half = vec![0; STREAM_BUFFER / 2];
        reader.read_exact(&mut half).await.unwrap();
        more.await;
        feeder.end(Ok(()));
        feeder.push(Bytes::from_static(&[3])).await;
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest.len(), STREAM_BUFFER / 2 + 1);
        assert_eq!(rest.last(), Some(&2));
    }

    #[tokio::test]
    async fn a_reader_that_goes_frees_its_feeder() {
        let (feeder, reader) = pipe();
        feeder.push(Bytes::from(vec![1; STREAM_BUFFER])).await;
        drop(reader);
        feeder.push(Bytes::from_static(&[2])).await;
        feeder.drained().await;
    }

    #[tokio::test]
    async fn what_came_before_a_reset_is_read_first() {
        let (feeder, mut reader) = pipe();
        feeder.push(Bytes::from_static(b"last words")).await;
        feeder.end(Err(io::ErrorKind::ConnectionReset));
        assert_eq!(reader.next().await.unwrap().unwrap(), "last words");
        let error = reader.next().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
