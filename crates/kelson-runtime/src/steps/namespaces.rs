//! The cgroup and the namespaces.

use std::os::fd::AsFd;

use kelson_sys::process::{self, ns};
use rustix::fs::{Mode, OFlags};
use rustix::thread::{Gid, Uid};

use super::{Container, Failure, Further, NewProcess, OrFail};

/// Enters the cgroup, unless the clone did, and then makes the cgroup namespace: its root is the
/// cgroup that its maker is in.
pub(super) fn enter_cgroup(container: &mut Container<'_>) -> Result<(), Failure> {
    let cloned_into = container.user.is_none() && container.process.entry.clone_into().is_some();
    if cloned_into {
        return Ok(());
    }
    enter_group(&container.process)?;
    if container.plan.namespaces.create & ns::CGROUP != 0 {
        process::unshare(ns::CGROUP).or_fail(|| "cannot make a cgroup namespace".into())?;
    }
    Ok(())
}

/// Enters the cgroup, unless the clone did.
pub(super) fn enter_cgroup_of(process: &NewProcess<'_>) -> Result<(), Failure> {
    if process.entry.clone_into().is_some() {
        return Ok(());
    }
    enter_group(process)
}

fn enter_group(process: &NewProcess<'_>) -> Result<(), Failure> {
    process
        .entry
        .enter()
        .or_fail(|| "cannot enter the cgroup".into())
}

/// Joins the namespaces that have a path and makes those that the clone could not.
pub(super) fn enter(container: &mut Container<'_>) -> Result<(), Failure> {
    join(container)?;
    make_time(container)
}

/// Joins the namespaces that have a path, but for the user namespace.
pub(super) fn join(container: &Container<'_>) -> Result<(), Failure> {
    for (flag, path) in &container.plan.namespaces.join {
        // The maker joined the PID namespace for this process.
        if *flag == ns::PID || *flag == ns::USER {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty())
            .or_fail(|| format!("cannot open the namespace {}", path.display()))?;
        process::setns(file.as_fd(), *flag)
            .or_fail(|| format!("cannot join the namespace {}", path.display()))?;
    }
    Ok(())
}

/// Makes a time namespace: its clocks can be set until somebody enters it.
pub(super) fn make_time(container: &Container<'_>) -> Result<(), Failure> {
    if container.plan.namespaces.create & ns::TIME != 0 {
        process::unshare(ns::TIME).or_fail(|| "cannot make a time namespace".into())?;
        for (clock, seconds, nanoseconds) in &container.plan.time_offsets {
            let text = format!("{clock} {seconds} {nanoseconds}\n");
            write_proc(&container.process, "self/timens_offsets", text.as_bytes())?;
        }
    }
    Ok(())
}

/// Joins all namespaces of a container.
pub(super) fn join_container(further: &mut Further<'_>) -> Result<(), Failure> {
    process::setns(further.init.as_fd(), further.namespaces)
        .or_fail(|| "cannot join the namespaces of the container".into())?;
    if further.namespaces & ns::USER != 0 {
        become_root_of_user_namespace()?;
    }
    Ok(())
}

/// Takes the id 0 of the user namespace, in which the process has no id yet.
pub(super) fn become_root_of_user_namespace() -> Result<(), Failure> {
    let what = || "cannot become root of the user namespace".to_owned();
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    rustix::thread::set_thread_res_gid(gid, gid, gid).or_fail(what)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).or_fail(what)?;
    // A change of ids sets this to what the machine has as its default.
    process::set_dumpable(false).or_fail(|| "cannot become untraceable".into())
}

/// Writes a file beneath the host's procfs.
pub(super) fn write_proc(
    process: &NewProcess<'_>,
    path: &str,
    contents: &[u8],
) -> Result<(), Failure> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let what = || format!("cannot write /proc/{path}");
    let file = rustix::fs::openat(&process.proc, path, flags, Mode::empty()).or_fail(what)?;
    rustix::io::write(&file, contents).or_fail(what).map(drop)
}
