//! How a process that the zygote has just forked becomes the shim of a pod: its own session, the
//! pod's namespaces, host name, kernel parameters, shared memory, and the socket to be called at.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use kelson_sys::process::{Child, Cloned, ns};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::Signal;

use super::sysctl::{self, SysctlError};
use super::user::{self, UserError};
use crate::proto::{
    Namespace, PodSetup, Ready, Refusal, RefusalKind, SHM_NAME, SOCKET_NAME, VERSION,
};

/// The priority at which the kernel spares the shim when memory runs out: only the kubelet's and
/// the daemon's -999 is stronger.
const OOM_SCORE_ADJ: &[u8] = b"-998";

/// What a shim holds for its pod.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) ready: Ready,
    pub(super) listener: UnixListener,
    /// The pod's directory.
    pub(super) dir: OwnedFd,
    /// The init of a shared PID namespace.
    pub(super) init: Option<Child>,
    /// The pod's user namespace.
    pub(super) user: Option<OwnedFd>,
    shm: Option<PathBuf>,
}

/// Why a pod could not be set up.
#[derive(Debug, thiserror::Error)]
pub(super) enum SetupError {
    #[error("cannot {operation}")]
    System {
        operation: String,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    #[error(transparent)]
    User(#[from] UserError),
}

fn failed(operation: impl Into<String>) -> impl FnOnce(Errno) -> SetupError {
    let operation = operation.into();
    move |error| SetupError::System {
        operation,
        source: error.into(),
    }
}

impl From<SetupError> for Refusal {
    fn from(error: SetupError) -> Self {
        let kind = match &error {
            SetupError::System { .. } | SetupError::User(UserError::System { .. }) => {
                RefusalKind::Setup
            }
            SetupError::Sysctl(_) | SetupError::User(UserError::Sysctl(_) | UserError::Ipc(_)) => {
                RefusalKind::Sysctl
            }
        };
        super::refusal(kind, &error)
    }
}

/// Sets up everything, or undoes what outlives the process.
pub(super) fn set_up(setup: &PodSetup) -> Result<Pod, SetupError> {
    rustix::process::setsid().map_err(failed("start a session"))?;
    let own = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(own)).map_err(failed("adopt orphans"))?;
    // Without the capability to lower it, the one of the daemon stays.
    let _ = write_file(c"/proc/self/oom_score_adj", OOM_SCORE_ADJ);

    let dir = open_dir(&setup.dir)?;
    let Made { user, init } = match &setup.user {
        None => {
            kelson_sys::process::unshare(new_namespaces(setup))
                .map_err(failed("make the namespaces of the pod"))?;
            set_sysctls(setup, |_| true)?;
            let init = match setup.namespaces.pid {
                Namespace::New => Some(start_init()?),
                Namespace::Host => None,
            };
            Made { user: None, init }
        }
        Some(wanted) => user::set_up(setup, wanted, new_namespaces(setup))?,
    };
    if let Some(name) = &setup.hostname
        && setup.namespaces.uts == Namespace::New
    {
        rustix::system::sethostname(name.as_bytes())
            .map_err(failed(format!("set the host name {name:?}")))?;
    }
    let listener = listen(&dir, &setup.dir)?;
    let shm = match setup.shm_size {
        Some(size) => Some(mount_shm(&dir, setup, size)?),
        None => None,
    };
    let ready = Ready {
        version: VERSION,
        pod: setup.id,
        pid: own.as_raw_nonzero().get().cast_unsigned(),
        init_pid: init.as_ref().map(|child| child.pid),
    };
    Ok(Pod {
        ready,
        listener,
        dir,
        init,
        user,
        shm,
    })
}

/// What was made beside the namespaces that the shim lives in.
pub(super) struct Made {
    pub(super) user: Option<OwnedFd>,
    pub(super) init: Option<Child>,
}

/// Sets those of the pod's kernel parameters that are `wanted` in the namespaces of the calling
/// process.
pub(super) fn set_sysctls(
    setup: &PodSetup,
    wanted: impl Fn(&str) -> bool + Clone,
) -> Result<(), SysctlError> {
    sysctl::set_all(
        Path::new("/proc/sys"),
        &setup.namespaces,
        setup.sysctls.iter().filter(move |(name, _)| wanted(name)),
    )
}

impl Pod {
    /// Undoes what outlives the process. The namespaces end with it.
    pub(super) fn tear_down(&mut self) {
        if let Some(init) = self.init.take() {
            let _ = rustix::process::pidfd_send_signal(&init.pidfd, Signal::KILL);
        }
        if let Some(shm) = self.shm.take() {
            let _ = rustix::mount::unmount(&shm, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
        let _ = rustix::fs::unlinkat(&self.dir, SOCKET_NAME, AtFlags::empty());
    }
}

fn new_namespaces(setup: &PodSetup) -> u64 {
    let PodSetup { namespaces, .. } = setup;
    [
        (namespaces.network, ns::NETWORK),
        (namespaces.ipc, ns::IPC),
        (namespaces.uts, ns::UTS),
    ]
    .into_iter()
    .filter(|(owner, _)| *owner == Namespace::New)
    .fold(0, |flags, (_, flag)| flags | flag)
}

/// Opens the pod's directory, made if it is missing.
fn open_dir(path: &Path) -> Result<OwnedFd, SetupError> {
    let make = || failed(format!("make the directory {}", path.display()));
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(make()(error)),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::open(path, flags, Mode::empty())
        .map_err(failed(format!("open the directory {}", path.display())))?;
    match rustix::fs::mkdirat(&dir, "containers", Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => Ok(dir),
        Err(error) => Err(make()(error)),
    }
}

/// Binds the shim's socket, however long the path of its directory is, with mode 0600.
fn listen(dir: &OwnedFd, path: &Path) -> Result<UnixListener, SetupError> {
    let _ = rustix::fs::unlinkat(dir, SOCKET_NAME, AtFlags::empty());
    let umask = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET_NAME}", dir.as_raw_fd()))
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    rustix::process::umask(umask);
    bound.map_err(|source| SetupError::System {
        operation: format!("listen at {}", path.join(SOCKET_NAME).display()),
        source,
    })
}

/// Mounts the pod's shared memory, visible in the host's mount namespace.
fn mount_shm(dir: &OwnedFd, setup: &PodSetup, size: u64) -> Result<PathBuf, SetupError> {
    let target = setup.dir.join(SHM_NAME);
    match rustix::fs::mkdirat(dir, SHM_NAME, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => {
            return Err(failed(format!("make the directory {}", target.display()))(
                error,
            ));
        }
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let owner = match &setup.user {
        Some(user) => {
            let (uid, gid) = user::root_of(user);
            format!(",uid={uid},gid={gid}")
        }
        None => String::new(),
    };
    let options = std::ffi::CString::new(format!("mode=1777,size={size}{owner}"))
        .map_err(|_| failed("write the mount options of shared memory")(Errno::INVAL))?;
    rustix::mount::mount("shm", &target, "tmpfs", flags, Some(options.as_c_str())).map_err(
        failed(format!(
            "mount {size} bytes of shared memory at {}",
            target.display()
        )),
    )?;
    Ok(target)
}

/// Starts the first process of a PID namespace that the pod's containers share. It reaps what is
/// orphaned there, is not to be signalled from inside, and ends with the shim.
fn start_init() -> Result<Child, SetupError> {
    // SAFETY: the shim has a single thread.
    let cloned = unsafe { kelson_sys::process::clone3(ns::PID, None) };
    match cloned.map_err(failed("start the init of the pod's PID namespace"))? {
        Cloned::Parent(child) => Ok(child),
        Cloned::Child => be_init(),
    }
}

/// Never returns.
pub(super) fn be_init() -> ! {
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"kelson-init");
    // SAFETY: SIG_IGN installs no handler; the kernel reaps children of who ignores SIGCHLD.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    // SAFETY: nothing of what is closed is used or dropped any more: this function never returns.
    let _ = unsafe { kelson_sys::process::close_fds(0, u32::MAX) };
    loop {
        rustix::event::pause();
    }
}

fn write_file(path: &std::ffi::CStr, text: &[u8]) -> rustix::io::Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file.as_fd(), text).map(drop)
}
