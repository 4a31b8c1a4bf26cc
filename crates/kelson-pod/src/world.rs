//! What all pod tasks share: the services, the store, the board that readers see, and facts of the machine.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kelson_cgroup::systemd::slice_path;
use kelson_shim::ids::{ContainerId, PodId};
use kelson_snapshot::Snapshotter;
use kelson_store::Store;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::apparmor::AppArmor;
use crate::checkpoint::Underway;
use crate::config::{NamespaceMode, PodConfig};
use crate::events::Announcer;
use crate::filters::Filters;
use crate::journal::Journal;
use crate::outside::{Cgroups, ImageSource, PodNetwork, Shims};
use crate::pods::{CgroupDriver, PodsConfig, slice_of};
use crate::registry::Registry;
use crate::selinux::Policy;
use crate::spec::NodeRules;
use crate::spec::mounts::PodFiles;
use crate::validate::Facts;
use crate::view::Board;

/// How long a short call to a shim may take.
pub(crate) const SHIM_CALL: Duration = Duration::from_secs(5);
/// How long killing a cgroup may take before it is called stuck (and tried again).
pub(crate) const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// See the module.
pub(crate) struct World {
    pub(crate) config: PodsConfig,
    pub(crate) facts: Facts,
    pub(crate) rules: NodeRules,
    /// The kernel's boot id.
    pub(crate) boot: String,
    pub(crate) store: Store,
    pub(crate) journal: Journal,
    pub(crate) shims: Arc<dyn Shims>,
    pub(crate) network: Arc<dyn PodNetwork>,
    pub(crate) cgroups: Arc<dyn Cgroups>,
    pub(crate) images: Arc<dyn ImageSource>,
    pub(crate) snapshots: Arc<dyn Snapshotter>,
    pub(crate) filters: Filters,
    pub(crate) apparmor: AppArmor,
    pub(crate) selinux: Policy,
    pub(crate) board: Board,
    pub(crate) events: Announcer,
    pub(crate) registry: Registry,
    /// Containers that are being checkpointed.
    pub(crate) underway: Underway,
    /// Everything under way that must not be cut off in the middle without need.
    pub(crate) effects: TaskTracker,
    /// Set when the daemon ends.
    pub(crate) closing: CancellationToken,
}

impl World {
    /// The directory of all pods.
    pub(crate) fn pods_dir(&self) -> PathBuf {
        self.config.state.join("pods")
    }

    /// A pod's directory.
    pub(crate) fn pod_dir(&self, pod: &PodId) -> PathBuf {
        self.pods_dir().join(pod.as_str())
    }

    /// A container's directory in its pod's, where its shim leaves the exit record.
    pub(crate) fn container_dir(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.pod_dir(pod)
            .join("containers")
            .join(container.as_str())
    }

    /// The cgroup that holds the pod's containers, and whether it is Kelson's own.
    pub(crate) fn pod_cgroup(&self, pod: &PodId, config: &PodConfig) -> (String, bool) {
        let own = config.cgroup_parent.is_empty();
        let prefix = self.config.cgroup_prefix.trim_end_matches('/');
        let path = match self.facts.driver {
            CgroupDriver::Cgroupfs if own => format!("{prefix}/{pod}"),
            CgroupDriver::Cgroupfs => config.cgroup_parent.clone(),
            CgroupDriver::Systemd => {
                let slice = match config.cgroup_parent.rsplit_once('/') {
                    _ if own => slice_of(&format!("{prefix}-{pod}")),
                    Some((_, slice)) => slice.to_owned(),
                    None => config.cgroup_parent.clone(),
                };
                // A name that is none was refused with the request.
                slice_path(&slice).unwrap_or(slice)
            }
        };
        (path, own)
    }

    /// The cgroup of a container in that of its pod.
    pub(crate) fn container_cgroup(&self, pod_cgroup: &str, id: &ContainerId) -> String {
        let pod_cgroup = pod_cgroup.trim_end_matches('/');
        match self.facts.driver {
            CgroupDriver::Cgroupfs => format!("{pod_cgroup}/{id}"),
            CgroupDriver::Systemd => format!("{pod_cgroup}/kelson-{id}.scope"),
        }
    }

    /// The files of a pod that its containers see.
    pub(crate) fn pod_files(&self, pod: &PodId, config: &PodConfig) -> PodFiles {
        let dir = self.pod_dir(pod);
        let host_ipc = config.namespaces.ipc == NamespaceMode::Node;
        PodFiles {
            resolv_conf: dir.join("resolv.conf"),
            hosts: dir.join("hosts"),
            hostname: dir.join("hostname"),
            shm: if host_ipc {
                PathBuf::from("/dev/shm")
            } else {
                dir.join("shm")
            },
        }
    }

    /// Runs something that blocks. Whoever asked waits for it, but no thread of the runtime does.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Self>) -> T + Send + 'static,
    ) -> T {
        let (world, span) = (Arc::clone(self), tracing::Span::current());
        match tokio::task::spawn_blocking(move || span.in_scope(|| work(&world))).await {
            Ok(value) => value,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Gives the space of what was removed back, in the background.
    pub(crate) fn empty_trash(&self) {
        let snapshots = Arc::clone(&self.snapshots);
        self.effects.spawn_blocking(move || {
            if let Err(error) = snapshots.empty_trash() {
                tracing::warn!(error = %crate::error::chain(&error), "removed layers keep their space for now");
            }
        });
    }
}

/// The host name that a pod's processes see.
pub(crate) fn hostname(pod: &PodId, config: &PodConfig) -> String {
    if !config.hostname.is_empty() {
        return config.hostname.clone();
    }
    if config.namespaces.network == NamespaceMode::Node {
        return rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
    }
    pod.as_str().chars().take(12).collect()
}

/// Now, in nanoseconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// An I/O error with what was tried on which path.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub(crate) struct FileError {
    pub(crate) operation: &'static str,
    pub(crate) path: PathBuf,
    #[source]
    pub(crate) source: io::Error,
}

impl FileError {
    pub(crate) fn on(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self {
            operation,
            path,
            source,
        }
    }
}
