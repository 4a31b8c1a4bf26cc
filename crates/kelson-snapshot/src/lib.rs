//! Snapshotters: layers on disk, and root file systems made of them.
//!
//! A layer arrives as a stream of bytes, is unpacked once into a staging directory while both its
//! digests are checked, and is committed on top of its parent. A container then gets a writable
//! directory above a stack of committed layers. The crate is synchronous, never mounts anything in
//! a mount table, and knows neither registries nor runtimes.

mod digest;
mod error;
mod file;
mod limits;
mod overlay;
mod staging;
#[cfg(test)]
mod testing;
mod tree;
mod unpack;

use std::any::Any;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

pub use digest::{ChainId, DiffId, Digest, DigestError};
pub use error::{SnapshotError, UnpackError, Which};
pub use limits::Limits;
pub use overlay::{Options, Overlayfs};
pub use staging::Staging;

/// What is known of a layer before its bytes arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// Digest of the bytes as they are sent, compressed or not (the manifest's descriptor).
    pub blob: Digest,
    /// Number of those bytes; reading stops with an error one byte beyond it.
    pub size: u64,
    /// Digest of the uncompressed tar stream (the image configuration).
    pub diff_id: DiffId,
}

/// Disk space: bytes allocated and inodes used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Usage {
    /// Allocated bytes (blocks of 512 bytes, not apparent lengths).
    pub bytes: u64,
    /// Inodes; a file with several names counts once.
    pub inodes: u64,
}

/// The directories of a container's root file system, as overlayfs wants them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rootfs {
    /// Read-only directories, the top one first; never empty.
    pub lower: Vec<PathBuf>,
    /// The container's own writable directory.
    pub upper: PathBuf,
    /// Overlayfs' work directory, on the same file system as `upper`.
    pub work: PathBuf,
}

/// What a container has beside its root.
#[derive(Debug, Default)]
pub struct Extras<'a> {
    /// Chains of other images whose trees the container mounts: they stay as long as it does.
    pub chains: &'a [ChainId],
    /// Directories of the container's image that it gets writable copies of, as paths in the image: the
    /// n-th copy is [`Snapshotter::volume`] n.
    pub volumes: &'a [String],
    /// What the container has written already: a layer on top of the chain that stays its own.
    pub changes: Option<Staging>,
}

/// Keeps a layer and all below it from being removed while it lives. It does not outlive the
/// process: what must, is a container made by [`Snapshotter::prepare`].
pub struct Hold(#[expect(dead_code, reason = "only its drop matters")] Box<dyn Any + Send + Sync>);

/// Keeps unpacked layers and the root file systems made from them.
///
/// Layers are named by chain id. All methods block, may be called from many threads, and wait for
/// nothing slow under a lock that another of them needs.
pub trait Snapshotter: Send + Sync {
    /// Unpacks the layer that `blob` yields and checks it against `expected`. The result is not
    /// visible to anybody until [`commit`](Self::commit); dropping it discards it. Layers of one
    /// image may be staged in any order and side by side.
    ///
    /// # Errors
    /// Every way in which a layer can be wrong or the disk can fail; nothing is left behind.
    fn stage(
        &self,
        blob: &mut (dyn Read + Send),
        expected: &Expected,
    ) -> Result<Staging, UnpackError>;

    /// Puts a staged layer on top of `parent` (`None`: it is the lowest). It becomes durable a moment
    /// later; if a power loss comes first, it is absent afterwards. When another caller committed the same chain first, this one's copy is discarded without error.
    ///
    /// # Errors
    /// [`SnapshotError::UnknownLayer`] if `parent` is not committed, or the disk failed.
    fn commit(&self, staging: Staging, parent: Option<&ChainId>) -> Result<ChainId, SnapshotError>;

    /// Has everything that was written to its file system until now forced to the disk in the background, a
    /// moment later, together with what was committed.
    ///
    /// # Errors
    /// The system has no thread for it.
    fn sync_soon(&self) -> Result<(), SnapshotError>;

    /// Whether the chain is committed. Use [`hold`](Self::hold) to rely on the answer.
    fn has(&self, chain: &ChainId) -> bool;

    /// Protects a committed chain from removal, `None` if it is not there.
    fn hold(&self, chain: &ChainId) -> Option<Hold>;

    /// All committed chains, in no order.
    fn layers(&self) -> Vec<ChainId>;

    /// Space that the chain's top layer takes by itself, `None` if it is not committed.
    fn layer_usage(&self, chain: &ChainId) -> Option<Usage>;

    /// Makes the writable directories of `container` above `chain` (an image's chain ids, bottom
    /// first, as [`ChainId::chain`] gives them; empty for an image without layers) and records
    /// durably that it uses them. The root directory has mode and owner of the top layer's.
    ///
    /// # Errors
    /// [`SnapshotError::ContainerExists`], [`SnapshotError::UnknownLayer`],
    /// [`SnapshotError::ContainerName`] for a name that is not a plain one, or the disk failed.
    fn prepare(&self, container: &str, chain: &[ChainId]) -> Result<Rootfs, SnapshotError> {
        self.prepare_with(container, chain, Extras::default())
    }

    /// As [`prepare`](Self::prepare), with more than a root. A directory that the image does not have is
    /// made empty with mode 0755.
    ///
    /// # Errors
    /// Those of [`prepare`](Self::prepare); a volume that is something else than a directory in the
    /// image, or larger than the limit of an image's layer; [`SnapshotError::Unfit`] when the changes do
    /// not fit the chain.
    fn prepare_with(
        &self,
        container: &str,
        chain: &[ChainId],
        extras: Extras<'_>,
    ) -> Result<Rootfs, SnapshotError>;

    /// Where the n-th volume of a container is or will be; it goes with the container.
    fn volume(&self, container: &str, n: usize) -> PathBuf;

    /// The read-only directories of a chain as overlayfs wants them without a writable one: the top
    /// first, and two at least.
    ///
    /// # Errors
    /// [`SnapshotError::UnknownLayer`].
    fn tree(&self, chain: &[ChainId]) -> Result<Vec<PathBuf>, SnapshotError>;

    /// The directories of a container that was prepared earlier, also before a restart.
    ///
    /// # Errors
    /// [`SnapshotError::UnknownContainer`].
    fn rootfs(&self, container: &str) -> Result<Rootfs, SnapshotError>;

    /// All prepared containers, in no order.
    fn containers(&self) -> Vec<String>;

    /// A read-only view of the chain's merged tree as a directory descriptor, for reading files
    /// such as `/etc/passwd`. Resolve paths below it only in-root: links in it are hostile.
    ///
    /// # Errors
    /// [`SnapshotError::UnknownLayer`], or the kernel refused the mount.
    fn view(&self, chain: &[ChainId]) -> Result<OwnedFd, SnapshotError>;

    /// Space taken by the container's own writable directory. Walks it: callers keep the answer
    /// for a while.
    ///
    /// # Errors
    /// [`SnapshotError::UnknownContainer`], or the disk failed.
    fn usage(&self, container: &str) -> Result<Usage, SnapshotError>;

    /// Space taken by all committed layers; kept up to date, costs nothing.
    fn disk_usage(&self) -> Usage;

    /// Removes a container's directories; its space is given back by
    /// [`empty_trash`](Self::empty_trash). Done already is done.
    ///
    /// # Errors
    /// The disk failed.
    fn remove(&self, container: &str) -> Result<(), SnapshotError>;

    /// Removes a layer; its space is given back by [`empty_trash`](Self::empty_trash). Done already
    /// is done.
    ///
    /// # Errors
    /// [`SnapshotError::InUse`] while a container, a layer above or a [`Hold`] uses it.
    fn remove_layer(&self, chain: &ChainId) -> Result<(), SnapshotError>;

    /// Deletes what was removed, also before a restart. May take long: call it on a thread of its
    /// own. Several calls at once do no harm.
    ///
    /// # Errors
    /// The first deletion that failed; the others were done all the same.
    fn empty_trash(&self) -> Result<(), SnapshotError>;
}
