//! The pull engine: from a reference to an image that is wholly on disk.
//!
//! 1. The manifest is found: in the store, if a tag's digest is known there already, otherwise at
//!    the registry; through indexes to the one for this platform.
//! 2. The configuration tells which layers the image has. Those on disk are held.
//! 3. The others are downloaded and unpacked side by side (`layer`), each one once however many
//!    pulls want it, and committed in order.
//! 4. The image is recorded. Until then nobody sees anything of it.
//!
//! A pull runs in a task of its own and is shared by all who ask for the same. It is dropped when
//! the last of them goes away; then, as after an error, staged layers are discarded, and committed
//! ones are kept for a while for the next attempt.

mod layer;
mod resolve;

use std::sync::Arc;
use std::time::Duration;

use kelson_snapshot::{ChainId, Digest, Hold};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{Instrument as _, debug_span};

use crate::credentials::Credentials;
use crate::error::PullError;
use crate::flight::{Flights, Ticket};
use crate::images::{ImageId, Inner, Pulled};
use crate::progress::{LayerState, Meter, Meters, Progress};
use crate::reference::Reference;
use crate::registry::Session;
use layer::Layer;
use resolve::Resolved;

/// Pulls under way, by name and by fingerprint of the credentials: who has no right to an image
/// shall not get it through somebody else's pull.
pub(crate) type ImageFlights = Flights<(String, Digest), Meters, Result<ImageId, PullError>>;
/// Layers under way. The result keeps the layer from being removed.
pub(crate) type LayerFlights = Flights<ChainId, Arc<Meter>, LayerResult>;
type LayerTicket = Ticket<ChainId, Arc<Meter>, LayerResult>;
type LayerResult = Result<Arc<Hold>, PullError>;

/// How often progress is published.
const TICK: Duration = Duration::from_millis(200);
/// Rounds over the layers, in case that one failed which another pull had begun.
const ROUNDS: usize = 3;

/// What to pull.
#[derive(Debug, Clone)]
pub struct PullRequest {
    /// The image.
    pub reference: Reference,
    /// Credentials for its registry.
    pub credentials: Credentials,
}

/// See [`Images::pull`](crate::Images::pull).
pub(crate) async fn pull(
    inner: &Arc<Inner>,
    request: PullRequest,
    progress: Option<watch::Sender<Progress>>,
) -> Result<ImageId, PullError> {
    let PullRequest {
        reference,
        credentials,
    } = request;
    let key = (reference.to_string(), credentials.fingerprint());
    let mut ticket = inner.pulls.join(key, Meters::default(), |meters| {
        let pull = Pull {
            inner: Arc::clone(inner),
            reference,
            meters,
        };
        async move { pull.run(&credentials).await }
    });
    let meters = ticket.data.clone();
    let publish = |sender: &watch::Sender<Progress>| {
        let now = meters.read();
        sender.send_if_modified(|shown| {
            let modified = *shown != now;
            *shown = now;
            modified
        });
    };
    let Some(sender) = progress else {
        return ticket.wait().await.unwrap_or(Err(PullError::Stopped));
    };
    let mut ticks = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            result = ticket.wait() => {
                publish(&sender);
                return result.unwrap_or(Err(PullError::Stopped));
            }
            _ = ticks.tick() => publish(&sender),
        }
    }
}

/// One pull under way.
struct Pull {
    inner: Arc<Inner>,
    reference: Reference,
    meters: Meters,
}

impl Pull {
    async fn run(&self, credentials: &Credentials) -> Result<ImageId, PullError> {
        let (inner, reference) = (&self.inner, &self.reference);
        let session =
            Arc::new(Session::open(&inner.config, &inner.clients, reference, credentials).await?);
        let resolving = self.resolve(&session);
        let resolved = resolving.instrument(debug_span!("resolve")).await?;
        let chain = ChainId::chain(&resolved.diff_ids);
        // Also if this future is dropped half-way.
        let mut unfinished = Unfinished(Some(inner));
        let all_here = chain.iter().all(|id| inner.snapshots.has(id));
        let result = self.fetch(&session, resolved, chain.clone()).await;
        if !all_here {
            // The allocator would keep the buffers of every thread that had a part in it.
            drop(tokio::task::spawn_blocking(kelson_sys::memory::trim));
        }
        match &result {
            Ok(id) => {
                unfinished.0 = None;
                tracing::info!(%reference, image = %id, "image pulled");
            }
            Err(PullError::DiskFull(_)) => self.make_room(chain).await,
            Err(_) => {}
        }
        result
    }

    /// Brings the layers and then the record to disk.
    async fn fetch(
        &self,
        session: &Arc<Session>,
        resolved: Resolved,
        chain: Vec<ChainId>,
    ) -> Result<ImageId, PullError> {
        let holds = self.layers(session, &resolved, &chain).await?;
        let Resolved {
            target,
            manifest,
            manifest_digest,
            manifest_bytes,
            ..
        } = resolved;
        let layers: u64 = manifest.layers.iter().map(|layer| layer.size).sum();
        let pulled = Pulled {
            reference: self.reference.clone(),
            target: target.digest,
            manifest: manifest_digest,
            id: manifest.config.digest.into(),
            chain,
            size: manifest_bytes.len() as u64 + manifest.config.size + layers,
            blobs: vec![
                (target.digest, target.bytes),
                (manifest_digest, manifest_bytes),
                (manifest.config.digest, resolved.config_bytes),
            ],
            config: resolved.config,
        };
        let inner = Arc::clone(&self.inner);
        let committed = blocking(move || inner.commit(pulled));
        let id = committed
            .instrument(debug_span!("commit the image"))
            .await??;
        drop(holds);
        Ok(id)
    }

    /// Gives back what the failed pull took, now.
    async fn make_room(&self, chain: Vec<ChainId>) {
        let images = crate::Images {
            inner: Arc::clone(&self.inner),
        };
        let collected = blocking(move || {
            images.inner.release(&chain);
            images.collect()
        });
        if let Ok(Err(error)) = collected.await {
            tracing::warn!(%error, "layers of a failed pull could not be removed");
        }
    }

    /// Brings all layers to disk. The result keeps them there.
    async fn layers(
        &self,
        session: &Arc<Session>,
        resolved: &Resolved,
        chain: &[ChainId],
    ) -> Result<Vec<Arc<Hold>>, PullError> {
        let layers = &resolved.manifest.layers;
        let meters: Vec<_> = layers
            .iter()
            .map(|layer| Meter::new(layer.digest, layer.size))
            .collect();
        self.meters.set(meters.clone());
        let permits = Arc::new(Semaphore::new(
            self.inner.config.max_concurrent_downloads.max(1),
        ));
        let mut round = 0;
        loop {
            round += 1;
            let mut waiting = JoinSet::new();
            let mut shown = meters.clone();
            let mut holds = Vec::new();
            let mut shared = false;
            let mut below: Option<LayerTicket> = None;
            for (index, (blob, id)) in layers.iter().zip(chain).enumerate() {
                if let Some(hold) = self.inner.snapshots.hold(id) {
                    meters[index].set(LayerState::Exists);
                    holds.push(Arc::new(hold));
                    continue;
                }
                let layer = Layer {
                    blob: blob.clone(),
                    diff_id: resolved.diff_ids[index],
                    chain: *id,
                    parent: index.checked_sub(1).map(|parent| chain[parent]),
                    inner: Arc::clone(&self.inner),
                    session: Arc::clone(session),
                    permits: Arc::clone(&permits),
                };
                // A layer is committed after the one below it, so it has a share in that one's work.
                let parent = below.take();
                let meter = Arc::clone(&meters[index]);
                let join = |meter| layer.run(meter, parent);
                let mut ticket = self.inner.layers.join(*id, meter, join);
                shown[index] = Arc::clone(&ticket.data);
                shared |= !ticket.started;
                below = Some(ticket.share());
                waiting.spawn(async move { ticket.wait().await });
            }
            drop(below);
            self.meters.set(shown);
            let collected = collect(&mut waiting, &mut holds).await;
            // Whoever still waits after a failure lets go of his layers before anything is cleaned.
            waiting.shutdown().await;
            match collected {
                Ok(()) => return Ok(holds),
                // A failure of another pull, with its own credentials and mirrors, need not be ours.
                Err(error) if shared && round < ROUNDS => {
                    tracing::debug!(%error, "a layer failed that another pull had begun");
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// A pull that has begun. If it does not come to its end, its committed layers are kept for the next
/// attempt, and collected if there is none.
struct Unfinished<'a>(Option<&'a Arc<Inner>>);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(inner) = self.0 {
            inner.collect_later();
        }
    }
}

/// Waits for all layers, or for the first failure.
async fn collect(
    waiting: &mut JoinSet<Option<LayerResult>>,
    holds: &mut Vec<Arc<Hold>>,
) -> Result<(), PullError> {
    while let Some(joined) = waiting.join_next().await {
        holds.push(joined.ok().flatten().unwrap_or(Err(PullError::Stopped))?);
    }
    Ok(())
}

/// Runs file work on a blocking thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, PullError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| PullError::Stopped)
}
