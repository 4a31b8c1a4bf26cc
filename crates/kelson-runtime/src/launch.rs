//! Making a container.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use kelson_cgroup::{Cgroup, Entry};
use kelson_sys::process::{self, Cloned, ns};
use kelson_sys::userns::{self, IdRange};
use oci_spec::runtime::{Hook, Spec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::plan::{self, ContainerPlan};
use crate::progress::Channel;
use crate::{LaunchError, Progress, seccomp, steps};

/// What becomes the root of a container.
#[derive(Debug, Clone)]
pub enum Rootfs {
    /// A directory, bound with the mounts beneath it.
    Path(PathBuf),
    /// An overlay, mounted in the container's mount namespace only. In a user namespace its lower
    /// directories are id-mapped; the upper one has the ids of the host.
    Overlay {
        /// The lower directories, the topmost first.
        lower: Vec<PathBuf>,
        /// The upper directory.
        upper: PathBuf,
        /// The work directory, on the file system of the upper one.
        work: PathBuf,
    },
}

/// The standard streams of a new process.
#[derive(Debug)]
pub enum Stdio {
    /// Those of the caller.
    Inherit,
    /// These; the caller's copies are closed when [`launch`] or [`crate::exec`] returns.
    Files {
        /// Standard input.
        stdin: OwnedFd,
        /// Standard output.
        stdout: OwnedFd,
        /// Standard error.
        stderr: OwnedFd,
    },
    /// A terminal of the container's own devpts, with the size in `process.consoleSize`. Its master
    /// comes as [`crate::Event::Terminal`].
    Terminal,
}

/// What only some callers want. The default is right for a shim.
#[derive(Debug, Default)]
pub struct Options {
    /// A listening unix socket of packets: the process accepts one connection when it is ready,
    /// and reports what happens afterwards there instead of on its [`Progress`].
    pub gate: Option<OwnedFd>,
    /// Run the hooks of the specification that belong into the container, and stop at
    /// [`crate::Event::HooksDue`] for those that belong outside.
    pub hooks: Option<HookContext>,
    /// How many descriptors from 3 on the program inherits.
    pub preserve_fds: u32,
    /// Move the root over `/` and chroot instead of pivot_root, for a root on a ramfs.
    pub no_pivot: bool,
    /// Stay in the caller's session keyring.
    pub no_new_keyring: bool,
}

/// What a hook is told about its container.
#[derive(Debug, Clone)]
pub struct HookContext {
    /// The id of the container.
    pub id: String,
    /// Its bundle directory.
    pub bundle: PathBuf,
    /// Its annotations.
    pub annotations: HashMap<String, String>,
}

/// A container to make.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The runtime specification. Namespaces without a path are made, those with one joined, and
    /// types that it does not name are the caller's. `root.path` and `linux.seccomp` are not read.
    pub spec: &'a Spec,
    /// The user namespace that the specification asks for with its mappings, made before; `None`:
    /// it is made here.
    pub user_namespace: Option<BorrowedFd<'a>>,
    /// Its root.
    pub rootfs: &'a Rootfs,
    /// Its cgroup: made here, limited by `linux.resources`. The caller removes it when the
    /// container is gone.
    pub cgroup: &'a Cgroup,
    /// Its standard streams.
    pub stdio: Stdio,
    /// Its seccomp filter.
    pub seccomp: Option<&'a seccomp::Program>,
    /// The rest.
    pub options: Options,
}

/// A process on its way to its program. The caller reaps it, also when it fails.
#[derive(Debug)]
pub struct Launched {
    /// Its number in the caller's PID namespace.
    pub pid: u32,
    /// Its pidfd: readable when it has ended.
    pub pidfd: OwnedFd,
    /// What it tells until it executes its program.
    pub progress: Progress,
}

/// Makes a container. Returns as soon as its process exists; [`Launched::progress`] tells the rest.
/// On an error nothing is left: no process, and no cgroup that was not there before.
pub fn launch(launch: Launch<'_>) -> Result<Launched, LaunchError> {
    let plan = ContainerPlan::new(launch.spec)?;
    let cgroup = launch.cgroup;
    let existed = cgroup.exists();
    let launched = make(launch, &plan);
    if launched.is_err() && !existed {
        // The failure itself is what is reported; a cgroup that cannot be removed stays empty.
        let _ = cgroup.remove();
    }
    launched
}

fn make(launch: Launch<'_>, plan: &ContainerPlan) -> Result<Launched, LaunchError> {
    let Launch {
        spec,
        user_namespace,
        rootfs,
        cgroup,
        stdio,
        seccomp,
        options,
    } = launch;
    let user = UserNamespace::of(plan, user_namespace)?;
    let id_maps = id_maps(plan, user.as_ref())?;
    cgroup.create()?;
    if let Some(resources) = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref())
    {
        cgroup.apply(&plan::resources::from_spec(resources, &plan.devices))?;
    }
    if let Some(user) = user.as_ref().filter(|_| plan.owns_its_cgroup()) {
        // A user that is not mapped is refused by a later step.
        if let Some(uid) = userns::outside_of(&user.uids, plan.process.uid) {
            cgroup.delegate(uid)?;
        }
    }
    let entry = cgroup.entry()?;
    let proc = host_proc()?;
    let (progress, theirs) =
        Progress::pair().map_err(|e| LaunchError::system("make a socket pair", e))?;
    let pid_namespace = plan
        .namespaces
        .path_of(ns::PID)
        .map(|path| open_namespace(path));
    let pid_namespace = pid_namespace.transpose()?;

    let in_namespace = pid_namespace
        .as_ref()
        .map(InPidNamespace::enter)
        .transpose()?;
    // In a user namespace the first process only prepares, where the host's rights are.
    let (flags, into) = match user {
        Some(_) => (0, None),
        None => (clone_flags(plan, &entry), entry.clone_into()),
    };
    // SAFETY: callers of this crate are single-threaded.
    let cloned = unsafe { process::clone3(flags, into) };
    if let Ok(Cloned::Child) = cloned {
        steps::run_container(steps::Container {
            process: steps::NewProcess {
                plan: &plan.process,
                stdio,
                start_hooks: start_hooks(spec),
                options,
                seccomp,
                entry: &entry,
                proc,
                channel: Channel::new(theirs),
                program: CString::default(),
                extra_env: Vec::new(),
            },
            spec,
            plan,
            rootfs,
            cgroup,
            user,
            id_maps,
            sources: Vec::new(),
            nodes: Vec::new(),
            tree: None,
            root: None,
        })
    }
    drop(in_namespace);
    Launched::new(cloned, progress)
}

/// The user namespace of a container.
#[derive(Debug)]
pub(crate) struct UserNamespace {
    pub(crate) file: OwnedFd,
    /// What its ids are on the host.
    pub(crate) uids: Vec<IdRange>,
    pub(crate) gids: Vec<IdRange>,
}

impl UserNamespace {
    /// The one that a plan wants, made where it does not exist. `None`: the caller's.
    fn of(plan: &ContainerPlan, made: Option<BorrowedFd<'_>>) -> Result<Option<Self>, LaunchError> {
        let failed = |what: &'static str| move |e| LaunchError::system(what, e);
        let file = match (plan.namespaces.path_of(ns::USER), made) {
            (Some(path), _) => open_namespace(path)?,
            (None, _) if plan.namespaces.create & ns::USER == 0 => return Ok(None),
            (None, Some(made)) => made
                .try_clone_to_owned()
                .map_err(|e| LaunchError::system("copy a descriptor", e))?,
            (None, None) => make_user_namespace(&plan.uid_mappings, &plan.gid_mappings)?,
        };
        let (uids, gids) =
            userns::mappings(file.as_fd()).map_err(failed("look into the user namespace"))?;
        Ok(Some(Self { file, uids, gids }))
    }
}

fn make_user_namespace(uids: &[IdRange], gids: &[IdRange]) -> Result<OwnedFd, LaunchError> {
    userns::make(uids, gids).map_err(|e| LaunchError::system("make a user namespace", e))
}

/// Of users and of groups.
type Ranges = (Vec<IdRange>, Vec<IdRange>);

/// The user namespaces that mounts are id-mapped by, in the order of the plan's mounts.
fn id_maps(
    plan: &ContainerPlan,
    user: Option<&UserNamespace>,
) -> Result<Vec<Option<OwnedFd>>, LaunchError> {
    let mut made: Vec<(&Ranges, OwnedFd)> = Vec::new();
    let copy = |file: &OwnedFd| {
        file.try_clone()
            .map_err(|e| LaunchError::system("copy a descriptor", e))
    };
    let mut all = Vec::with_capacity(plan.mounts.len());
    for mount in &plan.mounts {
        let Some(id_map) = &mount.id_map else {
            all.push(None);
            continue;
        };
        let own = user.filter(|user| {
            let same = |(uids, gids): &Ranges| *uids == user.uids && *gids == user.gids;
            id_map.ranges.as_ref().is_none_or(same)
        });
        let file = match (own, &id_map.ranges) {
            (Some(user), _) => copy(&user.file)?,
            (None, Some(ranges)) => match made.iter().find(|(other, _)| *other == ranges) {
                Some((_, file)) => copy(file)?,
                None => {
                    let file = make_user_namespace(&ranges.0, &ranges.1)?;
                    made.push((ranges, copy(&file)?));
                    file
                }
            },
            // The plan has been checked for this.
            (None, None) => return Err(LaunchError::system("map a mount", Errno::INVAL)),
        };
        all.push(Some(file));
    }
    Ok(all)
}

impl Launched {
    /// The maker's side of a clone.
    pub(crate) fn new(
        cloned: rustix::io::Result<Cloned>,
        progress: Progress,
    ) -> Result<Self, LaunchError> {
        match cloned {
            Ok(Cloned::Parent(child)) => Ok(Self {
                pid: child.pid,
                pidfd: child.pidfd,
                progress,
            }),
            // The child's side never gets here.
            Ok(Cloned::Child) => process::exit_now(1),
            Err(e) => Err(LaunchError::system("clone a process", e)),
        }
    }
}

/// The namespaces that the clone makes: not those that have to be made later, from inside.
fn clone_flags(plan: &ContainerPlan, entry: &Entry) -> u64 {
    let late = if entry.clone_into().is_some() {
        ns::TIME
    } else {
        ns::TIME | ns::CGROUP
    };
    plan.namespaces.create & !late
}

fn start_hooks(spec: &Spec) -> Vec<Hook> {
    let hooks = spec
        .hooks()
        .as_ref()
        .and_then(|hooks| hooks.start_container().clone());
    hooks.unwrap_or_default()
}

/// The host's procfs, verified to be one: what the steps read and write by it decides about
/// security.
pub(crate) fn host_proc() -> Result<OwnedFd, LaunchError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let failed = |e| LaunchError::system("open /proc", e);
    let proc = rustix::fs::open(c"/proc", flags, Mode::empty()).map_err(failed)?;
    if rustix::fs::fstatfs(&proc).map_err(failed)?.f_type == rustix::fs::PROC_SUPER_MAGIC {
        return Ok(proc);
    }
    Err(LaunchError::system(
        "use /proc: it is no procfs",
        Errno::INVAL,
    ))
}

fn open_namespace(path: &Path) -> Result<OwnedFd, LaunchError> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| LaunchError::system(format!("open the namespace {}", path.display()), e))
}

/// While it lives, children of the caller are born in another PID namespace.
pub(crate) struct InPidNamespace {
    own: OwnedFd,
}

impl InPidNamespace {
    /// `namespace` is a namespace file or a pidfd.
    pub(crate) fn enter(namespace: &OwnedFd) -> Result<Self, LaunchError> {
        let own = open_namespace(Path::new("/proc/self/ns/pid"))?;
        process::setns(namespace.as_fd(), ns::PID)
            .map_err(|e| LaunchError::system("join the PID namespace", e))?;
        Ok(Self { own })
    }
}

impl Drop for InPidNamespace {
    fn drop(&mut self) {
        // Going back to the own namespace needs no more rights than leaving it did.
        let back = process::setns(self.own.as_fd(), ns::PID);
        debug_assert!(
            back.is_ok(),
            "cannot return to the own PID namespace: {back:?}"
        );
    }
}
