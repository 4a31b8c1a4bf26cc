//! Answers in parts: the `Stream*` verbs give the items of their `List*` verb in batches.
//!
//! A list has one message, which clients take up to 16 MiB; a stream has no such limit as long as each
//! of its messages is below it. Nothing is read or built before the client takes the batch before it,
//! and a client that has gone ends the work. No item at all is an immediate end.

use std::future::Future;

use prost::Message;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxStream;

/// The longest batch, in bytes: half of the 4 MiB that gRPC takes by default, so that every client of
/// any setting takes it. An item that is longer is a batch of its own.
const MAX_BATCH: usize = 2 << 20;

/// How many containers or pods are read from the kernel before the first of them is sent.
const READ_AT_ONCE: usize = 64;

/// Items in batches.
struct Batches<I: Iterator> {
    items: I,
    /// The first item of the next batch, with its length.
    next: Option<(I::Item, usize)>,
    limit: usize,
}

impl<I> Batches<I>
where
    I: Iterator,
    I::Item: Message,
{
    fn new(items: I, limit: usize) -> Self {
        Self {
            items,
            next: None,
            limit,
        }
    }

    fn take(&mut self) -> Option<(I::Item, usize)> {
        self.next.take().or_else(|| {
            let item = self.items.next()?;
            let length = item.encoded_len();
            Some((item, length))
        })
    }
}

impl<I> Iterator for Batches<I>
where
    I: Iterator,
    I::Item: Message,
{
    type Item = Vec<I::Item>;

    fn next(&mut self) -> Option<Self::Item> {
        let (first, mut total) = self.take()?;
        let mut batch = vec![first];
        while let Some((item, length)) = self.take() {
            if total + length > self.limit {
                self.next = Some((item, length));
                break;
            }
            total += length;
            batch.push(item);
        }
        Some(batch)
    }
}

/// A stream of items that are at hand; `wrap` makes a batch a message.
pub(crate) fn batches<T, R>(
    items: impl Iterator<Item = T> + Send + 'static,
    wrap: fn(Vec<T>) -> R,
) -> BoxStream<R>
where
    T: Message + 'static,
    R: Send + 'static,
{
    let messages = Batches::new(items, MAX_BATCH).map(move |batch| Ok(wrap(batch)));
    Box::pin(tokio_stream::iter(messages))
}

/// A stream of items that `read` finds out, some at a time.
pub(crate) fn read_batches<Id, T, R, F>(
    ids: Vec<Id>,
    read: impl Fn(Vec<Id>) -> F + Send + 'static,
    wrap: fn(Vec<T>) -> R,
) -> BoxStream<R>
where
    Id: Copy + Send + Sync + 'static,
    T: Message + 'static,
    R: Send + 'static,
    F: Future<Output = Vec<T>> + Send,
{
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        for some in ids.chunks(READ_AT_ONCE) {
            let items = tokio::select! {
                items = read(some.to_vec()) => items,
                () = sender.closed() => return,
            };
            for batch in Batches::new(items.into_iter(), MAX_BATCH) {
                if sender.send(Ok(wrap(batch))).await.is_err() {
                    return;
                }
            }
        }
    });
    Box::pin(ReceiverStream::new(receiver))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use kelson_cri::v1::PodIp;
    use tokio_stream::StreamExt;

    use super::*;

    fn item(length: usize) -> PodIp {
        PodIp {
            ip: "x".repeat(length),
        }
    }

    #[test]
    fn batches_are_full_and_below_the_limit() {
        let items = [40, 40, 40, 500, 1, 1].map(item);
        let batches: Vec<Vec<usize>> = Batches::new(items.into_iter(), 100)
            .map(|batch| batch.iter().map(|one| one.ip.len()).collect())
            .collect();
        assert_eq!(batches, [vec![40, 40], vec![40], vec![500], vec![1, 1]]);
        assert_eq!(Batches::new(std::iter::empty::<PodIp>(), 100).count(), 0);
    }

    #[tokio::test]
    async fn all_items_come_in_order_and_none_is_an_end() {
        let read = |ids: Vec<usize>| async move { ids.into_iter().map(item).collect() };
        let ids: Vec<usize> = (0..150).collect();
        let stream = read_batches(ids, read, |batch| batch);
        let all: Vec<Vec<PodIp>> = stream.map(Result::unwrap).collect().await;
        assert_eq!(all.len(), 3);
        let lengths: Vec<usize> = all.iter().flatten().map(|one| one.ip.len()).collect();
        assert_eq!(lengths, (0..150).collect::<Vec<_>>());
        let mut none = read_batches(Vec::<usize>::new(), read, |batch| batch);
        assert!(none.next().await.is_none());
        let mut none = batches(std::iter::empty::<PodIp>(), |batch| batch);
        assert!(none.next().await.is_none());
    }

    #[tokio::test]
    async fn a_client_that_has_gone_ends_the_work() {
        let reads = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&reads);
        let read = move |ids: Vec<usize>| {
            counter.fetch_add(1, Ordering::SeqCst);
            async move { ids.into_iter().map(item).collect() }
        };
        let mut stream = read_batches((0..100 * READ_AT_ONCE).collect(), read, |batch| batch);
        assert!(stream.next().await.is_some());
        drop(stream);
        tokio::time::sleep(Duration::from_millis(20)).await;
        // One was sent, one lay in the channel, one waited for its place.
        assert!(reads.load(Ordering::SeqCst) <= 4, "{reads:?}");
        assert_eq!(Arc::strong_count(&reads), 1);
    }
}
