//! Removing a container that does not run, and a pod without containers. Records go last, so that a crash in
//! the middle is found and finished. Log files belong to the caller and stay.

use std::io;
use std::sync::Arc;

use kelson_shim::ids::{ContainerId, PodId};
use kelson_store::Batch;
use tracing::debug_span;

use super::down;
use crate::error::PodError;
use crate::outside::Shim;
use crate::record::{ContainerRecord, PodRecord, SpecRecord};
use crate::world::{FileError, KILL_TIMEOUT, SHIM_CALL, World};

/// Removes a container's cgroup, writable directory and records.
pub(crate) async fn container(
    world: Arc<World>,
    shim: Option<Arc<dyn Shim>>,
    pod: PodId,
    id: ContainerId,
    cgroup: String,
) -> Result<(), PodError> {
    if let Some(shim) = shim {
        // Only gives back a little memory, so nobody waits for it.
        world.effects.spawn(async move {
            if let Err(error) = shim.forget(id, SHIM_CALL).await {
                tracing::debug!(container = %id, error = %crate::error::chain(&error), "the shim forgets nothing");
            }
        });
    }
    world
        .blocking(move |world| {
            let clearing = debug_span!("remove the cgroup").entered();
            let step = |error| PodError::step("remove the container's cgroup", error);
            world.cgroups.kill(&cgroup, KILL_TIMEOUT).map_err(step)?;
            world.cgroups.remove(&cgroup).map_err(step)?;
            drop(clearing);
            let _stage = debug_span!("remove the files").entered();
            world
                .snapshots
                .remove(id.as_str())
                .map_err(|error| PodError::step("remove the container's files", error))?;
            let dir = world.container_dir(&pod, &id);
            match std::fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    let error = FileError::on("remove directory", &dir)(error);
                    Err(PodError::step("remove the container's exit record", error))
                }
                _ => Ok(()),
            }
        })
        .await?;
    let mut batch = Batch::new();
    batch
        .delete::<ContainerRecord>(id.as_str())
        .delete::<SpecRecord>(id.as_str());
    let deleted = world.journal.commit(batch).await;
    deleted.map_err(|source| PodError::Step {
        step: "forget the container",
        source,
    })?;
    world.empty_trash();
    Ok(())
}

/// Removes what is left of a stopped pod.
pub(crate) async fn pod(world: Arc<World>, id: PodId) -> Result<(), PodError> {
    down::remove_dir(&world, &world.pod_dir(&id)).await?;
    let mut batch = Batch::new();
    batch.delete::<PodRecord>(id.as_str());
    let deleted = world.journal.commit(batch).await;
    deleted.map_err(|source| PodError::Step {
        step: "forget the pod",
        source,
    })
}
