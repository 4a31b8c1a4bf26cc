//! The overlayfs snapshotter: one directory per layer, one pair of directories per container.
//!
//! ```text
//! layers/<n>/{fs/, layer.json}            committed layers
//! containers/<id>/{upper/, work/, volumes/<n>/, chain.json}
//! staging/<n>/                            unfinished layers and containers
//! trash/<n>/                              removed, not yet deleted
//! empty/                                  the lower directory of an image without layers
//! ```
//! Everything is finished in `staging/` and gets to its place by one rename, so a directory
//! elsewhere is complete. Names are short numbers, because overlayfs takes paths as options of
//! limited length. Memory knows all layers and containers; the lock around it is never held while
//! the disk works.

mod commit;
mod durable;
mod graft;
mod records;
mod recover;
mod state;
#[cfg(test)]
pub(crate) mod tests;
mod usage;
mod view;
mod volume;

use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use kelson_sys::root::Root;
use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;

use self::durable::Durable;
use self::records::{ContainerRecord, LayerRecord};
use self::state::{Container, State};
use crate::error::{at, on};
use crate::staging::Scratch;
use crate::{
    ChainId, Expected, Extras, Hold, Limits, Rootfs, SnapshotError, Snapshotter, Staging,
    UnpackError, Usage, file, tree, unpack,
};

/// How an [`Overlayfs`] works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Whether layers are forced to disk, behind the back of who commits them, and one that a power
    /// loss has overtaken is dropped. Without it such a layer is taken for complete although its
    /// files may be empty. Default: true.
    pub sync: bool,
    /// Limits of one layer.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            sync: true,
            limits: Limits::default(),
        }
    }
}

/// Layers and containers as directories for overlayfs. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Overlayfs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    /// The root directory; its lock keeps other processes out.
    lock: OwnedFd,
    options: Options,
    /// This boot of the machine.
    boot: String,
    durable: Durable,
    next: AtomicU64,
    state: Mutex<State>,
}

const LAYERS_DIR: &str = "layers";
const CONTAINERS_DIR: &str = "containers";
const STAGING_DIR: &str = "staging";
const TRASH_DIR: &str = "trash";
const VOLUMES_DIR: &str = "volumes";
const EMPTY_DIR: &str = "empty";
/// A random number that the kernel chooses at every boot (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl Overlayfs {
    /// Opens or creates the directories below `root`. What was not finished when the last process
    /// ended is put into the trash; layers of a newer program are left alone and logged.
    ///
    /// # Errors
    /// [`SnapshotError::Busy`] if another process has them, or they cannot be made or read.
    pub fn open(root: &Path, options: Options) -> Result<Self, SnapshotError> {
        let boot = fs::read_to_string(BOOT_ID).map_err(on("read", BOOT_ID))?;
        Self::open_in_boot(root, options, boot.trim())
    }

    fn open_in_boot(root: &Path, options: Options, boot: &str) -> Result<Self, SnapshotError> {
        fs::create_dir_all(root).map_err(on("create", root))?;
        let lock = tree::open_dir(root).map_err(on("open", root))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(SnapshotError::Busy(root.into())),
            result => result.map_err(on("lock", root))?,
        }
        for (name, mode) in [
            (LAYERS_DIR, Mode::RWXU),
            (CONTAINERS_DIR, Mode::RWXU),
            (STAGING_DIR, Mode::RWXU),
            (TRASH_DIR, Mode::RWXU),
            (EMPTY_DIR, Mode::from_raw_mode(0o755)),
        ] {
            match rustix::fs::mkdirat(&lock, name, mode) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(on("create", root.join(name))(errno)),
            }
        }
        spread(&root.join(STAGING_DIR));
        let inner = Inner {
            root: root.into(),
            lock,
            options,
            boot: boot.to_owned(),
            durable: Durable::default(),
            next: AtomicU64::new(1),
            state: Mutex::default(),
        };
        inner.recover()?;
        Ok(Self(Arc::new(inner)))
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it has the lock; if it did, what it left is still consistent.
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A name that no directory has.
    fn name(&self) -> String {
        const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
        let mut number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut name = Vec::new();
        while number > 0 {
            name.push(char::from(DIGITS[(number % 36) as usize]));
            number /= 36;
        }
        name.iter().rev().collect()
    }

    fn scratch(&self) -> Result<Scratch, SnapshotError> {
        let path = self.dir(STAGING_DIR).join(self.name());
        Scratch::make(path.clone()).map_err(on("create", path))
    }

    fn discard(&self, path: &Path) -> Result<(), SnapshotError> {
        let to = self.dir(TRASH_DIR).join(self.name());
        match fs::rename(path, to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(on("move to the trash", path)),
        }
    }

    fn make_durable(&self, dir: PathBuf, record: LayerRecord) -> Result<(), SnapshotError> {
        let added = self.durable.add(&self.lock, Some((dir, record)));
        added.map_err(on("force layers to disk in", &self.root))
    }

    fn lower(&self, top: Option<&ChainId>) -> Result<Vec<PathBuf>, SnapshotError> {
        match top {
            Some(top) => self.state().lower(&self.dir(LAYERS_DIR), top),
            None => Ok(vec![self.dir(EMPTY_DIR)]),
        }
    }

    fn view(&self, top: Option<&ChainId>) -> Result<OwnedFd, SnapshotError> {
        view::merged(&self.lower(top)?).map_err(on("view the layers below", &self.root))
    }

    fn rootfs(&self, id: &str, chain: Option<&ChainId>) -> Result<Rootfs, SnapshotError> {
        let lower = self.lower(chain)?;
        let dir = self.dir(CONTAINERS_DIR).join(id);
        Ok(Rootfs {
            lower,
            upper: dir.join("upper"),
            work: dir.join("work"),
        })
    }

    /// Makes a container's directories and moves them to their place.
    fn make_container(
        &self,
        id: &str,
        record: ContainerRecord,
        volumes: &[String],
        changes: Option<Staging>,
    ) -> Result<Rootfs, SnapshotError> {
        let chain = record.chain.as_ref();
        let rootfs = self.rootfs(id, chain)?;
        let scratch = self.scratch()?;
        let dir = scratch.path();
        if let Some(changes) = changes {
            let (extracted, changed) = changes.into_parts();
            let from = changed.path().join("fs");
            let layer = tree::open_dir(&from).map_err(on("open", &from))?;
            let parents = self.view(chain)?;
            let below = (!extracted.opaque_root).then_some(&parents);
            graft::graft(&layer, below, &extracted).map_err(SnapshotError::Unfit)?;
            fs::rename(&from, dir.join("upper")).map_err(on("move into place", &from))?;
        }
        let make = || -> io::Result<()> {
            let like = rustix::fs::stat(&rootfs.lower[0])?;
            rustix::fs::mkdir(dir.join("work"), Mode::RWXU)?;
            let upper = dir.join("upper");
            if !upper.exists() {
                rustix::fs::mkdir(&upper, Mode::RWXU)?;
                file::describe(tree::open_dir(&upper)?, &graft::meta(&like))?;
            }
            records::write(&dir.join("chain.json"), &record)
        };
        make().map_err(on("prepare", dir))?;
        if !volumes.is_empty() {
            let image = Root::from_fd(self.view(chain)?, "the image");
            let limit = self.options.limits.entries;
            volume::make_all(&image, volumes, &dir.join(VOLUMES_DIR), limit)?;
        }
        let to = self.dir(CONTAINERS_DIR).join(id);
        scratch.keep(&to).map_err(on("move into place", to))?;
        Ok(rootfs)
    }
}

/// Tells the file system that what lies below has nothing in common. ext4 then gives each layer a
/// block group of its own instead of the one whose inodes an image that was just removed had, which
/// it does not use again for a minute and looks through one by one for every file (`chattr(1)`, T).
fn spread(dir: &Path) {
    let set = || -> rustix::io::Result<()> {
        let dir = tree::open_dir(dir)?;
        let flags = rustix::fs::ioctl_getflags(&dir)?;
        rustix::fs::ioctl_setflags(&dir, flags | rustix::fs::IFlags::TOPDIR)
    };
    // Other file systems know no such hint.
    let _ = set();
}

/// Protects a layer while an operation needs it.
struct HoldGuard(Arc<Inner>, ChainId);

impl Drop for HoldGuard {
    fn drop(&mut self) {
        self.0.state().release(&self.1);
    }
}

impl Overlayfs {
    fn guard(&self, chain: &ChainId) -> Option<HoldGuard> {
        let mut state = self.0.state();
        state.layers.get(chain)?;
        *state.holds.entry(*chain).or_default() += 1;
        Some(HoldGuard(self.0.clone(), *chain))
    }
}

impl Snapshotter for Overlayfs {
    fn stage(
        &self,
        blob: &mut (dyn Read + Send),
        expected: &Expected,
    ) -> Result<Staging, UnpackError> {
        let path = self.0.dir(STAGING_DIR).join(self.0.name());
        let make = |path: &Path| -> rustix::io::Result<(Scratch, OwnedFd)> {
            let scratch = Scratch::make(path.into())
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            let root = path.join("fs");
            rustix::fs::mkdir(&root, Mode::RWXU)?;
            Ok((scratch, tree::open_dir(&root)?))
        };
        use std::os::unix::ffi::OsStrExt as _;
        let (scratch, root) =
            make(&path).map_err(at("make directory", path.as_os_str().as_bytes()))?;
        let extracted = unpack::unpack(blob, expected, &self.0.options.limits, root)?;
        Ok(Staging::new(expected.diff_id, extracted, scratch))
    }

    fn commit(&self, staging: Staging, parent: Option<&ChainId>) -> Result<ChainId, SnapshotError> {
        self.settle(staging, parent)
    }

    fn sync_soon(&self) -> Result<(), SnapshotError> {
        let added = self.0.durable.add(&self.0.lock, None);
        added.map_err(on(
            "force to disk what is in the file system of",
            &self.0.root,
        ))
    }

    fn has(&self, chain: &ChainId) -> bool {
        self.0.state().layers.contains_key(chain)
    }

    fn hold(&self, chain: &ChainId) -> Option<Hold> {
        self.guard(chain).map(|guard| Hold(Box::new(guard)))
    }

    fn layers(&self) -> Vec<ChainId> {
        self.0.state().layers.keys().copied().collect()
    }

    fn layer_usage(&self, chain: &ChainId) -> Option<Usage> {
        self.0
            .state()
            .layers
            .get(chain)
            .map(|layer| layer.record.usage)
    }

    fn prepare_with(
        &self,
        container: &str,
        chain: &[ChainId],
        extras: Extras<'_>,
    ) -> Result<Rootfs, SnapshotError> {
        check_name(container)?;
        let chain = chain.last().copied();
        let mut others = extras.chains.to_vec();
        others.sort_unstable();
        others.dedup();
        {
            let mut state = self.0.state();
            let missing = chain
                .iter()
                .chain(&others)
                .find(|chain| !state.layers.contains_key(*chain));
            if let Some(chain) = missing {
                return Err(SnapshotError::UnknownLayer(*chain));
            }
            if state.containers.contains_key(container) {
                return Err(SnapshotError::ContainerExists(container.into()));
            }
            // From here on the chains are in use.
            let used = Container {
                chain,
                others: others.clone(),
            };
            state.containers.insert(container.into(), used);
        }
        let record = ContainerRecord { chain, others };
        let made = self
            .0
            .make_container(container, record, extras.volumes, extras.changes);
        if made.is_err() {
            self.0.state().containers.remove(container);
        }
        made
    }

    fn volume(&self, container: &str, n: usize) -> PathBuf {
        let dir = self.0.dir(CONTAINERS_DIR).join(container);
        dir.join(VOLUMES_DIR).join(n.to_string())
    }

    fn tree(&self, chain: &[ChainId]) -> Result<Vec<PathBuf>, SnapshotError> {
        let mut lower = self.0.lower(chain.last())?;
        if lower.len() == 1 {
            lower.push(self.0.dir(EMPTY_DIR));
        }
        Ok(lower)
    }

    fn rootfs(&self, container: &str) -> Result<Rootfs, SnapshotError> {
        let known = self.0.state().containers.get(container).cloned();
        let known = known.ok_or_else(|| SnapshotError::UnknownContainer(container.into()))?;
        self.0.rootfs(container, known.chain.as_ref())
    }

    fn containers(&self) -> Vec<String> {
        self.0.state().containers.keys().cloned().collect()
    }

    fn view(&self, chain: &[ChainId]) -> Result<OwnedFd, SnapshotError> {
        self.0.view(chain.last())
    }

    fn usage(&self, container: &str) -> Result<Usage, SnapshotError> {
        if !self.0.state().containers.contains_key(container) {
            return Err(SnapshotError::UnknownContainer(container.into()));
        }
        usage::measure(&self.0.dir(CONTAINERS_DIR).join(container).join("upper"))
    }

    fn disk_usage(&self) -> Usage {
        let state = self.0.state();
        state
            .layers
            .values()
            .fold(Usage::default(), |sum, layer| Usage {
                bytes: sum.bytes + layer.record.usage.bytes,
                inodes: sum.inodes + layer.record.usage.inodes,
            })
    }

    fn remove(&self, container: &str) -> Result<(), SnapshotError> {
        if !self.0.state().containers.contains_key(container) {
            return Ok(());
        }
        self.0
            .discard(&self.0.dir(CONTAINERS_DIR).join(container))?;
        self.0.state().containers.remove(container);
        Ok(())
    }

    fn remove_layer(&self, chain: &ChainId) -> Result<(), SnapshotError> {
        let layer = {
            let mut state = self.0.state();
            if let Some(by) = state.user(chain) {
                return Err(SnapshotError::InUse { layer: *chain, by });
            }
            state.layers.remove(chain)
        };
        let Some(layer) = layer else { return Ok(()) };
        let removed = self.0.discard(&self.0.dir(LAYERS_DIR).join(&layer.name));
        if removed.is_err() {
            self.0.state().layers.insert(*chain, layer);
        }
        removed
    }

    fn empty_trash(&self) -> Result<(), SnapshotError> {
        let trash = self.0.dir(TRASH_DIR);
        let mut first = Ok(());
        for name in recover::list(&trash)? {
            let path = trash.join(name);
            first = first.and(tree::remove_path(&path).map_err(on("delete", path)));
        }
        first
    }
}

fn check_name(container: &str) -> Result<(), SnapshotError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let right = (1..=128).contains(&container.len())
        && !container.starts_with('.')
        && container.bytes().all(plain);
    if right {
        Ok(())
    } else {
        Err(SnapshotError::ContainerName(
            container.chars().take(64).collect(),
        ))
    }
}
