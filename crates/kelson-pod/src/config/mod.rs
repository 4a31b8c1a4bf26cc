//! What a caller asks for: the configuration of pods and containers in Kelson's own types.
//!
//! They say what the CRI's `PodSandboxConfig` and `ContainerConfig` say, without protobuf. Filling them
//! checks nothing; the module `validate` checks everything at once before anything is done with them.
//! They are also what is kept in the store, so fields may be added (with a default) but not renamed.

mod container;
mod pod;
mod security;

pub use container::{ContainerConfig, Device, IdMapping, ImageSpec, Mount, Propagation};
pub use pod::{
    Dns, NETWORK_FALLBACK, PodConfig, PodMetadata, PodNamespaces, PortMapping, Protocol,
    UserNamespace,
};
pub use security::{
    Capabilities, ContainerSecurity, DEFAULT_MASKED_PATHS, DEFAULT_READONLY_PATHS, GroupsPolicy,
    NamespaceMode, PodSecurity, Profile, Selinux,
};

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Resource limits. Zero, empty and `None` mean "not given", as in the CRI.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Length of the CPU period in µs.
    pub cpu_period: i64,
    /// CPU time in µs that may be used in a period; -1: no limit.
    pub cpu_quota: i64,
    /// Relative share of CPU time (cgroup v1 scale, 2 to 262144).
    pub cpu_shares: i64,
    /// Memory limit in bytes.
    pub memory_limit: i64,
    /// Limit of memory and swap together in bytes; 0: equal to `memory_limit`; -1: no limit.
    pub memory_swap_limit: i64,
    /// Badness for the OOM killer, -1000 to 1000.
    pub oom_score_adj: i64,
    /// CPUs in list format (`0-3,7`).
    pub cpuset_cpus: String,
    /// Memory nodes in list format.
    pub cpuset_mems: String,
    /// Limits of huge pages: page size as the kernel writes it (`2MB`) and bytes.
    pub hugepages: Vec<(String, u64)>,
    /// cgroup v2 files and what to write into them.
    pub unified: BTreeMap<String, String>,
}
