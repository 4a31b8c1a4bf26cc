//! What pods and containers may use changes while they are there.

use std::sync::Arc;

use kelson_shim::ids::ContainerId;
use kelson_store::Batch;

use super::container::State;
use super::{Message, Phase, PodTask, Reply};
use crate::config::{PodConfig, Resources};
use crate::effects::update::{self, Updated};
use crate::error::PodError;
use crate::record::{PodPhase, PodRecord};
use crate::view::Resolved;
use crate::{admission, validate};

impl PodTask {
    /// Updates of a pod's containers are made one after the other.
    pub(super) fn on_update_container(
        &mut self,
        id: ContainerId,
        change: Resources,
        reply: Reply<()>,
    ) {
        let Some(index) = self.index(id) else {
            let _ = reply.send(Err(PodError::NoSuchContainer(id)));
            return;
        };
        if let Err(error) = validate::resources("linux", &change, self.world.facts) {
            let _ = reply.send(Err(error));
            return;
        }
        let container = &mut self.containers[index];
        let decision = admission::container(container.stage(), admission::ContainerCommand::Update);
        if decision == admission::Decision::Refuse {
            let _ = reply.send(Err(container.error("created or running")));
            return;
        }
        if let Some(waiting) = &mut container.updating {
            let change = Box::new(change);
            waiting.push(Message::UpdateContainer { id, change, reply });
            return;
        }
        container.updating = Some(Vec::new());
        let running = matches!(container.state, State::Running { .. });
        let request = update::Request {
            id,
            cgroup: running.then(|| container.resolved.cgroup.clone()),
            before: container.resolved.resources.clone(),
            change,
        };
        let world = Arc::clone(&self.world);
        self.spawn(async move {
            let result = update::run(world, request).await.map(Box::new);
            Message::ContainerUpdated { id, result, reply }
        });
    }

    pub(super) fn on_container_updated(
        &mut self,
        id: ContainerId,
        result: Result<Box<Updated>, PodError>,
        reply: Reply<()>,
    ) {
        let Some(index) = self.index(id) else {
            let what = format!("container {id}");
            let _ = reply.send(Err(PodError::Removed { what }));
            return;
        };
        let container = &mut self.containers[index];
        for waiting in container.updating.take().unwrap_or_default() {
            // The task that handles this message lives.
            let _ = self.inbox.send(waiting);
        }
        let removing = matches!(container.state, State::Removing { .. });
        match result {
            Err(error) => {
                let _ = reply.send(Err(error));
            }
            Ok(_) if removing => {
                let what = format!("container {id}");
                let _ = reply.send(Err(PodError::Removed { what }));
            }
            Ok(updated) => {
                container.resolved = Arc::new(Resolved {
                    resources: updated.resources,
                    ..Resolved::clone(&container.resolved)
                });
                self.world.journal.note(updated.save);
                self.note(index);
                self.publish();
                self.answer_when_saved(reply);
            }
        }
    }

    /// Keeps what the kubelet tells of a pod; the pod's own cgroup is the kubelet's.
    pub(super) fn on_update_pod(
        &mut self,
        overhead: Option<Resources>,
        resources: Option<Resources>,
        reply: Reply<()>,
    ) {
        let Phase::Ready(running) = &self.phase else {
            let (pod, reason) = (self.id, "it does not run".to_owned());
            let _ = reply.send(Err(PodError::PodNotReady { pod, reason }));
            return;
        };
        let given = [("overhead", &overhead), ("resources", &resources)];
        for (field, wanted) in given {
            let wanted = wanted.as_ref();
            let checked = wanted.map(|one| validate::resources(field, one, self.world.facts));
            if let Some(Err(error)) = checked {
                let _ = reply.send(Err(error));
                return;
            }
        }
        let mut config = PodConfig::clone(&self.config);
        config.overhead = overhead.or(config.overhead);
        config.resources = resources.or(config.resources);
        let record = PodRecord {
            config: config.clone(),
            created_at: self.created_at,
            boot: self.world.boot.clone(),
            phase: PodPhase::Ready {
                ips: running.ips.clone(),
                shim_pid: running.shim_pid,
                init_pid: running.init_pid,
            },
        };
        let mut batch = Batch::new();
        if let Err(error) = batch.put(self.id.as_str(), &record) {
            let _ = reply.send(Err(PodError::step("save the pod", error)));
            return;
        }
        self.world.journal.note(batch);
        self.config = Arc::new(config);
        self.publish();
        self.answer_when_saved(reply);
    }

    /// Answers when everything that was handed to the journal so far is durable.
    fn answer_when_saved(&self, reply: Reply<()>) {
        let world = Arc::clone(&self.world);
        self.world.effects.spawn(async move {
            let saved = world.journal.commit(Batch::new()).await;
            let _ = reply.send(saved.map_err(|source| PodError::Step {
                step: "save the new resources",
                source,
            }));
        });
    }
}
