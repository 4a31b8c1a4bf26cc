//! Processes: clone3, namespaces, credentials, signals, seccomp filters.
//!
//! Everything here acts on the calling thread or on a descriptor that the caller hands in, never
//! on a process named by a bare number.

use std::ffi::{CStr, c_int};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{Errno, Result};

/// `CLONE_*` flags for new namespaces, as clone3, unshare and setns take them.
pub mod ns {
    /// Mount namespace.
    pub const MOUNT: u64 = libc::CLONE_NEWNS as u64;
    /// PID namespace.
    pub const PID: u64 = libc::CLONE_NEWPID as u64;
    /// Network namespace.
    pub const NETWORK: u64 = libc::CLONE_NEWNET as u64;
    /// IPC namespace.
    pub const IPC: u64 = libc::CLONE_NEWIPC as u64;
    /// UTS namespace.
    pub const UTS: u64 = libc::CLONE_NEWUTS as u64;
    /// cgroup namespace.
    pub const CGROUP: u64 = libc::CLONE_NEWCGROUP as u64;
    /// User namespace.
    pub const USER: u64 = libc::CLONE_NEWUSER as u64;
    /// Time namespace (not accepted by clone3 together with a stack; use unshare).
    pub const TIME: u64 = 0x80;
}

/// `CLONE_INTO_CGROUP`.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Which side of a clone the caller is on.
#[derive(Debug)]
pub enum Cloned {
    /// In the new process.
    Child,
    /// In the old one.
    Parent(Child),
}

/// A process that the caller has made and must reap.
#[derive(Debug)]
pub struct Child {
    /// Its number in the caller's PID namespace.
    pub pid: u32,
    /// Its pidfd: readable when it has ended.
    pub pidfd: OwnedFd,
}

/// Clones the calling process with clone3, with a pidfd and SIGCHLD at its end; memory is copied.
/// `namespaces` is made of [`ns`] flags; `cgroup` is a cgroup v2 directory to start in.
///
/// # Safety
/// The calling process must be single-threaded: the child may allocate, and a lock held by another
/// thread would stay held in it for ever.
pub unsafe fn clone3(namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned> {
    // SAFETY: the caller promises the same.
    unsafe { clone(namespaces, libc::SIGCHLD, cgroup) }
}

/// As [`clone3`], but the new process is a child of the caller's parent, which reaps it. The pidfd
/// in the answer is the caller's.
///
/// # Safety
/// As for [`clone3`].
pub unsafe fn clone_sibling(namespaces: u64) -> Result<Cloned> {
    // The signal at its end is the one at the caller's.
    // SAFETY: the caller promises the same.
    unsafe { clone(namespaces | libc::CLONE_PARENT as u64, 0, None) }
}

/// # Safety
/// As for [`clone3`].
unsafe fn clone(flags: u64, exit_signal: c_int, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain data for which zero is a valid value of every field.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = exit_signal as u64;
    if let Some(fd) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = fd.as_raw_fd() as u64;
    }
    // SAFETY: `args` outlives the call and its size is passed; without CLONE_VM the child runs on
    // a copy of this stack. The caller promises a single thread.
    let ret = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    match ret {
        -1 => Err(last_errno()),
        0 => Ok(Cloned::Child),
        pid => Ok(Cloned::Parent(Child {
            pid: pid as u32,
            // SAFETY: the kernel has stored a fresh descriptor that nobody else owns.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        })),
    }
}

/// Joins the namespaces named by `flags` ([`ns`]): of the process behind a pidfd, or the single
/// one behind an open `/proc/<pid>/ns/…` file. A PID namespace takes effect for later children.
pub fn setns(fd: BorrowedFd<'_>, flags: u64) -> Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::setns(fd.as_raw_fd(), flags as c_int) }).map(drop)
}

/// Moves the calling thread into new namespaces ([`ns`]).
pub fn unshare(flags: u64) -> Result<()> {
    // SAFETY: no memory is passed, and namespace flags do not split the descriptor table.
    check(unsafe { libc::unshare(flags as c_int) }).map(drop)
}

/// Marks every descriptor from `first` on close-on-exec.
pub fn cloexec_from(first: u32) -> Result<()> {
    close_range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

/// Closes the descriptors `first..=last`. No [`OwnedFd`] for any of them may be used or dropped
/// afterwards in this process.
///
/// # Safety
/// Nothing else in the process owns a descriptor of that range any more.
pub unsafe fn close_fds(first: u32, last: u32) -> Result<()> {
    close_range(first, last, 0)
}

fn close_range(first: u32, last: u32, flags: u32) -> Result<()> {
    // SAFETY: no memory is passed. Closing is only asked for by the unsafe `close_fds`.
    let ret = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    check(ret as c_int).map(drop)
}

/// Sends signal `signal` (any number, real-time ones and 0 included) to the process of `pidfd`.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo asks the kernel to fill it in as kill(2) does.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            none,
            0_u32,
        )
    };
    check(ret as c_int).map(drop)
}

/// The number, in the caller's PID namespace, of the process behind `pidfd`. `ESRCH` when it has ended
/// and been reaped, or has no number there.
pub fn pid_of(pidfd: BorrowedFd<'_>) -> Result<u32> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let info = std::fs::read_to_string(path)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    pid.and_then(|text| text.trim().parse().ok())
        .filter(|pid| *pid != 0)
        .ok_or(Errno::SRCH)
}

/// Gives every signal its default action and unblocks all, as a new program expects.
pub fn reset_signals() -> Result<()> {
    for signal in 1..=64 {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        // The kernel's own structure, of which every word is zero for the default action: libc
        // refuses the two signals that it uses itself, and its posix_spawn leaves them ignored.
        let default = [0_u64; 4];
        let none = std::ptr::null_mut::<u64>();
        // SAFETY: the structure is not longer than the array on any 64-bit machine, it is only
        // read, and the last argument is the size of the kernel's signal set.
        let ret = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                &raw const default,
                none,
                8_usize,
            )
        };
        check(ret as c_int)?;
    }
    // SAFETY: the set is initialised by sigemptyset before it is used.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        check(libc::sigprocmask(
            libc::SIG_SETMASK,
            &raw const set,
            std::ptr::null_mut(),
        ))?;
    }
    Ok(())
}

/// Whether the process may be traced and its `/proc` files opened by others of its user. Reset to
/// true by execve.
pub fn set_dumpable(dumpable: bool) -> Result<()> {
    // SAFETY: the arguments are numbers.
    check(unsafe {
        libc::prctl(
            libc::PR_SET_DUMPABLE,
            libc::c_ulong::from(dumpable),
            0,
            0,
            0,
        )
    })
    .map(drop)
}

/// Joins a new, anonymous session keyring, so that the keys of the caller stay out of reach.
pub fn new_session_keyring() -> Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_int = 1;
    let name = std::ptr::null::<libc::c_char>();
    // SAFETY: a null name asks for an anonymous keyring.
    let ret = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name) };
    check(if ret < 0 { -1 } else { 0 }).map(drop)
}

/// Sets the execution domain, see personality(2).
pub fn set_personality(persona: u64) -> Result<()> {
    // SAFETY: the argument is a number.
    check(unsafe { libc::personality(persona as libc::c_ulong) }).map(drop)
}

/// Sets the I/O scheduling class and priority of the calling process, see ioprio_set(2).
pub fn set_io_priority(class: u16, priority: u16) -> Result<()> {
    const IOPRIO_WHO_PROCESS: c_int = 1;
    let value = c_int::from(class) << 13 | c_int::from(priority);
    // SAFETY: the arguments are numbers.
    let ret = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) };
    check(ret as c_int).map(drop)
}

/// Scheduling parameters, as sched_setattr(2) takes them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Scheduling {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nice value of the normal policies.
    pub nice: i32,
    /// Priority of the real-time policies.
    pub priority: u32,
    /// Runtime of the deadline policy in ns.
    pub runtime: u64,
    /// Deadline of the deadline policy in ns.
    pub deadline: u64,
    /// Period of the deadline policy in ns.
    pub period: u64,
}

/// Sets the scheduling policy of the calling thread.
pub fn set_scheduling(wanted: &Scheduling) -> Result<()> {
    // SAFETY: sched_attr is plain data for which zero is valid.
    let mut attr: libc::sched_attr = unsafe { std::mem::zeroed() };
    attr.size = size_of_val(&attr) as u32;
    attr.sched_policy = wanted.policy;
    attr.sched_flags = wanted.flags;
    attr.sched_nice = wanted.nice;
    attr.sched_priority = wanted.priority;
    attr.sched_runtime = wanted.runtime;
    attr.sched_deadline = wanted.deadline;
    attr.sched_period = wanted.period;
    // SAFETY: `attr` outlives the call and carries its own size.
    let ret = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0_u32) };
    check(ret as c_int).map(drop)
}

/// Sets the NIS domain name of the UTS namespace.
pub fn set_domain_name(name: &[u8]) -> Result<()> {
    // SAFETY: pointer and length describe `name`.
    check(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Makes the terminal behind `fd` the controlling one of the caller, a session leader without one.
pub fn set_controlling_terminal(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: the argument is a number.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// Makes descriptor `number` a copy of `fd` that survives execve; whatever it was is closed.
///
/// # Safety
/// No [`OwnedFd`] owns `number`.
pub unsafe fn replace_fd(fd: BorrowedFd<'_>, number: RawFd) -> Result<()> {
    if fd.as_raw_fd() == number {
        return rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty());
    }
    // SAFETY: the arguments are numbers; the caller promises that nobody owns `number`.
    check(unsafe { libc::dup2(fd.as_raw_fd(), number) }).map(drop)
}

/// Loads a seccomp filter for the calling thread. `flags` are `SECCOMP_FILTER_FLAG_*`; returns the
/// listener where `SECCOMP_FILTER_FLAG_NEW_LISTENER` is among them. Needs no_new_privs or
/// CAP_SYS_ADMIN.
pub fn load_seccomp(filter: &[libc::sock_filter], flags: u64) -> Result<Option<OwnedFd>> {
    const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;
    const NEW_LISTENER: u64 = 1 << 3;
    let len = u16::try_from(filter.len()).map_err(|_| Errno::TOOBIG)?;
    let program = libc::sock_fprog {
        len,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: `program` describes `filter`, which the kernel copies and does not write to.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    let ret = check(ret as c_int)?;
    // SAFETY: with this flag the result is a fresh descriptor that nobody else owns.
    Ok((flags & NEW_LISTENER != 0).then(|| unsafe { OwnedFd::from_raw_fd(ret) }))
}

/// Executes `program` in place of the calling one. Returns only on failure.
pub fn execve(program: &CStr, args: &[&CStr], env: &[&CStr]) -> Errno {
    let (argv, envp) = (pointers(args), pointers(env));
    // SAFETY: all strings end in NUL and both arrays in a null pointer; they outlive the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    last_errno()
}

/// As [`execve`], for the program behind `fd`.
pub fn fexecve(fd: BorrowedFd<'_>, args: &[&CStr], env: &[&CStr]) -> Errno {
    let (argv, envp) = (pointers(args), pointers(env));
    // SAFETY: as in `execve`; the empty path with AT_EMPTY_PATH names the file behind `fd`.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    last_errno()
}

/// Ends the calling process at once: no destructor, no atexit handler, nothing flushed.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

fn pointers(strings: &[&CStr]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|s| s.as_ptr())
        .chain([std::ptr::null()])
        .collect()
}

fn check(ret: c_int) -> Result<c_int> {
    if ret == -1 {
        Err(last_errno())
    } else {
        Ok(ret)
    }
}

fn last_errno() -> Errno {
    let code = std::io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO);
    Errno::from_raw_os_error(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{WaitOptions, WaitStatus, waitpid};

    /// Runs `body` in a child made by clone3. `body` must not allocate: tests are threaded.
    fn in_child(body: impl FnOnce() -> i32) -> WaitStatus {
        // SAFETY: `body` makes system calls only.
        match unsafe { clone3(0, None) }.unwrap() {
            Cloned::Child => exit_now(body()),
            Cloned::Parent(child) => {
                let pid = rustix::process::Pid::from_raw(child.pid as i32);
                waitpid(pid, WaitOptions::empty()).unwrap().unwrap().1
            }
        }
    }

    #[test]
    fn a_child_gets_a_pidfd_and_its_status_is_seen() {
        assert_eq!(in_child(|| 7).exit_status(), Some(7));
    }

    #[test]
    fn a_signal_reaches_the_child_by_pidfd() {
        // SAFETY: the child only sleeps.
        let Cloned::Parent(child) = unsafe { clone3(0, None) }.unwrap() else {
            loop {
                // SAFETY: pause has no preconditions.
                unsafe { libc::pause() };
            }
        };
        use std::os::fd::AsFd;
        pidfd_send_signal(child.pidfd.as_fd(), libc::SIGKILL).unwrap();
        let pid = rustix::process::Pid::from_raw(child.pid as i32);
        let status = waitpid(pid, WaitOptions::empty()).unwrap().unwrap().1;
        assert_eq!(status.terminating_signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn a_filter_makes_a_call_fail() {
        // Everything is allowed except getppid, which fails with EPERM (x86-64 and arm64 numbers
        // come from libc, so no architecture check is needed for this test).
        let filter = [
            libc::sock_filter {
                code: 0x20,
                jt: 0,
                jf: 0,
                k: 0,
            },
            libc::sock_filter {
                code: 0x15,
                jt: 0,
                jf: 1,
                k: libc::SYS_getppid as u32,
            },
            libc::sock_filter {
                code: 0x06,
                jt: 0,
                jf: 0,
                k: 0x0005_0000 | libc::EPERM as u32,
            },
            libc::sock_filter {
                code: 0x06,
                jt: 0,
                jf: 0,
                k: 0x7fff_0000,
            },
        ];
        let status = in_child(|| {
            if rustix::thread::set_no_new_privs(true).is_err() || load_seccomp(&filter, 0).is_err()
            {
                return 1;
            }
            // SAFETY: getppid has no preconditions.
            let ret = unsafe { libc::syscall(libc::SYS_getppid) };
            if ret == -1 && last_errno() == Errno::PERM {
                0
            } else {
                2
            }
        });
        assert_eq!(status.exit_status(), Some(0));
    }

    #[test]
    fn a_filter_that_is_too_long_is_refused() {
        let filter = vec![
            libc::sock_filter {
                code: 0x06,
                jt: 0,
                jf: 0,
                k: 0
            };
            70_000
        ];
        assert_eq!(load_seccomp(&filter, 0).unwrap_err(), Errno::TOOBIG);
    }

    #[test]
    fn descriptors_become_close_on_exec() {
        let status = in_child(|| {
            let Ok((read, _write)) = rustix::pipe::pipe() else {
                return 1;
            };
            if cloexec_from(3).is_err() {
                return 2;
            }
            match rustix::io::fcntl_getfd(&read) {
                Ok(flags) if flags.contains(rustix::io::FdFlags::CLOEXEC) => 0,
                _ => 3,
            }
        });
        assert_eq!(status.exit_status(), Some(0));
    }

    #[test]
    fn executing_what_is_not_there_fails() {
        assert_eq!(execve(c"/nonexistent", &[c"x"], &[]), Errno::NOENT);
    }
}
