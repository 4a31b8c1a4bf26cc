//! What pods and containers use, read straight from the kernel when somebody asks.

use std::path::PathBuf;
use std::sync::Arc;

use crate::view::{Container, Pod};

/// What a container uses.
#[derive(Clone, Debug)]
pub struct ContainerStats {
    /// The container.
    pub container: Arc<Container>,
    /// When this was read, in nanoseconds since 1970.
    pub at: i64,
    /// Its cgroup; `None`: the container does not run.
    pub cgroup: Option<kelson_cgroup::Stats>,
    /// CPU time used a second, in nanoseconds, since the sample before; `None`: this is the first one.
    pub usage_nano_cores: Option<u64>,
    /// Its writable directory; `None`: not measured yet (it is, in the background).
    pub writable: Option<WritableUsage>,
}

/// Disk space of a container's writable directory.
#[derive(Clone, Debug)]
pub struct WritableUsage {
    /// When this was measured, in nanoseconds since 1970.
    pub at: i64,
    /// The directory.
    pub directory: PathBuf,
    /// Space.
    pub usage: kelson_snapshot::Usage,
}

/// What a pod uses.
#[derive(Clone, Debug)]
pub struct PodStats {
    /// The pod.
    pub pod: Arc<Pod>,
    /// When this was read, in nanoseconds since 1970.
    pub at: i64,
    /// Its cgroup; `None`: it has none (any more).
    pub cgroup: Option<kelson_cgroup::Stats>,
    /// CPU time used a second, in nanoseconds, since the sample before; `None`: this is the first one.
    pub usage_nano_cores: Option<u64>,
    /// Its interfaces without `lo`, the default one first; empty on the host's network.
    pub network: Vec<kelson_network::InterfaceStats>,
    /// Its running containers.
    pub containers: Vec<ContainerStats>,
}
