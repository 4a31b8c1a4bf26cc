//! `/dev`: the usual device nodes, those of the specification, and the usual links.
//!
//! Everything is made beneath the new root by descriptor. A node that is not the device it should
//! be is replaced; where nodes cannot be made, the host's are bound after a look at what they are.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use kelson_sys::mount;
use kelson_sys::root::{Root, kind_and_device};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, makedev};
use rustix::io::Errno;

use super::{Container, Failure, OrFail};
use crate::plan::ContainerPlan;

/// The nodes every container has: name, major, minor.
const USUAL: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// The links every container has.
const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// A node to make.
struct Node<'a> {
    path: &'a Path,
    kind: FileType,
    device: u64,
    mode: u32,
    owner: (u32, u32),
}

/// What `/dev` is filled with: the usual nodes that the specification does not change, and its own.
fn nodes<'a>(plan: &'a ContainerPlan) -> impl Iterator<Item = Result<Node<'a>, Failure>> {
    let own = |path: &Path| plan.devices.iter().any(|d| d.path() == path);
    let usual = USUAL
        .iter()
        .map(|(path, major, minor)| Node {
            path: Path::new(path),
            kind: FileType::CharacterDevice,
            device: makedev(*major, *minor),
            mode: 0o666,
            owner: (0, 0),
        })
        .filter(move |node| !own(node.path))
        .map(Ok);
    usual.chain(plan.devices.iter().map(node))
}

/// Opens the host's nodes for a container whose user namespace cannot make any.
pub(super) fn open(container: &mut Container<'_>) -> Result<(), Failure> {
    if !container.plan.fills_dev() {
        return Ok(());
    }
    for node in nodes(container.plan) {
        let node = node?;
        if node.kind != FileType::Fifo {
            container.nodes.push(hosts(&node)?);
        }
    }
    Ok(())
}

/// Fills `/dev`, unless the specification binds one.
pub(super) fn make(container: &mut Container<'_>) -> Result<(), Failure> {
    if !container.plan.fills_dev() {
        return Ok(());
    }
    let mut opened = std::mem::take(&mut container.nodes).into_iter();
    let root = container.root()?;
    for node in nodes(container.plan) {
        let node = node?;
        let tree = match node.kind {
            FileType::Fifo => None,
            _ => opened.next(),
        };
        match tree {
            Some(tree) => bind(root, &node, &tree)?,
            None => make_node(root, &node)?,
        }
    }
    for (path, target) in LINKS {
        make_link(root, Path::new(path), target)?;
    }
    Ok(())
}

fn node(device: &LinuxDevice) -> Result<Node<'_>, Failure> {
    let path = device.path().as_path();
    let kind = match device.typ() {
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::A => {
            return Err(Failure::new(format!(
                "{} has no kind of device",
                path.display()
            )));
        }
    };
    let number = |n: i64| {
        u32::try_from(n)
            .map_err(|_| Failure::new(format!("{} has an impossible number", path.display())))
    };
    let device_number = makedev(number(device.major())?, number(device.minor())?);
    Ok(Node {
        path,
        kind,
        device: if kind == FileType::Fifo {
            0
        } else {
            device_number
        },
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        owner: (device.uid().unwrap_or(0), device.gid().unwrap_or(0)),
    })
}

fn make_node(root: &Root, node: &Node<'_>) -> Result<(), Failure> {
    let what = || format!("cannot make device {}", node.path.display());
    let (parent, name) = root.parent(node.path)?;
    let mode = Mode::from_raw_mode(node.mode);
    let make = || rustix::fs::mknodat(&parent, name.as_os_str(), node.kind, mode, node.device);
    let mut made = make();
    if made == Err(Errno::EXIST) {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let there = rustix::fs::openat(&parent, name.as_os_str(), flags, Mode::empty());
        let there = there.or_fail(what)?;
        if is(&there, node).or_fail(what)? {
            return Ok(());
        }
        rustix::fs::unlinkat(&parent, name.as_os_str(), AtFlags::empty()).or_fail(what)?;
        made = make();
    }
    match made {
        Ok(()) => {}
        Err(Errno::PERM) => return bind_from_host(root, node),
        Err(e) => return Err(Failure::errno(what(), e)),
    }
    if node.owner != (0, 0) {
        let (uid, gid) = (Uid::from_raw(node.owner.0), Gid::from_raw(node.owner.1));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(&parent, name.as_os_str(), Some(uid), Some(gid), flags)
            .or_fail(what)?;
    }
    Ok(())
}

fn is(there: &OwnedFd, node: &Node<'_>) -> rustix::io::Result<bool> {
    Ok(kind_and_device(there.as_fd())? == (node.kind, node.device))
}

/// Binds the host's node.
fn bind_from_host(root: &Root, node: &Node<'_>) -> Result<(), Failure> {
    bind(root, node, &hosts(node)?)
}

fn bind(root: &Root, node: &Node<'_>, tree: &OwnedFd) -> Result<(), Failure> {
    let target = root.create_file(node.path, Mode::from_raw_mode(0o644))?;
    mount::attach(tree.as_fd(), target.as_fd())
        .or_fail(|| format!("cannot bind device {} from the host", node.path.display()))
}

/// A clone of the host's node: the one of the same path if it is the right device, else the one that
/// the kernel gave this number.
fn hosts(node: &Node<'_>) -> Result<OwnedFd, Failure> {
    let what = || format!("cannot bind device {} from the host", node.path.display());
    let mut missing = Errno::NOENT;
    for path in [Some(node.path.to_owned()), kernels_path(node)] {
        let Some(path) = path else { continue };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(host) if is(&host, node).or_fail(what)? => {
                return mount::clone_tree(host.as_fd(), false).or_fail(what);
            }
            Ok(_) => {}
            Err(e) => missing = e,
        }
    }
    let (major, minor) = (
        rustix::fs::major(node.device),
        rustix::fs::minor(node.device),
    );
    Err(Failure::errno(
        format!(
            "{}: the host has no node for device {major}:{minor}",
            what()
        ),
        missing,
    ))
}

/// The path in `/dev` that the kernel has for the number of a device.
fn kernels_path(node: &Node<'_>) -> Option<PathBuf> {
    let kind = match node.kind {
        FileType::BlockDevice => "block",
        _ => "char",
    };
    let (major, minor) = (
        rustix::fs::major(node.device),
        rustix::fs::minor(node.device),
    );
    let text = std::fs::read_to_string(format!("/sys/dev/{kind}/{major}:{minor}/uevent")).ok()?;
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME="))?;
    Some(Path::new("/dev").join(name))
}

/// Makes a link; something else of the same name is left to the image, except for `/dev/ptmx`,
/// which has to be the container's own.
fn make_link(root: &Root, path: &Path, target: &str) -> Result<(), Failure> {
    let what = || format!("cannot link {}", path.display());
    let (parent, name) = root.parent(path)?;
    let link = || rustix::fs::symlinkat(target, &parent, name.as_os_str());
    match link() {
        Err(Errno::EXIST) if target == "pts/ptmx" => {
            rustix::fs::unlinkat(&parent, name.as_os_str(), AtFlags::empty()).or_fail(what)?;
            link().or_fail(what)
        }
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(Failure::errno(what(), e)),
    }
}
