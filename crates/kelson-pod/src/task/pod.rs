//! The pod's own part of its task: made, stopped, removed, and what happens when its shim dies.

use std::path::PathBuf;
use std::sync::Arc;

use kelson_shim::client::ShimError;
use kelson_shim::proto::PodState as ShimState;
use tokio::sync::oneshot;

use super::{Flow, Message, Phase, PodTask, Reply, Running, answer};
use crate::PodId;
use crate::admission::{self, Decision, PodCommand, PodStage};
use crate::config::PodConfig;
use crate::effects::up::Up;
use crate::effects::{down, remove, up};
use crate::error::{PodError, chain};
use crate::events::EventKind;
use crate::outside::{Found, ShimEvents};
use crate::world::{SHIM_CALL, World};

/// How often a shim that does not answer is asked before it is given up.
const TRIES: usize = 3;

/// The reason of a pod that was asked to stop.
const STOPPED: &str = "stopped";

impl PodTask {
    pub(super) fn stage(&self) -> PodStage {
        match &self.phase {
            Phase::Starting { .. } => PodStage::Starting,
            Phase::Ready(Running { ending: None, .. }) => PodStage::Ready,
            Phase::Ready(_) => PodStage::Ending,
            Phase::Stopping { .. } => PodStage::Stopping,
            Phase::NotReady { .. } => PodStage::NotReady,
            Phase::Removing { .. } => PodStage::Removing,
        }
    }

    /// Starts to make the pod: the first thing a new task does.
    pub(crate) fn begin(&self) {
        let (world, id, config) = (Arc::clone(&self.world), self.id, Arc::clone(&self.config));
        let created_at = self.created_at;
        self.spawn(async move {
            Message::Up(up::run(world, id, config, created_at).await.map(Box::new))
        });
    }

    pub(super) fn on_run(&mut self, config: PodConfig, reply: Reply<PodId>) {
        let exists = || PodError::Exists {
            what: format!("pod {}", self.id),
        };
        let result = match admission::pod(self.stage(), PodCommand::Run) {
            _ if !same_request(&config, &self.config) => Err(exists()),
            Decision::Done => Ok(self.id),
            Decision::Join | Decision::Wish => {
                if let Phase::Starting { waiters } = &mut self.phase {
                    waiters.push(reply);
                    return;
                }
                Err(exists())
            }
            Decision::Refuse => Err(exists()),
        };
        let _ = reply.send(result);
    }

    pub(super) fn on_up(&mut self, up: Up) {
        let running = Running {
            ips: up.ips,
            shim: self.world.shims.at(self.world.pod_dir(&self.id)),
            shim_pid: up.ready.pid,
            init_pid: up.ready.init_pid,
            ending: None,
        };
        let before = std::mem::replace(&mut self.phase, Phase::Ready(running));
        self.listen(up.events);
        self.announce(EventKind::Created, None);
        self.announce(EventKind::Started, None);
        if let Phase::Starting { mut waiters } = before {
            answer(&mut waiters, &Ok(self.id));
        }
        self.end_if_wanted();
    }

    /// Nothing of the pod is left; the task ends, and the name is free before anybody hears of it.
    pub(super) fn on_failed(&mut self, error: &PodError) -> Flow {
        self.world.registry.remove(&self.id, &self.config.metadata);
        if let Phase::Starting { waiters } = &mut self.phase {
            answer(waiters, &Err(error.clone()));
        }
        answer(&mut self.stops, &Ok(()));
        answer(&mut self.removes, &Ok(()));
        Flow::End
    }

    pub(super) fn on_stop(&mut self, reply: Reply<()>) {
        match admission::pod(self.stage(), PodCommand::Stop) {
            Decision::Done => {
                let _ = reply.send(Ok(()));
            }
            Decision::Wish | Decision::Join | Decision::Refuse => {
                self.stops.push(reply);
                self.end_if_wanted();
            }
        }
    }

    pub(super) fn on_remove(&mut self, reply: Reply<()>) {
        self.removes.push(reply);
        self.remove_wanted = true;
        self.end_if_wanted();
    }

    /// A running pod that somebody wants stopped or removed begins to end.
    fn end_if_wanted(&mut self) {
        if (!self.stops.is_empty() || self.remove_wanted)
            && let Phase::Ready(running) = &mut self.phase
        {
            running.ending.get_or_insert_with(|| STOPPED.to_owned());
        }
    }

    pub(super) fn advance_pod(&mut self) {
        match &self.phase {
            Phase::Ready(Running {
                ending: Some(reason),
                shim_pid,
                ..
            }) if self.containers.iter().all(super::Container::is_at_rest) => {
                let (shim_pid, reason) = (Some(*shim_pid), reason.clone());
                self.take_down(shim_pid, reason);
            }
            Phase::NotReady { reason } => {
                let reason = reason.clone();
                answer(&mut self.stops, &Ok(()));
                if self.remove_wanted && self.containers.is_empty() && self.creating.is_empty() {
                    self.phase = Phase::Removing { reason };
                    let (world, id) = (Arc::clone(&self.world), self.id);
                    self.spawn(async move { Message::Gone(remove::pod(world, id).await) });
                }
            }
            Phase::Starting { .. }
            | Phase::Ready(_)
            | Phase::Stopping { .. }
            | Phase::Removing { .. } => {}
        }
    }

    /// Takes over what was found of a pod of an earlier daemon: its shim, or that it has none, or why it is
    /// to be taken down. The answer comes when such a pod is down, and otherwise not at all.
    pub(crate) fn resume(
        &mut self,
        found: Option<Result<Found, ShimError>>,
        unfinished: Option<String>,
    ) -> oneshot::Receiver<Result<(), PodError>> {
        let (reply, down) = oneshot::channel();
        match found {
            Some(Ok(found)) => self.on_found(found),
            Some(Err(error)) => {
                self.stops.push(reply);
                self.on_lost(&error);
            }
            None if unfinished.is_some() => self.stops.push(reply),
            None => {}
        }
        if let Some(reason) = unfinished {
            for index in 0..self.containers.len() {
                self.note(index);
            }
            self.take_down(None, reason);
        }
        self.publish();
        self.advance();
        down
    }

    /// Starts to take the pod down.
    fn take_down(&mut self, shim_pid: Option<u32>, reason: String) {
        self.phase = Phase::Stopping {
            reason: reason.clone(),
        };
        self.publish();
        let (world, id, config) = (Arc::clone(&self.world), self.id, Arc::clone(&self.config));
        let created_at = self.created_at;
        self.spawn(async move {
            Message::Down(down::run(world, id, config, created_at, shim_pid, reason).await)
        });
    }

    pub(super) fn on_down(&mut self, result: Result<(), PodError>) {
        let Phase::Stopping { reason } = &self.phase else {
            return;
        };
        self.phase = Phase::NotReady {
            reason: reason.clone(),
        };
        self.announce(EventKind::Stopped, None);
        if let Err(error) = result {
            // It is down all the same: the steps do not depend on the record.
            tracing::error!(pod = %self.id, error = %chain(&error), "a pod was stopped and not recorded so");
        }
    }

    pub(super) fn on_gone(&mut self) -> Flow {
        let last = self.view();
        self.world.registry.remove(&self.id, &self.config.metadata);
        self.world.board.remove(&self.id);
        self.tell(EventKind::Deleted, None, last);
        answer(&mut self.removes, &Ok(()));
        answer(&mut self.stops, &Ok(()));
        Flow::End
    }

    pub(super) fn on_still_there(&mut self, error: &PodError) {
        let Phase::Removing { reason } = &self.phase else {
            return;
        };
        self.phase = Phase::NotReady {
            reason: reason.clone(),
        };
        self.remove_wanted = false;
        answer(&mut self.removes, &Err(error.clone()));
    }

    /// Hands the shim's events to the task as messages.
    fn listen(&self, mut events: Box<dyn ShimEvents>) {
        let inbox = self.inbox.clone();
        let closing = self.world.closing.clone();
        tokio::spawn(async move {
            loop {
                let event = tokio::select! {
                    event = events.next() => event,
                    () = closing.cancelled() => return,
                };
                let last = event == kelson_shim::client::ShimEvent::Closed;
                if inbox.send(Message::Shim(event)).is_err() || last {
                    return;
                }
            }
        });
    }

    /// The events ended: the shim is dead, or has dropped a listener that was too slow.
    pub(super) fn look_for_shim(&self) {
        if !matches!(self.phase, Phase::Ready(_)) {
            return;
        }
        let (world, dir) = (Arc::clone(&self.world), self.world.pod_dir(&self.id));
        self.spawn(async move { Message::Found(find_shim(&world, dir).await.map(Box::new)) });
    }

    pub(super) fn on_found(&mut self, found: Found) {
        if matches!(self.phase, Phase::Ready(_)) {
            self.listen(found.events);
            self.reconcile(&found.state);
        }
    }

    /// Takes over what the shim knows and this task does not.
    fn reconcile(&mut self, state: &ShimState) {
        for one in &state.containers {
            self.on_shim_state(one);
        }
        for index in 0..self.containers.len() {
            let container = &self.containers[index];
            if container.is_running() && !state.containers.iter().any(|one| one.id == container.id)
            {
                self.collect(index);
            }
        }
    }

    /// The pod goes on without its shim, to its end.
    pub(super) fn on_lost(&mut self, error: &ShimError) {
        let Phase::Ready(running) = &mut self.phase else {
            return;
        };
        tracing::error!(pod = %self.id, error = %chain(error), "a pod ends because its shim is gone");
        running
            .ending
            .get_or_insert_with(|| "its shim is gone".to_owned());
        for index in 0..self.containers.len() {
            if self.containers[index].is_running() {
                self.collect(index);
            }
        }
    }
}

/// Whether a request is for the pod with this configuration, whose resources may have been updated since, and
/// which has an SELinux level.
fn same_request(asked: &PodConfig, known: &PodConfig) -> bool {
    let asked_now = PodConfig {
        overhead: known.overhead.clone(),
        resources: known.resources.clone(),
        selinux_level: known.selinux_level.clone(),
        ..asked.clone()
    };
    asked_now == *known
}

/// Finds the shim that lives in a pod's directory. One that is gone is gone; one that does not answer is
/// asked again.
pub(crate) async fn find_shim(world: &World, dir: PathBuf) -> Result<Found, ShimError> {
    let mut tries = 1;
    loop {
        match world.shims.connect(dir.clone(), SHIM_CALL).await {
            Err(ShimError::Timeout { .. }) if tries < TRIES => tries += 1,
            other => return other,
        }
    }
}
