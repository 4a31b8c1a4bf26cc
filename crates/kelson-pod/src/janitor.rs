//! What could not be given back at once is tried again, with back-off, until it is: a network attachment
//! whose plugin fails, a cgroup with a process that does not die, a directory that is busy.
//!
//! Nothing is remembered here across a restart: the start finds all of it again by what is on disk.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kelson_shim::ids::PodId;
use kelson_store::Batch;

use crate::effects::down;
use crate::error::chain;
use crate::record::PodRecord;
use crate::world::{KILL_TIMEOUT, World};

/// The first pause between two tries; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Something to give back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Debt {
    /// A pod's network attachment, when its namespace is gone.
    Network(PodId),
    /// A cgroup with all that is in it.
    Cgroup(String),
    /// A pod's directory, and the shim that may live in it.
    Directory(PathBuf),
    /// A container's writable directory.
    Snapshot(String),
    /// The record of a pod, once everything else of it is given back.
    Record(PodId, Vec<Debt>),
}

/// Hands over something that could not be given back. Each debt is worked off by itself, so that one that
/// takes long delays no other.
pub(crate) fn owe(world: &Arc<World>, debt: Debt) {
    let world = Arc::clone(world);
    tokio::spawn(async move {
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::select! {
                // The next start finds it.
                () = world.closing.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            if pay(&world, &debt).await {
                return;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    });
}

/// Tries once; says whether it is done. Logs why it is not.
pub(crate) async fn pay(world: &Arc<World>, debt: &Debt) -> bool {
    let failure = match debt {
        Debt::Network(pod) => world
            .network
            .del(pod.to_string(), None)
            .await
            .err()
            .map(|error| chain(&error)),
        Debt::Cgroup(path) => {
            let path = path.clone();
            let cleared = world.blocking(move |world| {
                world.cgroups.kill(&path, KILL_TIMEOUT)?;
                world.cgroups.remove(&path)
            });
            cleared.await.err().map(|error| chain(&error))
        }
        Debt::Directory(dir) => down::remove_dir(world, dir)
            .await
            .err()
            .map(|error| chain(&error)),
        Debt::Snapshot(container) => {
            let container = container.clone();
            let removed = world
                .blocking(move |world| world.snapshots.remove(&container))
                .await;
            if removed.is_ok() {
                world.empty_trash();
            }
            removed.err().map(|error| chain(&error))
        }
        Debt::Record(pod, rest) => {
            let mut all = true;
            for debt in rest {
                all &= Box::pin(pay(world, debt)).await;
            }
            if !all {
                return false;
            }
            let mut batch = Batch::new();
            batch.delete::<PodRecord>(pod.as_str());
            world
                .journal
                .commit(batch)
                .await
                .err()
                .map(|error| chain(&*error))
        }
    };
    if let Some(error) = &failure {
        tracing::warn!(?debt, %error, "something cannot be given back yet; it will be tried again");
    }
    failure.is_none()
}
