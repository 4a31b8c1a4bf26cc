//! The cgroup and the namespaces.

use std::os::fd::AsFd;

use kelson_sys::process::{self, ns};
use rustix::fs::{Mode, OFlags};
use rustix::thread::{Gid, Uid};

use super::{Container, Failure, Further, NewProcess, OrFail};

/// Enters the cgroup, unless the clone did, and then makes the cgroup namespace: its root is the
/// cgroup that its maker is in.
pub(super) fn enter_cgroup(container: &mut Container<'_>) -> Result<(), Failure> {
    enter_cgroup_of(&container.process)?;
    let late = container.process.entry.clone_into().is_none();
    if late && container.plan.namespaces.create & ns::CGROUP != 0 {
        process::unshare(ns::CGROUP).or_fail(|| "cannot make a cgroup namespace".into())?;
    }
    Ok(())
}

/// Enters the cgroup, unless the clone did.
pub(super) fn enter_cgroup_of(process: &NewProcess<'_>) -> Result<(), Failure> {
    if process.entry.clone_into().is_some() {
        return Ok(());
    }
    process
        .entry
        .enter()
        .or_fail(|| "cannot enter the cgroup".into())
}

/// Joins the namespaces that have a path and makes those that the clone could not.
pub(super) fn enter(container: &mut Container<'_>) -> Result<(), Failure> {
    let namespaces = &container.plan.namespaces;
    for (flag, path) in &namespaces.join {
        // The maker joined it for this process.
        if *flag == ns::PID {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty())
            .or_fail(|| format!("cannot open the namespace {}", path.display()))?;
        process::setns(file.as_fd(), *flag)
            .or_fail(|| format!("cannot join the namespace {}", path.display()))?;
    }
    if namespaces.has(ns::USER) {
        become_root_of_user_namespace()?;
    }
    if namespaces.create & ns::TIME != 0 {
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
fn become_root_of_user_namespace() -> Result<(), Failure> {
    let what = || "cannot become root of the user namespace".to_owned();
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    rustix::thread::set_thread_res_gid(gid, gid, gid).or_fail(what)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).or_fail(what)
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
