//! The start: what an earlier daemon left is found, taken over, finished or undone, before anybody is
//! served. All pods are recovered side by side, so one that does not answer delays nobody but the answer.
//!
//! What exists is found by what is on disk: records in the store, directories of pods, records of network
//! attachments, writable directories of containers. Whatever has no record belongs to nobody and goes.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kelson_shim::ids::{ContainerId, PodId};
use kelson_snapshot::Snapshotter;
use kelson_store::{Scan, Store};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::apparmor::AppArmor;
use crate::checkpoint::Underway;
use crate::effects::{kill, up};
use crate::error::{OpenError, chain};
use crate::events::Announcer;
use crate::filters::Filters;
use crate::janitor::{self, Debt};
use crate::journal::Journal;
use crate::outside::{Cgroups, ImageSource, PodNetwork, Shims};
use crate::pods::PodsConfig;
use crate::record::{ContainerPhase, ContainerRecord, PodPhase, PodRecord};
use crate::registry::{Inbox, Registry};
use crate::selinux::Policy;
use crate::task::container::Container;
use crate::task::{Phase, PodTask, Running, pod};
use crate::validate::Facts;
use crate::view::Board;
use crate::world::World;
use crate::{checkpoint, files, machine};

/// The longest that the start waits for pods of dead shims to be taken down.
const SETTLE: Duration = Duration::from_secs(10);

/// What pods need of the rest of the program.
pub(crate) struct Services {
    pub(crate) shims: Arc<dyn Shims>,
    pub(crate) network: Arc<dyn PodNetwork>,
    pub(crate) cgroups: Arc<dyn Cgroups>,
    pub(crate) images: Arc<dyn ImageSource>,
    pub(crate) snapshots: Arc<dyn Snapshotter>,
    pub(crate) apparmor: AppArmor,
    pub(crate) selinux: Policy,
}

/// Opens the state and recovers.
pub(crate) async fn open(
    config: PodsConfig,
    services: Services,
    facts: Facts,
) -> Result<Arc<World>, OpenError> {
    let pods_dir = config.state.join("pods");
    files::make_dir(&pods_dir).map_err(|error| OpenError::Io {
        operation: error.operation,
        path: error.path,
        source: error.source,
    })?;
    let path = config.state.join("pods.redb");
    let store = Store::open(&path)?;
    let journal = Journal::start(store.clone()).map_err(|source| OpenError::Io {
        operation: "start a thread for",
        path,
        source,
    })?;
    let world = Arc::new(World {
        rules: machine::rules(&config, facts.cgroup_v2),
        boot: machine::boot_id(),
        facts,
        store,
        journal,
        shims: services.shims,
        network: services.network,
        cgroups: services.cgroups,
        images: services.images,
        snapshots: services.snapshots,
        filters: Filters::default(),
        apparmor: services.apparmor,
        selinux: services.selinux,
        board: Board::default(),
        events: Announcer::new(),
        registry: Registry::default(),
        underway: Underway::default(),
        effects: TaskTracker::new(),
        closing: CancellationToken::new(),
        config,
    });
    for container in world.snapshots.containers() {
        if let Ok(rootfs) = world.snapshots.rootfs(&container) {
            checkpoint::clean(&rootfs.upper);
        }
    }
    let records = Records::read(&world)?;
    recover(&world, records).await;
    Ok(world)
}

/// What the store holds.
struct Records {
    pods: Vec<(PodId, PodRecord)>,
    containers: HashMap<PodId, Vec<(ContainerId, ContainerRecord)>>,
    /// Every id that has a record, readable or not: what belongs to it is left alone.
    recorded: HashSet<String>,
}

impl Records {
    fn read(world: &World) -> Result<Self, OpenError> {
        let pods: Scan<PodRecord> = world.store.scan()?;
        let containers: Scan<ContainerRecord> = world.store.scan()?;
        let mut recorded = HashSet::new();
        for unreadable in pods.unreadable.iter().chain(&containers.unreadable) {
            tracing::error!(error = %chain(unreadable), "a record is left alone, and with it what it is about");
            recorded.insert(unreadable.key.clone());
        }
        let mut found = Self {
            pods: Vec::new(),
            containers: HashMap::new(),
            recorded,
        };
        for (key, record) in containers.records {
            found.recorded.insert(key.clone());
            if let Ok(id) = key.parse() {
                found
                    .containers
                    .entry(record.pod)
                    .or_default()
                    .push((id, record));
            }
        }
        for (key, record) in pods.records {
            found.recorded.insert(key.clone());
            if let Ok(id) = key.parse() {
                found.pods.push((id, record));
            }
        }
        Ok(found)
    }
}

async fn recover(world: &Arc<World>, mut records: Records) {
    let mut work = JoinSet::new();
    for (id, record) in records.pods {
        let containers = records.containers.remove(&id).unwrap_or_default();
        work.spawn(recover_pod(Arc::clone(world), id, record, containers));
    }
    for debt in orphans(world, &records.recorded) {
        let world = Arc::clone(world);
        work.spawn(async move {
            tracing::info!(?debt, "something that belongs to nobody is removed");
            if !janitor::pay(&world, &debt).await {
                janitor::owe(&world, debt);
            }
        });
    }
    while let Some(result) = work.join_next().await {
        if let Err(error) = result {
            tracing::error!(%error, "a pod was not recovered");
        }
    }
    world.empty_trash();
}

/// What exists without a record.
fn orphans(world: &World, recorded: &HashSet<String>) -> Vec<Debt> {
    let mut debts = Vec::new();
    for (name, path) in directories(world) {
        if !recorded.contains(&name) {
            debts.push(Debt::Directory(path));
            if let Ok(id) = name.parse::<PodId>() {
                debts.push(Debt::Cgroup(world.pod_cgroup(&id, &Default::default()).0));
            }
        }
    }
    let containers = world.snapshots.containers();
    debts.extend(
        containers
            .into_iter()
            .filter(|id| !recorded.contains(id))
            .map(Debt::Snapshot),
    );
    let attached = world
        .network
        .recorded()
        .into_iter()
        .filter(|id| !recorded.contains(id));
    debts.extend(attached.filter_map(|id| id.parse().ok()).map(Debt::Network));
    debts
}

fn directories(world: &World) -> Vec<(String, PathBuf)> {
    let dir = world.pods_dir();
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) => {
            tracing::warn!(dir = %dir.display(), %error, "leftover directories of pods cannot be found");
            return Vec::new();
        }
    };
    entries
        .flatten()
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .collect()
}

async fn recover_pod(
    world: Arc<World>,
    id: PodId,
    record: PodRecord,
    containers: Vec<(ContainerId, ContainerRecord)>,
) {
    let config = Arc::new(record.config);
    if record.phase == PodPhase::Starting {
        tracing::info!(pod = %id, "a pod that was not finished is undone");
        up::undo(&world, &id, &config).await;
        return;
    }
    let (inbox, messages) = Inbox::new();
    world.registry.adopt(&config.metadata, id, inbox.clone());
    let not_ready = |reason: &str| Phase::NotReady {
        reason: reason.to_owned(),
    };
    let mut unfinished = None;
    let mut connected = None;
    let phase = match record.phase {
        PodPhase::NotReady { reason, clean } => {
            if !clean {
                unfinished = Some(reason.clone());
            }
            not_ready(&reason)
        }
        PodPhase::Starting => not_ready("it was not finished"),
        PodPhase::Ready { .. } if record.boot != world.boot => {
            unfinished = Some("the machine was restarted".to_owned());
            not_ready("the machine was restarted")
        }
        PodPhase::Ready {
            ips,
            shim_pid,
            init_pid,
        } => {
            connected = Some(pod::find_shim(&world, world.pod_dir(&id)).await);
            let (shim_pid, init_pid) = match &connected {
                Some(Ok(found)) => (found.state.shim.pid, found.state.shim.init_pid),
                _ => (shim_pid, init_pid),
            };
            let shim = world.shims.at(world.pod_dir(&id));
            Phase::Ready(Running {
                ips,
                shim,
                shim_pid,
                init_pid,
                ending: None,
            })
        }
    };
    let ready = matches!(phase, Phase::Ready(_));
    let mut task = PodTask::new(
        Arc::clone(&world),
        id,
        config,
        record.created_at,
        phase,
        inbox,
    );
    for (container, record) in containers {
        let record = if ready {
            record
        } else {
            ended(&world, id, container, record).await
        };
        task.adopt(Container::from_record(container, record));
    }
    let settled = task.resume(connected, unfinished);
    tokio::spawn(task.run(messages));
    // So that the first answers are right, also about a pod whose shim is dead.
    let _ = tokio::time::timeout(SETTLE, settled).await;
}

/// A container of a pod that is down does not run any more.
async fn ended(
    world: &Arc<World>,
    pod: PodId,
    id: ContainerId,
    record: ContainerRecord,
) -> ContainerRecord {
    let ContainerPhase::Running { started_at, .. } = record.state else {
        return record;
    };
    let cgroup = record.resolved.cgroup.clone();
    let exited = kill::collect(world, pod, id, cgroup, Some(started_at)).await;
    ContainerRecord {
        state: ContainerPhase::Exited(exited),
        ..record
    }
}
