//! The mounts of the specification, in its order.
//!
//! Sources are paths of the host and opened first, while the host's tree is untouched. Targets are
//! resolved beneath the container's root and mounted on by descriptor, so that no symlink of an
//! image leads anywhere else.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use kelson_sys::mount::{self, Attributes, Filesystem, Propagation};
use kelson_sys::root::Root;
use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;

use super::overlay::{self, explained};
use super::{Container, Failure, OrFail, labels};
use crate::plan::{MountKind, MountPlan};

const DIR: Mode = Mode::from_raw_mode(0o755);
const FILE: Mode = Mode::from_raw_mode(0o644);

/// Clones what is bound, before propagation is changed: a mount that is shared with the host can
/// only be had from the host's own. The clones have their ids mapped and their options set.
pub(super) fn open_sources(container: &mut Container<'_>) -> Result<(), Failure> {
    let default = container
        .plan
        .root_propagation
        .unwrap_or(Propagation::Slave);
    for (plan, id_map) in container.plan.mounts.iter().zip(&container.id_maps) {
        let source = match &plan.kind {
            MountKind::Bind { source, recursive } => {
                let tree = mount::clone_tree_at(CWD, source, *recursive)
                    .or_fail(|| format!("cannot bind {}", source.display()))?;
                if let (Some(file), Some(wanted)) = (id_map, &plan.id_map) {
                    map_ids(tree.as_fd(), file.as_fd(), wanted.recursive, source)?;
                }
                // What is asked for is set later: a mount made a slave here could not be shared with
                // the host's any more.
                if default != Propagation::Shared && plan.propagation.is_none() {
                    set_propagation(tree.as_fd(), plan, default, true)?;
                }
                set_attributes(tree.as_fd(), plan)?;
                Some(tree)
            }
            MountKind::Filesystem { .. } | MountKind::Layers { .. } | MountKind::Cgroup => None,
        };
        container.sources.push(source);
    }
    Ok(())
}

/// Merges the layers of images that are mounted: after [`super::rootfs::open`], which has mapped their
/// ids, and has seen to it that what is mounted here for a moment is seen by nobody else.
pub(super) fn open_layers(container: &mut Container<'_>) -> Result<(), Failure> {
    for (plan, source) in container.plan.mounts.iter().zip(&mut container.sources) {
        if let MountKind::Layers { lower, subdir } = &plan.kind {
            let label = container.plan.mount_label.as_deref();
            let tree = overlay::read_only(lower, subdir.as_deref(), label)?;
            set_attributes(tree.as_fd(), plan)?;
            *source = Some(tree);
        }
    }
    Ok(())
}

/// Shows the ids of a detached mount as a user namespace maps them.
pub(super) fn map_ids(
    tree: BorrowedFd<'_>,
    user_namespace: BorrowedFd<'_>,
    recursive: bool,
    path: &Path,
) -> Result<(), Failure> {
    let change = Attributes {
        id_map: Some(user_namespace),
        ..Attributes::default()
    };
    mount::set_attributes(tree, &change, recursive).or_fail(|| {
        format!(
            "cannot map the ids of {}; its file system may not know id-mapped mounts",
            path.display()
        )
    })
}

/// Mounts everything.
pub(super) fn mount(container: &mut Container<'_>) -> Result<(), Failure> {
    let sources = std::mem::take(&mut container.sources);
    for (plan, source) in container.plan.mounts.iter().zip(sources) {
        let root = container.root()?;
        let tree = match (&plan.kind, source) {
            (MountKind::Bind { .. }, Some(tree)) => tree,
            (
                MountKind::Filesystem {
                    kind,
                    source,
                    options,
                },
                _,
            ) => new_filesystem(plan, kind, source, options)?,
            (MountKind::Layers { .. }, Some(tree)) => tree,
            (MountKind::Layers { .. }, None) => {
                return Err(Failure::new("the layers of an image were not opened"));
            }
            (MountKind::Cgroup, _) => {
                super::cgroups::mount(container, plan)?;
                continue;
            }
            (MountKind::Bind { source, .. }, None) => {
                return Err(Failure::new(format!("{} was not opened", source.display())));
            }
        };
        let target = target(root, plan, tree.as_fd())?;
        attach(&tree, &target, &plan.target)?;
        if let (MountKind::Filesystem { kind, .. }, Some(label)) =
            (&plan.kind, &container.plan.mount_label)
            && kind.as_c_str() == c"mqueue"
        {
            labels::set(&root.open_dir(&plan.target)?, label)?;
        }
        if let Some((propagation, recursive)) = plan.propagation {
            set_propagation(tree.as_fd(), plan, propagation, recursive)?;
        }
    }
    Ok(())
}

/// Opens what is mounted on, and makes it where it is missing.
fn target(root: &Root, plan: &MountPlan, tree: BorrowedFd<'_>) -> Result<OwnedFd, Failure> {
    if let MountKind::Filesystem { kind, .. } = &plan.kind
        && (kind.as_c_str() == c"proc" || kind.as_c_str() == c"sysfs")
    {
        // What is masked later is named by these paths: they must not lead elsewhere.
        match root.open_path_no_symlinks(&plan.target) {
            Ok(_) => {}
            Err(e) if e.errno() == Some(Errno::NOENT) => {}
            Err(e) if e.errno() == Some(Errno::LOOP) => {
                let text = format!(
                    "{} is a symlink in the image; {} is only mounted on a directory",
                    plan.target.display(),
                    kind.to_string_lossy()
                );
                return Err(Failure::errno(text, Errno::LOOP));
            }
            Err(e) => return Err(e.into()),
        }
    }
    let stat = rustix::fs::fstat(tree).or_fail(|| "cannot look at what is mounted".into())?;
    Ok(
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            root.mkdir_all(&plan.target, DIR)?
        } else {
            root.create_file(&plan.target, FILE)?
        },
    )
}

/// Attaches `tree` on `target`, which `path` names in errors.
pub(super) fn attach(tree: &OwnedFd, target: &OwnedFd, path: &Path) -> Result<(), Failure> {
    mount::attach(tree.as_fd(), target.as_fd())
        .or_fail(|| format!("cannot mount on {}", path.display()))
}

fn new_filesystem(
    plan: &MountPlan,
    kind: &CStr,
    source: &CStr,
    options: &[String],
) -> Result<OwnedFd, Failure> {
    let name = kind.to_string_lossy();
    let fs = Filesystem::open(kind)
        .or_fail(|| format!("cannot mount {name} on {}", plan.target.display()))?;
    fs.set(c"source", source)
        .map_err(|e| explained(&fs, &format!("configure {name}"), e))?;
    for option in options {
        fs.option(option).map_err(|e| {
            explained(
                &fs,
                &format!(
                    "mount {name} on {}: option {option:?}",
                    plan.target.display()
                ),
                e,
            )
        })?;
    }
    let attributes = plan.attributes.set | plan.recursive.set;
    fs.mount(attributes).map_err(|e| {
        explained(
            &fs,
            &format!("mount {name} on {}", plan.target.display()),
            e,
        )
    })
}

/// Sets the attributes of a bound tree.
pub(super) fn set_attributes(tree: BorrowedFd<'_>, plan: &MountPlan) -> Result<(), Failure> {
    for (change, recursive) in [(plan.attributes, false), (plan.recursive, true)] {
        let change = Attributes {
            set: change.set,
            clear: change.clear,
            ..Attributes::default()
        };
        if !change.is_empty() {
            mount::set_attributes(tree, &change, recursive)
                .or_fail(|| format!("cannot set the options of {}", plan.target.display()))?;
        }
    }
    Ok(())
}

fn set_propagation(
    tree: BorrowedFd<'_>,
    plan: &MountPlan,
    propagation: Propagation,
    recursive: bool,
) -> Result<(), Failure> {
    let change = Attributes {
        propagation: Some(propagation),
        ..Attributes::default()
    };
    mount::set_attributes(tree, &change, recursive)
        .or_fail(|| format!("cannot set the propagation of {}", plan.target.display()))
}
