//! The containers' part of a pod's task.

use std::sync::Arc;
use std::time::Duration;

use kelson_shim::ids::{ContainerId, PodId};
use kelson_shim::proto::{ContainerState as ShimContainer, Exit, Started};
use kelson_store::Batch;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Creating, Message, Phase, PodTask, Reply, answer};
use crate::admission::{self, ContainerCommand, ContainerStage, Decision, PodCommand};
use crate::config::ContainerConfig;
use crate::effects::start::StartError;
use crate::effects::{create, kill, remove, start};
use crate::error::{PodError, chain};
use crate::events::EventKind;
use crate::record::{ContainerPhase, ContainerRecord};
use crate::validate;
use crate::view::{self, ContainerState, ExitReason, Exited, Resolved};
use crate::world::now;

/// Exit code of a container that could not be started.
const START_ERROR: i32 = 128;

/// A container, its state, and what is wanted of it.
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    config: Arc<ContainerConfig>,
    resolved: Arc<Resolved>,
    created_at: i64,
    state: State,
    /// When it is to be killed at the latest, if it is to end.
    end: Option<Instant>,
    stops: Vec<Reply<()>>,
    removes: Vec<Reply<()>>,
    remove_wanted: bool,
}

/// What a container is doing, with what it has while it does.
pub(crate) enum State {
    Created,
    Starting {
        waiters: Vec<Reply<()>>,
        /// The exit can be told before the start is answered.
        early: Option<Exit>,
    },
    Running {
        pid: u32,
        started_at: i64,
        killer: Option<Killer>,
    },
    Exited(Exited),
    Removing {
        before: Box<State>,
    },
}

/// The effect that ends a running container; ended itself when dropped.
pub(crate) struct Killer {
    deadline: watch::Sender<Instant>,
    task: tokio::task::AbortHandle,
}

impl Drop for Killer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Container {
    /// A container as its record says.
    pub(crate) fn from_record(id: ContainerId, record: ContainerRecord) -> Self {
        let state = match record.state {
            ContainerPhase::Created => State::Created,
            ContainerPhase::Running { pid, started_at } => State::Running {
                pid,
                started_at,
                killer: None,
            },
            ContainerPhase::Exited(exited) => State::Exited(exited),
        };
        let (config, resolved) = (Arc::new(record.config), Arc::new(record.resolved));
        Self::new(id, config, resolved, record.created_at, state)
    }

    fn new(
        id: ContainerId,
        config: Arc<ContainerConfig>,
        resolved: Arc<Resolved>,
        created_at: i64,
        state: State,
    ) -> Self {
        Self {
            id,
            config,
            resolved,
            created_at,
            state,
            end: None,
            stops: Vec::new(),
            removes: Vec::new(),
            remove_wanted: false,
        }
    }

    fn stage(&self) -> ContainerStage {
        match &self.state {
            State::Created => ContainerStage::Created,
            State::Starting { .. } => ContainerStage::Starting,
            State::Running { .. } => ContainerStage::Running,
            State::Exited(_) => ContainerStage::Exited,
            State::Removing { .. } => ContainerStage::Removing,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    /// Whether no process of it runs or is about to.
    pub(super) fn is_at_rest(&self) -> bool {
        !matches!(self.state, State::Starting { .. } | State::Running { .. })
    }

    /// The container as readers see it.
    pub(super) fn view(&self, pod: PodId) -> view::Container {
        fn shown(state: &State) -> ContainerState {
            match state {
                State::Created | State::Starting { .. } => ContainerState::Created,
                State::Running {
                    pid, started_at, ..
                } => ContainerState::Running {
                    pid: *pid,
                    started_at: *started_at,
                },
                State::Exited(exited) => ContainerState::Exited(exited.clone()),
                State::Removing { before } => shown(before),
            }
        }
        view::Container {
            id: self.id,
            pod,
            config: Arc::clone(&self.config),
            resolved: Arc::clone(&self.resolved),
            created_at: self.created_at,
            state: shown(&self.state),
        }
    }

    fn started_at(&self) -> Option<i64> {
        match &self.state {
            State::Running { started_at, .. } => Some(*started_at),
            _ => None,
        }
    }

    fn error(&self, wanted: &'static str) -> PodError {
        let state = match self.stage() {
            ContainerStage::Created => "created",
            ContainerStage::Starting => "starting",
            ContainerStage::Running => "running",
            ContainerStage::Exited => "exited",
            ContainerStage::Removing => "being removed",
        };
        PodError::ContainerState {
            container: self.id,
            state,
            wanted,
        }
    }
}

impl PodTask {
    /// Takes over a container of an earlier daemon.
    pub(crate) fn adopt(&mut self, container: Container) {
        self.containers.push(container);
        self.containers.sort_by_key(|one| one.created_at);
    }

    fn index(&self, id: ContainerId) -> Option<usize> {
        self.containers.iter().position(|one| one.id == id)
    }

    pub(super) fn on_create(&mut self, config: ContainerConfig, reply: Reply<ContainerId>) {
        let same =
            |other: &ContainerConfig| other.name == config.name && other.attempt == config.attempt;
        if let Some(creating) = self.creating.iter_mut().find(|one| same(&one.config)) {
            if *creating.config == config {
                creating.waiters.push(reply);
            } else {
                let what = format!("container {}, which is being made,", creating.id);
                let _ = reply.send(Err(PodError::Exists { what }));
            }
            return;
        }
        if let Some(known) = self.containers.iter().find(|one| same(&one.config)) {
            let again = admission::container(known.stage(), ContainerCommand::Create);
            let result = if again == Decision::Done && *known.config == config {
                Ok(known.id)
            } else {
                Err(PodError::Exists {
                    what: format!("container {}", known.id),
                })
            };
            let _ = reply.send(result);
            return;
        }
        match self.begin_create(config) {
            Ok(creating) => {
                self.creating.push(Creating {
                    waiters: vec![reply],
                    ..creating
                });
            }
            Err(error) => {
                let _ = reply.send(Err(error));
            }
        }
    }

    fn begin_create(&self, config: ContainerConfig) -> Result<Creating, PodError> {
        let refused = |reason: &str| PodError::PodNotReady {
            pod: self.id,
            reason: reason.to_owned(),
        };
        if admission::pod(self.stage(), PodCommand::CreateContainer) == Decision::Refuse {
            return Err(match &self.phase {
                Phase::Starting { .. } => refused("it is being made"),
                Phase::Ready(running) => refused(running.ending.as_deref().unwrap_or("stopped")),
                Phase::Stopping { reason }
                | Phase::NotReady { reason }
                | Phase::Removing { reason } => refused(reason),
            });
        }
        validate::container(&config, &self.config, self.world.facts)?;
        let id = ContainerId::random().map_err(|error| PodError::step("make an id", error))?;
        let creating = Creating {
            id,
            config: Arc::new(config),
            created_at: now(),
            waiters: Vec::new(),
        };
        let request = create::Request {
            pod: self.id,
            pod_config: Arc::clone(&self.config),
            id,
            config: Arc::clone(&creating.config),
            pid_init: match &self.phase {
                Phase::Ready(running) => running.init_pid,
                _ => None,
            },
            created_at: creating.created_at,
        };
        let world = Arc::clone(&self.world);
        self.spawn(async move {
            let result = create::run(world, request).await.map(Box::new);
            Message::Created { id, result }
        });
        Ok(creating)
    }

    pub(super) fn on_created(&mut self, id: ContainerId, result: Result<Box<Resolved>, PodError>) {
        let Some(at) = self.creating.iter().position(|one| one.id == id) else {
            return;
        };
        let Creating {
            config,
            created_at,
            mut waiters,
            ..
        } = self.creating.remove(at);
        match result {
            Ok(resolved) => {
                let resolved = Arc::from(resolved);
                let container = Container::new(id, config, resolved, created_at, State::Created);
                self.containers.push(container);
                self.announce(EventKind::Created, Some(id));
                answer(&mut waiters, &Ok(id));
            }
            Err(error) => answer(&mut waiters, &Err(error)),
        }
    }

    pub(super) fn on_start(&mut self, id: ContainerId, reply: Reply<()>) {
        let Some(index) = self.index(id) else {
            let _ = reply.send(Err(PodError::NoSuchContainer(id)));
            return;
        };
        let container = &self.containers[index];
        let decision = admission::container(container.stage(), ContainerCommand::Start);
        let Phase::Ready(running) = &self.phase else {
            let reason = "it does not run".to_owned();
            let _ = reply.send(Err(PodError::PodNotReady {
                pod: self.id,
                reason,
            }));
            return;
        };
        if decision == Decision::Wish && (running.ending.is_some() || container.remove_wanted) {
            let _ = reply.send(Err(PodError::Removed {
                what: format!("container {id}"),
            }));
            return;
        }
        if decision == Decision::Wish {
            let (world, shim) = (Arc::clone(&self.world), Arc::clone(&running.shim));
            let (pod, resolved) = (self.id, Arc::clone(&container.resolved));
            self.spawn(async move {
                let result = start::run(world, shim, pod, id, resolved).await;
                Message::Started { id, result }
            });
            self.containers[index].state = State::Starting {
                waiters: vec![reply],
                early: None,
            };
            return;
        }
        match &mut self.containers[index].state {
            State::Starting { waiters, .. } => waiters.push(reply),
            _ => {
                let _ = reply.send(Err(self.containers[index].error("created")));
            }
        }
    }

    pub(super) fn on_started(&mut self, id: ContainerId, result: Result<Started, StartError>) {
        let Some(index) = self.index(id) else { return };
        let container = &mut self.containers[index];
        if !matches!(container.state, State::Starting { .. }) {
            return;
        }
        match result {
            Ok(started) => self.become_running(index, started),
            Err(error) => {
                let message = chain(&error);
                let failed = PodError::Start {
                    container: id,
                    source: Arc::new(error),
                };
                let exited = Exited {
                    started_at: None,
                    finished_at: now(),
                    exit_code: START_ERROR,
                    reason: ExitReason::StartError,
                    message,
                };
                let before = std::mem::replace(&mut container.state, State::Exited(exited));
                self.note(index);
                self.announce(EventKind::Stopped, Some(id));
                if let State::Starting { mut waiters, .. } = before {
                    answer(&mut waiters, &Err(failed));
                }
            }
        }
    }

    fn become_running(&mut self, index: usize, started: Started) {
        let container = &mut self.containers[index];
        let id = container.id;
        let running = State::Running {
            pid: started.pid,
            started_at: started.started_at,
            killer: None,
        };
        let before = std::mem::replace(&mut container.state, running);
        self.note(index);
        self.announce(EventKind::Started, Some(id));
        if let State::Starting { mut waiters, early } = before {
            answer(&mut waiters, &Ok(()));
            if let Some(exit) = early {
                self.on_exit(id, &exit);
            }
        }
    }

    pub(super) fn on_exit(&mut self, id: ContainerId, exit: &Exit) {
        let Some(index) = self.index(id) else { return };
        match &mut self.containers[index].state {
            State::Starting { early, .. } => *early = Some(*exit),
            State::Running { .. } => {
                let exited = kill::exited(self.containers[index].started_at(), exit);
                self.on_exited(id, exited);
            }
            State::Created | State::Exited(_) | State::Removing { .. } => {}
        }
    }

    /// A running container is gone.
    pub(super) fn on_exited(&mut self, id: ContainerId, exited: Exited) {
        let Some(index) = self.index(id) else { return };
        let container = &mut self.containers[index];
        if !container.is_running() {
            return;
        }
        container.state = State::Exited(exited);
        // Where the kernel did not end everything with the first process, the rest ends now.
        let (world, cgroup) = (Arc::clone(&self.world), container.resolved.cgroup.clone());
        let effects = self.world.effects.clone();
        effects.spawn(async move {
            let left = world.blocking(move |world| {
                world.cgroups.kill(&cgroup, crate::world::KILL_TIMEOUT)
            });
            if let Err(error) = left.await {
                tracing::warn!(container = %id, error = %chain(&error), "processes of an exited container stay");
            }
        });
        self.note(index);
        self.announce(EventKind::Stopped, Some(id));
    }

    pub(super) fn on_stop_container(
        &mut self,
        id: ContainerId,
        timeout: Duration,
        reply: Reply<()>,
    ) {
        let Some(index) = self.index(id) else {
            let _ = reply.send(Ok(()));
            return;
        };
        let container = &mut self.containers[index];
        if admission::container(container.stage(), ContainerCommand::Stop) == Decision::Done {
            let _ = reply.send(Ok(()));
            return;
        }
        container.stops.push(reply);
        sooner(&mut container.end, timeout);
    }

    pub(super) fn on_remove_container(&mut self, id: ContainerId, reply: Reply<()>) {
        let Some(index) = self.index(id) else {
            let _ = reply.send(Ok(()));
            return;
        };
        let container = &mut self.containers[index];
        container.removes.push(reply);
        container.remove_wanted = true;
    }

    /// Starts what is due for one container.
    pub(super) fn advance_container(&mut self, index: usize) {
        let ending = matches!(&self.phase, Phase::Ready(running) if running.ending.is_some());
        let pod_goes = self.remove_wanted && matches!(self.phase, Phase::NotReady { .. });
        let container = &mut self.containers[index];
        container.remove_wanted |= pod_goes && container.is_at_rest();
        match &container.state {
            State::Running { .. } => {
                if ending || container.remove_wanted {
                    sooner(&mut container.end, Duration::ZERO);
                }
                self.drive_killer(index);
            }
            State::Created | State::Exited(_) => {
                answer(&mut container.stops, &Ok(()));
                if container.remove_wanted {
                    self.begin_remove(index);
                }
            }
            State::Starting { .. } | State::Removing { .. } => {}
        }
    }

    /// Sees to it that a container that is to end is being ended, by the earliest deadline.
    fn drive_killer(&mut self, index: usize) {
        let Phase::Ready(running) = &self.phase else {
            return;
        };
        let container = &mut self.containers[index];
        let (Some(end), State::Running { pid, killer, .. }) = (container.end, &mut container.state)
        else {
            return;
        };
        if let Some(killer) = killer {
            killer.deadline.send_if_modified(|at| {
                let earlier = end < *at;
                *at = end.min(*at);
                earlier
            });
            return;
        }
        let (deadline, receiver) = watch::channel(end);
        let target = kill::Target {
            id: container.id,
            pid: *pid,
            cgroup: container.resolved.cgroup.clone(),
            signal: container.resolved.stop_signal,
        };
        let (world, shim) = (Arc::clone(&self.world), Arc::clone(&running.shim));
        let effect = kill::run(world, shim, target, receiver, self.inbox.clone());
        let task = self.world.effects.spawn(effect).abort_handle();
        *killer = Some(Killer { deadline, task });
    }

    fn begin_remove(&mut self, index: usize) {
        let shim = match &self.phase {
            Phase::Ready(running) => Some(Arc::clone(&running.shim)),
            _ => None,
        };
        let container = &mut self.containers[index];
        let before = Box::new(std::mem::replace(&mut container.state, State::Created));
        container.state = State::Removing { before };
        let (world, pod, id) = (Arc::clone(&self.world), self.id, container.id);
        let cgroup = container.resolved.cgroup.clone();
        self.spawn(async move {
            let result = remove::container(world, shim, pod, id, cgroup).await;
            Message::Removed { id, result }
        });
    }

    pub(super) fn on_removed(&mut self, id: ContainerId, result: Result<(), PodError>) {
        let Some(index) = self.index(id) else { return };
        match result {
            Ok(()) => {
                let last = self.view();
                let mut container = self.containers.remove(index);
                self.publish();
                self.tell(EventKind::Deleted, Some(id), last);
                answer(&mut container.removes, &Ok(()));
                answer(&mut container.stops, &Ok(()));
            }
            Err(error) => {
                let container = &mut self.containers[index];
                let state = std::mem::replace(&mut container.state, State::Created);
                container.state = match state {
                    State::Removing { before } => *before,
                    other => other,
                };
                container.remove_wanted = false;
                answer(&mut container.removes, &Err(error.clone()));
                if self.remove_wanted {
                    // The pod cannot be removed either, and is asked again.
                    self.remove_wanted = false;
                    answer(&mut self.removes, &Err(error));
                }
            }
        }
    }

    /// Whoever waits for the end of a container hears that it does not come; it is tried on.
    pub(super) fn on_stuck(&mut self, id: ContainerId, after: Duration) {
        let Some(index) = self.index(id) else { return };
        let error = PodError::Stuck {
            container: id,
            after,
        };
        let container = &mut self.containers[index];
        answer(&mut container.stops, &Err(error.clone()));
        answer(&mut container.removes, &Err(error.clone()));
        answer(&mut self.stops, &Err(error.clone()));
        answer(&mut self.removes, &Err(error));
    }

    pub(super) fn on_overdue(&mut self, id: ContainerId) {
        if let Some(index) = self
            .index(id)
            .filter(|index| self.containers[*index].is_running())
        {
            tracing::warn!(container = %id, "the shim does not tell a container's exit");
            self.collect(index);
        }
    }

    /// Finds out without the shim what became of a container.
    pub(super) fn collect(&self, index: usize) {
        let container = &self.containers[index];
        let (world, pod, id) = (Arc::clone(&self.world), self.id, container.id);
        let (cgroup, started_at) = (container.resolved.cgroup.clone(), container.started_at());
        self.spawn(async move {
            let exited = kill::collect(&world, pod, id, cgroup, started_at).await;
            Message::Collected {
                id,
                exited: Box::new(exited),
            }
        });
    }

    /// Takes over what the shim knows of a container.
    pub(super) fn on_shim_state(&mut self, found: &ShimContainer) {
        let Some(index) = self.index(found.id) else {
            // It was removed, and the shim did not hear of it.
            if let Phase::Ready(running) = &self.phase {
                let (shim, id) = (Arc::clone(&running.shim), found.id);
                self.world.effects.spawn(async move {
                    if let Err(error) = shim.forget(id, crate::world::SHIM_CALL).await {
                        tracing::warn!(container = %id, error = %chain(&error), "an unknown container stays");
                    }
                });
            }
            return;
        };
        if matches!(self.containers[index].state, State::Created) {
            self.become_running(index, found.started);
        }
        if let Some(exit) = &found.exit {
            self.on_exit(found.id, exit);
        }
    }

    /// Saves a container's state. The shim and its exit record hold the truth, so nobody waits for this.
    pub(super) fn note(&self, index: usize) {
        let container = &self.containers[index];
        let state = match &container.state {
            State::Running {
                pid, started_at, ..
            } => ContainerPhase::Running {
                pid: *pid,
                started_at: *started_at,
            },
            State::Exited(exited) => ContainerPhase::Exited(exited.clone()),
            State::Created | State::Starting { .. } | State::Removing { .. } => {
                ContainerPhase::Created
            }
        };
        let record = ContainerRecord {
            pod: self.id,
            config: ContainerConfig::clone(&container.config),
            resolved: Resolved::clone(&container.resolved),
            created_at: container.created_at,
            state,
        };
        let mut batch = Batch::new();
        match batch.put(container.id.as_str(), &record) {
            Ok(_) => self.world.journal.note(batch),
            Err(error) => {
                tracing::error!(container = %container.id, error = %chain(&error), "a container's state is not saved");
            }
        }
    }
}

/// Moves a deadline nearer.
fn sooner(end: &mut Option<Instant>, timeout: Duration) {
    // A timeout beyond what the clock can hold is a day.
    let at = Instant::now()
        .checked_add(timeout)
        .unwrap_or_else(|| Instant::now() + Duration::from_secs(24 * 3600));
    *end = Some(end.map_or(at, |known| known.min(at)));
}
