//! Containers come to life: made, started, taken over from an earlier daemon.

use std::sync::Arc;

use kelson_shim::ids::ContainerId;
use kelson_shim::proto::{ContainerState as ShimContainer, Started};
use kelson_store::Batch;

use super::container::{Container, State};
use super::{Creating, Message, Phase, PodTask, Reply, answer};
use crate::admission::{self, ContainerCommand, Decision, PodCommand};
use crate::config::{ContainerConfig, NamespaceMode};
use crate::effects::start::StartError;
use crate::effects::{create, start};
use crate::error::{PodError, chain};
use crate::events::EventKind;
use crate::record::{ContainerPhase, ContainerRecord};
use crate::validate;
use crate::view::{ExitReason, Exited, Resolved};
use crate::world::{SHIM_CALL, now};

/// Exit code of a container that could not be started.
const START_ERROR: i32 = 128;

impl PodTask {
    /// Takes over a container of an earlier daemon.
    pub(crate) fn adopt(&mut self, container: Container) {
        self.containers.push(container);
        self.containers.sort_by_key(|one| one.created_at);
    }

    pub(super) fn index(&self, id: ContainerId) -> Option<usize> {
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
        let pid_target = self.find_target(&config)?;
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
            pid_target,
            created_at: creating.created_at,
        };
        let world = Arc::clone(&self.world);
        self.spawn(async move {
            let result = create::run(world, request).await.map(Box::new);
            Message::Created { id, result }
        });
        Ok(creating)
    }

    /// The running container of this pod whose PID namespace a new one is to join.
    fn find_target(&self, config: &ContainerConfig) -> Result<Option<ContainerId>, PodError> {
        const FIELD: &str = "linux.security_context.namespace_options.target_id";
        let wanted = config.security.target_id.as_str();
        if config.security.pid != Some(NamespaceMode::Target) {
            return Ok(None);
        }
        let mut found = self
            .containers
            .iter()
            .filter(|one| one.id.as_str().starts_with(wanted));
        let Some(target) = found.next() else {
            let short: String = wanted.chars().take(80).collect();
            let problem = format!("there is no container {short:?} in pod {}", self.id);
            return Err(PodError::invalid(FIELD, problem));
        };
        if found.next().is_some() {
            return Err(PodError::invalid(FIELD, "is the start of several ids"));
        }
        if target.is_running() {
            return Ok(Some(target.id));
        }
        let state = target.stage().name();
        let target = target.id;
        Err(PodError::Target { target, state })
    }

    /// The process to join the PID namespace of when `container` starts.
    fn target_of(&self, container: &Container) -> Result<Option<(ContainerId, u32)>, PodError> {
        let Some(target) = container.resolved.pid_target else {
            return Ok(None);
        };
        let found = self.containers.iter().find(|one| one.id == target);
        match found.map(|one| (&one.state, one.stage())) {
            Some((State::Running { pid, .. }, _)) => Ok(Some((target, *pid))),
            Some((_, stage)) => Err(PodError::Target {
                target,
                state: stage.name(),
            }),
            None => Err(PodError::Target {
                target,
                state: "removed",
            }),
        }
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
        if let Some(waiting) = &mut self.containers[index].updating {
            // It starts with its new limits.
            waiting.push(Message::StartContainer { id, reply });
            return;
        }
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
            let resolved = Arc::clone(&container.resolved);
            let target = self.target_of(container);
            self.spawn(async move {
                let result = match target {
                    Ok(target) => start::run(world, shim, id, resolved, target).await,
                    Err(error) => Err(StartError::Target(error)),
                };
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

    /// Takes over what the shim knows of a container.
    pub(super) fn on_shim_state(&mut self, found: &ShimContainer) {
        let Some(index) = self.index(found.id) else {
            // It was removed, and the shim did not hear of it.
            if let Phase::Ready(running) = &self.phase {
                let (shim, id) = (Arc::clone(&running.shim), found.id);
                self.world.effects.spawn(async move {
                    if let Err(error) = shim.forget(id, SHIM_CALL).await {
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
