//! Checkpointing a container: CRIU writes the images of its processes, and while they stand still the
//! changes of its root are saved beside them. The container goes on as if nothing had been.
//!
//! CRIU is executed by the daemon, in the namespaces of the pod: it needs nothing of the shim, and when
//! the daemon dies CRIU loses its peer and lets the container go. The work directory lies beside the
//! container's writable directory, and so goes with it at the latest.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::BufWriter;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kelson_checkpoint::archive::{self, BindMount, Config};
use kelson_checkpoint::{Criu, CriuError, DUMP_LOG, Dump, IMAGES, diff};
use kelson_shim::ids::ContainerId;

use crate::config::ContainerConfig;
use crate::error::{ErrorKind, Mistake, Mistakes, PodError};
use crate::mountinfo::{self, Mounted};
use crate::record::SpecRecord;
use crate::spec::mounts;
use crate::view::{Container, ContainerState, PodState};
use crate::world::{FileError, World, now};

/// How long a checkpoint may take when the caller gives no time.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);
/// Name of the work directory.
const WORK: &str = "dump";

/// The containers that are being checkpointed.
#[derive(Debug, Default)]
pub(crate) struct Underway(Mutex<BTreeSet<ContainerId>>);

struct Guard<'a>(&'a Underway, ContainerId);

impl Underway {
    fn enter(&self, id: ContainerId) -> Option<Guard<'_>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(id).then(|| Guard(self, id))
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let mut all = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&self.1);
    }
}

/// What CRIU is told about a container.
struct Target {
    container: Arc<Container>,
    pid: u32,
    shim_pid: u32,
}

/// Checkpoints a running container into an archive at `location`.
pub(crate) async fn run(
    world: &Arc<World>,
    id: ContainerId,
    location: PathBuf,
    timeout: Option<Duration>,
) -> Result<(), PodError> {
    let program = world.config.criu.clone().ok_or(PodError::CheckpointsOff)?;
    let snapshot = world.board.load();
    let Some((pod, container)) = snapshot.container(&id) else {
        return Err(PodError::NoSuchContainer(id));
    };
    let target = match (&container.state, &pod.state) {
        (ContainerState::Running { pid, .. }, PodState::Ready { shim_pid, .. }) => Target {
            container: Arc::clone(container),
            pid: *pid,
            shim_pid: *shim_pid,
        },
        _ => {
            return Err(PodError::ContainerState {
                container: id,
                state: container.state.name(),
                wanted: "running",
            });
        }
    };
    let mapped = pod.config.namespaces.own_users().is_some();
    check(&location, mapped, &container.config)?;
    let timeout = timeout.unwrap_or(DEFAULT_TIMEOUT);
    world
        .blocking(move |world| {
            let criu = Criu::find(&program).map_err(|error| failed(id, error))?;
            let _guard = world
                .underway
                .enter(id)
                .ok_or(PodError::Checkpointing(id))?;
            let rootfs = world.snapshots.rootfs(id.as_str()).map_err(|error| {
                PodError::step("find the container's writable directory", error)
            })?;
            let work = Work::make(&rootfs.upper)
                .map_err(|error| PodError::step("make a directory for the checkpoint", error))?;
            checkpoint(world, &criu, &target, &rootfs, &work.0, timeout)?;
            archive::write(&work.0, &location)
                .map_err(|error| PodError::step("write the checkpoint", error))
        })
        .await
}

/// The work directory; deleted when dropped.
struct Work(PathBuf);

impl Work {
    fn make(upper: &Path) -> Result<Self, FileError> {
        let path = upper.with_file_name(WORK);
        // What a daemon left that did not live to its end.
        clean(upper);
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        builder
            .create(&path)
            .and_then(|()| builder.create(path.join(IMAGES)))
            .map_err(FileError::on("create directory", &path))?;
        Ok(Self(path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Deletes what an unfinished checkpoint of the container with this writable directory has left.
pub(crate) fn clean(upper: &Path) {
    remove(&upper.with_file_name(WORK));
}

fn remove(path: &Path) {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "files of a checkpoint stay until the container is removed");
        }
        _ => {}
    }
}

/// What can be said before anything is done.
/// `mapped`: the pod has a user namespace.
fn check(location: &Path, mapped: bool, config: &ContainerConfig) -> Result<(), PodError> {
    let mut mistakes = Vec::new();
    let mut mistake = |field: &str, problem: String, unsupported| {
        mistakes.push(Mistake {
            field: field.to_owned(),
            problem,
            unsupported,
        });
    };
    let plain = location.is_absolute()
        && !location
            .components()
            .any(|part| part == Component::ParentDir);
    if !plain || location.file_name().is_none() {
        let problem = format!("{location:?} must be the absolute path of a file, without \"..\"");
        mistake("location", problem, false);
    } else if location.is_dir() {
        let problem = format!("{} is a directory", location.display());
        mistake("location", problem, false);
    } else if !location.parent().is_some_and(Path::is_dir) {
        let problem = format!("the directory of {} is not there", location.display());
        mistake("location", problem, false);
    }
    if config.tty {
        let problem = "a container with a terminal cannot be checkpointed".to_owned();
        mistake("container_id", problem, true);
    }
    if mapped {
        let problem = "a container in a user namespace cannot be checkpointed".to_owned();
        mistake("container_id", problem, true);
    }
    match mistakes.is_empty() {
        true => Ok(()),
        false => Err(PodError::Invalid(Mistakes(mistakes))),
    }
}

fn failed(container: ContainerId, error: CriuError) -> PodError {
    let kind = match &error {
        CriuError::Missing { .. } => ErrorKind::State,
        CriuError::TimedOut { .. } => ErrorKind::Timeout,
        _ => ErrorKind::Internal,
    };
    PodError::Checkpoint {
        container,
        kind,
        source: Arc::new(error),
    }
}

fn checkpoint(
    world: &World,
    criu: &Criu,
    target: &Target,
    rootfs: &kelson_snapshot::Rootfs,
    work: &Path,
    timeout: Duration,
) -> Result<(), PodError> {
    let container = &target.container;
    let id = container.id;
    let gone = || PodError::ContainerState {
        container: id,
        state: "exited",
        wanted: "running",
    };
    // The number may be another process's by now; in the container's cgroup it is the container's.
    let pids = world.cgroups.pids(&container.resolved.cgroup);
    if !pids.is_ok_and(|pids| pids.contains(&target.pid)) {
        return Err(gone());
    }
    let step = |error| PodError::step("read the container's specification", error);
    let record: Option<SpecRecord> = world.store.get(id.as_str()).map_err(step)?;
    let spec = record.ok_or_else(gone)?.spec;
    let binds: Vec<PathBuf> = spec
        .mounts()
        .iter()
        .flatten()
        .filter(|mount| mount.typ().as_deref() == Some("bind"))
        .map(|mount| mount.destination().clone())
        .collect();
    let process = PathBuf::from(format!("/proc/{}", target.pid));
    let step = |error| PodError::step("look at the container's process", error);
    let mounted = mountinfo::of(&process).map_err(step)?;
    let streams = streams(&process, &mounted).map_err(step)?;
    let mut external = outside(&mounted, &binds);
    if let Some(namespace) = shared_pid_namespace(&spec, &process) {
        external.push(namespace);
    }
    external.extend(
        streams
            .iter()
            .filter(|key| key.starts_with("file["))
            .cloned(),
    );
    external.dedup();

    let images = work.join(IMAGES);
    let program = world.config.program.display().to_string();
    let dump = Dump {
        pid: target.pid,
        enter: vec![program, "enter".to_owned(), target.shim_pid.to_string()],
        images: &images,
        external,
        timeout,
    };
    criu.dump(&dump, || save_files(rootfs, work))
        .map_err(|error| failed(id, error))?;

    let written = archive::write_json(&images.join(archive::DESCRIPTORS), &streams)
        .and_then(|()| archive::write_json(&work.join(archive::SPEC), &spec))
        .and_then(|()| archive::write_json(&work.join(archive::BINDS), &shared(container)))
        .and_then(|()| archive::write_json(&work.join(archive::CONFIG), &describe(container)));
    written.map_err(|error| PodError::step("describe the checkpoint", error))?;
    let (log, output) = (images.join(DUMP_LOG), images.join("criu.out"));
    fs::rename(&log, work.join(DUMP_LOG))
        .and_then(|()| fs::remove_file(output))
        .map_err(|error| PodError::step("keep the log of CRIU", error))
}

/// The PID namespace of the pod, which is not the container's to be made again.
fn shared_pid_namespace(spec: &oci_spec::runtime::Spec, process: &Path) -> Option<String> {
    use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};
    let namespaces = spec.linux().as_ref()?.namespaces().as_ref()?;
    let joined =
        |one: &&LinuxNamespace| one.typ() == LinuxNamespaceType::Pid && one.path().is_some();
    namespaces.iter().find(joined)?;
    let inode = fs::metadata(process.join("ns/pid")).ok()?.ino();
    Some(format!("pid[{inode}]:extRootPidNS"))
}

/// Saves what the container has changed in its root, while it stands still.
fn save_files(
    rootfs: &kelson_snapshot::Rootfs,
    work: &Path,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let file = File::create(work.join(archive::ROOTFS_DIFF))?;
    let out = BufWriter::with_capacity(256 << 10, file);
    let deleted = diff::write(&rootfs.upper, &rootfs.lower, out)?;
    archive::write_json(&work.join(archive::DELETED), &deleted)?;
    Ok(())
}

/// The mounts that CRIU must not try to make again: what is bound from the host and all beneath, cgroups,
/// and the null device over hidden files.
fn outside(mounted: &[Mounted], binds: &[PathBuf]) -> Vec<String> {
    let outside = |mount: &&Mounted| {
        mount.point != Path::new("/")
            && (matches!(mount.kind.as_str(), "cgroup" | "cgroup2")
                || mount.kind == "devtmpfs"
                || binds.iter().any(|bind| mount.point.starts_with(bind)))
    };
    let word = |mount: &Mounted| {
        let point = mount.point.display();
        format!("mnt[{point}]:{point}")
    };
    mounted.iter().filter(outside).map(word).collect()
}

/// The standard streams in CRIU's words: a pipe by its number, a file of the host by mount and inode;
/// any other is only noted.
fn streams(process: &Path, mounted: &[Mounted]) -> Result<Vec<String>, FileError> {
    (0..3)
        .map(|number| stream(process, mounted, number))
        .collect()
}

fn stream(process: &Path, mounted: &[Mounted], number: u32) -> Result<String, FileError> {
    let path = process.join(format!("fd/{number}"));
    let Ok(target) = fs::read_link(&path) else {
        // It has closed it.
        return Ok("/".to_owned());
    };
    let target = target.to_string_lossy().into_owned();
    if !target.starts_with('/') {
        return Ok(target);
    }
    let info = process.join(format!("fdinfo/{number}"));
    let text = fs::read_to_string(&info).map_err(FileError::on("read", &info))?;
    let mount: Option<u64> = text
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    match mount {
        Some(mount) if !mounted.iter().any(|one| one.id == mount) => {
            let inode = fs::metadata(&path)
                .map_err(FileError::on("look at", &path))?
                .ino();
            Ok(format!("file[{mount:x}:{inode:x}]"))
        }
        _ => Ok(target),
    }
}

fn describe(container: &Container) -> Config {
    Config {
        id: container.id.to_string(),
        name: container.config.name.clone(),
        image: container.resolved.image_id.clone(),
        image_ref: container.resolved.image_ref.clone(),
        image_name: container.config.image.image.clone(),
        runtime: "kelson".to_owned(),
        created: archive::time(container.created_at),
        checkpointed: archive::time(now()),
        restored_at: archive::NO_TIME.to_owned(),
        restored: false,
    }
}

/// What of the host the request has mounted.
fn shared(container: &Container) -> Vec<BindMount> {
    let shared = |mount: &crate::config::Mount| {
        let facts = fs::metadata(&mount.host_path).ok()?;
        let kind = if facts.is_dir() { "directory" } else { "file" };
        Some(BindMount {
            source: mount.host_path.clone(),
            destination: mounts::target(&mount.container_path).display().to_string(),
            file_type: kind.to_owned(),
            permissions: facts.permissions().mode() & 0o777,
        })
    };
    container.config.mounts.iter().filter_map(shared).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_outside_is_told_by_place_and_kind() {
        let text = "72 44 0:41 / / rw - overlay overlay rw\n\
                    73 72 0:43 / /proc rw - proc proc rw\n\
                    78 77 0:47 / /sys/fs/cgroup ro - tmpfs cgroup rw\n\
                    79 78 0:29 /k/c /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n\
                    93 73 0:6 /null /proc/keys rw - devtmpfs devtmpfs rw\n\
                    95 72 8:1 /x /data\\040dir rw shared:1 - ext4 /dev/sda rw\n\
                    96 95 8:2 / /data\\040dir/deep rw - ext4 /dev/sdb rw\n\
                    97 72 8:2 / /other rw - ext4 /dev/sdb rw\n";
        let mounted = mountinfo::mounted(text);
        let found = outside(&mounted, &["/data dir".into(), "/sys/fs".into()]);
        assert_eq!(
            found,
            [
                "mnt[/sys/fs/cgroup]:/sys/fs/cgroup",
                "mnt[/sys/fs/cgroup/cpu]:/sys/fs/cgroup/cpu",
                "mnt[/proc/keys]:/proc/keys",
                "mnt[/data dir]:/data dir",
                "mnt[/data dir/deep]:/data dir/deep",
            ]
        );
        assert_eq!((mounted[0].id, mounted[0].kind.as_str()), (72, "overlay"));
    }

    #[test]
    fn streams_are_told_in_the_words_of_criu() {
        let own = Path::new("/proc/self");
        let mounted = mountinfo::of(own).unwrap();
        let file = File::open("/dev/null").unwrap();
        let number = u32::try_from(std::os::fd::AsRawFd::as_raw_fd(&file)).unwrap();
        assert_eq!(stream(own, &mounted, number).unwrap(), "/dev/null");
        assert!(stream(own, &[], number).unwrap().starts_with("file["));
        let (reader, _writer) = std::io::pipe().unwrap();
        let number = u32::try_from(std::os::fd::AsRawFd::as_raw_fd(&reader)).unwrap();
        assert!(stream(own, &[], number).unwrap().starts_with("pipe:["));
    }

    #[test]
    fn places_and_terminals_are_checked_together() {
        let dir = tempfile::tempdir().unwrap();
        let config = ContainerConfig::default();
        check(&dir.path().join("c.tar"), false, &config).unwrap();
        for bad in ["c.tar", "/", "/tmp/../c.tar", "/no/such/c.tar", "/tmp", ""] {
            assert!(check(Path::new(bad), false, &config).is_err(), "{bad}");
        }
        let config = ContainerConfig {
            tty: true,
            ..ContainerConfig::default()
        };
        let error = check(Path::new("x"), true, &config)
            .unwrap_err()
            .to_string();
        for part in ["location: ", "terminal", "user namespace"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_container_is_checkpointed_once_at_a_time() {
        let underway = Underway::default();
        let id = ContainerId::random().unwrap();
        let first = underway.enter(id);
        assert!(first.is_some() && underway.enter(id).is_none());
        drop(first);
        assert!(underway.enter(id).is_some());
    }
}
