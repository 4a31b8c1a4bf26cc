//! How far a pull is, for logs and progress bars.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kelson_snapshot::Digest;

/// What happens to a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerState {
    /// Its turn has not come.
    Waiting,
    /// Its bytes arrive and are unpacked at once.
    Downloading,
    /// All bytes have come; the rest is unpacked and written.
    Unpacking,
    /// It is on disk and complete.
    Done,
    /// It was on disk before.
    Exists,
}

/// One layer of an image that is being pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerProgress {
    /// Digest of the layer's blob.
    pub digest: Digest,
    /// What happens to it.
    pub state: LayerState,
    /// Bytes received (compressed).
    pub done: u64,
    /// Bytes of the whole blob.
    pub total: u64,
}

/// All layers of the image, the lowest first; empty until the manifest is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// The layers.
    pub layers: Vec<LayerProgress>,
}

/// What the tasks of one layer count.
#[derive(Debug)]
pub(crate) struct Meter {
    digest: Digest,
    total: u64,
    done: AtomicU64,
    state: AtomicU8,
}

impl Meter {
    pub(crate) fn new(digest: Digest, total: u64) -> Arc<Self> {
        Arc::new(Self {
            digest,
            total,
            done: AtomicU64::new(0),
            state: AtomicU8::new(0),
        })
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, state: LayerState) {
        match state {
            LayerState::Downloading => self.done.store(0, Ordering::Relaxed),
            LayerState::Exists => self.done.store(self.total, Ordering::Relaxed),
            LayerState::Waiting | LayerState::Unpacking | LayerState::Done => {}
        }
        self.state.store(state as u8, Ordering::Relaxed);
    }

    fn read(&self) -> LayerProgress {
        let state = match self.state.load(Ordering::Relaxed) {
            0 => LayerState::Waiting,
            1 => LayerState::Downloading,
            2 => LayerState::Unpacking,
            3 => LayerState::Done,
            _ => LayerState::Exists,
        };
        let done = self.done.load(Ordering::Relaxed);
        LayerProgress {
            digest: self.digest,
            state,
            done,
            total: self.total,
        }
    }
}

/// The meters of one pull, shared by those who wait for it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Meters(Arc<Mutex<Vec<Arc<Meter>>>>);

impl Meters {
    pub(crate) fn set(&self, layers: Vec<Arc<Meter>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = layers;
    }

    pub(crate) fn read(&self) -> Progress {
        let layers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Progress {
            layers: layers.iter().map(|meter| meter.read()).collect(),
        }
    }
}
