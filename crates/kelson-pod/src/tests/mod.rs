//! Tests of whole lives of pods on a machine of fakes, with a real store and a real snapshotter.

mod fakes;
mod lives;
mod recovery;
mod sessions;
mod trouble;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kelson_snapshot::Overlayfs;

use crate::apparmor::AppArmor;
use crate::config::{ContainerConfig, ImageSpec, NamespaceMode, PodConfig, PodMetadata};
use crate::recover::Services;
use crate::selinux::Policy;
use crate::validate::Facts;
use crate::view::{Container, ContainerState, Exited};
use crate::{ContainerId, Event, Events, PodId, Pods, PodsConfig, Received};

use fakes::Machine;

/// A node in a directory of its own, on a machine of fakes.
struct Node {
    dir: tempfile::TempDir,
    machine: Machine,
    pods: Pods,
}

impl Node {
    async fn new() -> Self {
        Self::on(Machine::default()).await
    }

    async fn on(machine: Machine) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pods = open(dir.path().to_owned(), &machine).await;
        Self { dir, machine, pods }
    }

    /// Ends the daemon and starts another one on what it left.
    async fn restart(self) -> Self {
        self.pods.shutdown().await;
        let Self { dir, machine, pods } = self;
        drop(pods);
        let pods = open(dir.path().to_owned(), &machine).await;
        Self { dir, machine, pods }
    }

    fn snapshots(&self) -> Vec<String> {
        self.pods.world().snapshots.containers()
    }

    /// Whether nothing is left of any pod.
    fn is_clean(&self) -> bool {
        let dirs = std::fs::read_dir(self.dir.path().join("run/pods"))
            .unwrap()
            .count();
        let world = self.pods.world();
        let pods = world
            .store
            .scan::<crate::record::PodRecord>()
            .unwrap()
            .records
            .len();
        let containers = world
            .store
            .scan::<crate::record::ContainerRecord>()
            .unwrap()
            .records
            .len();
        let specs = world
            .store
            .scan::<crate::record::SpecRecord>()
            .unwrap()
            .records
            .len();
        self.machine.is_empty()
            && self.snapshots().is_empty()
            && (dirs, pods, containers, specs) == (0, 0, 0, 0)
    }

    async fn pod(&self) -> PodId {
        self.pods.run_pod(pod_config("web")).await.unwrap()
    }

    /// A pod with one running container.
    async fn running(&self) -> (PodId, ContainerId) {
        let pod = self.pod().await;
        let container = self
            .pods
            .create_container(&pod, container_config("main"))
            .await
            .unwrap();
        self.pods.start_container(&container).await.unwrap();
        (pod, container)
    }

    fn container(&self, id: ContainerId) -> Arc<Container> {
        Arc::clone(self.pods.snapshot().container(&id).unwrap().1)
    }

    fn exited(&self, id: ContainerId) -> Exited {
        match &self.container(id).state {
            ContainerState::Exited(exited) => exited.clone(),
            other => panic!("{other:?}"),
        }
    }
}

async fn open(dir: PathBuf, machine: &Machine) -> Pods {
    let machine = Arc::new(machine.clone());
    // The lock of the directory goes with the last user of the one before.
    let snapshots = until(|| Overlayfs::open(&dir.join("lib"), Default::default()).ok()).await;
    let config = PodsConfig {
        root: dir.join("lib"),
        state: dir.join("run"),
        unset_seccomp: crate::config::Profile::Unconfined,
        start_timeout: Duration::from_secs(5),
        ..PodsConfig::default()
    };
    let services = || Services {
        shims: machine.clone(),
        network: machine.clone(),
        cgroups: machine.clone(),
        images: machine.clone(),
        snapshots: Arc::new(snapshots.clone()),
        apparmor: AppArmor::none(),
        selinux: Policy::made_up(&dir.join("selinux")),
    };
    let facts = Facts {
        user_namespaces: Ok(()),
        cgroup_v2: false,
        driver: machine.things().driver,
    };
    for _ in 0..500 {
        match Pods::with(config.clone(), services(), facts).await {
            Err(crate::OpenError::Store(kelson_store::OpenError::InUse { .. })) => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            other => return other.unwrap(),
        }
    }
    panic!("the store stays in use");
}

/// Waits until something is there.
async fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..2000 {
        if let Some(found) = look() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it did not come");
}

fn pod_config(name: &str) -> PodConfig {
    PodConfig {
        metadata: PodMetadata {
            name: name.into(),
            namespace: "default".into(),
            uid: format!("uid-{name}"),
            attempt: 0,
        },
        namespaces: crate::config::PodNamespaces {
            pid: NamespaceMode::Container,
            ..Default::default()
        },
        ..PodConfig::default()
    }
}

fn container_config(name: &str) -> ContainerConfig {
    let mut config = ContainerConfig {
        name: name.into(),
        image: ImageSpec {
            image: "busybox".into(),
            ..ImageSpec::default()
        },
        ..ContainerConfig::default()
    };
    config.security.seccomp = None;
    config
}

/// The next events as `kind` or `kind container`.
async fn next_events(events: &mut Events, count: usize) -> Vec<(crate::EventKind, bool)> {
    let mut all = Vec::new();
    while all.len() < count {
        let received = tokio::time::timeout(Duration::from_secs(10), events.recv()).await;
        let Some(Received::Event(event)) = received.expect("an event comes") else {
            panic!("events were missed")
        };
        let Event {
            kind, container, ..
        } = &*event;
        all.push((*kind, container.is_some()));
    }
    all
}
