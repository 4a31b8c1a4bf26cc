//! Ending a container's processes: the signal it asks for, then SIGKILL to its whole cgroup. No step needs a
//! peer that answers: where the shim does not, the kernel is asked directly.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kelson_shim::ids::{ContainerId, PodId};
use kelson_shim::proto::Exit;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug_span;

use crate::error::chain;
use crate::outside::Shim;
use crate::registry::Inbox;
use crate::signal;
use crate::task::Message;
use crate::view::{ExitReason, Exited};
use crate::world::{KILL_TIMEOUT, World, now};

/// How long the shim may take to pass a signal on before the kernel is asked directly.
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the shim may take to report an exit after the cgroup is empty.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pauses between two tries to kill what does not die.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(120);
/// Largest exit record, in bytes.
const MAX_EXIT_RECORD: u64 = 64 << 10;

/// Whom to end.
pub(crate) struct Target {
    pub(crate) id: ContainerId,
    /// First process, as the host numbers it.
    pub(crate) pid: u32,
    pub(crate) cgroup: String,
    pub(crate) signal: i32,
}

/// Ends the container's processes by `deadline`, which may come nearer meanwhile. Tells the pod's task
/// when its cgroup is empty and the shim has had time to report the exit. The task drops this when the exit
/// is there.
pub(crate) async fn run(
    world: Arc<World>,
    shim: Arc<dyn Shim>,
    target: Target,
    mut deadline: watch::Receiver<Instant>,
    inbox: Inbox,
) {
    if *deadline.borrow() > Instant::now() && target.signal != signal::KILL {
        send_signal(&world, &*shim, &target).await;
        tokio::select! {
            () = wait_for(&mut deadline) => {}
            // Who asked is told to ask again.
            () = world.closing.cancelled() => return,
        }
    }
    let began = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let cgroup = target.cgroup.clone();
        let killed = world
            .blocking(move |world| {
                let _stage = debug_span!("kill the cgroup").entered();
                world.cgroups.kill(&cgroup, KILL_TIMEOUT)
            })
            .await;
        let Err(error) = killed else { break };
        tracing::warn!(container = %target.id, error = %chain(&error), "a container does not die");
        let _ = inbox.send(Message::Stuck {
            id: target.id,
            after: began.elapsed(),
        });
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    sleep(REPORT_TIMEOUT).await;
    let _ = inbox.send(Message::Overdue { id: target.id });
}

async fn send_signal(world: &Arc<World>, shim: &dyn Shim, target: &Target) {
    let Err(error) = shim.signal(target.id, target.signal, SIGNAL_TIMEOUT).await else {
        return;
    };
    if error.refusal().is_some() {
        // It does not run: the exit is on its way.
        return;
    }
    tracing::warn!(container = %target.id, error = %chain(&error), "the shim passes no signal on");
    let (cgroup, pid, number) = (target.cgroup.clone(), target.pid, target.signal);
    let sent = world
        .blocking(move |world| world.cgroups.signal(&cgroup, pid, number))
        .await;
    if let Err(error) = sent {
        tracing::warn!(container = %target.id, error = %chain(&error), "the container gets no signal");
    }
}

/// Waits until the deadline, wherever it is moved.
async fn wait_for(deadline: &mut watch::Receiver<Instant>) {
    loop {
        let at = *deadline.borrow_and_update();
        tokio::select! {
            () = sleep_until(at) => return,
            changed = deadline.changed() => {
                // Without a sender nobody can move it any more.
                if changed.is_err() {
                    sleep_until(at).await;
                    return;
                }
            }
        }
    }
}

/// What became of a container whose shim cannot tell: its processes are killed, and the shim's record of
/// the exit is read, if it wrote one.
pub(crate) async fn collect(
    world: &Arc<World>,
    pod: PodId,
    id: ContainerId,
    cgroup: String,
    started_at: Option<i64>,
) -> Exited {
    world
        .blocking(move |world| {
            let lived = world.cgroups.populated(&cgroup).unwrap_or(false);
            if let Err(error) = world.cgroups.kill(&cgroup, KILL_TIMEOUT) {
                tracing::warn!(container = %id, error = %chain(&error), "a container does not die");
            }
            match read_exit(&world.container_dir(&pod, &id)) {
                Some(exit) => exited(started_at, &exit),
                None => unseen(started_at, lived),
            }
        })
        .await
}

fn unseen(started_at: Option<i64>, lived: bool) -> Exited {
    let (exit_code, message) = if lived {
        (137, "killed, because the shim that watched over it is gone")
    } else {
        (255, "it ended while nobody watched over it")
    };
    Exited {
        started_at,
        finished_at: now(),
        exit_code,
        reason: ExitReason::Unknown,
        message: message.to_owned(),
    }
}

fn read_exit(dir: &Path) -> Option<Exit> {
    let root = kelson_sys::root::Root::open(dir).ok()?;
    let json = root
        .read_capped(Path::new("exit.json"), MAX_EXIT_RECORD)
        .ok()?;
    serde_json::from_slice(&json).ok()
}

/// An exit as readers see it.
pub(crate) fn exited(started_at: Option<i64>, exit: &Exit) -> Exited {
    let reason = match exit {
        Exit {
            oom_killed: true, ..
        } => ExitReason::OomKilled,
        Exit { exit_code: 0, .. } => ExitReason::Completed,
        _ => ExitReason::Error,
    };
    Exited {
        started_at,
        finished_at: exit.finished_at,
        exit_code: exit.exit_code,
        reason,
        message: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_of_exits() {
        let exit = |exit_code, oom_killed| Exit {
            exit_code,
            signal: None,
            oom_killed,
            finished_at: 7,
        };
        assert_eq!(
            exited(Some(1), &exit(0, false)).reason,
            ExitReason::Completed
        );
        assert_eq!(exited(Some(1), &exit(3, false)).reason, ExitReason::Error);
        assert_eq!(
            exited(Some(1), &exit(137, true)).reason,
            ExitReason::OomKilled
        );
        assert_eq!(unseen(None, true).exit_code, 137);
        assert_eq!(unseen(None, false).exit_code, 255);
    }

    #[test]
    fn exit_records_that_are_missing_or_broken_are_none() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_exit(dir.path()).is_none());
        assert!(read_exit(&dir.path().join("missing")).is_none());
        std::fs::write(dir.path().join("exit.json"), "{").unwrap();
        assert!(read_exit(dir.path()).is_none());
        let json = r#"{"exit_code":3,"signal":null,"oom_killed":false,"finished_at":5}"#;
        std::fs::write(dir.path().join("exit.json"), json).unwrap();
        assert_eq!(read_exit(dir.path()).unwrap().exit_code, 3);
    }
}
