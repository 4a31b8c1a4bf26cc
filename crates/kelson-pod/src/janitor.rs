//! What could not be given back at once is tried again, with back-off, until it is: a network attachment
//! whose plugin fails, a cgroup with a process that does not die, a directory that is busy.
//!
//! Nothing is remembered here across a restart: the start finds all of it again by what is on disk.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kelson_shim::ids::PodId;
use kelson_store::Batch;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::effects::down;
use crate::error::chain;
use crate::record::PodRecord;
use crate::world::{KILL_TIMEOUT, World};

/// The first pause between two tries; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Something to give back.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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

/// The way to the janitor.
#[derive(Debug)]
pub(crate) struct Janitor(mpsc::UnboundedSender<Debt>);

/// The janitor's own end, to be run by [`run`].
pub(crate) type Debts = mpsc::UnboundedReceiver<Debt>;

impl Janitor {
    pub(crate) fn new() -> (Self, Debts) {
        let (sender, debts) = mpsc::unbounded_channel();
        (Self(sender), debts)
    }

    /// Hands something over that could not be given back.
    pub(crate) fn owe(&self, debt: Debt) {
        // Without a janitor the daemon is ending, and the next start finds it.
        let _ = self.0.send(debt);
    }
}

struct Due {
    at: Instant,
    pause: Duration,
}

/// Works until the daemon ends.
pub(crate) async fn run(world: Arc<World>, mut debts: Debts) {
    let mut due: HashMap<Debt, Due> = HashMap::new();
    loop {
        let next = due.values().map(|one| one.at).min();
        let sleep = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = world.closing.cancelled() => return,
            debt = debts.recv() => {
                let Some(debt) = debt else { return };
                let first = Due { at: Instant::now() + FIRST_PAUSE, pause: FIRST_PAUSE };
                due.entry(debt).or_insert(first);
            }
            () = sleep => {
                let now = Instant::now();
                let ready: Vec<Debt> =
                    due.iter().filter(|(_, one)| one.at <= now).map(|(debt, _)| debt.clone()).collect();
                for debt in ready {
                    if pay(&world, &debt).await {
                        due.remove(&debt);
                    } else if let Some(one) = due.get_mut(&debt) {
                        one.pause = (one.pause * 2).min(LONGEST_PAUSE);
                        one.at = Instant::now() + one.pause;
                    }
                }
            }
        }
    }
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
