//! A container's view of its cgroups: its own directories, bound.
//!
//! Binding keeps the options of the host's mounts as they are, which a new mount of the same
//! hierarchy could change for the whole machine.

use std::os::fd::AsFd;
use std::path::Path;

use kelson_cgroup::Version;
use kelson_sys::mount::{self, Attributes, Filesystem};
use kelson_sys::root::Root;
use rustix::fs::{CWD, Mode};

use super::mounts::{attach, set_attributes};
use super::overlay::explained;
use super::{Container, Failure, OrFail, label};
use crate::plan::MountPlan;

const DIR: Mode = Mode::from_raw_mode(0o755);

/// Mounts `/sys/fs/cgroup`, or wherever the specification wants it.
pub(super) fn mount(container: &Container<'_>, plan: &MountPlan) -> Result<(), Failure> {
    let root = container.root()?;
    let target = root.mkdir_all(&plan.target, DIR)?;
    let directories = container.cgroup.directories();
    if container.cgroup.hierarchy().version() == Version::V2 {
        for (_, directory) in &directories {
            let tree = bind(directory, plan)?;
            attach(&tree, &target, &plan.target)?;
        }
        return Ok(());
    }
    let fs = Filesystem::open(c"tmpfs").or_fail(|| "cannot make a tmpfs for cgroups".into())?;
    fs.set(c"source", c"cgroup")
        .and_then(|()| fs.set(c"mode", c"755"))
        .map_err(|e| explained(&fs, "make a tmpfs for cgroups", e))?;
    let top = fs
        .mount(plan.attributes.set & !libc::MOUNT_ATTR_RDONLY)
        .map_err(|e| explained(&fs, "make a tmpfs for cgroups", e))?;
    attach(&top, &target, &plan.target)?;
    let top = Root::from_fd(top, label().join("sys/fs/cgroup"));
    for (mount_point, directory) in &directories {
        let Some(name) = mount_point.file_name().map(Path::new) else {
            continue;
        };
        let tree = bind(directory, plan)?;
        attach(&tree, &top.mkdir_all(name, DIR)?, &plan.target)?;
        // Controllers that share a hierarchy are also found by their own names.
        for alias in name
            .to_string_lossy()
            .split(',')
            .filter(|alias| Path::new(alias) != name)
        {
            rustix::fs::symlinkat(name, &top, alias)
                .or_fail(|| format!("cannot link cgroup controller {alias}"))?;
        }
    }
    if plan.attributes.set & libc::MOUNT_ATTR_RDONLY != 0 {
        let change = Attributes {
            set: libc::MOUNT_ATTR_RDONLY,
            ..Attributes::default()
        };
        mount::set_attributes(top.as_fd(), &change, false)
            .or_fail(|| "cannot write-protect the tmpfs of cgroups".into())?;
    }
    Ok(())
}

fn bind(directory: &Path, plan: &MountPlan) -> Result<std::os::fd::OwnedFd, Failure> {
    let tree = mount::clone_tree_at(CWD, directory, false)
        .or_fail(|| format!("cannot bind cgroup {}", directory.display()))?;
    set_attributes(tree.as_fd(), plan)?;
    Ok(tree)
}
