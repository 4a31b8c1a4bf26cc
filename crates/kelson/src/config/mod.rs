//! The configuration of the daemon: one TOML file and its drop-ins.
//!
//! `/etc/kelson/config.toml` is read first, then `/etc/kelson/conf.d/*.toml` in the order of
//! their names; a later file wins key by key, and a list replaces the earlier list. A missing
//! main file means the built-in defaults. Every key is one row of the table in [`keys`], which
//! holds its documentation, its default and its check, so that `kelson config default`, the
//! parser and the error texts cannot disagree. Nothing here acts on a value.

mod keys;
mod parse;

use std::path::{Path, PathBuf};

pub(crate) use keys::default_text;
pub(crate) use parse::{load, load_or_default};

/// Where the configuration is looked for unless `--config` names another file.
pub(crate) const DEFAULT_PATH: &str = "/etc/kelson/config.toml";

/// Every setting of the daemon, in its final type.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(crate) struct Config {
    /// Images, layers and the writable layers of containers.
    pub(crate) root: PathBuf,
    /// State that a reboot may drop: the socket's directory, pods, the state database.
    pub(crate) state: PathBuf,
    /// The CRI socket.
    pub(crate) socket: PathBuf,
    /// Where the streaming server listens.
    pub(crate) streaming_address: std::net::IpAddr,
    /// Its port; 0 for any.
    pub(crate) streaming_port: u16,
    /// When a session in which nothing moves is ended, in seconds.
    pub(crate) streaming_idle_timeout: u64,
    /// Its certificate; with its key, or neither.
    pub(crate) streaming_tls_cert: Option<PathBuf>,
    /// The key of its certificate.
    pub(crate) streaming_tls_key: Option<PathBuf>,
    /// A `tracing` filter such as `info` or `info,kelson_pod=debug`.
    pub(crate) log_level: String,
    /// How log lines look.
    pub(crate) log_format: LogFormat,
    /// Who makes cgroups.
    pub(crate) cgroup_driver: CgroupDriver,
    /// Parent cgroup of pods whose request names none.
    pub(crate) cgroup_prefix: String,
    /// Whether containers get writable copies of the volumes that images declare.
    pub(crate) image_volumes: bool,
    /// Annotations that hooks and runtimes are told.
    pub(crate) passed_annotations: Vec<String>,
    /// Where descriptions of CDI devices are found.
    pub(crate) cdi_dirs: Vec<PathBuf>,
    /// Where CNI configuration lists are found.
    pub(crate) cni_conf_dir: PathBuf,
    /// What a CNI configuration list is made of when the kubelet tells the node's pod addresses.
    pub(crate) cni_conf_template: Option<PathBuf>,
    /// Whether every user of a pod may bind low ports and send pings.
    pub(crate) unprivileged_ports: bool,
    /// Size of a pod's shared memory, in bytes.
    pub(crate) shm_size: u64,
    /// Largest number of processes of a container.
    pub(crate) pids_limit: Option<i64>,
    /// Resource limits of containers: name, soft, hard.
    pub(crate) rlimits: Vec<(String, u64, u64)>,
    /// Whether containers may make cgroups in their own.
    pub(crate) writable_cgroups: bool,
    /// Whether device nodes belong to the user that a container is to run as.
    pub(crate) device_owner: bool,
    /// Whether containers that name no seccomp profile get the default one.
    pub(crate) unset_seccomp: bool,
    /// Whether containers get SELinux labels.
    pub(crate) selinux: bool,
    /// Where external CNI plugins are found.
    pub(crate) cni_bin_dirs: Vec<PathBuf>,
    /// Whether Kelson's own implementations of the standard plugins are used.
    pub(crate) cni_native: bool,
    /// What to do on a machine without a CNI configuration.
    pub(crate) network_fallback: NetworkFallback,
    /// Bridge of the fallback network.
    pub(crate) fallback_bridge: String,
    /// Subnet of the fallback network.
    pub(crate) fallback_subnet: ipnet::IpNet,
    /// The nftables table of this daemon's rules.
    pub(crate) nft_table: String,
    /// Where host-local keeps addresses when a conflist names no directory.
    pub(crate) ipam_dir: PathBuf,
    /// Where the network namespaces of pods are pinned for external plugins.
    pub(crate) netns_dir: PathBuf,
    /// Registry hosts configuration (`<host>/hosts.toml`).
    pub(crate) certs_dir: PathBuf,
    /// Layers downloaded at once for one image.
    pub(crate) max_concurrent_downloads: usize,
    /// References that garbage collection must leave alone.
    pub(crate) pinned_images: Vec<String>,
    /// Largest unpacked size of one layer, in bytes.
    pub(crate) max_layer_bytes: u64,
    /// Whether containers may be checkpointed and restored.
    pub(crate) checkpoints: bool,
    /// CRIU, by path or by name.
    pub(crate) criu: PathBuf,
    /// Whether a layer is written through to the disk before it counts as complete.
    pub(crate) sync_layers: bool,
}

/// Who makes the cgroups of pods and containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CgroupDriver {
    /// Kelson.
    Cgroupfs,
    /// systemd.
    Systemd,
}

/// The two forms of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people and journald.
    Text,
    /// One JSON object a line.
    Json,
}

/// What to do when no CNI configuration is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NetworkFallback {
    /// Report the network as not ready, as the kubelet expects.
    None,
    /// Use a built-in bridge network.
    Bridge,
}

impl Config {
    /// The drop-in directory that belongs to a main file: `conf.d` beside it.
    fn drop_in_dir(main: &Path) -> PathBuf {
        main.with_file_name("conf.d")
    }

    /// Every setting as a JSON object, for the verbose status. There are no secrets in it.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}
