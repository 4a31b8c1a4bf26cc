//! The changes of the image store, one at a time: record an image, forget one, collect what nobody
//! needs. All of it blocks.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use kelson_snapshot::{ChainId, Digest, SnapshotError};
use kelson_store::Batch;

use super::image::{ImageRecord, Index};
use super::{ImageId, Images, Inner, Pulled};
use crate::error::ImageError;

/// Layers of a failed pull are kept this long, so that the next attempt need not fetch them again.
const RETRY_GRACE: Duration = Duration::from_secs(15 * 60);

impl Inner {
    /// Records a pulled image whose layers are committed and held by the caller. Blocks.
    pub(crate) fn commit(&self, pulled: Pulled) -> Result<ImageId, ImageError> {
        let mut writer = self.writer();
        for (digest, bytes) in &pulled.blobs {
            self.content.write(digest, bytes)?;
        }
        // Waiting for it would be waiting for all layers that were unpacked just now. An image whose
        // documents a power loss overtook is absent at the next start, as one without its layers is.
        self.snapshots.sync_soon()?;
        let Pulled {
            reference,
            target,
            manifest,
            id,
            config,
            chain,
            size,
            ..
        } = pulled;
        let tag = reference.digest().is_none().then(|| reference.name());
        let mut batch = Batch::new();
        let mut changed = Vec::new();
        // A tag moves here from the image that had it; that one keeps its digests.
        for (other, record) in &writer.records {
            if *other != id && tag.as_ref().is_some_and(|tag| record.tags.contains(tag)) {
                let mut record = record.clone();
                record.tags.retain(|name| Some(name) != tag.as_ref());
                batch.put(&other.to_string(), &record)?;
                changed.push((*other, record));
            }
        }
        let earlier = writer.records.get(&id);
        let mut tags = earlier.map_or_else(Vec::new, |record| record.tags.clone());
        let mut digests = earlier.map_or_else(Vec::new, |record| record.digests.clone());
        tags.extend(tag);
        digests.push(reference.at(&target));
        for names in [&mut tags, &mut digests] {
            names.sort();
            names.dedup();
        }
        let record = ImageRecord {
            manifest,
            size,
            chain,
            tags,
            digests,
        };
        batch.put(&id.to_string(), &record)?;
        self.store.commit(batch)?;
        let mut images = self.index.load().images.clone();
        for (other, record) in changed {
            if let Some(image) = images.get(&other) {
                let config = image.config.clone();
                images.insert(other, record.image(other, config, &self.config.pinned));
            }
            writer.records.insert(other, record);
        }
        images.insert(id, record.image(id, config, &self.config.pinned));
        for chain in &record.chain {
            writer.spared.remove(chain);
        }
        writer.records.insert(id, record);
        self.index.store(Arc::new(Index::new(images.into_values())));
        self.measure()?;
        Ok(id)
    }

    /// Deletes the record of an image, and so all its names. Blocks.
    pub(super) fn forget(&self, id: ImageId) -> Result<(), ImageError> {
        let mut writer = self.writer();
        self.store.delete::<ImageRecord>(&id.to_string())?;
        writer.records.remove(&id);
        let mut images = self.index.load().images.clone();
        images.remove(&id);
        self.index.store(Arc::new(Index::new(images.into_values())));
        Ok(())
    }

    /// Removes what no record needs. True if layers were removed. Blocks.
    pub(super) fn collect(&self) -> Result<bool, ImageError> {
        let mut writer = self.writer();
        if writer.unreadable {
            return Ok(false);
        }
        let now = Instant::now();
        writer.spared.retain(|_, until| *until > now);
        let needed: HashSet<ChainId> = writer
            .records
            .values()
            .flat_map(|record| record.chain.iter().copied())
            .collect();
        let mut unneeded: Vec<ChainId> = self.snapshots.layers();
        unneeded.retain(|chain| !needed.contains(chain) && !writer.spared.contains_key(chain));
        let mut removed = false;
        let mut kept = false;
        // A layer can go when those above it are gone. Which lie above which only the snapshotter
        // knows, so this goes on as long as it gets anywhere.
        while !unneeded.is_empty() {
            let before = unneeded.len();
            let mut left = Vec::new();
            for chain in unneeded {
                match self.snapshots.remove_layer(&chain) {
                    Ok(()) => removed = true,
                    Err(SnapshotError::InUse { .. }) => left.push(chain),
                    Err(error) => return Err(error.into()),
                }
            }
            if left.len() == before {
                kept = true;
                break;
            }
            unneeded = left;
        }
        self.kept.store(kept, Ordering::Release);
        let mut documents: HashSet<Digest> = writer
            .records
            .values()
            .flat_map(ImageRecord::documents)
            .collect();
        documents.extend(writer.records.keys().map(|id| *id.digest()));
        self.content.retain(|digest| documents.contains(digest))?;
        self.measure()?;
        Ok(removed)
    }

    /// Keeps layers that no image needs yet from being collected, for a while. Blocks.
    pub(crate) fn spare(&self, chains: &[ChainId]) {
        let until = Instant::now() + RETRY_GRACE;
        self.writer()
            .spared
            .extend(chains.iter().map(|chain| (*chain, until)));
    }

    /// The contrary of [`spare`](Self::spare). Blocks.
    pub(crate) fn release(&self, chains: &[ChainId]) {
        self.writer()
            .spared
            .retain(|chain, _| !chains.contains(chain));
    }

    /// Collects when spared layers may go.
    pub(crate) fn collect_later(self: &Arc<Self>) {
        let weak: Weak<Self> = Arc::downgrade(self);
        // Without a runtime the program is at its end; the next start collects.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            tokio::time::sleep(RETRY_GRACE + Duration::from_secs(1)).await;
            let Some(inner) = weak.upgrade() else { return };
            let collected = tokio::task::spawn_blocking(move || Images { inner }.collect()).await;
            if let Ok(Err(error)) = collected {
                tracing::warn!(%error, "layers of a failed pull could not be removed");
            }
        });
    }

    fn measure(&self) -> Result<(), ImageError> {
        self.blob_usage.store(Arc::new(self.content.usage()?));
        Ok(())
    }
}
