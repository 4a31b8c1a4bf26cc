//! The default profile: what a container may call that asks for nothing special.
//!
//! It behaves as the one that Docker and containerd have in common (2026): calls that programs need
//! are allowed by name, those that go with a capability are allowed with it, everything else fails
//! with EPERM, and what is newer than the list with ENOSYS. Names that only some architectures have
//! are left out by the others.

use std::collections::HashSet;

use oci_spec::runtime::{
    Capability, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg,
    LinuxSeccompArgBuilder, LinuxSeccompOperator as Operator, LinuxSyscall,
};

use super::abi::Machine;

/// Sockets.
const SOCKETS: &str = "\
    accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg \
    recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall \
    socketpair";

/// Signals and timers.
const SIGNALS: &str = "\
    adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime \
    clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday kill nanosleep \
    pause pidfd_send_signal restart_syscall rt_sigaction rt_sigpending rt_sigprocmask \
    rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 \
    rt_tgsigqueueinfo setitimer sigaltstack signalfd signalfd4 sigprocmask sigreturn tgkill time \
    timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime \
    timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime \
    timerfd_settime64 times tkill";

/// Waiting for descriptors.
const WAITING: &str = "\
    _newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 \
    epoll_wait epoll_wait_old eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init \
    inotify_init1 inotify_rm_watch poll ppoll ppoll_time64 pselect6 pselect6_time64 select";

/// System V and POSIX IPC, futexes.
const IPC: &str = "\
    futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake get_robust_list ipc \
    membarrier mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 \
    mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd rseq semctl semget \
    semop semtimedop semtimedop_time64 set_robust_list shmat shmctl shmdt shmget";

/// Memory.
const MEMORY: &str = "\
    brk madvise map_shadow_stack memfd_create memfd_secret mincore mlock mlock2 mlockall mmap \
    mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free \
    pkey_mprotect process_mrelease remap_file_pages";

/// Users, groups, capabilities, limits.
const IDENTITY: &str = "\
    capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 \
    getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getuid getuid32 \
    landlock_add_rule landlock_create_ruleset landlock_restrict_self prctl prlimit64 seccomp \
    setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setregid \
    setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setuid \
    setuid32 ugetrlimit umask";

/// Processes, scheduling, the machine.
const PROCESSES: &str = "\
    execve execveat exit exit_group fork get_thread_area getcpu getpgid getpgrp getpid getppid \
    getpriority getrandom getsid gettid ioprio_get ioprio_set pidfd_open riscv_hwprobe \
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam \
    sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity \
    sched_setattr sched_setparam sched_setscheduler sched_yield set_thread_area set_tid_address \
    setpgid setpriority setsid sysinfo uname uretprobe vfork wait4 waitid waitpid";

/// Attributes of files.
const ATTRIBUTES: &str = "\
    access cachestat chmod chown chown32 faccessat faccessat2 fchmod fchmodat fchmodat2 fchown \
    fchown32 fchownat fgetxattr flistxattr fremovexattr fsetxattr fstat fstat64 fstatat64 \
    fstatfs fstatfs64 futimesat getdents getdents64 getxattr getxattrat lchown lchown32 \
    lgetxattr listmount listxattr listxattrat llistxattr lremovexattr lsetxattr lstat lstat64 \
    name_to_handle_at newfstatat removexattr removexattrat setxattr setxattrat stat stat64 \
    statfs statfs64 statmount statx utime utimensat utimensat_time64 utimes";

/// Files, paths and descriptors.
const FILES: &str = "\
    _llseek chdir close close_range copy_file_range creat dup dup2 dup3 fadvise64 fadvise64_64 \
    fallocate fchdir fcntl fcntl64 fdatasync flock fsync ftruncate ftruncate64 getcwd io_cancel \
    io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl link \
    linkat lseek mkdir mkdirat mknod mknodat open openat openat2 pipe pipe2 pread64 preadv \
    preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv rename renameat \
    renameat2 rmdir sendfile sendfile64 splice symlink symlinkat sync sync_file_range syncfs tee \
    truncate truncate64 unlink unlinkat vmsplice write writev";

/// Looking into other processes of the same user: harmless since Linux 4.8, where a tracer can no
/// longer get round the filter.
const TRACING: &str = "process_vm_readv process_vm_writev ptrace";

/// What a capability brings with it.
pub(super) const WITH_CAPABILITY: [(Capability, &str); 14] = [
    (Capability::Bpf, "bpf"),
    (Capability::DacReadSearch, "open_by_handle_at"),
    (Capability::Perfmon, "perf_event_open"),
    (
        Capability::SysAdmin,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie \
         lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount \
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog \
         umount umount2 unshare",
    ),
    (Capability::SysBoot, "reboot"),
    (Capability::SysChroot, "chroot"),
    (
        Capability::SysModule,
        "delete_module finit_module init_module",
    ),
    (
        Capability::SysNice,
        "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    ),
    (Capability::SysPacct, "acct"),
    (Capability::SysPtrace, "kcmp pidfd_getfd process_madvise"),
    (Capability::SysRawio, "ioperm iopl"),
    (
        Capability::SysTime,
        "clock_settime clock_settime64 settimeofday stime",
    ),
    (Capability::SysTtyConfig, "vhangup"),
    (Capability::Syslog, "syslog"),
];

/// `CLONE_NEW*`: namespaces, all but that of time, which clone(2) cannot make.
const NEW_NAMESPACES: u64 = 0x7e02_0000;

/// Execution domains for personality(2): Linux, with the uname of 2.6 and 32-bit addresses
/// (`UNAME26`, `PER_LINUX32`), and the query.
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x0002_0000, 0x0002_0008, 0xffff_ffff];

/// Address families that are refused, as they reach beyond the container's namespaces or into
/// kernel code that no usual program needs.
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// The default profile for a process with these capabilities in its bounding set.
pub fn default_profile(capabilities: &HashSet<Capability>) -> LinuxSeccomp {
    // compile() reports a machine that is not supported.
    profile_for(Machine::native().unwrap_or(Machine::X86_64), capabilities)
}

pub(super) fn profile_for(machine: Machine, capabilities: &HashSet<Capability>) -> LinuxSeccomp {
    let groups = [
        SOCKETS, SIGNALS, WAITING, IPC, MEMORY, IDENTITY, PROCESSES, ATTRIBUTES, FILES, TRACING,
    ];
    let by_capability = WITH_CAPABILITY
        .iter()
        .filter(|(cap, _)| capabilities.contains(cap));
    let names = groups
        .into_iter()
        .chain([of_machine(machine)])
        .chain(by_capability.map(|(_, names)| *names))
        .flat_map(str::split_ascii_whitespace);

    let mut rules = vec![allow(names, None)];
    rules.extend(PERSONALITIES.map(|value| {
        allow(
            ["personality"],
            Some(argument(0, Operator::ScmpCmpEq, value, 0)),
        )
    }));
    let families = [
        (Operator::ScmpCmpLt, AF_ALG),
        (Operator::ScmpCmpEq, AF_ALG + 1),
        (Operator::ScmpCmpGt, AF_VSOCK),
    ];
    rules.extend(
        families
            .map(|(operator, family)| allow(["socket"], Some(argument(0, operator, family, 0)))),
    );
    if !capabilities.contains(&Capability::SysAdmin) {
        let none_new = argument(0, Operator::ScmpCmpMaskedEq, NEW_NAMESPACES, 0);
        rules.push(allow(["clone"], Some(none_new)));
        // Its flags lie in memory where a filter cannot look; C libraries fall back to clone.
        let mut clone3 = allow(["clone3"], None);
        clone3
            .set_action(Action::ScmpActErrno)
            .set_errno_ret(Some(ENOSYS));
        rules.push(clone3);
    }

    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(Action::ScmpActErrno)
        .set_default_errno_ret(Some(EPERM))
        .set_architectures(Some(machine.architectures()))
        .set_syscalls(Some(rules));
    profile
}

/// Calls that only exist, or only are harmless, on one kind of machine.
fn of_machine(machine: Machine) -> &'static str {
    match machine {
        Machine::X86_64 => "arch_prctl modify_ldt",
        Machine::Aarch64 => {
            "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2"
        }
        Machine::Riscv64 => "riscv_flush_icache",
    }
}

fn allow<'a>(
    names: impl IntoIterator<Item = &'a str>,
    condition: Option<LinuxSeccompArg>,
) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.into_iter().map(str::to_owned).collect())
        .set_action(Action::ScmpActAllow)
        .set_args(condition.map(|condition| vec![condition]));
    rule
}

/// The value two is the operand of `MASKED_EQ`; other operators do not look at it.
fn argument(index: usize, op: Operator, value: u64, value_two: u64) -> LinuxSeccompArg {
    LinuxSeccompArgBuilder::default()
        .index(index)
        .op(op)
        .value(value)
        .value_two(value_two)
        .build()
        .expect("every field is set")
}
