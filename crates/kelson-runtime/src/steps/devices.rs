//! `/dev`: the usual device nodes, those of the specification, and the usual links.
//!
//! Everything is made beneath the new root by descriptor. A node that is not the device it should
//! be is replaced; where nodes cannot be made, the host's are bound after a look at what they are.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use kelson_sys::mount;
use kelson_sys::root::{Root, kind_and_device};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, makedev};
use rustix::io::Errno;

use super::{Container, Failure, OrFail};

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

/// Fills `/dev`, unless the specification binds one.
pub(super) fn make(container: &mut Container<'_>) -> Result<(), Failure> {
    if !container.plan.fills_dev() {
        return Ok(());
    }
    let root = container.root()?;
    for (path, major, minor) in USUAL {
        let path = Path::new(path);
        if container.plan.devices.iter().any(|d| d.path() == path) {
            continue;
        }
        let device = makedev(major, minor);
        let kind = FileType::CharacterDevice;
        make_node(
            root,
            &Node {
                path,
                kind,
                device,
                mode: 0o666,
                owner: (0, 0),
            },
        )?;
    }
    for device in &container.plan.devices {
        make_node(root, &node(device)?)?;
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

/// Binds the node of the same path from the host's `/dev`.
fn bind_from_host(root: &Root, node: &Node<'_>) -> Result<(), Failure> {
    let what = || format!("cannot bind device {} from the host", node.path.display());
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let host = rustix::fs::open(node.path, flags, Mode::empty()).or_fail(what)?;
    if !is(&host, node).or_fail(what)? {
        return Err(Failure::new(format!(
            "{} of the host is another device than the one asked for",
            node.path.display()
        )));
    }
    let tree = mount::clone_tree(host.as_fd(), false).or_fail(what)?;
    let target = root.create_file(node.path, Mode::from_raw_mode(0o644))?;
    mount::attach(tree.as_fd(), target.as_fd()).or_fail(what)
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
