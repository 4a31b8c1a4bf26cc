//! Puts a staged layer on top of its parents: complete or not at all.

use super::graft;
use super::records::{self, LayerRecord};
use super::state::Layer;
use super::{LAYERS_DIR, Overlayfs};
use crate::error::on;
use crate::limits::LAYERS;
use crate::{ChainId, SnapshotError, Snapshotter as _, Staging, Usage, tree};

impl Overlayfs {
    /// [`crate::Snapshotter::commit`]
    pub(super) fn settle(
        &self,
        staging: Staging,
        parent: Option<&ChainId>,
    ) -> Result<ChainId, SnapshotError> {
        let diff = *staging.diff_id();
        let chain = ChainId::new(parent, &diff);
        if self.has(&chain) {
            return Ok(chain);
        }
        let _held = match parent {
            Some(parent) => Some(
                self.guard(parent)
                    .ok_or(SnapshotError::UnknownLayer(*parent))?,
            ),
            None => None,
        };
        let (extracted, scratch) = staging.into_parts();
        let opaque_root = extracted.opaque_root;
        let parents = match parent.filter(|_| !opaque_root) {
            Some(parent) => {
                let height = self.0.lower(Some(parent))?.len() as u64;
                if height >= LAYERS {
                    let (path, what) = (scratch.path().into(), "layers of an image");
                    return Err(SnapshotError::Limit {
                        path,
                        what,
                        limit: LAYERS,
                    });
                }
                Some(self.0.view(Some(parent))?)
            }
            None => None,
        };
        let root = scratch.path().join("fs");
        let layer = tree::open_dir(&root).map_err(on("open", &root))?;
        let copied =
            graft::graft(&layer, parents.as_ref(), &extracted).map_err(SnapshotError::Unfit)?;
        let usage = Usage {
            bytes: extracted.usage.bytes + copied.bytes,
            inodes: extracted.usage.inodes + copied.inodes,
        };
        let parent = parent.copied();
        let record = LayerRecord {
            chain,
            diff,
            parent,
            usage,
            opaque_root,
            boot: self.0.options.sync.then(|| self.0.boot.clone()),
        };
        records::write(&scratch.path().join("layer.json"), &record)
            .map_err(on("write the record of", scratch.path()))?;

        let name = self.0.name();
        let place = self.0.dir(LAYERS_DIR).join(&name);
        scratch
            .keep(&place)
            .map_err(on("move into place", &place))?;
        if record.boot.is_some() {
            self.0.make_durable(place.clone(), record.clone())?;
        }
        let first = {
            let mut state = self.0.state();
            let first = !state.layers.contains_key(&chain);
            if first {
                state.layers.insert(chain, Layer { name, record });
            }
            first
        };
        if !first {
            self.0.discard(&place)?;
        }
        Ok(chain)
    }
}
