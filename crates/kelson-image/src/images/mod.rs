//! The image store: what is on disk, under which names, and what may be freed.
//!
//! Readers see an immutable table and wait for nobody. Writers take turns; each makes its change
//! durable in one commit and then replaces the table. An image is recorded after its layers are
//! committed, and its record is deleted before they are removed, so a record promises that all of
//! it is there. Layers that no record names are removed by [`Images::collect`].

mod content;
mod image;
mod write;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use kelson_snapshot::{ChainId, Digest, Hold, Snapshotter, Usage};
use kelson_store::{Batch, Store};
use oci_spec::image::ImageConfiguration;
use tokio::sync::{Semaphore, watch};

pub(crate) use content::Content;
use image::{Found, ImageRecord, Index};
pub use image::{Image, ImageId, ImageUser};

use crate::config::ImageConfig;
use crate::error::{ImageError, PullError};
use crate::progress::Progress;
use crate::pull::{self, ImageFlights, LayerFlights, PullRequest};
use crate::reference::Reference;
use crate::registry::Clients;

/// The images of this node. Cheap to clone.
#[derive(Clone)]
pub struct Images {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: ImageConfig,
    pub(crate) snapshots: Arc<dyn Snapshotter>,
    pub(crate) clients: Clients,
    pub(crate) downloads: Arc<Semaphore>,
    pub(crate) pulls: ImageFlights,
    pub(crate) layers: LayerFlights,
    content: Content,
    store: Store,
    index: ArcSwap<Index>,
    blob_usage: ArcSwap<Usage>,
    writer: Mutex<Writer>,
    /// Containers or layers above have kept layers from being removed.
    kept: AtomicBool,
}

/// State of those who write, one at a time.
struct Writer {
    records: HashMap<ImageId, ImageRecord>,
    /// There are records that this program cannot read. What they need is unknown, so no layer is
    /// removed.
    unreadable: bool,
    /// Layers of pulls under way and of failed ones, and when they may go.
    spared: HashMap<ChainId, Instant>,
}

/// What a finished pull hands over.
pub(crate) struct Pulled {
    pub(crate) reference: Reference,
    /// What the reference points to: the index, or the manifest itself.
    pub(crate) target: Digest,
    pub(crate) manifest: Digest,
    pub(crate) id: ImageId,
    pub(crate) config: ImageConfiguration,
    pub(crate) chain: Vec<ChainId>,
    pub(crate) size: u64,
    /// The target, the manifest and the configuration.
    pub(crate) blobs: Vec<(Digest, bytes::Bytes)>,
}

/// An image that stays usable while this value lives, even if it is removed meanwhile.
pub struct InUse {
    /// The image.
    pub image: Arc<Image>,
    _hold: Option<Hold>,
}

impl Images {
    /// Opens the store in `config.root`, whose layers `snapshots` keeps. Blocks. Images with missing
    /// or damaged parts are dropped, so that they are pulled again.
    ///
    /// Removing what nobody needs is left to the first [`collect`](Self::collect).
    ///
    /// # Errors
    /// The database or a directory cannot be opened.
    pub fn open(config: ImageConfig, snapshots: Arc<dyn Snapshotter>) -> Result<Self, ImageError> {
        let content = Content::open(&config.root)?;
        let store = Store::open(&config.root.join("images.redb"))?;
        let scan = store.scan::<ImageRecord>()?;
        for unreadable in &scan.unreadable {
            tracing::error!(%unreadable, "an image record is left alone, no layer will be removed");
        }
        let (mut records, mut images, mut broken) = (HashMap::new(), Vec::new(), Batch::new());
        for (key, record) in scan.records {
            let whole = key.parse::<ImageId>().ok().and_then(|id| {
                let config = check(id, &record, &content, &*snapshots)?;
                Some((id, config))
            });
            let Some((id, parsed)) = whole else {
                tracing::warn!(image = key, names = ?record.tags, "image is damaged, dropping it");
                broken.delete::<ImageRecord>(&key);
                continue;
            };
            images.push(record.image(id, parsed, &config.pinned));
            records.insert(id, record);
        }
        store.commit(broken)?;
        // What an earlier run did not come to delete.
        empty_trash(Arc::clone(&snapshots));
        let unreadable = !scan.unreadable.is_empty();
        let usage = content.usage()?;
        let inner = Inner {
            downloads: Arc::new(Semaphore::new(config.max_downloads.max(1))),
            index: ArcSwap::from_pointee(Index::new(images)),
            blob_usage: ArcSwap::from_pointee(usage),
            writer: Mutex::new(Writer {
                records,
                unreadable,
                spared: HashMap::new(),
            }),
            kept: AtomicBool::new(false),
            clients: Clients::default(),
            pulls: ImageFlights::default(),
            layers: LayerFlights::default(),
            config,
            snapshots,
            content,
            store,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Pulls an image, or makes sure that the one on disk is what its registry has. Callers with the
    /// same reference and credentials share one pull; it goes on as long as one of them waits.
    /// `progress` is kept up to date meanwhile.
    ///
    /// # Errors
    /// See [`PullError`]. Nothing of the image is visible then.
    pub async fn pull(
        &self,
        request: PullRequest,
        progress: Option<watch::Sender<Progress>>,
    ) -> Result<ImageId, PullError> {
        pull::pull(&self.inner, request, progress).await
    }

    /// The image with this name: an id, with or without `sha256:`; the beginning of at least six
    /// characters of one id; a reference with tag or digest.
    pub fn resolve(&self, name: &str) -> Option<Arc<Image>> {
        match self.inner.index.load().find(name) {
            Found::Image(image) => Some(image),
            Found::Nothing | Found::Several => None,
        }
    }

    /// Like [`resolve`](Self::resolve), but the image's layers stay until the result is dropped,
    /// for the time in which a container is made from it. An image whose layers are gone is
    /// dropped and not found. Blocks for a commit in that case only.
    pub fn hold(&self, name: &str) -> Option<InUse> {
        let image = self.resolve(name)?;
        let Some(top) = image.chain.last() else {
            return Some(InUse { image, _hold: None });
        };
        match self.inner.snapshots.hold(top) {
            Some(hold) => Some(InUse {
                image,
                _hold: Some(hold),
            }),
            None => {
                tracing::warn!(image = %image.id, "a layer is gone, dropping the image");
                if let Err(error) = self.inner.forget(image.id) {
                    tracing::error!(%error, "cannot drop a damaged image");
                }
                None
            }
        }
    }

    /// All images, by id.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.inner.index.load().images.values().cloned().collect()
    }

    /// Removes the image that has this name, with all its other names, and frees what nobody else
    /// needs. Containers made from it keep running. No such image is no error. Blocks.
    ///
    /// # Errors
    /// The name is the beginning of several ids, or the store failed.
    pub fn remove(&self, name: &str) -> Result<Option<ImageId>, ImageError> {
        let image = match self.inner.index.load().find(name) {
            Found::Image(image) => image,
            Found::Nothing => return Ok(None),
            Found::Several => return Err(ImageError::Ambiguous(name.to_owned())),
        };
        self.inner.forget(image.id)?;
        self.collect()?;
        Ok(Some(image.id))
    }

    /// Whether layers that no image needs were left to those who use them: then
    /// [`collect`](Self::collect) is worth a call when a container was removed. Costs nothing.
    pub fn has_kept_layers(&self) -> bool {
        self.inner.kept.load(Ordering::Acquire)
    }

    /// Frees layers and blobs that no image needs, except layers in use by containers. Call it once
    /// after start, and when a container was removed and [`has_kept_layers`](Self::has_kept_layers).
    /// Blocks; cheap when there is nothing to do. The space itself is given back by a thread of its
    /// own.
    ///
    /// # Errors
    /// A layer or a blob could not be removed.
    pub fn collect(&self) -> Result<(), ImageError> {
        if self.inner.collect()? {
            empty_trash(Arc::clone(&self.inner.snapshots));
        }
        Ok(())
    }

    /// Space that images take: unpacked layers, manifests and configurations. Kept up to date, costs
    /// nothing.
    pub fn usage(&self) -> Usage {
        let (layers, blobs) = (
            self.inner.snapshots.disk_usage(),
            self.inner.blob_usage.load(),
        );
        Usage {
            bytes: layers.bytes + blobs.bytes,
            inodes: layers.inodes + blobs.inodes,
        }
    }
}

/// Deletes what was removed, in the background.
fn empty_trash(snapshots: Arc<dyn Snapshotter>) {
    std::thread::spawn(move || {
        if let Err(error) = snapshots.empty_trash() {
            tracing::warn!(%error, "removed layers could not be deleted");
        }
    });
}

/// The configuration of an image, if everything that its record promises is there.
fn check(
    id: ImageId,
    record: &ImageRecord,
    content: &Content,
    snapshots: &dyn Snapshotter,
) -> Option<ImageConfiguration> {
    let whole = record.chain.iter().all(|chain| snapshots.has(chain))
        && record
            .documents()
            .all(|digest| content.read(&digest).is_some());
    let bytes = content.read(id.digest()).filter(|_| whole)?;
    serde_json::from_slice(&bytes).ok()
}

impl Inner {
    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn index(&self) -> Arc<Index> {
        self.index.load_full()
    }

    /// A document that some image keeps. Blocks.
    pub(crate) fn document(&self, digest: &Digest) -> Option<Vec<u8>> {
        self.content.read(digest)
    }
}
