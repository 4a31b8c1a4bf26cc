//! Containers in a user namespace.
//!
//! Inside, a process has no rights on the host: it may not enter the directories of layers and
//! volumes, map the ids of a mount, or raise a limit. So a first process does all this, hands the
//! descriptors down by cloning itself, and the clone goes on. The clone is made from inside the user
//! namespace, so that its new namespaces belong to that, and it is the maker's child, as any other.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use kelson_sys::process::{self, Cloned, ns};
use kelson_sys::userns;
use rustix::fs::{FileType, Gid, Uid};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use super::namespaces::{become_root_of_user_namespace, join, make_time};
use super::{Container, Failure, Further, NewProcess, OrFail, limits};
use crate::Stdio;
use crate::progress::Message;

/// Namespaces that are not made by the clone: the user namespace exists, and the others are made
/// by the process itself.
const NOT_CLONED: u64 = ns::USER | ns::TIME | ns::CGROUP;

/// Joins what exists, and clones the process that goes on. Returns in that one only.
pub(super) fn go_on_inside(container: &mut Container<'_>) -> Result<(), Failure> {
    // With the host's rights: those of a user namespace do not reach the host's namespaces.
    join(container)?;
    make_time(container)?;
    let Some(user) = &container.user else {
        return Err(Failure::new("there is no user namespace"));
    };
    let (read, write) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).or_fail(|| "cannot make a pipe".into())?;
    process::setns(user.file.as_fd(), ns::USER)
        .or_fail(|| "cannot join the user namespace".into())?;
    let flags = container.plan.namespaces.create & !NOT_CLONED;
    // SAFETY: this process was cloned from a single-threaded one, and makes no threads.
    match unsafe { process::clone_sibling(flags) }.or_fail(|| "cannot clone a process".into())? {
        Cloned::Parent(child) => {
            let pidfd = [child.pidfd.as_fd()];
            container
                .process
                .channel
                .tell_with(&Message::Process, &pidfd);
            // One that is gone needs no word.
            let _ = rustix::io::write(&write, b"g");
            process::exit_now(0)
        }
        Cloned::Child => {
            drop(write);
            wait_for_word(&read)?;
            become_root_of_user_namespace()
        }
    }
}

/// Until the maker has been told of this process, it does nothing.
fn wait_for_word(read: &OwnedFd) -> Result<(), Failure> {
    let mut word = [0; 1];
    match rustix::io::retry_on_intr(|| rustix::io::read(read, &mut word)) {
        Ok(1) => Ok(()),
        Ok(_) => Err(Failure::new("the process that prepared this one is gone")),
        Err(e) => Err(Failure::errno("cannot wait for the maker", e)),
    }
}

/// Gives the standard streams to the user, as the host numbers it, so that it can open
/// `/dev/stdout` again.
pub(super) fn give_streams(container: &mut Container<'_>) -> Result<(), Failure> {
    let Some(user) = &container.user else {
        return Ok(());
    };
    match userns::outside_of(&user.uids, container.process.plan.uid) {
        Some(uid) => give(&container.process, uid),
        None => Err(no_such_user(&container.process)),
    }
}

/// What a further process needs of the host before it enters a user namespace.
pub(super) fn prepare_further(further: &mut Further<'_>) -> Result<(), Failure> {
    let Some(uids) = &further.uids else {
        return Ok(());
    };
    match userns::outside_of(uids, further.process.plan.uid) {
        Some(uid) => give(&further.process, uid)?,
        None => return Err(no_such_user(&further.process)),
    }
    limits::raise(&mut further.process)
}

fn no_such_user(process: &NewProcess<'_>) -> Failure {
    Failure::new(format!(
        "user {} does not exist in the user namespace; use an id that it maps",
        process.plan.uid
    ))
}

fn give(process: &NewProcess<'_>, uid: u32) -> Result<(), Failure> {
    let (stdin, stdout, stderr);
    let streams: [BorrowedFd<'_>; 3] = match &process.stdio {
        Stdio::Terminal => return Ok(()),
        Stdio::Files {
            stdin,
            stdout,
            stderr,
        } => [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
        Stdio::Inherit => {
            (stdin, stdout, stderr) = (
                rustix::stdio::stdin(),
                rustix::stdio::stdout(),
                rustix::stdio::stderr(),
            );
            [stdin, stdout, stderr]
        }
    };
    for stream in streams {
        let kind = rustix::fs::fstat(stream).map(|stat| FileType::from_raw_mode(stat.st_mode));
        if kind != Ok(FileType::Fifo) {
            continue;
        }
        match rustix::fs::fchown(stream, Some(Uid::from_raw(uid)), None::<Gid>) {
            Ok(()) | Err(Errno::PERM | Errno::ROFS | Errno::INVAL) => {}
            Err(e) => return Err(Failure::errno("cannot give a stream to the user", e)),
        }
    }
    Ok(())
}
