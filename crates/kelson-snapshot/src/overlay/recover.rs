//! Reads back what earlier processes left, and drops what they did not finish.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

use super::records::{self, ContainerRecord, Found, LayerRecord};
use super::state::{Container, Layer, State};
use super::{CONTAINERS_DIR, Inner, LAYERS_DIR, STAGING_DIR, TRASH_DIR};
use crate::error::on;
use crate::{ChainId, SnapshotError};

impl Inner {
    /// Reads what earlier processes left.
    pub(super) fn recover(&self) -> Result<(), SnapshotError> {
        let mut names = Vec::new();
        for dir in [LAYERS_DIR, STAGING_DIR, TRASH_DIR] {
            names.push(list(&self.dir(dir))?);
        }
        let highest = names
            .iter()
            .flatten()
            .filter_map(|name| u64::from_str_radix(name, 36).ok())
            .max();
        self.next
            .store(highest.unwrap_or(0).saturating_add(1), Ordering::Relaxed);

        for name in &names[1] {
            self.discard(&self.dir(STAGING_DIR).join(name))?;
        }
        let mut state = State::default();
        for name in names.swap_remove(0) {
            self.recover_layer(name, &mut state)?;
        }
        self.drop_orphans(&mut state)?;
        for id in list(&self.dir(CONTAINERS_DIR))? {
            let dir = self.dir(CONTAINERS_DIR).join(&id);
            match records::read::<ContainerRecord>(&dir.join("chain.json")) {
                Found::Record(ContainerRecord { chain, others }) => {
                    state.containers.insert(id, Container { chain, others });
                }
                Found::Unknown(version) => {
                    tracing::warn!(
                        container = id,
                        version,
                        "record of a newer version; left alone"
                    );
                }
                Found::Nothing => self.discard(&dir)?,
            }
        }
        *self.state() = state;
        Ok(())
    }

    fn recover_layer(&self, name: String, state: &mut State) -> Result<(), SnapshotError> {
        let dir = self.dir(LAYERS_DIR).join(&name);
        let record = match records::read::<LayerRecord>(&dir.join("layer.json")) {
            Found::Record(record) if dir.join("fs").is_dir() => record,
            Found::Unknown(version) => {
                tracing::warn!(
                    layer = name,
                    version,
                    "record of a newer version; left alone"
                );
                return Ok(());
            }
            Found::Record(_) | Found::Nothing => {
                tracing::warn!(layer = name, "layer is damaged; it is dropped");
                return self.discard(&dir);
            }
        };
        let chain = record.chain;
        let right = chain == ChainId::new(record.parent.as_ref(), &record.diff);
        if !right || state.layers.contains_key(&chain) {
            tracing::warn!(
                layer = name,
                "layer is there twice or misnamed; it is dropped"
            );
            return self.discard(&dir);
        }
        match &record.boot {
            None => {}
            Some(boot) if *boot == self.boot => self.make_durable(dir, record.clone())?,
            Some(_) => {
                tracing::warn!(
                    layer = name,
                    "layer was not on disk when the machine stopped; it is dropped"
                );
                return self.discard(&dir);
            }
        }
        state.layers.insert(chain, Layer { name, record });
        Ok(())
    }

    /// Drops layers whose parents are not there any more.
    fn drop_orphans(&self, state: &mut State) -> Result<(), SnapshotError> {
        loop {
            let lost = |layer: &Layer| {
                layer
                    .record
                    .parent
                    .is_some_and(|parent| !state.layers.contains_key(&parent))
            };
            let orphans: Vec<_> = state
                .layers
                .iter()
                .filter(|(_, layer)| lost(layer))
                .map(|(id, _)| *id)
                .collect();
            if orphans.is_empty() {
                return Ok(());
            }
            for layer in orphans
                .iter()
                .filter_map(|chain| state.layers.remove(chain))
            {
                tracing::warn!(
                    layer = layer.name,
                    "layer has lost its parent; it is dropped"
                );
                self.discard(&self.dir(LAYERS_DIR).join(&layer.name))?;
            }
        }
    }
}

/// Names in one of the snapshotter's own directories; others than its own are no concern.
pub(super) fn list(dir: &Path) -> Result<Vec<String>, SnapshotError> {
    let read = || fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>();
    let entries = read().map_err(on("list", dir))?;
    Ok(entries
        .into_iter()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect())
}
