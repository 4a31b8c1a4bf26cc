//! A pod in a user namespace of its own.
//!
//! The pod's other namespaces have to belong to it, so they are made by a helper inside it. The shim
//! itself goes into those others only: it keeps its rights on the host, and a descriptor of the user
//! namespace for its containers. The helper also sets the kernel parameters: some of them only the
//! namespace's own root may write.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use kelson_sys::process::{self, Child, Cloned, ns};
use kelson_sys::userns::{self, IdRange};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{WaitId, WaitIdOptions};
use rustix::thread::{Gid, Uid};

use super::setup::{Made, be_init, set_sysctls};
use super::sysctl::SysctlError;
use crate::proto::{Namespace, PodSetup, UserNamespace};

/// Longest message of the helper.
const MAX_MESSAGE: usize = 8 << 10;

/// Why a pod has no user namespace.
#[derive(Debug, thiserror::Error)]
pub(super) enum UserError {
    #[error("cannot {operation}")]
    System {
        operation: String,
        #[source]
        source: std::io::Error,
    },
    /// The helper's words: a kernel parameter and what is wrong with it.
    #[error("{0}")]
    Sysctl(String),
    /// The same of a parameter of the IPC namespace.
    #[error("{0}")]
    Ipc(String),
}

fn failed(operation: &str) -> impl FnOnce(Errno) -> UserError {
    move |error| UserError::System {
        operation: operation.to_owned(),
        source: error.into(),
    }
}

fn ranges(lines: &[(u32, u32, u32)]) -> Vec<IdRange> {
    let range = |&(inside, outside, count): &(u32, u32, u32)| IdRange {
        inside,
        outside,
        count,
    };
    lines.iter().map(range).collect()
}

/// The user and the group of the host that are root inside; the host's root where there is none.
pub(super) fn root_of(user: &UserNamespace) -> (u32, u32) {
    let id = |lines: &[(u32, u32, u32)]| userns::outside_of(&ranges(lines), 0).unwrap_or(0);
    (id(&user.uids), id(&user.gids))
}

/// Makes the user namespace and in it those of `flags`, which the caller enters, and the init of a
/// shared PID namespace.
pub(super) fn set_up(
    setup: &PodSetup,
    wanted: &UserNamespace,
    flags: u64,
) -> Result<Made, UserError> {
    let user = userns::make(&ranges(&wanted.uids), &ranges(&wanted.gids))
        .map_err(failed("make the pod's user namespace"))?;
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(failed("make a socket pair"))?;
    // SAFETY: the shim has a single thread.
    let cloned = unsafe { process::clone3(0, None) };
    let helper = match cloned.map_err(failed("start a helper for the namespaces of the pod"))? {
        Cloned::Child => {
            drop(ours);
            help(setup, &user, flags, &theirs)
        }
        Cloned::Parent(child) => child,
    };
    drop(theirs);
    let made = enter(setup, &helper, &ours, flags);
    // The helper ends when its socket is closed, if it has not yet.
    drop(ours);
    let wait = || {
        let id = WaitId::PidFd(helper.pidfd.as_fd());
        rustix::process::waitid(id, WaitIdOptions::EXITED)
    };
    let _ = rustix::io::retry_on_intr(wait);
    made.map(|init| Made {
        user: Some(user),
        init,
    })
}

/// The shim's side: follows the helper into its namespaces.
fn enter(
    setup: &PodSetup,
    helper: &Child,
    socket: &OwnedFd,
    flags: u64,
) -> Result<Option<Child>, UserError> {
    let mut init = None;
    if setup.namespaces.pid == Namespace::New {
        let mut fds = hear(socket)?;
        let pidfd = fds
            .pop()
            .ok_or(Errno::BADMSG)
            .map_err(failed("get the init of the pod's PID namespace"))?;
        let pid = kelson_sys::process::pid_of(pidfd.as_fd())
            .map_err(failed("find the init of the pod's PID namespace"))?;
        init = Some(Child { pid, pidfd });
    }
    let heard = hear(socket);
    if flags != 0 && matches!(heard, Ok(_) | Err(UserError::Ipc(_))) {
        process::setns(helper.pidfd.as_fd(), flags)
            .map_err(failed("enter the namespaces of the pod"))?;
    }
    match heard {
        Ok(_) => {}
        // Before Linux 6.10 only the host's root may write these.
        Err(UserError::Ipc(_)) if set_sysctls(setup, |name| !is_of_network(name)).is_ok() => {}
        Err(error) => return Err(error),
    }
    Ok(init)
}

/// One message: empty but for descriptors, or what failed.
fn hear(socket: &OwnedFd) -> Result<Vec<OwnedFd>, UserError> {
    let mut buffer = vec![0; MAX_MESSAGE];
    let (count, fds) = kelson_sys::fdpass::recv_with_fds(socket.as_fd(), &mut buffer)
        .map_err(failed("hear from the helper for the namespaces of the pod"))?;
    match buffer[..count].split_first() {
        Some((b'+', _)) => Ok(fds),
        Some((b's', text)) => Err(UserError::Sysctl(
            String::from_utf8_lossy(text).into_owned(),
        )),
        Some((b'i', text)) => Err(UserError::Ipc(String::from_utf8_lossy(text).into_owned())),
        Some((_, text)) => {
            let text = String::from_utf8_lossy(text);
            let (code, operation) = text.split_once(' ').unwrap_or(("5", "make the namespaces"));
            let code = code.parse().unwrap_or(5);
            Err(UserError::System {
                operation: operation.to_owned(),
                source: std::io::Error::from_raw_os_error(code),
            })
        }
        None => Err(failed("make the namespaces of the pod: the helper is gone")(Errno::PIPE)),
    }
}

/// What the helper tells when it cannot go on.
enum Trouble {
    System(Errno, &'static str),
    Sysctl(char, SysctlError),
}

fn is_of_network(name: &str) -> bool {
    name.starts_with("net.") || name.starts_with("net/")
}

/// The helper: it becomes root of the user namespace, makes what belongs there, and waits until the
/// shim has entered it.
fn help(setup: &PodSetup, user: &OwnedFd, flags: u64, socket: &OwnedFd) -> ! {
    let done = make(setup, user, flags, socket);
    let text = match done {
        Ok(()) => "+".to_owned(),
        Err(Trouble::System(errno, what)) => format!("!{} {what}", errno.raw_os_error()),
        Err(Trouble::Sysctl(mark, error)) => {
            let refusal = super::refusal(crate::proto::RefusalKind::Sysctl, &error);
            let mut text = format!("{mark}{}", refusal.message);
            text.truncate(text.floor_char_boundary(MAX_MESSAGE));
            text
        }
    };
    let _ = kelson_sys::fdpass::send_with_fds(socket.as_fd(), text.as_bytes(), &[]);
    // Until the shim closes its end: it takes the namespaces from this process.
    let _ = rustix::io::retry_on_intr(|| rustix::io::read(socket, &mut [0; 1]));
    process::exit_now(0)
}

fn make(setup: &PodSetup, user: &OwnedFd, flags: u64, socket: &OwnedFd) -> Result<(), Trouble> {
    let system = |what: &'static str| move |errno| Trouble::System(errno, what);
    process::setns(user.as_fd(), ns::USER).map_err(system("enter the user namespace"))?;
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    let what = "become root of the user namespace";
    rustix::thread::set_thread_groups(&[]).map_err(system(what))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(system(what))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(system(what))?;
    // Nothing in the namespace may look into the copy of the shim that this is.
    process::set_dumpable(false).map_err(system("become untraceable"))?;
    process::unshare(flags).map_err(system("make the namespaces of the pod"))?;
    if setup.namespaces.pid == Namespace::New {
        // SAFETY: this is a clone of the shim, which has a single thread.
        let cloned = unsafe { process::clone_sibling(ns::PID) };
        match cloned.map_err(system("start the init of the pod's PID namespace"))? {
            Cloned::Child => be_init(),
            Cloned::Parent(child) => {
                tell(socket, child.pidfd.as_fd()).map_err(system("tell of the init"))?;
            }
        }
    }
    set_sysctls(setup, is_of_network).map_err(|error| Trouble::Sysctl('s', error))?;
    set_sysctls(setup, |name| !is_of_network(name)).map_err(|error| Trouble::Sysctl('i', error))
}

fn tell(socket: &OwnedFd, fd: BorrowedFd<'_>) -> rustix::io::Result<()> {
    kelson_sys::fdpass::send_with_fds(socket.as_fd(), b"+", &[fd]).map(drop)
}
