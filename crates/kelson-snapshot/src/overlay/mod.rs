//! The overlayfs snapshotter.

use std::path::Path;
use std::sync::Arc;

use crate::{Limits, SnapshotError, Snapshotter};

/// How an [`Overlayfs`] works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Whether a layer is forced to disk (one `syncfs`) before it is recorded. Without it a power
    /// loss can leave a layer whose files are empty. Default: true.
    pub sync: bool,
    /// Limits of one layer.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self { sync: true, limits: Limits::default() }
    }
}

/// Layers and containers as directories for overlayfs. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Overlayfs(Arc<()>);

impl Overlayfs {
    /// Opens or creates the directories below `root`: drops layers that were not finished, and all
    /// staged ones.
    ///
    /// # Errors
    /// The directories cannot be made or read.
    pub fn open(root: &Path, options: Options) -> Result<Self, SnapshotError> {
        let _ = (root, options);
        unimplemented!()
    }
}

#[allow(clippy::unimplemented, unused_variables)]
impl Snapshotter for Overlayfs {
    fn stage(&self, blob: &mut (dyn std::io::Read + Send), expected: &crate::Expected) -> Result<crate::Staging, crate::UnpackError> { unimplemented!() }
    fn commit(&self, staging: crate::Staging, parent: Option<&crate::ChainId>) -> Result<crate::ChainId, SnapshotError> { unimplemented!() }
    fn has(&self, chain: &crate::ChainId) -> bool { unimplemented!() }
    fn hold(&self, chain: &crate::ChainId) -> Option<crate::Hold> { unimplemented!() }
    fn layers(&self) -> Vec<crate::ChainId> { unimplemented!() }
    fn layer_usage(&self, chain: &crate::ChainId) -> Option<crate::Usage> { unimplemented!() }
    fn prepare(&self, container: &str, chain: &[crate::ChainId]) -> Result<crate::Rootfs, SnapshotError> { unimplemented!() }
    fn rootfs(&self, container: &str) -> Result<crate::Rootfs, SnapshotError> { unimplemented!() }
    fn containers(&self) -> Vec<String> { unimplemented!() }
    fn view(&self, chain: &[crate::ChainId]) -> Result<std::os::fd::OwnedFd, SnapshotError> { unimplemented!() }
    fn usage(&self, container: &str) -> Result<crate::Usage, SnapshotError> { unimplemented!() }
    fn disk_usage(&self) -> crate::Usage { unimplemented!() }
    fn remove(&self, container: &str) -> Result<(), SnapshotError> { unimplemented!() }
    fn remove_layer(&self, chain: &crate::ChainId) -> Result<(), SnapshotError> { unimplemented!() }
    fn empty_trash(&self) -> Result<(), SnapshotError> { unimplemented!() }
}
