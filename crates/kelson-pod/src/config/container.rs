//! The configuration of a container.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{ContainerSecurity, Resources};

/// Everything that is asked of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerConfig {
    /// Name, unique in the pod together with `attempt`; required.
    pub name: String,
    /// How often the caller has made this container before.
    pub attempt: u32,
    /// Image.
    pub image: ImageSpec,
    /// Replaces the image's entry point, and drops the image's arguments.
    pub command: Vec<String>,
    /// Replaces the image's arguments.
    pub args: Vec<String>,
    /// Working directory; empty: the image's, else `/`. Made when it is missing.
    pub working_dir: String,
    /// Environment, over the image's.
    pub envs: Vec<(String, String)>,
    /// Bind mounts.
    pub mounts: Vec<Mount>,
    /// Devices of the host.
    pub devices: Vec<Device>,
    /// Devices by CDI name, beside those that `cdi.k8s.io/*` annotations name.
    pub cdi_devices: Vec<String>,
    /// Labels: kept and given back.
    pub labels: BTreeMap<String, String>,
    /// Annotations: kept and given back.
    pub annotations: BTreeMap<String, String>,
    /// Log file, relative to the pod's log directory; empty: output is discarded.
    pub log_path: String,
    /// Whether standard input is kept open for `attach`.
    pub stdin: bool,
    /// Whether standard input is closed when its first writer leaves.
    pub stdin_once: bool,
    /// Whether the process gets a terminal.
    pub tty: bool,
    /// Limits.
    pub resources: Resources,
    /// Security. The default is what a request without a security context gets: the strict one.
    pub security: ContainerSecurity,
    /// Signal that asks the process to end, as a name (`SIGTERM`, `SIGRTMIN+3`); empty: the image's, else
    /// SIGTERM.
    pub stop_signal: String,
}

/// Which image, as the caller knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageSpec {
    /// Id or reference, to be looked up; required.
    pub image: String,
    /// The reference a person wrote; given back.
    pub user_specified_image: String,
    /// Annotations: kept and given back.
    pub annotations: BTreeMap<String, String>,
    /// Runtime handler of the image: kept and given back.
    pub runtime_handler: String,
}

/// A file or directory of the host in the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// Where in the container; absolute, or relative to `/`.
    pub container_path: String,
    /// What of the host. Links are followed; a directory (mode 0755) is made when nothing is there.
    pub host_path: String,
    /// Whether it cannot be written to.
    pub readonly: bool,
    /// As `readonly`, for everything mounted beneath as well. Needs `readonly` and `Private`.
    pub recursive_read_only: bool,
    /// Whether to give it, and what is in it, the container's SELinux label; where SELinux is off there is
    /// none. Directories that the whole machine depends on are refused.
    pub selinux_relabel: bool,
    /// Whether later mounts travel.
    pub propagation: Propagation,
    /// User id mappings: those of the pod's user namespace, or none.
    pub uid_mappings: Vec<IdMapping>,
    /// Group id mappings: those of the pod's user namespace, or none.
    pub gid_mappings: Vec<IdMapping>,
    /// Image to mount instead of a path of the host: always read-only and without programs.
    pub image_volume: Option<ImageSpec>,
    /// File or directory in that image, relative to its root; empty: the root.
    pub image_sub_path: String,
}

/// Whether mounts made later beneath a bind mount travel between host and container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Propagation {
    /// They do not.
    #[default]
    Private,
    /// Those of the host reach the container.
    HostToContainer,
    /// They travel both ways; only for privileged containers.
    Bidirectional,
}

/// A line of a user namespace's mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// First id on the host.
    pub host_id: u32,
    /// First id in the container.
    pub container_id: u32,
    /// How many.
    pub length: u32,
}

/// A device of the host in the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Where in the container.
    pub container_path: String,
    /// Device node of the host, or a directory of device nodes.
    pub host_path: String,
    /// What may be done with it: letters out of `rwm`; empty: all.
    pub permissions: String,
}
