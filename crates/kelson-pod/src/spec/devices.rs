//! Devices of the host for a container: what the request names, or all for a privileged one.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};

use crate::config::{ContainerSecurity, Device};

/// Most device nodes of a container.
pub(crate) const MAX_DEVICES: usize = 16384;
/// How deep directories of devices are walked.
const MAX_DEPTH: usize = 16;
/// What a privileged container gets of its own and not from the host.
const OWN: &[&str] = &[
    "pts",
    "shm",
    "fd",
    "mqueue",
    ".lxc",
    ".lxd-mounts",
    ".udev",
    "console",
];

/// A device node for a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// Where in the container.
    pub(crate) path: PathBuf,
    pub(crate) kind: LinuxDeviceType,
    pub(crate) major: i64,
    pub(crate) minor: i64,
    /// Permission bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// What the process may do with it: letters out of `rwm`.
    pub(crate) access: String,
}

impl Node {
    /// In the words of the runtime specification.
    pub(crate) fn device(&self) -> LinuxDevice {
        let mut device = LinuxDevice::default();
        device
            .set_path(self.path.clone())
            .set_typ(self.kind)
            .set_major(self.major)
            .set_minor(self.minor)
            .set_file_mode(Some(self.mode))
            .set_uid(Some(self.uid))
            .set_gid(Some(self.gid));
        device
    }
}

/// Why devices could not be found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    #[error("cannot look at device {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is neither a device nor a directory of devices", path.display())]
    NotADevice { path: PathBuf },
    #[error("there are more than {MAX_DEVICES} devices")]
    TooMany,
}

/// The nodes that one device of the request names: itself, or those in the directory.
pub(crate) fn asked(device: &Device, nodes: &mut Vec<Node>) -> Result<(), DeviceError> {
    let host = Path::new(&device.host_path);
    let access = if device.permissions.is_empty() {
        "rwm"
    } else {
        device.permissions.as_str()
    };
    let metadata = fs::metadata(host).map_err(io_error(host))?;
    let target = Path::new(&device.container_path);
    if metadata.is_dir() {
        return walk(host, target, access, &[], 0, nodes);
    }
    match node(&metadata, target, access) {
        Some(node) => push(node, nodes),
        None => Err(DeviceError::NotADevice {
            path: host.to_owned(),
        }),
    }
}

/// Gives nodes to the user and the group that the request names by their numbers.
pub(crate) fn give(nodes: &mut [Node], security: &ContainerSecurity) {
    let id = |given: Option<i64>, known: u32| {
        let given = given.and_then(|id| u32::try_from(id).ok());
        given.unwrap_or(known)
    };
    for node in nodes {
        node.uid = id(security.run_as_user, node.uid);
        node.gid = id(security.run_as_group, node.gid);
    }
}

/// All devices of the host, for a privileged container.
pub(crate) fn all(dev: &Path, nodes: &mut Vec<Node>) -> Result<(), DeviceError> {
    walk(dev, Path::new("/dev"), "rwm", OWN, 0, nodes)
}

fn walk(
    host: &Path,
    target: &Path,
    access: &str,
    skip: &[&str],
    depth: usize,
    nodes: &mut Vec<Node>,
) -> Result<(), DeviceError> {
    for entry in fs::read_dir(host).map_err(io_error(host))? {
        let entry = entry.map_err(io_error(host))?;
        let name = entry.file_name();
        if skip.iter().any(|own| name == *own) {
            continue;
        }
        let (host, target) = (entry.path(), target.join(&name));
        // Links are not followed, and what vanishes meanwhile is not there.
        let metadata = match fs::symlink_metadata(&host) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(io_error(&host))?,
        };
        if metadata.is_dir() && depth < MAX_DEPTH {
            walk(&host, &target, access, &[], depth + 1, nodes)?;
        } else if let Some(node) = node(&metadata, &target, access) {
            push(node, nodes)?;
        }
    }
    Ok(())
}

fn push(node: Node, nodes: &mut Vec<Node>) -> Result<(), DeviceError> {
    if nodes.len() == MAX_DEVICES {
        return Err(DeviceError::TooMany);
    }
    nodes.push(node);
    Ok(())
}

fn node(metadata: &fs::Metadata, target: &Path, access: &str) -> Option<Node> {
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_block_device() => LinuxDeviceType::B,
        _ => return None,
    };
    Some(Node {
        path: target.to_owned(),
        kind,
        major: i64::from(rustix::fs::major(metadata.rdev())),
        minor: i64::from(rustix::fs::minor(metadata.rdev())),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        access: access.to_owned(),
    })
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> DeviceError {
    let path = path.to_owned();
    move |source| DeviceError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(host_path: &str, permissions: &str) -> Device {
        Device {
            host_path: host_path.into(),
            container_path: "/dev/x".into(),
            permissions: permissions.into(),
        }
    }

    #[test]
    fn a_device_is_found_by_its_numbers() {
        let mut nodes = Vec::new();
        asked(&device("/dev/null", "r"), &mut nodes).unwrap();
        assert_eq!(
            (nodes[0].major, nodes[0].minor, nodes[0].kind),
            (1, 3, LinuxDeviceType::C)
        );
        assert_eq!(
            (nodes[0].path.to_str(), nodes[0].access.as_str()),
            (Some("/dev/x"), "r")
        );
        asked(&device("/dev/zero", ""), &mut nodes).unwrap();
        assert_eq!(nodes[1].access, "rwm");
    }

    #[test]
    fn nodes_can_be_given_to_who_is_named() {
        let mut nodes = Vec::new();
        asked(&device("/dev/null", "r"), &mut nodes).unwrap();
        let mut security = ContainerSecurity::default();
        give(&mut nodes, &security);
        assert_eq!((nodes[0].uid, nodes[0].gid), (0, 0));
        security.run_as_user = Some(1000);
        security.run_as_group = Some(7);
        give(&mut nodes, &security);
        assert_eq!((nodes[0].uid, nodes[0].gid), (1000, 7));
    }

    #[test]
    fn what_is_no_device_is_refused() {
        let mut nodes = Vec::new();
        let file = asked(&device("/proc/self/status", ""), &mut nodes);
        assert!(matches!(file, Err(DeviceError::NotADevice { .. })));
        let missing = asked(&device("/dev/no-such-device", ""), &mut nodes);
        assert!(matches!(missing, Err(DeviceError::Io { .. })));
    }

    #[test]
    fn a_privileged_container_gets_all_but_its_own() {
        let mut nodes = Vec::new();
        all(Path::new("/dev"), &mut nodes).unwrap();
        let has = |path: &str| nodes.iter().any(|node| node.path == Path::new(path));
        assert!(has("/dev/null"));
        assert!(!nodes.iter().any(|node| node.path.starts_with("/dev/pts")));
    }
}
