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

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kelson_snapshot::{ChainId, DiffId, Digest, Hold};
use oci_spec::image::ImageConfiguration;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::credentials::Credentials;
use crate::error::PullError;
use crate::flight::{Flights, Ticket};
use crate::images::{ImageId, Inner, Pulled};
use crate::manifest::{self, Descriptor, Document, MAX_INDEX_DEPTH, Manifest};
use crate::platform::Platform;
use crate::progress::{LayerState, Meter, Meters, Progress};
use crate::reference::Reference;
use crate::registry::Session;
use layer::Layer;

/// Pulls under way, by name and by fingerprint of the credentials: who has no right to an image
/// shall not get it through somebody else's pull.
pub(crate) type ImageFlights = Flights<(String, Digest), Meters, Result<ImageId, PullError>>;
/// Layers under way. The result keeps the layer from being removed.
pub(crate) type LayerFlights = Flights<ChainId, Arc<Meter>, Result<Arc<Hold>, PullError>>;
type LayerTicket = Ticket<ChainId, Arc<Meter>, Result<Arc<Hold>, PullError>>;

/// How often progress is published.
const TICK: Duration = Duration::from_millis(200);
/// Rounds over the layers, in case that one failed which another pull had begun.
const ROUNDS: usize = 3;
/// Most manifests of an index that are looked at because they do not state their platform.
const MAX_CANDIDATES: usize = 8;

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

/// A document and its digest.
struct Read {
    bytes: Bytes,
    digest: Digest,
    document: Document,
}

/// An image's documents, checked against each other.
struct Resolved {
    target: Read,
    manifest: Manifest,
    manifest_digest: Digest,
    manifest_bytes: Bytes,
    config: ImageConfiguration,
    config_bytes: Bytes,
    diff_ids: Vec<DiffId>,
}

impl Pull {
    async fn run(&self, credentials: &Credentials) -> Result<ImageId, PullError> {
        let (inner, reference) = (&self.inner, &self.reference);
        let session =
            Arc::new(Session::open(&inner.config, &inner.clients, reference, credentials).await?);
        let resolved = self.resolve(&session).await?;
        let chain = ChainId::chain(&resolved.diff_ids);
        let result = self.fetch(&session, resolved, chain.clone()).await;
        match &result {
            Ok(id) => tracing::info!(%reference, image = %id, "image pulled"),
            Err(error) => {
                self.clean_up(chain, matches!(error, PullError::DiskFull(_)))
                    .await
            }
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
        let id = blocking(move || inner.commit(pulled)).await??;
        drop(holds);
        Ok(id)
    }

    /// After a failure: layers that were committed stay for the next attempt, unless the disk is
    /// full.
    async fn clean_up(&self, chain: Vec<ChainId>, full: bool) {
        if !full {
            self.inner.collect_later();
            return;
        }
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

    /// Finds the manifest and the configuration for this platform.
    async fn resolve(&self, session: &Session) -> Result<Resolved, PullError> {
        let target = self.target(session).await?;
        let mut last = None;
        for found in self.manifests(session, &target).await? {
            let Read {
                bytes,
                digest,
                document: Document::Manifest(manifest),
            } = found
            else {
                continue;
            };
            match self.config(session, &manifest).await {
                Ok((config, config_bytes, diff_ids)) => {
                    return Ok(Resolved {
                        target,
                        manifest,
                        manifest_digest: digest,
                        manifest_bytes: bytes,
                        config,
                        config_bytes,
                        diff_ids,
                    });
                }
                Err(error @ PullError::NoMatchingPlatform { .. }) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| PullError::NoMatchingPlatform {
            wanted: self.inner.config.platform.to_string(),
            offered: Vec::new(),
        }))
    }

    /// What the reference points to.
    async fn target(&self, session: &Session) -> Result<Read, PullError> {
        if let Some(digest) = self.reference.digest() {
            return self.by_digest(session, digest).await;
        }
        let tag = self
            .reference
            .tag()
            .unwrap_or(crate::reference::DEFAULT_TAG);
        // A name that is known here probably has not moved: asking for its digest is cheaper than
        // fetching the manifest.
        let known = self.inner.index().find(&self.reference.name()).is_image();
        if known
            && let Some(digest) = session.head(tag).await
            && let Some(read) = self.stored(&digest).await?
        {
            return Ok(read);
        }
        let fetched = session.manifest_by_tag(tag).await?;
        let document = manifest::parse(
            &fetched.bytes,
            &fetched.digest,
            fetched.content_type.as_deref(),
        )?;
        Ok(Read {
            bytes: fetched.bytes,
            digest: fetched.digest,
            document,
        })
    }

    async fn by_digest(&self, session: &Session, digest: &Digest) -> Result<Read, PullError> {
        if let Some(read) = self.stored(digest).await? {
            return Ok(read);
        }
        let fetched = session.manifest_by_digest(digest).await?;
        let document = manifest::parse(&fetched.bytes, digest, fetched.content_type.as_deref())?;
        Ok(Read {
            bytes: fetched.bytes,
            digest: *digest,
            document,
        })
    }

    async fn stored(&self, digest: &Digest) -> Result<Option<Read>, PullError> {
        let (inner, digest) = (Arc::clone(&self.inner), *digest);
        let Some(bytes) = blocking(move || inner.document(&digest)).await? else {
            return Ok(None);
        };
        let document = manifest::parse(&bytes, &digest, None)?;
        Ok(Some(Read {
            bytes: Bytes::from(bytes),
            digest,
            document,
        }))
    }

    /// The manifests to try for this platform: one, unless an index does not state platforms.
    async fn manifests(&self, session: &Session, target: &Read) -> Result<Vec<Read>, PullError> {
        let mut level = vec![Read {
            bytes: target.bytes.clone(),
            digest: target.digest,
            document: target.document.clone(),
        }];
        for _ in 0..=MAX_INDEX_DEPTH {
            let mut next = Vec::new();
            let mut indexes = false;
            for read in level {
                let Document::Index(entries) = &read.document else {
                    next.push(read);
                    continue;
                };
                indexes = true;
                let candidates = manifest::choose(entries, &self.inner.config.platform)?;
                let stated = entries.iter().any(|entry| {
                    entry.platform.is_some() && candidates.first() == Some(&entry.target)
                });
                let take = if stated { 1 } else { MAX_CANDIDATES };
                for candidate in candidates.iter().take(take) {
                    next.push(self.by_digest(session, &candidate.digest).await?);
                }
            }
            next.truncate(MAX_CANDIDATES);
            level = next;
            if !indexes {
                return Ok(level);
            }
        }
        let what = "nesting of image indexes".to_owned();
        Err(PullError::TooLarge {
            what,
            limit: MAX_INDEX_DEPTH as u64,
        })
    }

    async fn config(
        &self,
        session: &Session,
        manifest: &Manifest,
    ) -> Result<(ImageConfiguration, Bytes, Vec<DiffId>), PullError> {
        let Descriptor { digest, .. } = manifest.config;
        let inner = Arc::clone(&self.inner);
        let bytes = match blocking(move || inner.document(&digest)).await? {
            Some(bytes) => Bytes::from(bytes),
            None => session.small_blob(&manifest.config).await?,
        };
        let malformed = |reason: String| PullError::Malformed {
            what: "image configuration",
            digest,
            reason,
        };
        let config: ImageConfiguration = serde_json::from_slice(&bytes)
            .map_err(|error| malformed(format!("it is not the JSON of one: {error}")))?;
        let wanted = &self.inner.config.platform;
        let offered = Platform {
            os: config.os().to_string(),
            architecture: config.architecture().to_string(),
            variant: config.variant().clone().unwrap_or_default(),
        };
        if wanted.suits(&offered).is_none() {
            let offered = vec![offered.to_string()];
            return Err(PullError::NoMatchingPlatform {
                wanted: wanted.to_string(),
                offered,
            });
        }
        let diff_ids = config.rootfs().diff_ids();
        if diff_ids.len() != manifest.layers.len() {
            let (ids, layers) = (diff_ids.len(), manifest.layers.len());
            return Err(malformed(format!(
                "it names {ids} layers, the manifest {layers}"
            )));
        }
        let diff_ids = diff_ids
            .iter()
            .map(|id| id.parse::<DiffId>())
            .collect::<Result<_, _>>();
        let diff_ids =
            diff_ids.map_err(|error| malformed(format!("a diff id is wrong: {error}")))?;
        Ok((config, bytes, diff_ids))
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
                below = Some(ticket.share());
                waiting.spawn(async move { (ticket.started, ticket.wait().await) });
            }
            drop(below);
            self.meters.set(shown);
            let collected = collect(&mut waiting, &mut holds).await;
            // Whoever still waits after a failure lets go of his layers before anything is cleaned.
            waiting.shutdown().await;
            match collected {
                Ok(()) => return Ok(holds),
                // Another pull's failure, of its own credentials or mirrors, need not be ours.
                Err((started, error)) if started || round == ROUNDS => return Err(error),
                Err((_, error)) => tracing::debug!(%error, "a shared layer failed, trying alone"),
            }
        }
    }
}

/// Waits for all layers, or for the first failure.
async fn collect(
    waiting: &mut JoinSet<(bool, Option<Result<Arc<Hold>, PullError>>)>,
    holds: &mut Vec<Arc<Hold>>,
) -> Result<(), (bool, PullError)> {
    while let Some(joined) = waiting.join_next().await {
        let (started, result) = joined.unwrap_or((true, None));
        holds.push(
            result
                .unwrap_or(Err(PullError::Stopped))
                .map_err(|error| (started, error))?,
        );
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
