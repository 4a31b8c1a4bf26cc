//! The state of all pods and containers as readers see it: immutable, replaced as a whole.
//!
//! A [`Snapshot`] holds no lock and calls nobody; keep it as long as you like. The `tables` part is how pod
//! tasks publish.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use kelson_shim::ids::{ContainerId, PodId};
use serde::{Deserialize, Serialize};

use crate::config::{ContainerConfig, PodConfig, Resources};
use crate::error::Ambiguous;

/// All pods and containers at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pods: BTreeMap<PodId, Arc<Pod>>,
    containers: BTreeMap<ContainerId, PodId>,
}

/// A container with its pod.
pub type InPod<'a> = (&'a Arc<Pod>, &'a Arc<Container>);

impl Snapshot {
    /// All pods, ordered by id.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.values()
    }

    /// All containers with their pods, ordered by pod and then by age.
    pub fn containers(&self) -> impl Iterator<Item = (&Arc<Pod>, &Arc<Container>)> {
        self.pods
            .values()
            .flat_map(|pod| pod.containers.iter().map(move |one| (pod, one)))
    }

    /// The pod with this id.
    pub fn pod(&self, id: &PodId) -> Option<&Arc<Pod>> {
        self.pods.get(id)
    }

    /// The container with this id and its pod.
    pub fn container(&self, id: &ContainerId) -> Option<InPod<'_>> {
        let pod = self.pods.get(self.containers.get(id)?)?;
        Some((pod, pod.container(id)?))
    }

    /// The pod whose id is `id` or the only one whose id starts with it. Empty text finds nothing.
    pub fn find_pod(&self, id: &str) -> Result<Option<&Arc<Pod>>, Ambiguous> {
        Ok(by_prefix(&self.pods, id)?.map(|(_, pod)| pod))
    }

    /// The container whose id is `id` or the only one whose id starts with it, with its pod.
    pub fn find_container(&self, id: &str) -> Result<Option<InPod<'_>>, Ambiguous> {
        Ok(by_prefix(&self.containers, id)?.and_then(|(id, _)| self.container(id)))
    }
}

/// The only entry whose key starts with `prefix`.
fn by_prefix<'a, K: Ord + AsRef<str>, V>(
    map: &'a BTreeMap<K, V>,
    prefix: &str,
) -> Result<Option<(&'a K, &'a V)>, Ambiguous> {
    if prefix.is_empty() {
        return Ok(None);
    }
    let mut matches = map
        .iter()
        .filter(|(key, _)| key.as_ref().starts_with(prefix));
    let first = matches.next();
    match matches.next() {
        Some(_) => Err(Ambiguous {
            prefix: prefix.chars().take(80).collect(),
        }),
        None => Ok(first),
    }
}

/// A pod as readers see it.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Id.
    pub id: PodId,
    /// What was asked for.
    pub config: Arc<PodConfig>,
    /// When it was made, in nanoseconds since 1970.
    pub created_at: i64,
    /// State.
    pub state: PodState,
    /// The path of the cgroup that holds the containers' cgroups.
    pub cgroup: String,
    /// Its containers, oldest first.
    pub containers: Vec<Arc<Container>>,
}

impl Pod {
    /// The container with this id.
    pub fn container(&self, id: &ContainerId) -> Option<&Arc<Container>> {
        self.containers.iter().find(|container| container.id == *id)
    }

    /// Whether it runs.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, PodState::Ready { .. })
    }

    /// Its addresses, the preferred one first; empty on the host's network and when it does not run.
    pub fn ips(&self) -> &[IpAddr] {
        match &self.state {
            PodState::Ready { ips, .. } => ips,
            PodState::NotReady { .. } => &[],
        }
    }
}

/// The state of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodState {
    /// It runs.
    Ready {
        /// Its addresses, the preferred one first; empty on the host's network.
        ips: Vec<IpAddr>,
        /// Its shim's process; `/proc/<pid>/ns/{net,ipc,uts}` are the pod's namespaces.
        shim_pid: u32,
    },
    /// It does not, and never will again.
    NotReady {
        /// Why.
        reason: String,
    },
}

/// A container as readers see it.
#[derive(Clone, Debug)]
pub struct Container {
    /// Id.
    pub id: ContainerId,
    /// Its pod.
    pub pod: PodId,
    /// What was asked for.
    pub config: Arc<ContainerConfig>,
    /// What came of it.
    pub resolved: Arc<Resolved>,
    /// When it was made, in nanoseconds since 1970.
    pub created_at: i64,
    /// State.
    pub state: ContainerState,
}

/// What a container's request and its image came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Resolved {
    /// Id of the image.
    pub image_id: String,
    /// Reference of the image with a digest when it has one, else its id.
    pub image_ref: String,
    /// Whom the process runs as.
    pub user: User,
    /// Signal that asks it to end, by number.
    pub stop_signal: i32,
    /// The log file on the host; `None`: output is discarded.
    pub log: Option<PathBuf>,
    /// Its cgroup, as a path of the hierarchy.
    pub cgroup: String,
    /// Its limits.
    pub resources: Resources,
    /// The container of the same pod whose PID namespace it joins.
    #[serde(default)]
    pub pid_target: Option<ContainerId>,
    /// What the images among the mounts came to, by the number of the mount: a reference with a digest when
    /// there is one, else an id.
    #[serde(default)]
    pub image_mounts: BTreeMap<usize, String>,
}

/// User and groups of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// All supplementary groups, `gid` included.
    pub groups: Vec<u32>,
}

/// The state of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Made and not started.
    Created,
    /// Its process runs.
    Running {
        /// First process, as the host numbers it.
        pid: u32,
        /// When it was started, in nanoseconds since 1970.
        started_at: i64,
    },
    /// Its process is gone, or was never there because it could not be started.
    Exited(Exited),
}

impl ContainerState {
    /// The state in a word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running { .. } => "running",
            Self::Exited(_) => "exited",
        }
    }
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited {
    /// When it was started, in nanoseconds since 1970; `None`: it never was.
    pub started_at: Option<i64>,
    /// When it ended, in nanoseconds since 1970.
    pub finished_at: i64,
    /// Exit code; 128 plus the number of the signal that ended it.
    pub exit_code: i32,
    /// Why, in a word.
    pub reason: ExitReason,
    /// Why, for people; may be empty.
    pub message: String,
}

/// Why a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitReason {
    /// Exit code 0.
    Completed,
    /// Another exit code, or a signal.
    Error,
    /// The kernel killed a process of it for lack of memory.
    #[serde(rename = "OOMKilled")]
    OomKilled,
    /// It could not be started.
    StartError,
    /// Nobody saw how.
    Unknown,
}

impl ExitReason {
    /// The word that the CRI uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OomKilled => "OOMKilled",
            Self::StartError => "StartError",
            Self::Unknown => "Unknown",
        }
    }
}

/// Where pod tasks publish what readers see.
#[derive(Debug, Default)]
pub(crate) struct Board {
    current: ArcSwap<Snapshot>,
    /// Held for the microseconds in which a copy is changed and swapped in.
    writer: Mutex<()>,
}

impl Board {
    /// What readers see now.
    pub(crate) fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Replaces a pod and all its containers.
    pub(crate) fn put(&self, pod: Arc<Pod>) {
        self.change(|snapshot| {
            forget_containers(snapshot, &pod.id);
            snapshot
                .containers
                .extend(pod.containers.iter().map(|one| (one.id, pod.id)));
            snapshot.pods.insert(pod.id, pod);
        });
    }

    /// Takes a pod and all its containers away.
    pub(crate) fn remove(&self, pod: &PodId) {
        self.change(|snapshot| {
            forget_containers(snapshot, pod);
            snapshot.pods.remove(pod);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut snapshot = Snapshot::clone(&self.current.load());
        change(&mut snapshot);
        self.current.store(Arc::new(snapshot));
    }
}

fn forget_containers(snapshot: &mut Snapshot, pod: &PodId) {
    if let Some(old) = snapshot.pods.get(pod) {
        for container in &old.containers {
            snapshot.containers.remove(&container.id);
        }
    }
}
