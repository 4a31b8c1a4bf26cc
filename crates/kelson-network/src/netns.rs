//! Entering a pod's network namespace, and pinning it under a path for external plugins.
//!
//! Only threads made for the purpose change their namespace; no thread of the caller ever does.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::mount::UnmountFlags;
use rustix::thread::LinkNameSpaceType;

use crate::error::Error;
use crate::pod::Netns;

/// Opens a pod's network namespace.
pub(crate) fn open(proc_root: &Path, netns: &Netns) -> Result<OwnedFd, Error> {
    let path = path(proc_root, netns);
    let file = File::open(&path).map_err(|source| Error::Netns {
        path: path.clone(),
        source,
    })?;
    Ok(file.into())
}

/// The file through which the namespace is reached.
pub(crate) fn path(proc_root: &Path, netns: &Netns) -> PathBuf {
    match netns {
        Netns::Pid(pid) => proc_root.join(pid.to_string()).join("ns/net"),
        Netns::Path(path) => path.clone(),
    }
}

/// Runs `work` on a short-lived thread inside the namespace.
pub(crate) fn inside<T: Send>(
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    let enter = || {
        rustix::thread::move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|source| Error::kernel("enter the pod's network namespace", source.into()))?;
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, enter);
        let thread = thread.map_err(|source| Error::kernel("start a thread", source))?;
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Bind-mounts the namespace under `target`, which is made.
pub(crate) fn pin(source: &Path, target: &Path) -> Result<(), Error> {
    if let Some(dir) = target.parent() {
        std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    }
    File::create(target).map_err(Error::io("create", target))?;
    rustix::mount::mount_bind(source, target)
        .map_err(|errno| Error::io("bind-mount a network namespace on", target)(errno.into()))
}

/// Undoes [`pin`]; fine when there is nothing to undo.
pub(crate) fn unpin(target: &Path) -> Result<(), Error> {
    while rustix::mount::unmount(target, UnmountFlags::DETACH).is_ok() {}
    match std::fs::remove_file(target) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", target)(source))
        }
        _ => Ok(()),
    }
}
