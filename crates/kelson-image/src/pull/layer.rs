//! One layer: its bytes flow from the socket through a bounded channel to a thread that checks,
//! decompresses and unpacks them. No copy of the compressed bytes is kept.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use kelson_snapshot::{
    ChainId, DiffId, Expected, Hold, SnapshotError, Staging, UnpackError, Which,
};
use tokio::sync::{Semaphore, mpsc};
use tracing::{Instrument as _, debug_span};

use super::{LayerTicket, blocking};
use crate::error::PullError;
use crate::images::Inner;
use crate::manifest::Descriptor;
use crate::progress::{LayerState, Meter};
use crate::registry::{BlobError, Piece, Served, Session, Sink};

/// Pieces between socket and thread. A piece is what one read of the socket gave.
const PIECES: usize = 16;

/// What it takes to bring one layer to disk.
pub(super) struct Layer {
    pub(super) blob: Descriptor,
    pub(super) diff_id: DiffId,
    pub(super) chain: ChainId,
    pub(super) parent: Option<ChainId>,
    pub(super) inner: Arc<Inner>,
    pub(super) session: Arc<Session>,
    pub(super) permits: Arc<Semaphore>,
}

impl Layer {
    /// Downloads, unpacks, waits for the layer below, and commits.
    pub(super) async fn run(
        self,
        meter: Arc<Meter>,
        parent: Option<LayerTicket>,
    ) -> Result<Arc<Hold>, PullError> {
        let unpacking = debug_span!("download and unpack", layer = %self.blob.digest);
        let staging = self.stage(&meter).instrument(unpacking).await?;
        // The share in the layer below, and so that layer, is kept until this one is committed.
        let mut parent = parent;
        if let Some(parent) = &mut parent {
            parent.wait().await.unwrap_or(Err(PullError::Stopped))?;
        }
        let Self {
            inner,
            chain,
            parent: below,
            ..
        } = self;
        let committed = blocking(move || {
            // A collection between the commit and the hold must not take the layer.
            inner.spare(&[chain]);
            inner.snapshots.commit(staging, below.as_ref())?;
            inner
                .snapshots
                .hold(&chain)
                .ok_or(SnapshotError::UnknownLayer(chain))
        });
        let layer = self.blob.digest;
        let committing = debug_span!("commit the layer", %layer);
        match committed.instrument(committing).await? {
            Ok(hold) => {
                meter.set(LayerState::Done);
                Ok(Arc::new(hold))
            }
            Err(error @ SnapshotError::DiskFull { .. }) => {
                Err(PullError::DiskFull(Arc::new(error)))
            }
            Err(error) => Err(PullError::Snapshot {
                layer,
                source: Arc::new(error),
            }),
        }
    }

    /// Downloads and unpacks, from other hosts if the bytes of the first ones were wrong.
    async fn stage(&self, meter: &Arc<Meter>) -> Result<Staging, PullError> {
        let stopped = |_| PullError::Stopped;
        let _own = self.permits.acquire().await.map_err(stopped)?;
        let _common = self.inner.downloads.acquire().await.map_err(stopped)?;
        let mut bad = Served::new();
        loop {
            let mut served = Served::new();
            let error = match self.attempt(meter, &bad, &mut served).await? {
                Ok(staging) => return Ok(staging),
                Err(error) => error,
            };
            bad.extend(served);
            if !is_fault_of_host(&error) || !self.session.has_others(&bad) {
                return Err(self.describe(error));
            }
            let layer = self.blob.digest;
            tracing::warn!(%layer, %error, "a registry host sent wrong bytes, trying the next");
        }
    }

    /// The inner result is the thread's, the outer one the download's.
    async fn attempt(
        &self,
        meter: &Arc<Meter>,
        bad: &Served,
        served: &mut Served,
    ) -> Result<Result<Staging, UnpackError>, PullError> {
        meter.set(LayerState::Downloading);
        let (sender, receiver) = mpsc::channel(PIECES);
        let snapshots = Arc::clone(&self.inner.snapshots);
        let Descriptor { digest: blob, size } = self.blob;
        let expected = Expected {
            blob,
            size,
            diff_id: self.diff_id,
        };
        let thread = tokio::task::spawn_blocking(move || {
            let mut pieces = Pieces {
                receiver,
                current: Bytes::new(),
                ended: false,
            };
            snapshots.stage(&mut pieces, &expected)
        });
        let mut sink = Sink::Channel(sender.clone(), Arc::clone(meter));
        let downloaded = self.session.blob(&self.blob, &mut sink, bad, served).await;
        if downloaded.is_ok() {
            meter.set(LayerState::Unpacking);
            // If the thread is gone, its result tells why.
            let _ = sender.send(Piece::End).await;
        }
        // Without an end, a thread that still reads sees the channel break.
        drop((sender, sink));
        let staged = thread.await.map_err(|_| PullError::Stopped)?;
        match (staged, downloaded) {
            (Err(UnpackError::Read { .. }), Err(BlobError::Failed(error))) => Err(error),
            (staged, _) => Ok(staged),
        }
    }

    fn describe(&self, error: UnpackError) -> PullError {
        let layer = self.blob.digest;
        let what = format!("layer {layer}");
        match error {
            UnpackError::DiskFull(_) => PullError::DiskFull(Arc::new(error)),
            UnpackError::Limit { what: part, limit } => PullError::TooLarge {
                what: format!("{part} of {what}"),
                limit,
            },
            UnpackError::DigestMismatch {
                which,
                expected,
                got,
            } => {
                let what = match which {
                    Which::Blob => what,
                    Which::Uncompressed => format!("{what}, uncompressed,"),
                };
                PullError::DigestMismatch {
                    what,
                    expected,
                    got,
                }
            }
            UnpackError::TooLong { expected } | UnpackError::Truncated { expected, .. } => {
                PullError::SizeMismatch { what, expected }
            }
            error => PullError::Unpack {
                layer,
                source: Arc::new(error),
            },
        }
    }
}

/// Whether other bytes may come from another host.
fn is_fault_of_host(error: &UnpackError) -> bool {
    matches!(
        error,
        UnpackError::Truncated { .. }
            | UnpackError::TooLong { .. }
            | UnpackError::DigestMismatch {
                which: Which::Blob,
                ..
            }
            | UnpackError::Format { .. }
    )
}

/// The reading end of the channel.
struct Pieces {
    receiver: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Piece::Data(data)) => self.current = data,
                Some(Piece::End) => self.ended = true,
                None => {
                    let kind = io::ErrorKind::ConnectionAborted;
                    return Err(io::Error::new(kind, "the download was given up"));
                }
            }
        }
        let length = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}
