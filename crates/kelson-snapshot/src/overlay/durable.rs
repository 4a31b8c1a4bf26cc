//! Makes committed layers, and what else is written beside them, durable behind the back of who commits them.
//!
//! A commit does not wait for the disk: a pull would spend half of its time there. The record of a
//! new layer names the boot that it was written in; a thread forces everything to disk a moment
//! later (one `syncfs` for all that were committed meanwhile) and then writes the record again
//! without the boot. A record that names an earlier boot is therefore of a layer that a power loss
//! may have damaged, and recovery drops it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::records::{self, LayerRecord};

/// How long commits are gathered before all are forced to disk together.
const GATHER: Duration = Duration::from_secs(1);

/// The layers that may not be on disk yet. When it is dropped, they are.
#[derive(Debug, Default)]
pub(super) struct Durable {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Directories of layers, and their records.
    layers: Vec<(PathBuf, LayerRecord)>,
    /// Whether something else waits to be forced to disk.
    others: bool,
    /// Whether the thread will look at these again.
    running: bool,
    ended: bool,
}

impl Durable {
    /// Has what was written to the file system of `file_system` made durable soon, and then the directory of
    /// a layer with its record.
    ///
    /// # Errors
    /// No thread could be started; nothing is durable then.
    pub(super) fn add(
        &self,
        file_system: &OwnedFd,
        layer: Option<(PathBuf, LayerRecord)>,
    ) -> io::Result<()> {
        let mut state = self.shared.lock();
        match layer {
            Some(layer) => state.layers.push(layer),
            None => state.others = true,
        }
        if state.running {
            return Ok(());
        }
        let file_system = file_system.try_clone()?;
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new()
            .name("layer-sync".to_owned())
            .spawn(move || shared.work(&file_system))?;
        state.running = true;
        drop(state);
        // The one before has ended, or is about to.
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }
}

impl Drop for Durable {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.ended.notify_all();
        let thread = self
            .thread
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // It has nothing to say that is not in the log already.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, file_system: &OwnedFd) {
        loop {
            let state = self.lock();
            let (mut state, _) = self
                .ended
                .wait_timeout_while(state, GATHER, |state| !state.ended)
                .unwrap_or_else(PoisonError::into_inner);
            let layers = std::mem::take(&mut state.layers);
            let others = std::mem::take(&mut state.others);
            if layers.is_empty() && !others {
                state.running = false;
                return;
            }
            drop(state);
            if let Err(error) = rustix::fs::syncfs(file_system) {
                tracing::error!(%error, layers = layers.len(), "layers cannot be forced to disk; they are pulled again after a reboot");
                continue;
            }
            for (dir, record) in layers {
                settle(&dir, &record);
            }
        }
    }
}

/// Takes the boot out of the record of a layer that is on disk.
fn settle(dir: &Path, record: &LayerRecord) {
    let record = LayerRecord {
        boot: None,
        ..record.clone()
    };
    match records::replace(&dir.join("layer.json"), &record) {
        Ok(()) => {}
        // It was removed meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(layer = %dir.display(), %error, "record cannot be written; the layer is pulled again after a reboot");
        }
    }
}
