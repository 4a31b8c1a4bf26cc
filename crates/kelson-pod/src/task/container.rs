//! A container as its pod's task holds it: its state, and what is wanted of it.

use std::sync::Arc;

use kelson_shim::ids::{ContainerId, PodId};
use kelson_shim::proto::Exit;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Message, Reply};
use crate::admission::ContainerStage;
use crate::config::ContainerConfig;
use crate::error::PodError;
use crate::record::{ContainerPhase, ContainerRecord};
use crate::view::{self, ContainerState, Exited, Resolved};

/// A container, its state, and what is wanted of it.
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    pub(super) config: Arc<ContainerConfig>,
    pub(super) resolved: Arc<Resolved>,
    pub(super) created_at: i64,
    pub(super) state: State,
    /// When it is to be killed at the latest, if it is to end.
    pub(super) end: Option<Instant>,
    pub(super) stops: Vec<Reply<()>>,
    pub(super) removes: Vec<Reply<()>>,
    pub(super) remove_wanted: bool,
    /// What waits for the end of the update under way, if there is one.
    pub(super) updating: Option<Vec<Message>>,
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
    pub(super) deadline: watch::Sender<Instant>,
    pub(super) task: tokio::task::AbortHandle,
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

    pub(super) fn new(
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
            updating: None,
        }
    }

    pub(super) fn stage(&self) -> ContainerStage {
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

    pub(super) fn started_at(&self) -> Option<i64> {
        match &self.state {
            State::Running { started_at, .. } => Some(*started_at),
            _ => None,
        }
    }

    pub(super) fn error(&self, wanted: &'static str) -> PodError {
        PodError::ContainerState {
            container: self.id,
            state: self.stage().name(),
            wanted,
        }
    }
}
