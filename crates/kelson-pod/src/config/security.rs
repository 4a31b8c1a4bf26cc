//! Users, privileges and namespaces of pods and containers.

use serde::{Deserialize, Serialize};

use super::UserNamespace;

/// The caller's choice of a namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamespaceMode {
    /// One for the pod.
    #[default]
    Pod,
    /// One for the container.
    Container,
    /// The host's.
    Node,
    /// That of a running container of the same pod: [`ContainerSecurity::target_id`].
    Target,
}

/// Whether a process gets the groups that the image's `/etc/group` lists for its user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupsPolicy {
    /// It does.
    #[default]
    Merge,
    /// It gets only those of the request.
    Strict,
}

/// A security profile (seccomp, AppArmor).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// Kelson's own.
    #[default]
    RuntimeDefault,
    /// None.
    Unconfined,
    /// One of the machine: for seccomp the path of a JSON file, for AppArmor the name of a loaded profile.
    Localhost(String),
}

/// An SELinux label. Parts that are empty are the pod's, or the policy's for containers. Where SELinux is off
/// labels have no subject and are only kept, as with the field's runtimes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Selinux {
    /// User.
    pub user: String,
    /// Role.
    pub role: String,
    /// Type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Level.
    pub level: String,
}

impl Selinux {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        [&self.user, &self.role, &self.kind, &self.level]
            .iter()
            .all(|part| part.is_empty())
    }
}

/// Security of a pod.
///
/// The CRI's sandbox also has a user, groups, a read-only root and a seccomp profile: those describe its
/// pause process. A Kelson pod has none, so they have no subject: the first are kept to be given back, the
/// groups and the read-only root are not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodSecurity {
    /// Whether its containers may be privileged.
    pub privileged: bool,
    /// User id (no subject, see above).
    pub run_as_user: Option<i64>,
    /// Group id (no subject, see above); an error without `run_as_user`.
    pub run_as_group: Option<i64>,
    /// Seccomp profile (no subject, see above).
    pub seccomp: Option<Profile>,
    /// AppArmor profile (no subject, see above).
    pub apparmor: Option<Profile>,
    /// SELinux label.
    pub selinux: Selinux,
}

/// Capabilities to add to and drop from the default list. Names with or without `CAP_`, or `ALL`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// To add.
    pub add: Vec<String>,
    /// To drop; wins over `add` except where `add` names a capability and `drop` says `ALL`.
    pub drop: Vec<String>,
    /// Of those that the container has, the ones that a user other than root has too, also after it
    /// executes another program.
    pub add_ambient: Vec<String>,
}

/// Security of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSecurity {
    /// All capabilities and devices, no seccomp, nothing masked. The pod must be privileged too.
    pub privileged: bool,
    /// Capabilities.
    pub capabilities: Capabilities,
    /// Processes: `Pod` (the pod must share them), `Container`, `Node` or `Target`; `None`: as the pod says.
    pub pid: Option<NamespaceMode>,
    /// Id, or the start of it, of the container whose processes are joined; only and always with `Target`.
    pub target_id: String,
    /// Network; must be the pod's. `None`: as the pod says.
    pub network: Option<NamespaceMode>,
    /// IPC; must be the pod's. `None`: as the pod says.
    pub ipc: Option<NamespaceMode>,
    /// User namespace; must be the pod's. `None`: as the pod says.
    pub user: Option<UserNamespace>,
    /// User id; wins over `run_as_username`.
    pub run_as_user: Option<i64>,
    /// User name, looked up in the image; empty: the image's user.
    pub run_as_username: String,
    /// Group id; an error without a user.
    pub run_as_group: Option<i64>,
    /// More groups.
    pub supplemental_groups: Vec<i64>,
    /// Whether the groups of the image count as well.
    pub supplemental_groups_policy: GroupsPolicy,
    /// Whether the root cannot be written to.
    pub readonly_rootfs: bool,
    /// Whether executing a program never grants privileges.
    pub no_new_privs: bool,
    /// Paths that are hidden; exactly these.
    pub masked_paths: Vec<String>,
    /// Paths that are read-only; exactly these.
    pub readonly_paths: Vec<String>,
    /// Seccomp profile; `None`: [`PodsConfig::unset_seccomp`](crate::PodsConfig::unset_seccomp).
    pub seccomp: Option<Profile>,
    /// AppArmor profile; `None`: the default one, as the field's runtimes have it, unless privileged.
    pub apparmor: Option<Profile>,
    /// SELinux label.
    pub selinux: Selinux,
}

/// Paths hidden from containers by default, as the field's runtimes have them.
pub const DEFAULT_MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths read-only for containers by default, as the field's runtimes have them.
pub const DEFAULT_READONLY_PATHS: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

impl Default for ContainerSecurity {
    /// What a request without a security context gets: the strict defaults.
    fn default() -> Self {
        let owned = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
        Self {
            privileged: false,
            capabilities: Capabilities::default(),
            pid: None,
            target_id: String::new(),
            network: None,
            ipc: None,
            user: None,
            run_as_user: None,
            run_as_username: String::new(),
            run_as_group: None,
            supplemental_groups: Vec::new(),
            supplemental_groups_policy: GroupsPolicy::Merge,
            readonly_rootfs: false,
            no_new_privs: false,
            masked_paths: owned(DEFAULT_MASKED_PATHS),
            readonly_paths: owned(DEFAULT_READONLY_PATHS),
            seccomp: Some(Profile::RuntimeDefault),
            apparmor: None,
            selinux: Selinux::default(),
        }
    }
}
