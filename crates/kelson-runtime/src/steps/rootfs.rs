//! The root file system: a bound directory or an overlay, attached where only this mount namespace
//! sees it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use kelson_sys::mount::{self, Attributes, Propagation};
use kelson_sys::process::ns;
use kelson_sys::root::Root;
use rustix::fs::{CWD, Mode, OFlags};

use super::overlay::Layers;
use super::{Container, Failure, OrFail, label};
use crate::Rootfs;

/// Mounts the root and keeps it open; everything in the container is found beneath it.
pub(super) fn mount(container: &mut Container<'_>) -> Result<(), Failure> {
    let source = match container.rootfs {
        Rootfs::Path(path) => Some(
            mount::clone_tree_at(CWD, path, true)
                .or_fail(|| format!("cannot bind the root {}", path.display()))?,
        ),
        Rootfs::Overlay { .. } => None,
    };
    // From here on nothing that is mounted in this namespace reaches the host.
    let root = rustix::fs::open(c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .or_fail(|| "cannot open /".into())?;
    let slave = Attributes {
        propagation: Some(Propagation::Slave),
        ..Attributes::default()
    };
    mount::set_attributes(root.as_fd(), &slave, true)
        .or_fail(|| "cannot make the mounts of the host slaves".into())?;
    let in_user_ns = container.plan.namespaces.has(ns::USER);
    let tree = match (container.rootfs, source) {
        (Rootfs::Path(path), Some(tree)) => {
            // A shared root could not be pivoted to; it is made shared afterwards.
            let propagation = match container.plan.root_propagation {
                Some(Propagation::Slave) => Propagation::Slave,
                _ => Propagation::Private,
            };
            let change = Attributes {
                propagation: Some(propagation),
                ..Attributes::default()
            };
            mount::set_attributes(tree.as_fd(), &change, true)
                .or_fail(|| "cannot set the propagation of the root".into())?;
            attach(&tree, path)?;
            tree
        }
        (Rootfs::Overlay { lower, upper, work }, _) => {
            let layers = Layers {
                lower,
                writable: Some((upper, work)),
                in_user_ns,
            };
            match layers.by_context()? {
                Some(tree) => {
                    attach(&tree, upper)?;
                    tree
                }
                None => layers.by_option_string(upper)?,
            }
        }
        (Rootfs::Path(path), None) => {
            return Err(Failure::new(format!(
                "the root {} was not opened",
                path.display()
            )));
        }
    };
    container.root = Some(Root::from_fd(tree, label()));
    Ok(())
}

fn attach(tree: &OwnedFd, target: &Path) -> Result<(), Failure> {
    mount::attach_at(tree.as_fd(), target)
        .or_fail(|| format!("cannot mount the root on {}", target.display()))
}
