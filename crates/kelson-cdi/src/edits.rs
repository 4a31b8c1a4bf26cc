//! What a device changes in a container's specification.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Hook, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Mount as SpecMount, Spec,
};
use serde::Deserialize;

/// `containerEdits`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<Mount>,
    hooks: Vec<NamedHook>,
    additional_gids: Vec<u32>,
    intel_rdt: Option<serde_json::Value>,
    net_devices: Vec<serde_json::Value>,
}

/// A device node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Node {
    path: PathBuf,
    host_path: Option<PathBuf>,
    #[serde(rename = "type")]
    kind: String,
    major: i64,
    minor: i64,
    file_mode: Option<u32>,
    permissions: String,
    uid: Option<u32>,
    gid: Option<u32>,
}

/// A bind mount, or another one.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Mount {
    host_path: PathBuf,
    container_path: PathBuf,
    #[serde(rename = "type")]
    kind: String,
    options: Vec<String>,
}

/// A hook and when it runs.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NamedHook {
    hook_name: String,
    path: PathBuf,
    args: Vec<String>,
    env: Vec<String>,
    timeout: Option<i64>,
}

/// Why edits are wrong or cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// A variable without a name or a value.
    #[error("environment {0:?} is not like NAME=value")]
    Env(String),
    /// A path that is not absolute.
    #[error("path {} is not absolute", .0.display())]
    Path(PathBuf),
    /// A device node's type or permissions are none.
    #[error("device node {}: {problem}", path.display())]
    Node {
        /// The node.
        path: PathBuf,
        /// What is wrong.
        problem: &'static str,
    },
    /// The host's device node cannot be looked at.
    #[error("cannot look at device node {}", path.display())]
    Missing {
        /// The node.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A hook of a kind that is not run, or that is none.
    #[error("hook {0:?} is not run: only createContainer and startContainer are")]
    Hook(String),
    /// Something that Kelson does not do.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
}

impl Edits {
    /// Checks what can be checked without the host.
    pub(crate) fn check(&self) -> Result<(), EditError> {
        for variable in &self.env {
            let named = variable
                .split_once('=')
                .is_some_and(|(name, _)| !name.is_empty());
            if !named || variable.contains('\0') {
                return Err(EditError::Env(variable.chars().take(80).collect()));
            }
        }
        for node in &self.device_nodes {
            let problem = if !matches!(node.kind.as_str(), "" | "b" | "c" | "u" | "p") {
                "type must be b, c, u or p"
            } else if !node
                .permissions
                .bytes()
                .all(|b| matches!(b, b'r' | b'w' | b'm'))
            {
                "permissions must be letters out of rwm"
            } else {
                absolute(&node.path)?;
                node.host_path.as_deref().map_or(Ok(()), absolute)?;
                continue;
            };
            let path = node.path.clone();
            return Err(EditError::Node { path, problem });
        }
        for mount in &self.mounts {
            absolute(&mount.container_path)?;
            if mount.is_bind() {
                absolute(&mount.host_path)?;
            }
        }
        for hook in &self.hooks {
            absolute(&hook.path)?;
        }
        Ok(())
    }

    pub(crate) fn apply(&self, spec: &mut Spec) -> Result<(), EditError> {
        if self.intel_rdt.is_some() {
            return Err(EditError::Unsupported("intelRdt"));
        }
        if !self.net_devices.is_empty() {
            return Err(EditError::Unsupported("netDevices"));
        }
        let owner = self.process(spec);
        for node in &self.device_nodes {
            add_node(spec, node, owner)?;
        }
        if !self.mounts.is_empty() {
            let mut mounts = spec.mounts().clone().unwrap_or_default();
            for mount in &self.mounts {
                mounts.retain(|one| *one.destination() != mount.container_path);
                mounts.push(mount.spec());
            }
            // A stable order by depth, as a mount hides what is below it.
            mounts.sort_by_key(|one| one.destination().components().count());
            spec.set_mounts(Some(mounts));
        }
        for hook in &self.hooks {
            add_hook(spec, hook)?;
        }
        Ok(())
    }

    /// Environment and groups. Returns whom the process runs as.
    fn process(&self, spec: &mut Spec) -> (u32, u32) {
        let Some(process) = spec.process_mut() else {
            return (0, 0);
        };
        let mut env = process.env().clone().unwrap_or_default();
        for variable in &self.env {
            let name = variable.split('=').next().unwrap_or_default();
            env.retain(|one| one.split('=').next() != Some(name));
            env.push(variable.clone());
        }
        process.set_env(Some(env));
        let mut user = process.user().clone();
        let mut groups = user.additional_gids().clone().unwrap_or_default();
        for gid in &self.additional_gids {
            // Root's group is never given away by a device.
            if *gid != 0 && !groups.contains(gid) {
                groups.push(*gid);
            }
        }
        user.set_additional_gids(Some(groups));
        let owner = (user.uid(), user.gid());
        process.set_user(user);
        owner
    }
}

fn absolute(path: &Path) -> Result<(), EditError> {
    let climbs = path
        .components()
        .any(|part| part == std::path::Component::ParentDir);
    if path.is_absolute() && !climbs {
        Ok(())
    } else {
        Err(EditError::Path(path.to_owned()))
    }
}

impl Mount {
    fn is_bind(&self) -> bool {
        let bind = |option: &String| option == "bind" || option == "rbind";
        matches!(self.kind.as_str(), "" | "bind" | "none") || self.options.iter().any(bind)
    }

    fn spec(&self) -> SpecMount {
        let kind = if self.kind.is_empty() {
            "bind"
        } else {
            &self.kind
        };
        let mut mount = SpecMount::default();
        mount
            .set_destination(self.container_path.clone())
            .set_typ(Some(kind.to_owned()))
            .set_source(Some(self.host_path.clone()))
            .set_options(Some(self.options.clone()));
        mount
    }
}

/// Adds a device node in place of one at the same path, and permits its use.
fn add_node(spec: &mut Spec, node: &Node, owner: (u32, u32)) -> Result<(), EditError> {
    let node = complete(node)?;
    let kind = match node.kind.as_str() {
        "b" => LinuxDeviceType::B,
        "p" => LinuxDeviceType::P,
        _ => LinuxDeviceType::C,
    };
    // Without a word about it, the node belongs to whom the process runs as.
    let id = |given: Option<u32>, own: u32| given.or((own != 0).then_some(own));
    let mut device = LinuxDevice::default();
    device
        .set_path(node.path.clone())
        .set_typ(kind)
        .set_major(node.major)
        .set_minor(node.minor)
        .set_file_mode(node.file_mode)
        .set_uid(id(node.uid, owner.0))
        .set_gid(id(node.gid, owner.1));
    let Some(linux) = spec.linux_mut() else {
        return Ok(());
    };
    let mut devices = linux.devices().clone().unwrap_or_default();
    devices.retain(|one| *one.path() != node.path);
    devices.push(device);
    linux.set_devices(Some(devices));
    if kind != LinuxDeviceType::P {
        let access = if node.permissions.is_empty() {
            "rwm"
        } else {
            &node.permissions
        };
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true)
            .set_typ(Some(kind))
            .set_major(Some(node.major))
            .set_minor(Some(node.minor))
            .set_access(Some(access.to_owned()));
        let mut resources = linux.resources().clone().unwrap_or_default();
        let mut rules = resources.devices().clone().unwrap_or_default();
        rules.push(rule);
        resources.set_devices(Some(rules));
        linux.set_resources(Some(resources));
    }
    Ok(())
}

/// The node with what its description leaves to the host's node.
fn complete(node: &Node) -> Result<Node, EditError> {
    let mut node = node.clone();
    if node.kind == "p" || (!node.kind.is_empty() && (node.major, node.minor) != (0, 0)) {
        return Ok(node);
    }
    let path = node.host_path.clone().unwrap_or_else(|| node.path.clone());
    let metadata = match std::fs::symlink_metadata(&path) {
        Ok(metadata) => metadata,
        Err(source) => return Err(EditError::Missing { path, source }),
    };
    let kind = match metadata.file_type() {
        kind if kind.is_block_device() => "b",
        kind if kind.is_char_device() => "c",
        _ => {
            let problem = "it is no device on the host";
            return Err(EditError::Node { path, problem });
        }
    };
    if !matches!(
        (node.kind.as_str(), kind),
        ("", _) | ("b", "b") | ("c" | "u", "c")
    ) {
        let problem = "it has another type on the host";
        return Err(EditError::Node { path, problem });
    }
    node.kind = kind.to_owned();
    node.major = i64::from(rustix::fs::major(metadata.rdev()));
    node.minor = i64::from(rustix::fs::minor(metadata.rdev()));
    node.file_mode.get_or_insert(metadata.mode() & 0o7777);
    Ok(node)
}

fn add_hook(spec: &mut Spec, wanted: &NamedHook) -> Result<(), EditError> {
    let mut hook = Hook::default();
    hook.set_path(wanted.path.clone())
        .set_args(Some(wanted.args.clone()).filter(|list| !list.is_empty()))
        .set_env(Some(wanted.env.clone()).filter(|list| !list.is_empty()))
        .set_timeout(wanted.timeout);
    let mut hooks = spec.hooks().clone().unwrap_or_default();
    match wanted.hook_name.as_str() {
        "createContainer" => {
            let mut list = hooks.create_container().clone().unwrap_or_default();
            list.push(hook);
            hooks.set_create_container(Some(list));
        }
        "startContainer" => {
            let mut list = hooks.start_container().clone().unwrap_or_default();
            list.push(hook);
            hooks.set_start_container(Some(list));
        }
        other => return Err(EditError::Hook(other.chars().take(80).collect())),
    }
    spec.set_hooks(Some(hooks));
    Ok(())
}
