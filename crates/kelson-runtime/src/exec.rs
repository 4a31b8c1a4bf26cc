//! Starting a further process in a container.

use std::ffi::CString;
use std::os::fd::BorrowedFd;

use kelson_cgroup::Cgroup;
use kelson_sys::process::{self, Cloned, ns};
use kelson_sys::userns;
use oci_spec::runtime::Process;
use rustix::io::Errno;

use crate::launch::{InPidNamespace, host_proc};
use crate::plan::ProcessPlan;
use crate::progress::Channel;
use crate::{LaunchError, Launched, Options, Progress, Stdio, seccomp, steps};

/// The kinds of namespaces by their names in procfs.
const NAMESPACES: [(&str, u64); 8] = [
    ("user", ns::USER),
    ("mnt", ns::MOUNT),
    ("pid", ns::PID),
    ("net", ns::NETWORK),
    ("ipc", ns::IPC),
    ("uts", ns::UTS),
    ("cgroup", ns::CGROUP),
    ("time", ns::TIME),
];

/// A process to start in a running container.
#[derive(Debug)]
pub struct Exec<'a> {
    /// The pidfd of the container's first process.
    pub init: BorrowedFd<'a>,
    /// What to run, as whom and how.
    pub process: &'a Process,
    /// The container's cgroup, or one beneath it; it must exist.
    pub cgroup: &'a Cgroup,
    /// Its standard streams.
    pub stdio: Stdio,
    /// Its seccomp filter.
    pub seccomp: Option<&'a seccomp::Program>,
    /// The rest; `gate`, `hooks` and `no_pivot` have no meaning here.
    pub options: Options,
}

/// Starts a process in all namespaces of a running container. Returns as soon as the process
/// exists; [`Launched::progress`] tells the rest.
pub fn exec(exec: Exec<'_>) -> Result<Launched, LaunchError> {
    let plan = ProcessPlan::new(exec.process)?;
    let entry = exec.cgroup.entry()?;
    let proc = host_proc()?;
    let init = exec
        .init
        .try_clone_to_owned()
        .map_err(|e| LaunchError::system("copy a pidfd", e))?;
    let namespaces = differing_namespaces(exec.init)?;
    let uids = if namespaces & ns::USER == 0 {
        None
    } else {
        let (uids, _) = userns::mappings_of_process(pid_of(exec.init)?)
            .map_err(|e| LaunchError::system("read the container's user ids", e))?;
        Some(uids)
    };
    let (progress, theirs) =
        Progress::pair().map_err(|e| LaunchError::system("make a socket pair", e))?;
    let other_pids = namespaces & ns::PID != 0;
    let in_namespace = other_pids
        .then(|| InPidNamespace::enter(&init))
        .transpose()?;
    // SAFETY: callers of this crate are single-threaded.
    let cloned = unsafe { process::clone3(0, entry.clone_into()) };
    if let Ok(Cloned::Child) = cloned {
        steps::run_further(steps::Further {
            process: steps::NewProcess {
                plan: &plan,
                stdio: exec.stdio,
                start_hooks: Vec::new(),
                options: Options {
                    gate: None,
                    hooks: None,
                    ..exec.options
                },
                seccomp: exec.seccomp,
                entry: &entry,
                proc,
                channel: Channel::new(theirs),
                program: CString::default(),
                extra_env: Vec::new(),
            },
            init,
            uids,
            namespaces: namespaces & !ns::PID,
        })
    }
    drop(in_namespace);
    Launched::new(cloned, progress)
}

/// Flags of the namespaces in which the process of `pidfd` is and the caller is not.
fn differing_namespaces(pidfd: BorrowedFd<'_>) -> Result<u64, LaunchError> {
    let pid = pid_of(pidfd)?;
    let mut flags = 0;
    for (name, flag) in NAMESPACES {
        let inode = |process: &str| {
            rustix::fs::stat(format!("/proc/{process}/ns/{name}")).map(|s| (s.st_dev, s.st_ino))
        };
        match (inode("self"), inode(&pid.to_string())) {
            (Ok(own), Ok(theirs)) if own != theirs => flags |= flag,
            (Ok(_), Ok(_)) => {}
            // A kernel without this kind of namespace.
            (Err(Errno::NOENT), _) => {}
            (Err(e), _) | (_, Err(e)) => {
                return Err(LaunchError::system("read the container's namespaces", e));
            }
        }
    }
    // The number was the container's all the time if its process still exists now.
    pid_of(pidfd)?;
    Ok(flags)
}

/// The number, in the caller's PID namespace, of the process behind `pidfd`.
pub(crate) fn pid_of(pidfd: BorrowedFd<'_>) -> Result<u32, LaunchError> {
    process::pid_of(pidfd).map_err(|e| match e {
        Errno::SRCH => LaunchError::system("enter the container: it has ended", e),
        e => LaunchError::system("look at a pidfd", e),
    })
}
