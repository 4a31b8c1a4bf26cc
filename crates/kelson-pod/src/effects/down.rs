//! Taking a pod down. Every step is idempotent and none stops at the failure of another; what resists is
//! returned as debts for the janitor.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use kelson_shim::ids::PodId;
use kelson_shim::proto::SOCKET_NAME;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{UnmountFlags, unmount};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{PidfdFlags, Signal};
use tracing::{Instrument as _, debug_span};

use crate::config::{NamespaceMode, PodConfig};
use crate::error::{PodError, chain};
use crate::janitor::{self, Debt};
use crate::record::{PodPhase, PodRecord};
use crate::world::{FileError, KILL_TIMEOUT, SHIM_CALL, World};

/// Stops a pod whose containers are gone: the intent, network, shim and cgroup, and the result.
pub(crate) async fn run(
    world: Arc<World>,
    id: PodId,
    config: Arc<PodConfig>,
    created_at: i64,
    shim_pid: Option<u32>,
    reason: String,
) -> Result<(), PodError> {
    let record = |clean| PodRecord {
        config: PodConfig::clone(&config),
        created_at,
        boot: world.boot.clone(),
        phase: PodPhase::NotReady {
            reason: reason.clone(),
            clean,
        },
    };
    save(&world, &id, &record(false)).await?;
    let debts = take_down(&world, &id, &config, shim_pid).await;
    // What is owed is found again after a restart by what is on disk, so the pod itself is done.
    for debt in debts {
        janitor::owe(&world, debt);
    }
    save(&world, &id, &record(true)).await
}

async fn save(world: &Arc<World>, id: &PodId, record: &PodRecord) -> Result<(), PodError> {
    let mut batch = kelson_store::Batch::new();
    batch
        .put(id.as_str(), record)
        .map_err(|error| PodError::step("save the pod", error))?;
    let saved = world.journal.commit(batch).await;
    saved.map_err(|source| PodError::Step {
        step: "save the pod",
        source,
    })
}

/// Gives back network, shim, shared memory and cgroup. `shim_pid` is the shim while it lives.
pub(crate) async fn take_down(
    world: &Arc<World>,
    id: &PodId,
    config: &PodConfig,
    shim_pid: Option<u32>,
) -> Vec<Debt> {
    let mut debts = Vec::new();
    if config.namespaces.network != NamespaceMode::Node
        && let Err(error) = world
            .network
            .del(id.to_string(), shim_pid)
            .instrument(debug_span!("give the network back"))
            .await
    {
        tracing::warn!(pod = %id, error = %chain(&error), "the pod's network cannot be given back yet");
        debts.push(Debt::Network(*id));
    }
    let dir = world.pod_dir(id);
    end_shim(world, &dir).await;
    let (cgroup, own) = world.pod_cgroup(id, config);
    let shm = dir.join("shm");
    let cleared = world
        .blocking(move |world| {
            let _stage = debug_span!("remove the cgroup").entered();
            unmount_shm(&shm);
            if !own {
                return Ok(());
            }
            world.cgroups.kill(&cgroup, KILL_TIMEOUT)?;
            world.cgroups.remove(&cgroup)
        })
        .await;
    if let Err(error) = cleared {
        tracing::warn!(pod = %id, error = %chain(&error), "the pod's cgroup cannot be removed yet");
        debts.push(Debt::Cgroup(world.pod_cgroup(id, config).0));
    }
    debts
}

/// Ends the shim that may live in a pod's directory, and removes the directory.
pub(crate) async fn remove_dir(world: &Arc<World>, dir: &Path) -> Result<(), PodError> {
    end_shim(world, dir).await;
    let dir = dir.to_owned();
    let removed = world.blocking(move |_| {
        unmount_shm(&dir.join("shm"));
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(FileError::on("remove directory", &dir)(error))
            }
            _ => Ok(()),
        }
    });
    removed
        .await
        .map_err(|error| PodError::step("remove the pod's directory", error))
}

/// Asks the shim that may live in a pod's directory to end, and kills it when it does not.
async fn end_shim(world: &Arc<World>, dir: &Path) {
    let shim = world.shims.at(dir.to_owned());
    let ended = shim.shutdown(SHIM_CALL);
    let Err(error) = ended.instrument(debug_span!("end the shim")).await else {
        return;
    };
    tracing::warn!(dir = %dir.display(), error = %chain(&error), "a shim does not end and is killed");
    let dir = dir.to_owned();
    world.blocking(move |_| kill_listener(&dir)).await;
}

/// Kills the process that listens at the shim's socket, as the kernel names it: that needs no answer of it.
fn kill_listener(dir: &Path) {
    let kill = || -> rustix::io::Result<()> {
        let dir = rustix::fs::open(dir, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        // The path of a socket is limited to 107 bytes; this one is always short.
        let path = format!("/proc/self/fd/{}/{SOCKET_NAME}", dir.as_raw_fd());
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        let pid = net::sockopt::socket_peercred(&socket)?.pid;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        rustix::process::pidfd_send_signal(pidfd, Signal::KILL)
    };
    if let Err(error) = kill() {
        tracing::warn!(dir = %dir.display(), %error, "a shim cannot be killed; it may be gone");
    }
}

/// The shim unmounts it when it ends; this is for one that could not.
fn unmount_shm(shm: &Path) {
    // EINVAL and ENOENT: it is not mounted. Anything else shows when the directory is removed.
    let _ = unmount(shm, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
}
