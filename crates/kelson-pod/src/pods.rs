//! The handle to all pods: what the CRI server calls.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{ContainerConfig, PodConfig, Profile};
use crate::error::{ExecError, OpenError, PodError};
use crate::events::{Announcer, Events};
use crate::stats::{ContainerStats, PodStats};
use crate::view::{Board, Snapshot};
use crate::{ContainerId, PodId};

/// Bytes kept of each of the two outputs of [`Pods::exec_sync`]; the rest is read and dropped.
pub const MAX_EXEC_OUTPUT: usize = 16 << 20;

/// Settings of the node.
#[derive(Clone, Debug)]
pub struct PodsConfig {
    /// Directory of what must survive a reboot, such as `/var/lib/kelson`.
    pub root: PathBuf,
    /// Directory of what need not, on tmpfs, such as `/run/kelson`.
    pub state: PathBuf,
    /// The program that is run as `<program> zygote`, usually `/proc/self/exe`.
    pub program: PathBuf,
    /// cgroup beneath which pods without a parent get theirs, such as `/kelson`.
    pub cgroup_prefix: String,
    /// Seccomp profile of a container whose security context names none. The field's runtimes and
    /// their conformance tests expect `Unconfined`.
    pub unset_seccomp: Profile,
    /// Largest number of processes of a container; `None`: no limit.
    pub pids_limit: Option<i64>,
    /// Resource limits of containers (`RLIMIT_NOFILE`, soft, hard); what is not named is inherited.
    pub rlimits: Vec<(String, u64, u64)>,
    /// Whether an OOM score below the daemon's own is raised to it instead of being refused by the kernel.
    pub restrict_oom_score_adj: bool,
    /// Size in bytes of a pod's `/dev/shm`.
    pub shm_size: u64,
    /// How long a shim may take to come up, and to start a container.
    pub start_timeout: Duration,
    /// How old a measurement of a writable directory may be.
    pub writable_usage_age: Duration,
    /// The file that pods without DNS settings get a copy of.
    pub host_resolv_conf: PathBuf,
    /// The file whose entries follow the pod's own in its `/etc/hosts`.
    pub host_hosts: PathBuf,
}

impl Default for PodsConfig {
    fn default() -> Self {
        Self {
            root: "/var/lib/kelson".into(),
            state: "/run/kelson".into(),
            program: "/proc/self/exe".into(),
            cgroup_prefix: "/kelson".into(),
            unset_seccomp: Profile::Unconfined,
            pids_limit: None,
            rlimits: Vec::new(),
            restrict_oom_score_adj: false,
            shm_size: 64 << 20,
            start_timeout: Duration::from_secs(60),
            writable_usage_age: Duration::from_secs(10),
            host_resolv_conf: "/etc/resolv.conf".into(),
            host_hosts: "/etc/hosts".into(),
        }
    }
}

/// What a command wrote and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// Standard output, at most [`MAX_EXEC_OUTPUT`] bytes.
    pub stdout: Vec<u8>,
    /// Standard error, at most [`MAX_EXEC_OUTPUT`] bytes.
    pub stderr: Vec<u8>,
    /// Exit code; 128 plus the number of the signal that ended it.
    pub exit_code: i32,
}

/// All pods of the node. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Pods(Arc<Inner>);

struct Inner {
    board: Board,
    events: Announcer,
}

#[expect(
    clippy::unused_async,
    clippy::unimplemented,
    unused_variables,
    reason = "signatures first"
)]
impl Pods {
    /// Opens the node's state and recovers everything before it returns: reconnects to living shims,
    /// collects exits that nobody saw, finishes or undoes what was under way, removes what belongs to
    /// nobody.
    pub async fn open(
        config: PodsConfig,
        // images: kelson_image::Images,
        snapshotter: Arc<kelson_snapshot::Overlayfs>,
        network: kelson_network::Network,
        cgroups: kelson_cgroup::Hierarchy,
    ) -> Result<Self, OpenError> {
        unimplemented!()
    }

    /// Makes and starts a pod. The same request again joins the one under way, or gets the pod it made.
    pub async fn run_pod(&self, config: PodConfig) -> Result<PodId, PodError> {
        unimplemented!()
    }

    /// Stops a pod: its containers are killed, its network is given back. Idempotent; an unknown pod is
    /// stopped.
    pub async fn stop_pod(&self, pod: &PodId) -> Result<(), PodError> {
        unimplemented!()
    }

    /// Removes a pod and its containers, stopping it first. Idempotent; an unknown pod is removed.
    pub async fn remove_pod(&self, pod: &PodId) -> Result<(), PodError> {
        unimplemented!()
    }

    /// Makes a container in a ready pod. The same request again joins the one under way, or gets the
    /// container it made.
    pub async fn create_container(
        &self,
        pod: &PodId,
        config: ContainerConfig,
    ) -> Result<ContainerId, PodError> {
        unimplemented!()
    }

    /// Starts a container. When that fails, the container is exited with code 128.
    pub async fn start_container(&self, container: &ContainerId) -> Result<(), PodError> {
        unimplemented!()
    }

    /// Asks a container to end, and kills it after `timeout`. Idempotent; an unknown container is stopped.
    /// Calls at the same time join; the earliest end of a timeout counts.
    pub async fn stop_container(
        &self,
        container: &ContainerId,
        timeout: Duration,
    ) -> Result<(), PodError> {
        unimplemented!()
    }

    /// Removes a container, killing it first. Idempotent; an unknown container is removed. Its log file
    /// stays.
    pub async fn remove_container(&self, container: &ContainerId) -> Result<(), PodError> {
        unimplemented!()
    }

    /// Runs a command in a running container and waits for its end.
    pub async fn exec_sync(
        &self,
        container: &ContainerId,
        cmd: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, ExecError> {
        unimplemented!()
    }

    /// Makes a running container's log file anew under its name; the old one was renamed by the caller.
    pub async fn reopen_log(&self, container: &ContainerId) -> Result<(), PodError> {
        unimplemented!()
    }

    /// All pods and containers now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.0.board.load()
    }

    /// What these containers use; unknown ones are left out.
    pub async fn container_stats(&self, containers: &[ContainerId]) -> Vec<ContainerStats> {
        unimplemented!()
    }

    /// What these pods use; unknown ones are left out.
    pub async fn pod_stats(&self, pods: &[PodId]) -> Vec<PodStats> {
        unimplemented!()
    }

    /// What happens from now on.
    pub fn events(&self) -> Events {
        self.0.events.subscribe()
    }

    /// Ends all work of this handle. Pods stay, and are found again by the next [`Pods::open`].
    pub async fn shutdown(&self) {
        unimplemented!()
    }
}
