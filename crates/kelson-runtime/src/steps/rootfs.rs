//! The root file system: a bound directory or an overlay, attached where only this mount namespace
//! sees it.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use kelson_sys::mount::{self, Attributes, Propagation};
use kelson_sys::process::{self, ns};
use kelson_sys::root::Root;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::overlay::{Layers, map_layers};
use super::{Container, Failure, OrFail, label};
use crate::Rootfs;
use crate::plan::MountKind;

/// Makes the root, attached nowhere. From here on what is mounted is seen in this mount namespace only,
/// and in a user namespace the layers of all images have their ids mapped in it.
pub(super) fn open(container: &mut Container<'_>) -> Result<(), Failure> {
    let mut lower: Vec<PathBuf> = Vec::new();
    for plan in &container.plan.mounts {
        if let MountKind::Layers { lower: layers, .. } = &plan.kind {
            lower.extend_from_slice(layers);
        }
    }
    let mut keep: Vec<&Path> = Vec::new();
    let bound = match container.rootfs {
        Rootfs::Path(path) => {
            let tree = mount::clone_tree_at(CWD, path, true)
                .or_fail(|| format!("cannot bind the root {}", path.display()))?;
            Some(tree)
        }
        Rootfs::Overlay {
            lower: layers,
            upper,
            work,
        } => {
            lower.extend_from_slice(layers);
            keep = vec![upper, work];
            None
        }
    };
    match &container.user {
        None => isolate()?,
        Some(_) if lower.is_empty() => {}
        Some(user) => {
            // The layers are mapped in a mount namespace that nobody else sees. It is the host's
            // still, so that the overlays have the host's rights.
            process::unshare(ns::MOUNT).or_fail(|| "cannot make a mount namespace".into())?;
            isolate()?;
            map_layers(lower, &keep, user.file.as_fd())?;
        }
    }
    container.tree = match container.rootfs {
        Rootfs::Path(_) => bound,
        Rootfs::Overlay { lower, upper, work } => {
            let writable = Some((upper.as_path(), work.as_path()));
            let layers = Layers {
                lower,
                writable,
                label: container.plan.mount_label.as_deref(),
            };
            Some(layers.detached(upper)?)
        }
    };
    Ok(())
}

/// Attaches the root and keeps it open; everything in the container is found beneath it.
pub(super) fn attach(container: &mut Container<'_>) -> Result<(), Failure> {
    let Some(tree) = container.tree.take() else {
        return Err(Failure::new("the root was not opened"));
    };
    let place = match container.rootfs {
        Rootfs::Path(path) => {
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
            path
        }
        Rootfs::Overlay { upper, .. } => upper,
    };
    let attached = match mount::attach_at(tree.as_fd(), place) {
        // The root of a user namespace may not go there; it needs no place of its own.
        Err(Errno::ACCESS) if container.user.is_some() => {
            mount::attach_at(tree.as_fd(), Path::new("/"))
        }
        attached => attached,
    };
    attached.or_fail(|| format!("cannot mount the root on {}", place.display()))?;
    container.root = Some(Root::from_fd(tree, label()));
    Ok(())
}

/// From here on nothing that is mounted in this namespace reaches the host.
fn isolate() -> Result<(), Failure> {
    let root = rustix::fs::open(c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .or_fail(|| "cannot open /".into())?;
    let slave = Attributes {
        propagation: Some(Propagation::Slave),
        ..Attributes::default()
    };
    mount::set_attributes(root.as_fd(), &slave, true)
        .or_fail(|| "cannot make the mounts of the host slaves".into())
}
