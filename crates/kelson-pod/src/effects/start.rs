//! Starting a container: what was prepared goes to the pod's shim.

use std::sync::Arc;
use std::time::Duration;

use kelson_shim::client::ShimError;
use kelson_shim::ids::ContainerId;
use kelson_shim::proto::{RefusalKind, Rootfs, SeccompFilter, StartRequest, Started};
use kelson_snapshot::SnapshotError;
use kelson_store::StoreError;
use oci_spec::runtime::Spec;
use tracing::{Instrument as _, debug_span};

use crate::error::PodError;
use crate::filters::FilterError;
use crate::outside::Shim;
use crate::record::{Seccomp, SpecRecord};
use crate::restore::{self, RestoreError};
use crate::spec;
use crate::view::Resolved;
use crate::world::{KILL_TIMEOUT, SHIM_CALL, World};

/// What the shim's own time limit has more than ours less: it undoes what is late, and says so.
const GRACE: Duration = Duration::from_secs(5);

/// The least that restoring a container may take: its memory is read from the disk.
const RESTORE: Duration = Duration::from_secs(120);

/// Why a container could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("its runtime specification is not there any more")]
    NoSpec,
    #[error("cannot read its runtime specification")]
    Store(#[from] StoreError),
    #[error("cannot make its cgroup")]
    Cgroup(#[from] kelson_cgroup::Error),
    #[error("cannot find its root file system")]
    Rootfs(#[from] SnapshotError),
    #[error(transparent)]
    Filter(#[from] FilterError),
    #[error(transparent)]
    Target(PodError),
    #[error(transparent)]
    Restore(#[from] RestoreError),
    #[error(transparent)]
    Shim(#[from] ShimError),
}

/// Starts it, in the PID namespace of `target`'s process when there is one. After a failure nothing of it
/// runs.
pub(crate) async fn run(
    world: Arc<World>,
    shim: Arc<dyn Shim>,
    id: ContainerId,
    resolved: Arc<Resolved>,
    target: Option<(ContainerId, u32)>,
) -> Result<Started, StartError> {
    let cgroup = resolved.cgroup.clone();
    let (request, prepared) = world
        .blocking(move |world| {
            let _stage = debug_span!("make the request").entered();
            let mut request = request(world, id, &resolved, target)?;
            let limits = limits(&request.spec);
            let prepared = world.cgroups.prepare(&request.cgroup, &limits)?;
            if prepared.is_some() {
                spec::allow_one_more(&mut request.spec);
            }
            Ok::<_, StartError>((request, prepared))
        })
        .await?;
    let restores = request.restore.is_some();
    let deadline = patience(&world, restores) + GRACE;
    let started = shim.start(request, deadline);
    let started = started.instrument(debug_span!("the shim starts it")).await;
    if let Some(prepared) = prepared {
        world.blocking(move |_| drop(prepared)).await;
    }
    match started {
        Ok(started) => {
            if restores {
                forget(&world, id).await;
            }
            Ok(started)
        }
        Err(error) if error.refusal() == Some(RefusalKind::Exists) => {
            // An earlier daemon asked and did not live to hear the answer.
            let state = shim.state(SHIM_CALL).await?;
            let found = state.containers.iter().find(|one| one.id == id);
            found.map(|one| one.started).ok_or(StartError::Shim(error))
        }
        Err(error) => {
            if error.refusal().is_none() {
                // It may come up all the same.
                let killed = world.blocking(move |world| world.cgroups.kill(&cgroup, KILL_TIMEOUT));
                if let Err(error) = killed.await {
                    tracing::warn!(container = %id, error = %crate::error::chain(&error), "a container does not die");
                }
            }
            Err(error.into())
        }
    }
}

fn limits(spec: &Spec) -> kelson_cgroup::Resources {
    let linux = spec.linux().as_ref();
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    resources.map(kelson_runtime::limits).unwrap_or_default()
}

/// How long a start may take.
fn patience(world: &World, restores: bool) -> Duration {
    match restores {
        true => world.config.start_timeout.max(RESTORE),
        false => world.config.start_timeout,
    }
}

/// Deletes the images that a container was restored from.
async fn forget(world: &Arc<World>, id: ContainerId) {
    let forget = move |world: &Arc<World>| match world.snapshots.rootfs(id.as_str()) {
        Ok(rootfs) => restore::forget(&rootfs.upper),
        Err(error) => {
            tracing::warn!(container = %id, error = %crate::error::chain(&error), "images of a checkpoint stay")
        }
    };
    world.blocking(forget).await;
}

fn request(
    world: &World,
    id: ContainerId,
    resolved: &Resolved,
    target: Option<(ContainerId, u32)>,
) -> Result<StartRequest, StartError> {
    let mut record: SpecRecord = world.store.get(id.as_str())?.ok_or(StartError::NoSpec)?;
    let rootfs = world.snapshots.rootfs(id.as_str())?;
    if let Some((_, pid)) = target {
        spec::join_pid_namespace(&mut record.spec, pid);
    }
    let seccomp = filter(world, &record)?;
    let restore = match record.restored {
        Some(restored) => {
            let request = restore::request(world, &rootfs.upper, restored, seccomp.as_ref());
            Some(request?)
        }
        None => None,
    };
    let timeout = patience(world, restore.is_some());
    Ok(StartRequest {
        id,
        seccomp,
        rootfs: Rootfs::Overlay {
            lower: rootfs.lower,
            upper: rootfs.upper,
            work: rootfs.work,
        },
        cgroup: resolved.cgroup.clone(),
        log: resolved.log.clone(),
        stdin: record.stdin,
        timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        spec: record.spec,
        pid_target: target.map(|(id, _)| id),
        restore,
    })
}

/// The seccomp filter of a container, for its own process and those that are executed in it.
pub(crate) fn filter(
    world: &World,
    record: &SpecRecord,
) -> Result<Option<SeccompFilter>, FilterError> {
    match &record.seccomp {
        Seccomp::None => Ok(None),
        Seccomp::Compiled(filter) => Ok(Some(filter.clone())),
        Seccomp::Default => {
            let capabilities = record
                .spec
                .process()
                .as_ref()
                .and_then(|process| process.capabilities().as_ref())
                .and_then(|capabilities| capabilities.bounding().clone())
                .unwrap_or_default();
            world.filters.default_for(&capabilities).map(Some)
        }
    }
}
