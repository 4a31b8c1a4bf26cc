//! The settings of the network, and the built-in network for machines without a conflist.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

/// Where everything is, and how to behave. All paths are absolute.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Directory of CNI configurations.
    pub conf_dir: PathBuf,
    /// What [`Network::configure`](crate::Network::configure) makes a configuration of.
    pub conf_template: Option<PathBuf>,
    /// Directories of external plugins, first match wins.
    pub bin_dirs: Vec<PathBuf>,
    /// Records of attachments, one file per pod. Keep it on disk: addresses survive a reboot, so
    /// the records that give them back must, too.
    pub cache_dir: PathBuf,
    /// host-local's data directory when a configuration names none.
    pub ipam_dir: PathBuf,
    /// Where namespaces are bind-mounted for external plugins.
    pub netns_dir: PathBuf,
    /// The proc file system.
    pub proc_root: PathBuf,
    /// Whether the standard plugin types run inside this process.
    pub native: bool,
    /// Used when `conf_dir` has no usable configuration.
    pub fallback: Option<Fallback>,
    /// Whether every pod may use `fallback`, and with it the network counts as ready; otherwise only
    /// pods that ask for it ([`Pod::fallback`](crate::Pod::fallback)).
    pub fallback_for_all: bool,
    /// Name of the nftables table (family inet) that holds every rule of this instance.
    pub nft_table: String,
    /// The longest that one external plugin may run.
    pub plugin_timeout: Duration,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            conf_template: None,
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            cache_dir: "/var/lib/kelson/cni".into(),
            ipam_dir: "/var/lib/cni/networks".into(),
            netns_dir: "/run/netns".into(),
            proc_root: "/proc".into(),
            native: true,
            fallback: None,
            fallback_for_all: true,
            nft_table: "kelson".into(),
            plugin_timeout: Duration::from_secs(60),
        }
    }
}

/// The built-in network: bridge, host-local, masquerade and host ports.
#[derive(Debug, Clone)]
pub struct Fallback {
    /// Network name, also the name of its directory under `ipam_dir`.
    pub name: String,
    /// Bridge interface, at most 15 bytes.
    pub bridge: String,
    /// One subnet per address family.
    pub subnets: Vec<IpNet>,
    /// Interface MTU; `None`: the kernel's default.
    pub mtu: Option<u32>,
}

impl Default for Fallback {
    fn default() -> Self {
        Self {
            name: "kelson".into(),
            bridge: "kelson0".into(),
            subnets: vec![IpNet::from(ipnet::Ipv4Net::new_assert(
                [10, 88, 0, 0].into(),
                16,
            ))],
            mtu: None,
        }
    }
}
