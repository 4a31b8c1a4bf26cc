//! What pods and containers use, read straight from the kernel when somebody asks.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kelson_cgroup::Stats;
use kelson_shim::ids::{ContainerId, PodId};

use crate::config::NamespaceMode;
use crate::error::chain;
use crate::view::{Container, ContainerState, Pod, PodState, Snapshot};
use crate::world::{World, now};

/// What a container uses.
#[derive(Clone, Debug)]
pub struct ContainerStats {
    /// The container.
    pub container: Arc<Container>,
    /// When this was read, in nanoseconds since 1970.
    pub at: i64,
    /// Its cgroup, without what [`kelson_cgroup::Cgroup::usage`] leaves out; `None`: the container does not
    /// run.
    pub cgroup: Option<Stats>,
    /// CPU time used a second, in nanoseconds, since the sample before; `None`: this is the first one.
    pub usage_nano_cores: Option<u64>,
    /// Its writable directory; `None`: not measured yet (it is, in the background).
    pub writable: Option<WritableUsage>,
}

/// Disk space of a container's writable directory.
#[derive(Clone, Debug)]
pub struct WritableUsage {
    /// When this was measured, in nanoseconds since 1970.
    pub at: i64,
    /// The directory.
    pub directory: PathBuf,
    /// Space.
    pub usage: kelson_snapshot::Usage,
}

/// What a pod uses.
#[derive(Clone, Debug)]
pub struct PodStats {
    /// The pod.
    pub pod: Arc<Pod>,
    /// When this was read, in nanoseconds since 1970.
    pub at: i64,
    /// Its cgroup; `None`: it has none (any more).
    pub cgroup: Option<Stats>,
    /// CPU time used a second, in nanoseconds, since the sample before; `None`: this is the first one.
    pub usage_nano_cores: Option<u64>,
    /// Its interfaces without `lo`, the default one first; empty on the host's network.
    pub network: Vec<kelson_network::InterfaceStats>,
    /// Its running containers.
    pub containers: Vec<ContainerStats>,
}

/// Samples closer together than this say nothing about the CPU; the older answer is given again.
const LEAST_INTERVAL_NS: i64 = 50_000_000;
/// How long the first measurement of a writable directory is waited for.
const FIRST_MEASURE: Duration = Duration::from_millis(200);

/// The CPU time of something when it was last asked for.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: i64,
    usage_ns: u64,
    nano_cores: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct Writable {
    known: Option<WritableUsage>,
    measuring: bool,
}

/// What is remembered between two questions. Nobody polls: samples are taken when somebody asks.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    /// By cgroup path.
    samples: Mutex<HashMap<String, Sample>>,
    writable: Mutex<HashMap<ContainerId, Writable>>,
}

impl Collector {
    /// What these containers use, in the order of `ids`; unknown ones are left out.
    pub(crate) async fn containers(
        self: &Arc<Self>,
        world: &Arc<World>,
        ids: &[ContainerId],
    ) -> Vec<ContainerStats> {
        let snapshot = world.board.load();
        let wanted: Vec<Arc<Container>> = ids
            .iter()
            .filter_map(|id| snapshot.container(id))
            .map(|(_, one)| Arc::clone(one))
            .collect();
        self.prune(&snapshot);
        let measured = self.measure(world, wanted.clone());
        let collector = Arc::clone(self);
        let read = world.blocking(move |world| {
            wanted
                .into_iter()
                .map(|one| collector.read(world, one))
                .collect::<Vec<_>>()
        });
        let (mut all, ()) = tokio::join!(read, measured);
        let known = lock(&self.writable);
        for one in &mut all {
            one.writable = known
                .get(&one.container.id)
                .and_then(|writable| writable.known.clone());
        }
        drop(known);
        all
    }

    /// What these pods use, in the order of `ids`; unknown ones are left out.
    pub(crate) async fn pods(self: &Arc<Self>, world: &Arc<World>, ids: &[PodId]) -> Vec<PodStats> {
        let snapshot = world.board.load();
        let pods: Vec<Arc<Pod>> = ids
            .iter()
            .filter_map(|id| snapshot.pod(id))
            .cloned()
            .collect();
        let containers = pods.iter().flat_map(|pod| &pod.containers);
        let running: Vec<ContainerId> = containers
            .filter(|one| is_running(one))
            .map(|one| one.id)
            .collect();
        let containers = self.containers(world, &running).await;
        let collector = Arc::clone(self);
        let read = world.blocking(move |world| {
            pods.into_iter()
                .map(|pod| collector.read_pod(world, pod))
                .collect::<Vec<_>>()
        });
        let mut all = read.await;
        let places: HashMap<PodId, usize> = all
            .iter()
            .enumerate()
            .map(|(place, one)| (one.pod.id, place))
            .collect();
        for one in containers {
            if let Some(place) = places.get(&one.container.pod) {
                all[*place].containers.push(one);
            }
        }
        all
    }

    fn read(&self, world: &World, container: Arc<Container>) -> ContainerStats {
        let at = now();
        let running = is_running(&container);
        let path = container.resolved.cgroup.as_str();
        let cgroup = if running {
            present(path, world.cgroups.usage(path))
        } else {
            None
        };
        let usage_nano_cores = cgroup
            .as_ref()
            .and_then(|stats| self.sample(path, at, stats.cpu.usage_ns));
        ContainerStats {
            at,
            cgroup,
            usage_nano_cores,
            writable: None,
            container,
        }
    }

    fn read_pod(&self, world: &World, pod: Arc<Pod>) -> PodStats {
        let at = now();
        let cgroup = if pod.is_ready() {
            present(&pod.cgroup, world.cgroups.stats(&pod.cgroup))
        } else {
            None
        };
        let usage_nano_cores = cgroup
            .as_ref()
            .and_then(|stats| self.sample(&pod.cgroup, at, stats.cpu.usage_ns));
        let network = interfaces_of(&pod);
        PodStats {
            pod,
            at,
            cgroup,
            usage_nano_cores,
            network,
            containers: Vec::new(),
        }
    }

    /// Remembers a sample; the CPU time a second since the one before.
    fn sample(&self, path: &str, at: i64, usage_ns: u64) -> Option<u64> {
        let mut samples = lock(&self.samples);
        let before = samples.get(path).copied();
        let nano_cores = match before {
            None => None,
            Some(before) if at - before.at < LEAST_INTERVAL_NS => return before.nano_cores,
            Some(before) => {
                let used = u128::from(usage_ns.saturating_sub(before.usage_ns));
                let elapsed = u128::from((at - before.at).unsigned_abs());
                u64::try_from(used * 1_000_000_000 / elapsed).ok()
            }
        };
        samples.insert(
            path.to_owned(),
            Sample {
                at,
                usage_ns,
                nano_cores,
            },
        );
        nano_cores
    }

    /// Measures writable directories that were not measured for a while, in the background; waits a
    /// moment for those that were never measured.
    pub(crate) async fn measure(
        self: &Arc<Self>,
        world: &Arc<World>,
        containers: Vec<Arc<Container>>,
    ) {
        let oldest = now().saturating_sub(
            i64::try_from(world.config.writable_usage_age.as_nanos()).unwrap_or(i64::MAX),
        );
        let (mut first, mut again) = (Vec::new(), Vec::new());
        for container in containers {
            let mut known = lock(&self.writable);
            let writable = known.entry(container.id).or_default();
            let stale = writable
                .known
                .as_ref()
                .is_none_or(|usage| usage.at < oldest);
            if stale && !writable.measuring {
                writable.measuring = true;
                let list = if writable.known.is_none() {
                    &mut first
                } else {
                    &mut again
                };
                list.push(container.id);
            }
        }
        let start = |ids: Vec<ContainerId>| {
            let (collector, world) = (Arc::clone(self), Arc::clone(world));
            tokio::task::spawn_blocking(move || {
                for id in ids {
                    collector.measure_one(&world, id);
                }
            })
        };
        if !again.is_empty() {
            drop(start(again));
        }
        if !first.is_empty() {
            // Late or not, it is remembered for the next time.
            let _ = tokio::time::timeout(FIRST_MEASURE, start(first)).await;
        }
    }

    /// The last measurement of a container's writable directory.
    pub(crate) fn known_writable(&self, id: &ContainerId) -> Option<WritableUsage> {
        lock(&self.writable).get(id)?.known.clone()
    }

    fn measure_one(&self, world: &World, id: ContainerId) {
        let at = now();
        let measured = world.snapshots.usage(id.as_str()).and_then(|usage| {
            let directory = world.snapshots.rootfs(id.as_str())?.upper;
            Ok(WritableUsage {
                at,
                directory,
                usage,
            })
        });
        let mut known = lock(&self.writable);
        let Some(writable) = known.get_mut(&id) else {
            return;
        };
        writable.measuring = false;
        match measured {
            Ok(usage) => writable.known = Some(usage),
            Err(error) => {
                tracing::debug!(container = %id, error = %chain(&error), "a writable directory is not measured");
            }
        }
    }

    /// Forgets what is about containers and pods that are gone.
    fn prune(&self, snapshot: &Snapshot) {
        lock(&self.writable).retain(|id, _| snapshot.container(id).is_some());
        let mut samples = lock(&self.samples);
        let count = snapshot.pods().count() + snapshot.containers().count();
        if samples.len() > count {
            let pods = snapshot.pods().map(|pod| pod.cgroup.as_str());
            let containers = snapshot
                .containers()
                .map(|(_, one)| one.resolved.cgroup.as_str());
            let live: HashSet<&str> = pods.chain(containers).collect();
            samples.retain(|path, _| live.contains(path.as_str()));
        }
    }
}

pub(crate) fn is_running(container: &Container) -> bool {
    matches!(container.state, ContainerState::Running { .. })
}

/// What was read of a cgroup, if it is there.
pub(crate) fn present(path: &str, read: kelson_cgroup::Result<Option<Stats>>) -> Option<Stats> {
    read.unwrap_or_else(|error| {
        tracing::debug!(path, error = %chain(&error), "a cgroup cannot be read");
        None
    })
}

/// A ready pod's interfaces, as [`PodStats::network`] has them.
pub(crate) fn interfaces_of(pod: &Pod) -> Vec<kelson_network::InterfaceStats> {
    match &pod.state {
        PodState::Ready { shim_pid, .. }
            if pod.config.namespaces.network != NamespaceMode::Node =>
        {
            interfaces(*shim_pid)
        }
        _ => Vec::new(),
    }
}

/// The interfaces in a shim's network namespace, `eth0` first, without `lo`.
fn interfaces(shim_pid: u32) -> Vec<kelson_network::InterfaceStats> {
    match kelson_network::interface_stats(Path::new("/proc"), shim_pid) {
        Ok(mut all) => {
            all.retain(|one| one.name != "lo");
            all.sort_by_key(|one| one.name != "eth0");
            all
        }
        Err(error) => {
            tracing::debug!(error = %chain(&error), "interfaces cannot be read");
            Vec::new()
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_a_second_is_the_difference_of_two_samples() {
        let collector = Collector::default();
        let second = 1_000_000_000;
        assert_eq!(collector.sample("a", second, 500), None);
        assert_eq!(
            collector.sample("a", 3 * second, 1_000_000_500),
            Some(500_000_000)
        );
        // Too close together: the answer before stands, and so does the sample.
        assert_eq!(
            collector.sample("a", 3 * second + 1, 1_000_000_900),
            Some(500_000_000)
        );
        assert_eq!(collector.sample("a", 4 * second, 1_000_000_500), Some(0));
        // A counter that went backwards is no negative usage.
        assert_eq!(collector.sample("a", 5 * second, 5), Some(0));
        assert_eq!(collector.sample("b", 5 * second, 5), None);
    }
}
