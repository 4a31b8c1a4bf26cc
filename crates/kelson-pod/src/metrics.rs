//! Everything that is counted of pods and containers, for monitoring: more than [`stats`](crate::stats),
//! and several times as expensive, because every process is looked at.

use std::path::Path;
use std::sync::Arc;

use kelson_cgroup::Stats;
use kelson_shim::ids::PodId;

use crate::stats::{Collector, WritableUsage, interfaces_of, is_running, present};
use crate::view::{Container, ContainerState, Pod};
use crate::world::{World, now};

/// Most processes of one container whose descriptors are counted.
const MAX_PROCESSES: usize = 4096;
/// Most descriptors that are counted of one process.
const MAX_DESCRIPTORS: usize = 1 << 20;

/// A ready pod, its interfaces, and its running containers.
#[derive(Clone, Debug)]
pub struct PodMetrics {
    /// The pod.
    pub pod: Arc<Pod>,
    /// When this was read, in nanoseconds since 1970.
    pub at: i64,
    /// Its interfaces without `lo`, the default one first; empty on the host's network.
    pub network: Vec<kelson_network::InterfaceStats>,
    /// Its running containers.
    pub containers: Vec<ContainerMetrics>,
}

/// A running container.
#[derive(Clone, Debug)]
pub struct ContainerMetrics {
    /// The container.
    pub container: Arc<Container>,
    /// When this was read, in nanoseconds since 1970.
    pub at: i64,
    /// When it was started, in nanoseconds since 1970.
    pub started_at: i64,
    /// All that its cgroup counts.
    pub cgroup: Stats,
    /// How many of its processes were killed for lack of memory.
    pub oom_kills: u64,
    /// Its processes.
    pub processes: Processes,
    /// Its writable directory; `None`: not measured yet.
    pub writable: Option<WritableUsage>,
}

/// What was seen of a container's processes, of at most 4096 of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Processes {
    /// How many there are.
    pub count: u64,
    /// Their open descriptors.
    pub descriptors: u64,
    /// How many of those are sockets.
    pub sockets: u64,
    /// How many files the first process may open; `None`: no limit, or not known.
    pub open_files_limit: Option<u64>,
}

impl Collector {
    /// The metrics of these pods, in the order of `ids`; those that are not ready are left out.
    pub(crate) async fn metrics(
        self: &Arc<Self>,
        world: &Arc<World>,
        ids: &[PodId],
    ) -> Vec<PodMetrics> {
        let snapshot = world.board.load();
        let pods: Vec<Arc<Pod>> = ids
            .iter()
            .filter_map(|id| snapshot.pod(id))
            .filter(|pod| pod.is_ready())
            .cloned()
            .collect();
        let running = pods.iter().flat_map(|pod| &pod.containers);
        let running = running.filter(|one| is_running(one)).cloned().collect();
        self.measure(world, running).await;
        let collector = Arc::clone(self);
        world
            .blocking(move |world| {
                pods.into_iter()
                    .map(|pod| collector.pod_metrics(world, pod))
                    .collect()
            })
            .await
    }

    fn pod_metrics(&self, world: &World, pod: Arc<Pod>) -> PodMetrics {
        PodMetrics {
            at: now(),
            network: interfaces_of(&pod),
            containers: pod
                .containers
                .iter()
                .filter_map(|one| self.container_metrics(world, one))
                .collect(),
            pod,
        }
    }

    fn container_metrics(
        &self,
        world: &World,
        container: &Arc<Container>,
    ) -> Option<ContainerMetrics> {
        let ContainerState::Running { pid, started_at } = container.state else {
            return None;
        };
        let at = now();
        let path = container.resolved.cgroup.as_str();
        let cgroup = present(path, world.cgroups.stats(path))?;
        Some(ContainerMetrics {
            at,
            started_at,
            cgroup,
            // What cannot be read now counts as nothing; the next question sees it.
            oom_kills: world.cgroups.oom_kills(path).unwrap_or_default(),
            processes: processes(
                Path::new("/proc"),
                pid,
                &world.cgroups.pids(path).unwrap_or_default(),
            ),
            writable: self.known_writable(&container.id),
            container: Arc::clone(container),
        })
    }
}

fn processes(proc_root: &Path, first: u32, pids: &[u32]) -> Processes {
    let mut seen = Processes {
        count: pids.len() as u64,
        open_files_limit: open_files_limit(proc_root, first),
        ..Processes::default()
    };
    for pid in pids.iter().take(MAX_PROCESSES) {
        // A process that has ended meanwhile has no descriptors.
        let Ok(entries) = std::fs::read_dir(proc_root.join(pid.to_string()).join("fd")) else {
            continue;
        };
        for entry in entries.flatten().take(MAX_DESCRIPTORS) {
            seen.descriptors += 1;
            let target = std::fs::read_link(entry.path());
            let socket =
                target.is_ok_and(|to| to.as_os_str().as_encoded_bytes().starts_with(b"socket:"));
            seen.sockets += u64::from(socket);
        }
    }
    seen
}

fn open_files_limit(proc_root: &Path, pid: u32) -> Option<u64> {
    let limits = std::fs::read_to_string(proc_root.join(pid.to_string()).join("limits")).ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_and_sockets_of_this_process_are_counted() {
        let own = std::process::id();
        let before = processes(Path::new("/proc"), own, &[own]);
        let pairs: Vec<_> = (0..8)
            .map(|_| std::os::unix::net::UnixStream::pair().unwrap())
            .collect();
        let after = processes(Path::new("/proc"), own, &[own]);
        // Other tests of this process open and close files meanwhile.
        assert!(
            after.sockets >= 16 && after.descriptors > after.sockets,
            "{before:?} {after:?}"
        );
        assert_eq!((after.count, pairs.len()), (1, 8));
        assert!(after.open_files_limit.is_some_and(|limit| limit > 0));
        let gone = processes(Path::new("/nonexistent"), 1, &[1, 2]);
        assert_eq!(
            gone,
            Processes {
                count: 2,
                ..Processes::default()
            }
        );
    }
}
