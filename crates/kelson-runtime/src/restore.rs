//! Restoring a container from images of CRIU.
//!
//! CRIU runs as a child of the caller, in the container's cgroup and a mount namespace of its own in
//! which the new root is mounted; the restored process becomes its sibling. The images are outside data,
//! so nothing of them is believed: what CRIU has made stays stopped until [`check`] has compared it with
//! the specification, by what the kernel says.

mod check;

use std::ffi::CString;
use std::path::{Path, PathBuf};

use kelson_cgroup::Version;
use kelson_sys::process::{self, ns};

use crate::launch::host_proc;
use crate::plan::{ContainerPlan, MountKind, MountPlan, resources};
use crate::progress::Channel;
use crate::{Launch, LaunchError, Launched, Progress, Rootfs, Stdio, steps};

pub use check::check;

/// Where programs are found that CRIU runs.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The name by which a PID namespace outside of the images is handed over.
pub(crate) const PID_NAMESPACE: &str = "extRootPidNS";
/// Names in the directory of images.
const PID_FILE: &str = "restored.pid";
const LOG: &str = "restore.log";

/// The images to restore.
#[derive(Debug)]
pub struct Restore<'a> {
    /// The program CRIU, an absolute path.
    pub criu: &'a Path,
    /// The directory of the images; CRIU's log `restore.log` comes there too.
    pub images: &'a Path,
    /// What standard input, output and error were, in CRIU's words; those of the launch take their place.
    pub streams: &'a [Option<String>; 3],
}

/// Starts CRIU. [`Launched`] is CRIU's own process: when it has ended with 0, [`restored`] tells the
/// container's. On an error nothing is left.
pub fn restore(launch: Launch<'_>, restore: &Restore<'_>) -> Result<Launched, LaunchError> {
    let plan = ContainerPlan::new(launch.spec)?;
    if plan.namespaces.has(ns::USER) {
        let reason = "a container with a user namespace cannot be restored";
        return Err(LaunchError::spec("linux.namespaces", reason));
    }
    if matches!(launch.stdio, Stdio::Terminal) {
        let reason = "a container with a terminal cannot be restored";
        return Err(LaunchError::spec("process.terminal", reason));
    }
    if launch.spec.hooks().is_some() {
        let reason = "a container with hooks, such as those of CDI devices, cannot be restored";
        return Err(LaunchError::spec("hooks", reason));
    }
    let image = |mount: &MountPlan| matches!(mount.kind, MountKind::Layers { .. });
    if plan.mounts.iter().any(image) {
        let reason = "a container with mounted images cannot be restored";
        return Err(LaunchError::spec("mounts", reason));
    }
    if plan.mounts.iter().any(|mount| mount.id_map.is_some()) {
        let reason = "a container with id-mapped mounts cannot be restored";
        return Err(LaunchError::spec("mounts", reason));
    }
    let existed = launch.cgroup.exists();
    let cgroup = launch.cgroup;
    let launched = make(launch, &plan, restore);
    if launched.is_err() && !existed {
        // The failure itself is what is reported; a cgroup that cannot be removed stays empty.
        let _ = cgroup.remove();
    }
    launched
}

fn make(
    launch: Launch<'_>,
    plan: &ContainerPlan,
    restore: &Restore<'_>,
) -> Result<Launched, LaunchError> {
    let cgroup = launch.cgroup;
    cgroup.create()?;
    if let Some(limits) = launch
        .spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref())
    {
        cgroup.apply(&resources::from_spec(limits, &plan.devices))?;
    }
    let _ = std::fs::remove_file(restore.images.join(PID_FILE));
    let entry = cgroup.entry()?;
    let proc = host_proc()?;
    let (progress, theirs) =
        Progress::pair().map_err(|e| LaunchError::system("make a socket pair", e))?;
    let words = words(plan, &launch, restore);
    let text = |_| LaunchError::spec("mounts", "there is a NUL byte in a path");
    let words = words.into_iter().map(CString::new);
    let words = words.collect::<Result<Vec<_>, _>>().map_err(text)?;
    // A namespace on cgroup v2 begins where its maker is born.
    let late = entry.clone_into().is_none();
    let flags = plan.namespaces.create & (ns::MOUNT | if late { 0 } else { ns::CGROUP });
    // SAFETY: callers of this crate are single-threaded.
    let cloned = unsafe { process::clone3(flags, entry.clone_into()) };
    if let Ok(process::Cloned::Child) = cloned {
        steps::run_restore(
            steps::Container {
                process: steps::NewProcess {
                    plan: &plan.process,
                    stdio: launch.stdio,
                    start_hooks: Vec::new(),
                    options: launch.options,
                    seccomp: None,
                    entry: &entry,
                    proc,
                    channel: Channel::new(theirs),
                    program: CString::default(),
                    extra_env: CString::new(PATH).into_iter().collect(),
                },
                spec: launch.spec,
                plan,
                rootfs: launch.rootfs,
                cgroup,
                user: None,
                id_maps: Vec::new(),
                sources: Vec::new(),
                nodes: Vec::new(),
                tree: None,
                root: None,
            },
            words,
            restore,
        )
    }
    Launched::new(cloned, progress)
}

/// CRIU's command line, but for the descriptors that are handed over.
fn words(plan: &ContainerPlan, launch: &Launch<'_>, restore: &Restore<'_>) -> Vec<String> {
    let path = |path: &Path| path.display().to_string();
    let root = match launch.rootfs {
        Rootfs::Path(root) => root,
        Rootfs::Overlay { upper, .. } => upper,
    };
    let mut words = vec![path(restore.criu)];
    words.extend(["restore", "--restore-detached", "--restore-sibling"].map(str::to_owned));
    words.extend(["--leave-stopped", "--file-locks", "--manage-cgroups=ignore"].map(str::to_owned));
    words.extend(["--images-dir".to_owned(), path(restore.images)]);
    words.extend(["-v2", "--log-file", LOG].map(str::to_owned));
    let pid_file = restore.images.join(PID_FILE);
    words.extend(["--pidfile".to_owned(), path(&pid_file)]);
    words.extend(["--root".to_owned(), path(root)]);
    if let Some(profile) = &plan.process.apparmor {
        words.extend(["--lsm-profile".to_owned(), format!("apparmor:{profile}")]);
    }
    if let Some(label) = &plan.process.selinux {
        words.extend(["--lsm-profile".to_owned(), format!("selinux:{label}")]);
    }
    if let Some(label) = &plan.mount_label {
        words.extend(["--lsm-mount-context".to_owned(), label.clone()]);
    }
    for (target, source) in outside(plan, launch) {
        let word = format!("mnt[{}]:{}", path(&target), path(&source));
        words.extend(["--external".to_owned(), word]);
    }
    words
}

/// What is mounted from outside: places in the container with sources on the host, all by the
/// specification. One that the images do not have is not used.
fn outside(plan: &ContainerPlan, launch: &Launch<'_>) -> Vec<(PathBuf, PathBuf)> {
    let mut all = Vec::new();
    for mount in &plan.mounts {
        match &mount.kind {
            MountKind::Bind { source, recursive } => {
                all.push((mount.target.clone(), source.clone()));
                if *recursive {
                    all.extend(beneath(&mount.target, source));
                }
            }
            MountKind::Cgroup => {
                let v2 = launch.cgroup.hierarchy().version() == Version::V2;
                for (point, directory) in launch.cgroup.directories() {
                    let name = point.file_name().filter(|_| !v2);
                    let target = name.map(|name| mount.target.join(name));
                    all.push((target.unwrap_or_else(|| mount.target.clone()), directory));
                }
            }
            MountKind::Filesystem { .. } | MountKind::Layers { .. } => {}
        }
    }
    let null = Path::new("/dev/null");
    all.extend(
        plan.masked_paths
            .iter()
            .map(|path| (path.clone(), null.to_owned())),
    );
    all
}

/// What the host has mounted beneath `source`, at the places beneath `target`.
fn beneath(target: &Path, source: &Path) -> Vec<(PathBuf, PathBuf)> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = check::parse(&text).into_iter().map(|mount| mount.point);
    points
        .filter_map(|point| {
            let rest = point.strip_prefix(source).ok()?;
            (!rest.as_os_str().is_empty()).then(|| (target.join(rest), point.clone()))
        })
        .collect()
}

/// The container's first process, when CRIU has ended with 0.
pub fn restored(images: &Path) -> Result<u32, LaunchError> {
    let path = images.join(PID_FILE);
    let text = std::fs::read_to_string(&path)
        .map_err(|e| LaunchError::system(format!("read {}", path.display()), e))?;
    text.trim().parse().map_err(|_| {
        let error = std::io::Error::from(std::io::ErrorKind::InvalidData);
        LaunchError::system(format!("understand {}", path.display()), error)
    })
}
