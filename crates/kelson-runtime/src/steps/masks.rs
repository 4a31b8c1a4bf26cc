//! Paths that are hidden or write-protected, and the write protection of the root.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use kelson_sys::mount::{self, Attributes, Filesystem};
use kelson_sys::root::{Root, kind_and_device};
use rustix::fs::{FileType, Mode, OFlags, makedev};
use rustix::io::Errno;

use super::{Container, Failure, OrFail};

const READ_ONLY: Attributes<'static> = Attributes {
    set: libc::MOUNT_ATTR_RDONLY,
    clear: 0,
    propagation: None,
    id_map: None,
};

/// Write-protects and hides what the specification lists. What does not exist needs neither.
pub(super) fn apply(container: &mut Container<'_>) -> Result<(), Failure> {
    let root = container.root()?;
    for path in &container.plan.readonly_paths {
        protect(root, path)?;
    }
    let mut masks = Masks {
        null: None,
        empty: None,
    };
    for path in &container.plan.masked_paths {
        masks.hide(root, path)?;
    }
    if container.plan.readonly_root {
        mount::set_attributes(root.as_fd(), &READ_ONLY, false)
            .or_fail(|| "cannot write-protect the root".into())?;
    }
    Ok(())
}

fn protect(root: &Root, path: &Path) -> Result<(), Failure> {
    let what = || format!("cannot write-protect {}", path.display());
    let Some(there) = existing(root, path)? else {
        return Ok(());
    };
    let tree = mount::clone_tree(there.as_fd(), true).or_fail(what)?;
    mount::set_attributes(tree.as_fd(), &READ_ONLY, true).or_fail(what)?;
    mount::attach(tree.as_fd(), there.as_fd()).or_fail(what)
}

/// What is mounted on hidden paths; each is made when it is first needed, and cloned.
struct Masks {
    null: Option<OwnedFd>,
    empty: Option<OwnedFd>,
}

impl Masks {
    fn hide(&mut self, root: &Root, path: &Path) -> Result<(), Failure> {
        let what = || format!("cannot hide {}", path.display());
        let Some(there) = existing(root, path)? else {
            return Ok(());
        };
        let (kind, _) = kind_and_device(there.as_fd()).or_fail(what)?;
        if kind != FileType::Directory {
            if self.null.is_none() {
                self.null = Some(host_null()?);
            }
            let null = self.null.as_ref().ok_or_else(|| Failure::new(what()))?;
            let tree = mount::clone_tree(null.as_fd(), false).or_fail(what)?;
            return mount::attach(tree.as_fd(), there.as_fd()).or_fail(what);
        }
        match &self.empty {
            Some(empty) => {
                let tree = mount::clone_tree(empty.as_fd(), false).or_fail(what)?;
                mount::attach(tree.as_fd(), there.as_fd()).or_fail(what)
            }
            None => {
                let empty = empty_directory().or_fail(what)?;
                mount::attach(empty.as_fd(), there.as_fd()).or_fail(what)?;
                self.empty = Some(empty);
                Ok(())
            }
        }
    }
}

fn existing(root: &Root, path: &Path) -> Result<Option<OwnedFd>, Failure> {
    match root.open_path(path) {
        Ok(fd) => Ok(Some(fd)),
        Err(e) if e.is_not_found() => Ok(None),
        // A link into /proc/<pid>/… that the kernel follows by magic: not a path of the container.
        Err(e) if e.errno() == Some(Errno::LOOP) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The host's `/dev/null`, after a look at what it is.
fn host_null() -> Result<OwnedFd, Failure> {
    let what = || "cannot open /dev/null of the host".to_owned();
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let null = rustix::fs::open(c"/dev/null", flags, Mode::empty()).or_fail(what)?;
    let expected = (FileType::CharacterDevice, makedev(1, 3));
    if kind_and_device(null.as_fd()).or_fail(what)? == expected {
        return Ok(null);
    }
    Err(Failure::new("/dev/null of the host is not the null device"))
}

/// A directory with nothing in it and no room for anything.
fn empty_directory() -> rustix::io::Result<OwnedFd> {
    let fs = Filesystem::open(c"tmpfs")?;
    fs.set(c"nr_inodes", c"1")?;
    fs.set(c"mode", c"755")?;
    let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    fs.mount(attributes | libc::MOUNT_ATTR_NOEXEC)
}
