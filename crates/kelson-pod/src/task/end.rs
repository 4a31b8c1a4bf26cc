//! Containers come to their end: they exit, are stopped, are removed, or do not die.

use std::sync::Arc;
use std::time::Duration;

use kelson_shim::ids::ContainerId;
use kelson_shim::proto::Exit;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::container::{Killer, State};
use super::{Message, Phase, PodTask, Reply, answer};
use crate::admission::{self, ContainerCommand, Decision};
use crate::effects::{kill, remove};
use crate::error::{PodError, chain};
use crate::events::EventKind;
use crate::view::Exited;
use crate::world::KILL_TIMEOUT;

impl PodTask {
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
                world.cgroups.kill(&cgroup, KILL_TIMEOUT)
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
        let effect = effect.in_current_span();
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
}

/// Moves a deadline nearer.
fn sooner(end: &mut Option<Instant>, timeout: Duration) {
    // A timeout beyond what the clock can hold is a day.
    let at = Instant::now()
        .checked_add(timeout)
        .unwrap_or_else(|| Instant::now() + Duration::from_secs(24 * 3600));
    *end = Some(end.map_or(at, |known| known.min(at)));
}
