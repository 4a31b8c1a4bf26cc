//! What is written beside a layer and a container, and how it is read back.
//!
//! A record is a small JSON file with a version. One of an unknown version belongs to a newer
//! program and is left alone; one that cannot be read belongs to something unfinished.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{ChainId, DiffId, Usage};

const VERSION: u32 = 1;
/// No record is longer.
const LONGEST: u64 = 64 << 10;

/// `layers/<name>/layer.json`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    pub(super) chain: ChainId,
    pub(super) diff: DiffId,
    pub(super) parent: Option<ChainId>,
    pub(super) usage: Usage,
    /// Nothing of the layers below shows through: overlayfs is not given them.
    pub(super) opaque_root: bool,
    /// The boot that the layer was written in, as long as it may not be on disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) boot: Option<String>,
}

/// `containers/<id>/chain.json`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ContainerRecord {
    /// The layer on top, `None` for an image without layers.
    pub(super) chain: Option<ChainId>,
    /// Layers on top of other images that it mounts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) others: Vec<ChainId>,
}

#[derive(Serialize)]
struct Versioned<'a, T> {
    v: u32,
    #[serde(flatten)]
    record: &'a T,
}

#[derive(Deserialize)]
struct Version {
    v: u32,
}

/// What a record's file holds.
pub(super) enum Found<T> {
    Record(T),
    /// Written by a newer program.
    Unknown(u32),
    /// Not there, not complete, or no record.
    Nothing,
}

pub(super) fn write<T: Serialize>(path: &Path, record: &T) -> std::io::Result<()> {
    let text = serde_json::to_vec(&Versioned { v: VERSION, record })?;
    File::create_new(path)?.write_all(&text)
}

/// Writes a record in the place of an older one, durably.
pub(super) fn replace<T: Serialize>(path: &Path, record: &T) -> std::io::Result<()> {
    let new = path.with_extension("new");
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    write(&new, record)?;
    File::open(&new)?.sync_all()?;
    std::fs::rename(&new, path)
}

pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Found<T> {
    let mut text = Vec::new();
    let file = File::open(path);
    if file
        .and_then(|file| file.take(LONGEST).read_to_end(&mut text))
        .is_err()
    {
        return Found::Nothing;
    }
    match serde_json::from_slice(&text) {
        Ok(Version { v: VERSION }) => {}
        Ok(Version { v }) => return Found::Unknown(v),
        Err(_) => return Found::Nothing,
    }
    serde_json::from_slice(&text).map_or(Found::Nothing, Found::Record)
}
