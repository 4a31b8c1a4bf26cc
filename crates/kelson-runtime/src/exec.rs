//! Starting a further process in a container.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd};

use kelson_cgroup::Cgroup;
use kelson_sys::process::{self, Cloned, ns};
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
                waits_for_word: false,
                program: CString::default(),
                extra_env: Vec::new(),
            },
            init,
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
fn pid_of(pidfd: BorrowedFd<'_>) -> Result<u32, LaunchError> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let info = std::fs::read_to_string(&path)
        .map_err(|e| LaunchError::system(format!("read {path}"), e))?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    pid.and_then(|text| text.trim().parse().ok())
        .filter(|pid| *pid != 0)
        .ok_or_else(|| LaunchError::system("enter the container: it has ended", Errno::SRCH))
}
