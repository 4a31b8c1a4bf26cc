//! What is on disk, as known in memory: layers, containers, and who uses which layer.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::records::LayerRecord;
use crate::{ChainId, SnapshotError};

/// A committed layer.
#[derive(Debug)]
pub(super) struct Layer {
    /// Name of its directory.
    pub(super) name: String,
    pub(super) record: LayerRecord,
}

/// A prepared container.
#[derive(Debug, Clone)]
pub(super) struct Container {
    pub(super) chain: Option<ChainId>,
    /// Layers on top of other images that it mounts.
    pub(super) others: Vec<ChainId>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) layers: HashMap<ChainId, Layer>,
    pub(super) containers: HashMap<String, Container>,
    /// Number of holds of a layer.
    pub(super) holds: HashMap<ChainId, usize>,
}

impl State {
    /// The directories of a chain, top first, as far down as overlayfs is to see.
    pub(super) fn lower(
        &self,
        layers: &Path,
        top: &ChainId,
    ) -> Result<Vec<PathBuf>, SnapshotError> {
        let mut lower = Vec::new();
        let mut next = Some(*top);
        while let Some(chain) = next {
            let layer = self
                .layers
                .get(&chain)
                .ok_or(SnapshotError::UnknownLayer(chain))?;
            lower.push(layers.join(&layer.name).join("fs"));
            next = layer.record.parent.filter(|_| !layer.record.opaque_root);
        }
        Ok(lower)
    }

    /// Who keeps a layer from being removed.
    pub(super) fn user(&self, chain: &ChainId) -> Option<String> {
        let child = self
            .layers
            .values()
            .find(|layer| layer.record.parent == Some(*chain));
        if let Some(child) = child {
            return Some(format!("layer {}", child.record.chain));
        }
        let container = self
            .containers
            .iter()
            .find(|(_, used)| used.chain == Some(*chain) || used.others.contains(chain));
        if let Some((container, _)) = container {
            return Some(format!("container {container}"));
        }
        self.holds
            .contains_key(chain)
            .then(|| "a pull or another operation under way".to_owned())
    }

    pub(super) fn release(&mut self, chain: &ChainId) {
        if let Some(count) = self.holds.get_mut(chain) {
            *count -= 1;
            if *count == 0 {
                self.holds.remove(chain);
            }
        }
    }
}
