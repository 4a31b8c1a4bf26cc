//! The task of one pod: it alone changes the pod and its containers.
//!
//! Commands and reports come in by one queue, one at a time; what readers see goes out to the board. The
//! task itself never waits: everything slow is an effect that is spawned and reports back. So a handler is
//! an ordinary function, and what it sees cannot change under it.
//!
//! The pod ([`Phase`]):
//! ```text
//!             run                     all containers at rest             taken down
//!  (nothing) ────▶ Starting ──▶ Ready ──────────────────────▶ Stopping ─────────────▶ NotReady
//!                     │          asked to stop, or its shim died                          │
//!                     │ failed, undone                                   asked to remove, │
//!                     ▼                                               no container left   ▼
//!                 (nothing) ◀─────────────────────────────────────────────────────── Removing
//! ```
//! A container ([`container::State`]):
//! ```text
//!  create             start             started            exit
//! ───────▶ Created ─────────▶ Starting ─────────▶ Running ───────▶ Exited
//!             │                   │     failed: exit code 128         ▲ │
//!             │                   └───────────────────────────────────┘ │
//!             │ asked to remove                         asked to remove │
//!             └─────────────────────▶ Removing ◀────────────────────────┘
//! ```
//! To stop and to remove are wishes, kept beside the state: `advance` looks at state and wishes after every
//! message, and starts the next effect that is due. Which command is legal when is in
//! [`admission`](crate::admission).

mod begin;
pub(crate) mod container;
mod end;
pub(crate) mod pod;
mod update;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use kelson_shim::client::{ShimError, ShimEvent};
use kelson_shim::ids::{ContainerId, PodId};
use kelson_shim::proto::Started;
use tokio::sync::oneshot;
use tracing::Instrument as _;

use crate::config::{ContainerConfig, PodConfig, Resources};
use crate::effects::start::StartError;
use crate::effects::up::Up;
use crate::effects::update::Updated;
use crate::error::PodError;
use crate::events::{Event, EventKind};
use crate::outside::{Found, Shim};
use crate::registry::{Inbox, Messages};
use crate::selinux::Held;
use crate::view::{Exited, Pod, PodState, Resolved};
use crate::world::{World, now};

use container::Container;

/// Where the result of a command goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, PodError>>;

/// What comes in.
pub(crate) enum Message {
    /// The pod is asked for; the task that is new makes it.
    Run {
        config: Box<PodConfig>,
        reply: Reply<PodId>,
    },
    Stop {
        reply: Reply<()>,
    },
    Remove {
        reply: Reply<()>,
    },
    CreateContainer {
        config: Box<ContainerConfig>,
        reply: Reply<ContainerId>,
    },
    StartContainer {
        id: ContainerId,
        reply: Reply<()>,
    },
    StopContainer {
        id: ContainerId,
        timeout: Duration,
        reply: Reply<()>,
    },
    RemoveContainer {
        id: ContainerId,
        reply: Reply<()>,
    },
    UpdateContainer {
        id: ContainerId,
        change: Box<Resources>,
        reply: Reply<()>,
    },
    UpdatePod {
        overhead: Option<Box<Resources>>,
        resources: Option<Box<Resources>>,
        reply: Reply<()>,
    },

    /// The pod was made, or everything of it is undone.
    Up(Result<Box<Up>, PodError>),
    /// The pod was taken down.
    Down(Result<(), PodError>),
    /// What was left of the pod is gone.
    Gone(Result<(), PodError>),
    /// A container was made, or everything of it is undone.
    Created {
        id: ContainerId,
        result: Result<Box<Resolved>, PodError>,
    },
    /// A container was started, or nothing of it runs.
    Started {
        id: ContainerId,
        result: Result<Started, StartError>,
    },
    /// A container's limits were changed, or not.
    ContainerUpdated {
        id: ContainerId,
        result: Result<Box<Updated>, PodError>,
        reply: Reply<()>,
    },
    /// The shim tells something.
    Shim(ShimEvent),
    /// The shim was looked for after its events ended.
    Found(Result<Box<Found>, ShimError>),
    /// A container's processes do not die.
    Stuck {
        id: ContainerId,
        after: Duration,
    },
    /// A container's cgroup is empty, and the shim has not told its exit.
    Overdue {
        id: ContainerId,
    },
    /// What became of a container was found out without the shim.
    Collected {
        id: ContainerId,
        exited: Box<Exited>,
    },
    /// A container was removed, or not.
    Removed {
        id: ContainerId,
        result: Result<(), PodError>,
    },
}

/// What the pod is doing, with what it has while it does.
pub(crate) enum Phase {
    /// It is being made; these wait for it.
    Starting { waiters: Vec<Reply<PodId>> },
    /// It runs.
    Ready(Running),
    /// It is being taken down.
    Stopping { reason: String },
    /// It is down.
    NotReady { reason: String },
    /// What is left of it is being removed.
    Removing { reason: String },
}

/// What a running pod has.
pub(crate) struct Running {
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) shim: Arc<dyn Shim>,
    pub(crate) shim_pid: u32,
    /// The init of a shared PID namespace.
    pub(crate) init_pid: Option<u32>,
    /// Why it is about to be stopped, when it is.
    pub(crate) ending: Option<String>,
}

/// A container on its way to exist.
struct Creating {
    id: ContainerId,
    config: Arc<ContainerConfig>,
    created_at: i64,
    waiters: Vec<Reply<ContainerId>>,
}

/// Whether the task goes on.
#[derive(PartialEq, Eq)]
enum Flow {
    Continue,
    End,
}

/// See the module.
pub(crate) struct PodTask {
    world: Arc<World>,
    id: PodId,
    config: Arc<PodConfig>,
    created_at: i64,
    phase: Phase,
    containers: Vec<Container>,
    creating: Vec<Creating>,
    /// Who waits for the pod to be stopped.
    stops: Vec<Reply<()>>,
    /// Who waits for the pod to be removed; empty when nobody waits, which is not the same as not wanted.
    removes: Vec<Reply<()>>,
    remove_wanted: bool,
    inbox: Inbox,
    /// Its SELinux level is its own until it is gone.
    _level: Option<Held>,
}

impl PodTask {
    /// A task in a given state; it does nothing before [`run`](Self::run).
    pub(crate) fn new(
        world: Arc<World>,
        id: PodId,
        config: Arc<PodConfig>,
        created_at: i64,
        phase: Phase,
        inbox: Inbox,
    ) -> Self {
        Self {
            _level: world.selinux.hold(&config),
            world,
            id,
            config,
            created_at,
            phase,
            containers: Vec::new(),
            creating: Vec::new(),
            stops: Vec::new(),
            removes: Vec::new(),
            remove_wanted: false,
            inbox,
        }
    }

    /// Handles messages until the pod is gone or the daemon ends.
    pub(crate) async fn run(mut self, mut messages: Messages) {
        let closing = self.world.closing.clone();
        loop {
            let message = tokio::select! {
                biased;
                message = messages.recv() => message,
                () = closing.cancelled() => return,
            };
            let Some((span, message)) = message else {
                return;
            };
            if span.in_scope(|| self.handle(message)) == Flow::End {
                return;
            }
        }
    }

    fn handle(&mut self, message: Message) -> Flow {
        match message {
            Message::Run { config, reply } => self.on_run(*config, reply),
            Message::Stop { reply } => self.on_stop(reply),
            Message::Remove { reply } => self.on_remove(reply),
            Message::CreateContainer { config, reply } => self.on_create(*config, reply),
            Message::StartContainer { id, reply } => self.on_start(id, reply),
            Message::StopContainer { id, timeout, reply } => {
                self.on_stop_container(id, timeout, reply);
            }
            Message::RemoveContainer { id, reply } => self.on_remove_container(id, reply),
            Message::UpdateContainer { id, change, reply } => {
                self.on_update_container(id, *change, reply);
            }
            Message::UpdatePod {
                overhead,
                resources,
                reply,
            } => self.on_update_pod(overhead.map(|one| *one), resources.map(|one| *one), reply),
            Message::ContainerUpdated { id, result, reply } => {
                self.on_container_updated(id, result, reply);
            }
            Message::Up(Ok(up)) => self.on_up(*up),
            Message::Up(Err(error)) => return self.on_failed(&error),
            Message::Down(result) => self.on_down(result),
            Message::Gone(Ok(())) => return self.on_gone(),
            Message::Gone(Err(error)) => self.on_still_there(&error),
            Message::Created { id, result } => self.on_created(id, result),
            Message::Started { id, result } => self.on_started(id, result),
            Message::Shim(ShimEvent::Exited { container, exit }) => self.on_exit(container, &exit),
            Message::Shim(ShimEvent::OomKilled { container }) => {
                tracing::info!(pod = %self.id, %container, "a process was killed for lack of memory");
            }
            Message::Shim(ShimEvent::Closed) => self.look_for_shim(),
            Message::Found(Ok(found)) => self.on_found(*found),
            Message::Found(Err(error)) => self.on_lost(&error),
            Message::Stuck { id, after } => self.on_stuck(id, after),
            Message::Overdue { id } => self.on_overdue(id),
            Message::Collected { id, exited } => self.on_exited(id, *exited),
            Message::Removed { id, result } => self.on_removed(id, result),
        }
        self.advance();
        Flow::Continue
    }

    /// Starts what is due by state and wishes.
    fn advance(&mut self) {
        for index in 0..self.containers.len() {
            self.advance_container(index);
        }
        self.advance_pod();
    }

    /// Runs an effect that reports back with one message.
    fn spawn(&self, effect: impl Future<Output = Message> + Send + 'static) {
        let inbox = self.inbox.clone();
        let report = async move {
            // Without a task the pod is gone, and nobody asks any more.
            let _ = inbox.send(effect.await);
        };
        self.world.effects.spawn(report.in_current_span());
    }

    /// The pod as readers see it.
    fn view(&self) -> Arc<Pod> {
        let not_ready = |reason: &String| PodState::NotReady {
            reason: reason.clone(),
        };
        let state = match &self.phase {
            Phase::Starting { .. } => not_ready(&"it is being made".to_owned()),
            Phase::Ready(running) => PodState::Ready {
                ips: running.ips.clone(),
                shim_pid: running.shim_pid,
            },
            Phase::Stopping { reason }
            | Phase::NotReady { reason }
            | Phase::Removing { reason } => not_ready(reason),
        };
        Arc::new(Pod {
            id: self.id,
            config: Arc::clone(&self.config),
            created_at: self.created_at,
            state,
            cgroup: self.world.pod_cgroup(&self.id, &self.config).0,
            containers: self
                .containers
                .iter()
                .map(|one| Arc::new(one.view(self.id)))
                .collect(),
        })
    }

    /// Shows the state to readers.
    fn publish(&self) -> Arc<Pod> {
        let view = self.view();
        self.world.board.put(Arc::clone(&view));
        view
    }

    /// Shows the state to readers, and tells what happened.
    fn announce(&self, kind: EventKind, container: Option<ContainerId>) {
        let status = self.publish();
        self.tell(kind, container, status);
    }

    fn tell(&self, kind: EventKind, container: Option<ContainerId>, status: Arc<Pod>) {
        self.world.events.tell(Event {
            kind,
            pod: self.id,
            container,
            at: now(),
            status,
        });
    }
}

/// Answers all who wait. Those who have gone do not mind.
fn answer<T: Clone>(replies: &mut Vec<Reply<T>>, result: &Result<T, PodError>) {
    for reply in replies.drain(..) {
        let _ = reply.send(result.clone());
    }
}
