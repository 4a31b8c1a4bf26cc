//! The configuration of a pod.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{IdMapping, NamespaceMode, PodSecurity, Resources};

/// The annotation by which a pod takes the built-in network (`bridge`) on a machine without a CNI
/// configuration; it means nothing where there is one. `kelson run` sets it.
pub const NETWORK_FALLBACK: &str = "kelson.run/network-fallback";

/// What makes a pod different from every other: the same four again mean the same pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct PodMetadata {
    /// Name; required.
    pub name: String,
    /// Namespace; required.
    pub namespace: String,
    /// UID that the caller gave the pod; required.
    pub uid: String,
    /// How often the caller has made this pod before.
    pub attempt: u32,
}

/// Everything that is asked of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodConfig {
    /// Its names.
    pub metadata: PodMetadata,
    /// Handler that runs it; empty: the default one.
    pub runtime_handler: String,
    /// Host name; empty: the host's for the host's network, otherwise the start of the pod's id.
    pub hostname: String,
    /// Directory on the host for the containers' logs; empty: output is discarded.
    pub log_directory: String,
    /// DNS; `None`: the host's `/etc/resolv.conf`.
    pub dns: Option<Dns>,
    /// Ports of the host that lead into the pod.
    pub ports: Vec<PortMapping>,
    /// Labels: kept and given back.
    pub labels: BTreeMap<String, String>,
    /// Annotations: kept and given back.
    pub annotations: BTreeMap<String, String>,
    /// cgroup in which the containers' cgroups are made, absolute in the hierarchy; empty: a cgroup of the
    /// pod's own beneath [`PodsConfig::cgroup_prefix`](crate::PodsConfig::cgroup_prefix).
    pub cgroup_parent: String,
    /// Kernel parameters of the pod's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Which namespaces it has.
    pub namespaces: PodNamespaces,
    /// Security.
    pub security: PodSecurity,
    /// SELinux level of the pod's own; Kelson gives it, not the caller, and only where SELinux is on.
    pub selinux_level: String,
    /// What the pod needs beside its containers; kept and told to VM runtimes.
    pub overhead: Option<Resources>,
    /// The sum of what its containers need; kept and told to VM runtimes.
    pub resources: Option<Resources>,
}

/// What goes into a pod's `resolv.conf`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

/// A port of the host that leads to one of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Transport.
    pub protocol: Protocol,
    /// Port in the pod.
    pub container_port: i32,
    /// Port on the host; 0: the mapping is only a note and does nothing.
    pub host_port: i32,
    /// Address of the host to listen on; empty: all.
    pub host_ip: String,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// Which namespaces a pod has of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodNamespaces {
    /// Network, and with it the host name: `Pod` or `Node`.
    pub network: NamespaceMode,
    /// Processes: `Pod` (shared by the containers), `Container` or `Node`.
    pub pid: NamespaceMode,
    /// System V IPC, message queues and `/dev/shm`: `Pod` or `Node`.
    pub ipc: NamespaceMode,
    /// Users, when the request says something about them.
    pub user: Option<UserNamespace>,
}

/// A user namespace as it was asked for: with `Pod` one mapping of user and one of group ids, with
/// `Node` none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UserNamespace {
    /// `Pod` or `Node`.
    pub mode: NamespaceMode,
    /// User ids.
    pub uids: Vec<IdMapping>,
    /// Group ids.
    pub gids: Vec<IdMapping>,
}

impl PodNamespaces {
    /// The user namespace of the pod's own, if it has one.
    pub(crate) fn own_users(&self) -> Option<&UserNamespace> {
        self.user
            .as_ref()
            .filter(|user| user.mode == NamespaceMode::Pod)
    }
}

impl IdMapping {
    /// What `id` of the container is on the host.
    pub(crate) fn host(&self, id: u32) -> Option<u32> {
        let offset = id
            .checked_sub(self.container_id)
            .filter(|at| *at < self.length)?;
        self.host_id.checked_add(offset)
    }
}

impl UserNamespace {
    /// What a user and a group of the container are on the host; `None`: they do not exist there.
    pub(crate) fn host(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        let find = |list: &[IdMapping], id| list.iter().find_map(|line| line.host(id));
        Some((find(&self.uids, uid)?, find(&self.gids, gid)?))
    }
}
