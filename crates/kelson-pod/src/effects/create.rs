//! Making a container: the image, the user in it, the mounts and devices of the host, a runtime
//! specification, a writable directory; then one commit. Nothing runs yet.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use kelson_shim::ids::{ContainerId, PodId};
use kelson_shim::proto::StdinPolicy;
use kelson_snapshot::{ChainId, Extras, SnapshotError};
use kelson_store::Batch;
use kelson_sys::root::Root;
use rustix::fs::{Mode, OFlags};

use tracing::debug_span;

use super::security;
use super::volumes::{self, ImageVolume};
use crate::config::{ContainerConfig, PodConfig, Propagation, UserNamespace};
use crate::error::{Cause, Mistake, Mistakes, PodError};
use crate::janitor::{self, Debt};
use crate::outside::ImageFacts;
use crate::record::{ContainerPhase, ContainerRecord, Restored, SpecRecord};
use crate::restore::Checkpoint;
use crate::selinux::{Labels, Scope, relabel};
use crate::spec::devices::{self, Node};
use crate::spec::mounts::Bind;
use crate::spec::{self, process};
use crate::users::{self, Identity};
use crate::view::{Resolved, User};
use crate::world::{FileError, World, hostname};
use crate::{mountinfo, restore, signal};

/// Mode of directories that are made on the host because a mount or a log needs them.
const DIR_MODE: u32 = 0o755;

/// What to make.
pub(crate) struct Request {
    pub(crate) pod: PodId,
    pub(crate) pod_config: Arc<PodConfig>,
    pub(crate) id: ContainerId,
    pub(crate) config: Arc<ContainerConfig>,
    /// The init of the pod's PID namespace.
    pub(crate) pid_init: Option<u32>,
    /// The container whose PID namespace is joined.
    pub(crate) pid_target: Option<ContainerId>,
    pub(crate) created_at: i64,
}

/// Makes it. After a failure nothing of it is left.
pub(crate) async fn run(world: Arc<World>, request: Request) -> Result<Resolved, PodError> {
    let id = request.id;
    let (batch, resolved) = world.blocking(move |world| make(world, &request)).await?;
    let saved = world.journal.commit(batch).await;
    if let Err(source) = saved {
        world.blocking(move |world| drop_files(world, id)).await;
        return Err(PodError::Step {
            step: "save the container",
            source,
        });
    }
    Ok(resolved)
}

fn make(world: &Arc<World>, request: &Request) -> Result<(Batch, Resolved), PodError> {
    let config = &*request.config;
    let name = &config.image.image;
    let checkpoint = restore::location(name).map(|path| restore::open(world, path, config));
    let checkpoint = checkpoint.transpose()?;
    if checkpoint.is_some() && request.pod_config.namespaces.own_users().is_some() {
        return Err(PodError::Invalid(Mistakes(vec![Mistake {
            field: "image.image".to_owned(),
            problem: "a checkpoint, in a pod with a user namespace".to_owned(),
            unsupported: true,
        }])));
    }
    let (image_name, image) = match &checkpoint {
        Some(checkpoint) => checkpoint.image(world)?,
        None => {
            let image = world.images.find(name);
            let image = image.ok_or_else(|| PodError::NoSuchImage(name.clone()))?;
            (name.clone(), image)
        }
    };
    if process::args(config, &image.process)
        .iter()
        .all(String::is_empty)
    {
        let text = "neither the request nor the image says what to run; set command".to_owned();
        return Err(PodError::Image(text, None));
    }
    let stop_signal = stop_signal(config, &image)?;
    let identity = debug_span!("look up the user").in_scope(|| identity(world, config, &image))?;
    known(&identity.user, &request.pod_config)?;
    let preparing = debug_span!("prepare mounts, devices, log").entered();
    let volumes = volumes::find(world, config)?;
    let declared = volumes::declared(world, config, &image)?;
    let mut binds = binds(config, &volumes)?;
    binds.extend(
        declared
            .iter()
            .enumerate()
            .map(|(n, path)| Bind::volume(path, world.snapshots.volume(request.id.as_str(), n))),
    );
    if let Some(user) = request.pod_config.namespaces.own_users() {
        // What is copied from the image has the image's ids.
        for bind in binds.iter_mut().rev().take(declared.len()) {
            bind.uids.clone_from(&user.uids);
            bind.gids.clone_from(&user.gids);
        }
    }
    let mut devices = find_devices(config)?;
    if world.config.device_owner && !config.security.privileged {
        devices::give(&mut devices, &config.security);
    }
    let log = log(&request.pod_config, config)?;
    let seccomp = security::seccomp(world, config)?;
    let apparmor = security::apparmor(world, config)?;
    let labels = security::labels(world, &request.pod_config, config)?;
    drop(preparing);
    let building = debug_span!("build the spec").entered();
    let (parent, _) = world.pod_cgroup(&request.pod, &request.pod_config);
    let cgroup = world.container_cgroup(&parent, &request.id);
    let name = hostname(&request.pod, &request.pod_config);
    let files = world.pod_files(&request.pod, &request.pod_config);
    let mut spec = spec::build(&spec::Request {
        pod_id: &request.pod,
        pod: &request.pod_config,
        files: &files,
        pid_init: request.pid_init,
        hostname: &name,
        config,
        image: &image.process,
        image_name: &image_name,
        user: &identity.user,
        home: &identity.home,
        binds: &binds,
        devices: &devices,
        node: &world.rules,
        cgroup: &cgroup,
        apparmor: apparmor.as_deref(),
        labels: labels.as_ref(),
    });
    security::inject_devices(world, config, &mut spec)?;
    let resolved = Resolved {
        image_id: image.id.clone(),
        image_ref: image.reference.clone(),
        user: identity.user,
        stop_signal,
        log,
        cgroup,
        resources: config.resources.clone(),
        pid_target: request.pid_target,
        image_mounts: volumes
            .iter()
            .map(|volume| (volume.mount, volume.reference.clone()))
            .collect(),
    };
    let chains: Vec<_> = volumes.iter().filter_map(|volume| volume.top).collect();
    let extras = Extras {
        chains: &chains,
        volumes: &declared,
        changes: None,
    };
    drop(building);
    if let Some(labels) = &labels {
        security::relabel(config, &binds, labels)?;
    }
    let _stage = debug_span!("make the writable directory").entered();
    let users = request.pod_config.namespaces.own_users();
    let restored = prepare(world, request.id, &image.chain, extras, (checkpoint, users))?;
    if let Some(labels) = &labels {
        let copies = binds.iter().rev().take(declared.len());
        label_copies(copies, labels).inspect_err(|_| drop_files(world, request.id))?;
    }
    let record = SpecRecord {
        spec,
        seccomp,
        stdin: stdin(config),
        restored,
    };
    let batch = records(request, &resolved, record).inspect_err(|_| {
        drop_files(world, request.id);
    })?;
    Ok((batch, resolved))
}

/// Gives the copies of the image's volumes the label of the container's files.
fn label_copies<'a>(
    mut copies: impl Iterator<Item = &'a Bind>,
    labels: &Labels,
) -> Result<(), PodError> {
    let labelled = copies.try_for_each(|copy| relabel(&copy.source, &labels.files, Scope::Tree));
    labelled.map_err(|error| PodError::step("label the volumes of the image", error))
}

/// Makes the writable directories, of a checkpoint if there is one.
fn prepare(
    world: &Arc<World>,
    id: ContainerId,
    chain: &[ChainId],
    mut extras: Extras<'_>,
    (checkpoint, users): (Option<Checkpoint>, Option<&UserNamespace>),
) -> Result<Option<Restored>, PodError> {
    let (changes, rest) = checkpoint.map(Checkpoint::apart).unzip();
    extras.changes = changes.flatten();
    let made = world.snapshots.prepare_with(id.as_str(), chain, extras);
    let rootfs = made.map_err(|error| match error {
        SnapshotError::Volume { .. } => {
            let cause: Cause = Arc::new(error);
            PodError::Image("the image cannot be used".to_owned(), Some(cause))
        }
        error => PodError::step("make the container's writable directory", error),
    })?;
    if let Some(user) = users
        && let Err(error) = give_away(&rootfs.upper, user)
    {
        drop_files(world, id);
        return Err(PodError::step(
            "give the container's writable directory to its root",
            error,
        ));
    }
    rest.map(|rest| rest.keep(world, id.as_str())).transpose()
}

/// Refuses ids that do not exist in the pod's user namespace: the kernel would not say which.
fn known(user: &User, pod: &PodConfig) -> Result<(), PodError> {
    let Some(own) = pod.namespaces.own_users() else {
        return Ok(());
    };
    let groups = user.groups.iter().chain([&user.gid]);
    let missing = match own.host(user.uid, user.gid) {
        None => Some(format!("user {} with group {}", user.uid, user.gid)),
        Some(_) => groups
            .into_iter()
            .find(|gid| own.host(user.uid, **gid).is_none())
            .map(|gid| format!("group {gid}")),
    };
    match missing {
        None => Ok(()),
        Some(what) => Err(PodError::Image(
            format!(
                "{what} of the container is not in the pod's user namespace; set run_as_user, \
                 run_as_group and supplemental_groups to ids that it maps, or give it more ids"
            ),
            None,
        )),
    }
}

/// Gives the writable directory, which has the ids of the host, the owner of the image's root as the
/// pod's user namespace maps it.
fn give_away(upper: &Path, user: &UserNamespace) -> Result<(), FileError> {
    use std::os::unix::fs::MetadataExt as _;
    let like = std::fs::symlink_metadata(upper).map_err(FileError::on("look at", upper))?;
    let owner = user.host(like.uid(), like.gid()).or(user.host(0, 0));
    let (uid, gid) = owner.unzip();
    std::os::unix::fs::lchown(upper, uid, gid).map_err(FileError::on("give away", upper))
}

fn records(request: &Request, resolved: &Resolved, spec: SpecRecord) -> Result<Batch, PodError> {
    let record = ContainerRecord {
        pod: request.pod,
        config: ContainerConfig::clone(&request.config),
        resolved: resolved.clone(),
        created_at: request.created_at,
        state: ContainerPhase::Created,
    };
    let step = |error| PodError::step("save the container", error);
    let mut batch = Batch::new();
    batch.put(request.id.as_str(), &record).map_err(step)?;
    batch.put(request.id.as_str(), &spec).map_err(step)?;
    Ok(batch)
}

fn drop_files(world: &Arc<World>, id: ContainerId) {
    if let Err(error) = world.snapshots.remove(id.as_str()) {
        tracing::warn!(container = %id, error = %crate::error::chain(&error), "its files stay for now");
        janitor::owe(world, Debt::Snapshot(id.to_string()));
    }
    world.empty_trash();
}

fn stop_signal(config: &ContainerConfig, image: &ImageFacts) -> Result<i32, PodError> {
    let wanted = [&config.stop_signal, &image.stop_signal]
        .into_iter()
        .find(|one| !one.is_empty());
    let Some(name) = wanted else {
        return Ok(signal::TERM);
    };
    signal::parse(name).ok_or_else(|| {
        let short: String = name.chars().take(80).collect();
        PodError::Image(
            format!("the image's stop signal {short:?} is none; set stop_signal"),
            None,
        )
    })
}

fn identity(
    world: &Arc<World>,
    config: &ContainerConfig,
    image: &ImageFacts,
) -> Result<Identity, PodError> {
    let view = world
        .snapshots
        .view(&image.chain)
        .map_err(|error| PodError::step("look into the image", error))?;
    let root = Root::from_fd(view, "the image");
    users::resolve(&config.security, &image.user, &root).map_err(|error| {
        let cause: Cause = Arc::new(error);
        PodError::Image(
            "the container has no user to run as".to_owned(),
            Some(cause),
        )
    })
}

/// The mounts of the request with their sources resolved; what is missing is made.
fn binds(config: &ContainerConfig, volumes: &[ImageVolume]) -> Result<Vec<Bind>, PodError> {
    let mut mistakes = Vec::new();
    let mut binds = Vec::new();
    let mut table = None;
    for (n, mount) in config.mounts.iter().enumerate() {
        if let Some(volume) = volumes.iter().find(|volume| volume.mount == n) {
            binds.push(Bind::image(mount, volume.lower.clone()));
            continue;
        }
        let source = resolve_source(Path::new(&mount.host_path))
            .map_err(|error| PodError::step("find the source of a mount", error))?;
        if mount.propagation != Propagation::Private {
            let table = match &mut table {
                Some(table) => table,
                none => none.insert(mountinfo::read().map_err(|error| {
                    PodError::step("find out how mounts of the host propagate", error)
                })?),
            };
            if let Err(problem) = mountinfo::allows(table, &source, mount.propagation) {
                let field = format!("mounts[{n}].propagation");
                mistakes.push(Mistake {
                    field,
                    problem,
                    unsupported: false,
                });
            }
        }
        binds.push(Bind::new(mount, source));
    }
    if mistakes.is_empty() {
        Ok(binds)
    } else {
        Err(PodError::Invalid(Mistakes(mistakes)))
    }
}

/// The path without symlinks; a directory is made when nothing is there. The path is the caller's, who is
/// trusted with the host.
fn resolve_source(path: &Path) -> Result<PathBuf, FileError> {
    let open = || rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let fd = match open() {
        Err(rustix::io::Errno::NOENT) => {
            make_dirs(path)?;
            open()
        }
        other => other,
    };
    let fd = fd.map_err(|error| FileError::on("open", path)(error.into()))?;
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
    let target = std::fs::read_link(&link).map_err(FileError::on("resolve", path))?;
    Ok(target)
}

fn make_dirs(path: &Path) -> Result<(), FileError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(DIR_MODE)
        .create(path)
        .map_err(FileError::on("create directory", path))
}

fn find_devices(config: &ContainerConfig) -> Result<Vec<Node>, PodError> {
    let step = |error| PodError::step("find the container's devices", error);
    let mut mistakes = Vec::new();
    let mut nodes = Vec::new();
    if config.security.privileged {
        devices::all(Path::new("/dev"), &mut nodes).map_err(step)?;
    }
    for (n, device) in config.devices.iter().enumerate() {
        if let Err(error) = devices::asked(device, &mut nodes) {
            mistakes.push(Mistake {
                field: format!("devices[{n}].host_path"),
                problem: crate::error::chain(&error),
                unsupported: false,
            });
        }
    }
    if mistakes.is_empty() {
        Ok(nodes)
    } else {
        Err(PodError::Invalid(Mistakes(mistakes)))
    }
}

/// The log file, with its directory made. Validation has seen to it that it lies below the log directory
/// by its words; here it is seen to that no symlink leads out of it.
fn log(pod: &PodConfig, config: &ContainerConfig) -> Result<Option<PathBuf>, PodError> {
    if pod.log_directory.is_empty() || config.log_path.is_empty() {
        return Ok(None);
    }
    let directory = Path::new(&pod.log_directory);
    make_dirs(directory).map_err(|error| PodError::step("make the log directory", error))?;
    let step = |error| PodError::step("make the directory of the container's log", error);
    let root = Root::open(directory).map_err(step)?;
    let path = Path::new(&config.log_path);
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        root.mkdir_all(parent, Mode::from_raw_mode(DIR_MODE))
            .map_err(step)?;
        // The log is opened by its plain path, so nothing on the way may be a link.
        root.open_path_no_symlinks(parent).map_err(step)?;
    }
    debug_assert!(
        path.components()
            .all(|part| matches!(part, Component::Normal(_)))
    );
    Ok(Some(directory.join(path)))
}

fn stdin(config: &ContainerConfig) -> StdinPolicy {
    match (config.stdin, config.stdin_once) {
        (false, _) => StdinPolicy::None,
        (true, false) => StdinPolicy::Open,
        (true, true) => StdinPolicy::Once,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mount;

    fn pod_with_logs(directory: &Path) -> PodConfig {
        PodConfig {
            log_directory: directory.to_str().unwrap().to_owned(),
            ..PodConfig::default()
        }
    }

    fn with_log(path: &str) -> ContainerConfig {
        ContainerConfig {
            log_path: path.to_owned(),
            ..ContainerConfig::default()
        }
    }

    #[test]
    fn the_logs_directory_is_made_below_the_pods() {
        let dir = tempfile::tempdir().unwrap();
        let pod = pod_with_logs(&dir.path().join("pod"));
        let path = log(&pod, &with_log("web/0.log")).unwrap().unwrap();
        assert_eq!(path, dir.path().join("pod/web/0.log"));
        assert!(dir.path().join("pod/web").is_dir() && !path.exists());
        assert_eq!(log(&pod, &with_log("")).unwrap(), None);
        assert_eq!(
            log(&PodConfig::default(), &with_log("0.log")).unwrap(),
            None
        );
    }

    #[test]
    fn a_link_in_the_log_directory_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("web")).unwrap();
        assert!(log(&pod_with_logs(dir.path()), &with_log("web/0.log")).is_err());
        assert!(std::fs::read_dir(outside.path()).unwrap().next().is_none());
    }

    #[test]
    fn sources_of_mounts_are_resolved_and_made() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        let base = resolve_source(dir.path()).unwrap();
        assert_eq!(
            resolve_source(&dir.path().join("link")).unwrap(),
            base.join("real")
        );
        assert_eq!(
            resolve_source(&dir.path().join("new/deep")).unwrap(),
            base.join("new/deep")
        );
        assert!(dir.path().join("new/deep").is_dir());
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(resolve_source(&file).unwrap(), base.join("file"));
        assert!(resolve_source(&file.join("below")).is_err());
    }

    #[test]
    fn binds_keep_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let mount = |name: &str| Mount {
            container_path: format!("/{name}"),
            host_path: dir.path().join(name).to_str().unwrap().to_owned(),
            ..Mount::default()
        };
        let config = ContainerConfig {
            mounts: vec![mount("b"), mount("a")],
            ..ContainerConfig::default()
        };
        let targets: Vec<_> = binds(&config, &[])
            .unwrap()
            .into_iter()
            .map(|bind| bind.target)
            .collect();
        assert_eq!(targets, [Path::new("/b"), Path::new("/a")]);
    }

    #[test]
    fn standard_input() {
        let policy = |stdin, stdin_once| {
            super::stdin(&ContainerConfig {
                stdin,
                stdin_once,
                ..ContainerConfig::default()
            })
        };
        assert_eq!(policy(false, true), StdinPolicy::None);
        assert_eq!(policy(true, false), StdinPolicy::Open);
        assert_eq!(policy(true, true), StdinPolicy::Once);
    }
}
