//! The handle to all pods: what the CRI server calls.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kelson_cgroup::Hierarchy;
use kelson_cgroup::systemd::slice_path;
use kelson_shim::client::{Session, Zygote};
use kelson_shim::proto::TerminalSize;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::apparmor::AppArmor;
use crate::config::{ContainerConfig, PodConfig, Profile, Resources};
use crate::error::{DialError, ExecError, OpenError, PodError, chain};
use crate::events::Events;
use crate::exec::Command;
use crate::metrics::PodMetrics;
use crate::outside::Cgroups;
use crate::recover::{self, Services};
use crate::registry::Inbox;
use crate::selinux::{Policy, SelinuxError};
use crate::stats::{Collector, ContainerStats, PodStats};
use crate::task::{Message, Phase, PodTask, Reply};
use crate::units::Units;
use crate::validate::{self, Facts};
use crate::view::{ContainerState, Snapshot};
use crate::world::{SHIM_CALL, World, now};
use crate::{ContainerId, PodId, checkpoint, exec, machine};

/// How long [`Pods::shutdown`] waits for what is under way.
const DRAIN: Duration = Duration::from_secs(10);

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
    /// cgroup beneath which pods without a parent get theirs, such as `/kelson`; with systemd the slice
    /// of that name, `kelson.slice`.
    pub cgroup_prefix: String,
    /// Who makes cgroups.
    pub cgroup_driver: CgroupDriver,
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
    /// Whether a container gets writable copies of the directories that its image declares as volumes.
    pub image_volumes: bool,
    /// Annotations of pods and containers that hooks and runtimes are told: names, or starts of names with
    /// `*` after them.
    pub passed_annotations: Vec<String>,
    /// Whether every user of a pod with a network of its own may bind ports below 1024 and send pings.
    pub unprivileged_ports: bool,
    /// Whether containers may make cgroups in their own, on cgroup v2.
    pub writable_cgroups: bool,
    /// Whether device nodes are given to the user and the group that a request names, as it does for its
    /// process.
    pub device_owner: bool,
    /// Whether containers get SELinux labels, on a machine where SELinux is on.
    pub selinux: bool,
    /// Directories of files that describe CDI devices; a later one wins.
    pub cdi_dirs: Vec<PathBuf>,
    /// CRIU, a path or a name; `None`: containers are neither checkpointed nor restored.
    pub criu: Option<PathBuf>,
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
            cgroup_driver: CgroupDriver::default(),
            unset_seccomp: Profile::Unconfined,
            pids_limit: None,
            rlimits: Vec::new(),
            restrict_oom_score_adj: false,
            shm_size: 64 << 20,
            start_timeout: Duration::from_secs(60),
            writable_usage_age: Duration::from_secs(10),
            image_volumes: true,
            passed_annotations: Vec::new(),
            unprivileged_ports: true,
            writable_cgroups: false,
            device_owner: false,
            selinux: false,
            cdi_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            criu: None,
            host_resolv_conf: "/etc/resolv.conf".into(),
            host_hosts: "/etc/hosts".into(),
        }
    }
}

/// Who makes the cgroups of pods and containers, and keeps their limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupDriver {
    /// Kelson, in the cgroup file system.
    #[default]
    Cgroupfs,
    /// systemd, as slices and scopes.
    Systemd,
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

/// A label that cannot be set, for whom asked for it.
pub(crate) fn selinux_error(error: SelinuxError) -> PodError {
    match &error {
        SelinuxError::Unknown { .. } => {
            PodError::invalid("linux.security_context.selinux_options", chain(&error))
        }
        _ => PodError::step("give an SELinux label", error),
    }
}

fn driver(files: Hierarchy, config: &PodsConfig) -> Result<Arc<dyn Cgroups>, OpenError> {
    match config.cgroup_driver {
        CgroupDriver::Cgroupfs => Ok(Arc::new(files)),
        CgroupDriver::Systemd => {
            let prefix = &config.cgroup_prefix;
            slice_path(&slice_of(prefix)).map_err(|source| OpenError::Cgroup {
                prefix: prefix.clone(),
                source,
            })?;
            let units = Units::new(files, &config.program).map_err(OpenError::Systemd)?;
            Ok(Arc::new(units))
        }
    }
}

/// The slice that stands for a prefix: `/a/b` is `a-b.slice`.
pub(crate) fn slice_of(prefix: &str) -> String {
    format!("{}.slice", prefix.trim_matches('/').replace('/', "-"))
}

/// All pods of the node. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Pods {
    world: Arc<World>,
    collector: Arc<Collector>,
}

impl Pods {
    /// Opens the node's state and recovers everything before it returns: reconnects to living shims,
    /// collects exits that nobody saw, finishes or undoes what was under way, removes what belongs to
    /// nobody.
    pub async fn open(
        config: PodsConfig,
        images: kelson_image::Images,
        snapshotter: Arc<kelson_snapshot::Overlayfs>,
        network: kelson_network::Network,
        cgroups: Hierarchy,
    ) -> Result<Self, OpenError> {
        let zygote = Zygote::start(&config.program, &config.state).map_err(OpenError::Zygote)?;
        let facts = machine::facts(&cgroups, &config);
        let cgroups = driver(cgroups, &config)?;
        let services = Services {
            shims: Arc::new(zygote),
            network: Arc::new(network),
            cgroups,
            images: Arc::new(images),
            snapshots: snapshotter,
            apparmor: AppArmor::host(),
            selinux: Policy::host(config.selinux)?,
        };
        Self::with(config, services, facts).await
    }

    /// Who makes cgroups.
    pub fn cgroup_driver(&self) -> CgroupDriver {
        self.world.facts.driver
    }

    /// As [`open`](Self::open), with any services.
    pub(crate) async fn with(
        config: PodsConfig,
        services: Services,
        facts: Facts,
    ) -> Result<Self, OpenError> {
        let world = recover::open(config, services, facts).await?;
        Ok(Self {
            world,
            collector: Arc::default(),
        })
    }

    /// Whether pods can have user namespaces on this machine.
    pub fn user_namespaces(&self) -> bool {
        self.world.facts.user_namespaces.is_ok()
    }

    /// Makes and starts a pod. The same request again joins the one under way, or gets the pod it made.
    pub async fn run_pod(&self, mut config: PodConfig) -> Result<PodId, PodError> {
        self.check_open()?;
        validate::pod(&config, self.world.facts)?;
        let _level = self
            .world
            .selinux
            .assign(&mut config)
            .map_err(selinux_error)?;
        let id = PodId::random().map_err(|error| PodError::step("make an id", error))?;
        let name = config.metadata.clone();
        let mut task = None;
        let (inbox, _) = self.world.registry.claim(&name, || {
            let (inbox, messages) = Inbox::new();
            task = Some((inbox.clone(), messages));
            (id, inbox)
        });
        let (reply, result) = oneshot::channel();
        if let Some((inbox, messages)) = task {
            let (world, config) = (Arc::clone(&self.world), Arc::new(config));
            let phase = Phase::Starting {
                waiters: vec![reply],
            };
            let task = PodTask::new(world, id, config, now(), phase, inbox);
            task.begin();
            tokio::spawn(task.run(messages));
        } else {
            // A task that has just ended drops the message, and with it the reply.
            let _ = inbox.send(Message::Run {
                config: Box::new(config),
                reply,
            });
        }
        result
            .await
            .unwrap_or_else(|_| Err(self.no_answer(&format!("pod {id}"))))
    }

    /// Stops a pod: its containers are killed, its network is given back. Idempotent; an unknown pod is
    /// stopped.
    pub async fn stop_pod(&self, pod: &PodId) -> Result<(), PodError> {
        self.ask(self.world.registry.find(pod), |reply| Message::Stop {
            reply,
        })
        .await
    }

    /// Removes a pod and its containers, stopping it first. Idempotent; an unknown pod is removed.
    pub async fn remove_pod(&self, pod: &PodId) -> Result<(), PodError> {
        self.ask(self.world.registry.find(pod), |reply| Message::Remove {
            reply,
        })
        .await
    }

    /// Makes a container in a ready pod. The same request again joins the one under way, or gets the
    /// container it made.
    pub async fn create_container(
        &self,
        pod: &PodId,
        config: ContainerConfig,
    ) -> Result<ContainerId, PodError> {
        self.check_open()?;
        let inbox = self
            .world
            .registry
            .find(pod)
            .ok_or(PodError::NoSuchPod(*pod))?;
        let (reply, result) = oneshot::channel();
        let _ = inbox.send(Message::CreateContainer {
            config: Box::new(config),
            reply,
        });
        result
            .await
            .unwrap_or_else(|_| Err(self.no_answer(&format!("pod {pod}"))))
    }

    /// Starts a container. When that fails, the container is exited with code 128.
    pub async fn start_container(&self, container: &ContainerId) -> Result<(), PodError> {
        self.check_open()?;
        let id = *container;
        let inbox = self
            .task_of(container)
            .ok_or(PodError::NoSuchContainer(id))?;
        let (reply, result) = oneshot::channel();
        let _ = inbox.send(Message::StartContainer { id, reply });
        result
            .await
            .unwrap_or_else(|_| Err(self.no_answer(&format!("container {id}"))))
    }

    /// Asks a container to end, and kills it after `timeout`. Idempotent; an unknown container is stopped.
    /// Calls at the same time join; the earliest end of a timeout counts.
    pub async fn stop_container(
        &self,
        container: &ContainerId,
        timeout: Duration,
    ) -> Result<(), PodError> {
        let id = *container;
        self.ask(self.task_of(container), |reply| Message::StopContainer {
            id,
            timeout,
            reply,
        })
        .await
    }

    /// Removes a container, killing it first. Idempotent; an unknown container is removed. Its log file
    /// stays.
    pub async fn remove_container(&self, container: &ContainerId) -> Result<(), PodError> {
        let id = *container;
        self.ask(self.task_of(container), |reply| Message::RemoveContainer {
            id,
            reply,
        })
        .await
    }

    /// Changes what a created or running container may use: fields that are given; zero and empty ones stay
    /// as they are. Memory below what is in use is refused, and after any error nothing has changed.
    pub async fn update_container(
        &self,
        container: &ContainerId,
        change: Resources,
    ) -> Result<(), PodError> {
        self.check_open()?;
        let (id, change) = (*container, Box::new(change));
        let inbox = self.task_of(container);
        let inbox = inbox.ok_or(PodError::NoSuchContainer(id))?;
        let (reply, result) = oneshot::channel();
        let _ = inbox.send(Message::UpdateContainer { id, change, reply });
        result
            .await
            .unwrap_or_else(|_| Err(self.no_answer(&format!("container {id}"))))
    }

    /// Keeps what a ready pod's containers need beside themselves, and what all of it may use. The pod's
    /// cgroup is its owner's to change.
    pub async fn update_pod(
        &self,
        pod: &PodId,
        overhead: Option<Resources>,
        resources: Option<Resources>,
    ) -> Result<(), PodError> {
        self.check_open()?;
        let inbox = self.world.registry.find(pod);
        let inbox = inbox.ok_or(PodError::NoSuchPod(*pod))?;
        let (reply, result) = oneshot::channel();
        let _ = inbox.send(Message::UpdatePod {
            overhead: overhead.map(Box::new),
            resources: resources.map(Box::new),
            reply,
        });
        result
            .await
            .unwrap_or_else(|_| Err(self.no_answer(&format!("pod {pod}"))))
    }

    /// Runs a command in a running container and waits for its end. A `timeout` of zero is none.
    pub async fn exec_sync(
        &self,
        container: &ContainerId,
        cmd: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, ExecError> {
        if self.world.closing.is_cancelled() {
            return Err(ExecError::Closing);
        }
        let command = Command {
            cmd,
            timeout: timeout.filter(|timeout| !timeout.is_zero()),
            ..Command::default()
        };
        exec::run(&self.world, *container, command).await
    }

    /// Runs a command in a running container with its input and output in a session; in a terminal of
    /// the given size, if it is known. When the session is dropped, the command's input ends and its
    /// terminal hangs up; it goes on without them, and ends with its container at the latest.
    pub async fn exec_stream(
        &self,
        container: &ContainerId,
        cmd: Vec<String>,
        tty: bool,
        stdin: bool,
        size: Option<TerminalSize>,
    ) -> Result<Session, ExecError> {
        if self.world.closing.is_cancelled() {
            return Err(ExecError::Closing);
        }
        let command = Command {
            cmd,
            tty,
            stdin,
            size,
            timeout: None,
            detach: true,
        };
        exec::stream(&self.world, *container, command).await
    }

    /// Attaches to a running container: what it writes from now on, until it has exited, and its
    /// standard input if it was created with one. A session that is not read for half a second is
    /// ended, so that the container and its log go on.
    pub async fn attach(&self, container: &ContainerId, stdin: bool) -> Result<Session, ExecError> {
        if self.world.closing.is_cancelled() {
            return Err(ExecError::Closing);
        }
        exec::attach(&self.world, *container, stdin).await
    }

    /// Connects to a port of a ready pod, as its own processes do by `localhost`: 127.0.0.1 first, then
    /// ::1. A pod on the host's network has the host's ports.
    pub async fn dial(&self, pod: &PodId, port: u16) -> Result<TcpStream, DialError> {
        if self.world.closing.is_cancelled() {
            return Err(DialError::Closing);
        }
        exec::dial(&self.world, *pod, port).await
    }

    /// Makes a running container's log file anew under its name; the old one was renamed by the caller.
    pub async fn reopen_log(&self, container: &ContainerId) -> Result<(), PodError> {
        self.check_open()?;
        let snapshot = self.world.board.load();
        let Some((pod, found)) = snapshot.container(container) else {
            return Err(PodError::NoSuchContainer(*container));
        };
        if !matches!(found.state, ContainerState::Running { .. }) {
            let (container, state) = (*container, found.state.name());
            return Err(PodError::ContainerState {
                container,
                state,
                wanted: "running",
            });
        }
        let shim = self.world.shims.at(self.world.pod_dir(&pod.id));
        let reopened = shim.reopen(*container, SHIM_CALL).await;
        reopened.map_err(|error| PodError::step("reopen the container's log", error))
    }

    /// Writes the processes and changed files of a running container into an archive at `location`, with
    /// mode 0600, and lets it go on. Without a `timeout` it may take two minutes.
    pub async fn checkpoint(
        &self,
        container: &ContainerId,
        location: PathBuf,
        timeout: Option<Duration>,
    ) -> Result<(), PodError> {
        self.check_open()?;
        checkpoint::run(&self.world, *container, location, timeout).await
    }

    /// All pods and containers now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.world.board.load()
    }

    /// What these containers use; unknown ones are left out.
    pub async fn container_stats(&self, containers: &[ContainerId]) -> Vec<ContainerStats> {
        self.collector.containers(&self.world, containers).await
    }

    /// What these pods use; unknown ones are left out.
    pub async fn pod_stats(&self, pods: &[PodId]) -> Vec<PodStats> {
        self.collector.pods(&self.world, pods).await
    }

    /// Everything that is counted of these pods; those that are not ready are left out. This costs
    /// several times as much as [`Pods::pod_stats`].
    pub async fn metrics(&self, pods: &[PodId]) -> Vec<PodMetrics> {
        self.collector.metrics(&self.world, pods).await
    }

    /// What happens from now on.
    pub fn events(&self) -> Events {
        self.world.events.subscribe()
    }

    /// Ends all work of this handle: waits a while for what is under way, and lets go. Pods stay, and are
    /// found again by the next [`Pods::open`].
    pub async fn shutdown(&self) {
        self.world.closing.cancel();
        self.world.effects.close();
        if tokio::time::timeout(DRAIN, self.world.effects.wait())
            .await
            .is_err()
        {
            tracing::warn!("work is still under way; the next start finishes or undoes it");
        }
        // Everything handed to the journal before is written when this is.
        let _ = self.world.journal.commit(kelson_store::Batch::new()).await;
    }

    #[cfg(test)]
    pub(crate) fn world(&self) -> Arc<World> {
        Arc::clone(&self.world)
    }

    fn check_open(&self) -> Result<(), PodError> {
        if self.world.closing.is_cancelled() {
            Err(PodError::Closing)
        } else {
            Ok(())
        }
    }

    fn task_of(&self, container: &ContainerId) -> Option<Inbox> {
        let snapshot = self.world.board.load();
        let (pod, _) = snapshot.container(container)?;
        self.world.registry.find(&pod.id)
    }

    /// Asks for something that is so already where there is nobody to ask.
    async fn ask(
        &self,
        inbox: Option<Inbox>,
        message: impl FnOnce(Reply<()>) -> Message,
    ) -> Result<(), PodError> {
        self.check_open()?;
        let Some(inbox) = inbox else { return Ok(()) };
        let (reply, result) = oneshot::channel();
        let _ = inbox.send(message(reply));
        match result.await {
            Ok(result) => result,
            Err(_) => self.check_open(),
        }
    }

    /// The task ended before it answered.
    fn no_answer(&self, what: &str) -> PodError {
        match self.check_open() {
            Err(closing) => closing,
            Ok(()) => PodError::Removed {
                what: what.to_owned(),
            },
        }
    }
}

impl std::fmt::Debug for Pods {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pods")
            .field("state", &self.world.config.state)
            .finish_non_exhaustive()
    }
}
