//! What goes into an attachment and what comes out of it: the pod, its ports, the result.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The pod to attach, as far as networking cares.
///
/// Only `id` and `netns` must be given; the rest is what plugins may ask for.
#[derive(Debug, Clone)]
pub struct Pod {
    /// The pod sandbox id: `CNI_CONTAINERID`, and the name of the attachment's record.
    pub id: String,
    /// Kubernetes name (`K8S_POD_NAME`).
    pub name: String,
    /// Kubernetes namespace (`K8S_POD_NAMESPACE`).
    pub namespace: String,
    /// Kubernetes uid (`K8S_POD_UID`).
    pub uid: String,
    /// The network namespace to attach.
    pub netns: Netns,
    /// Host ports to publish. Entries with `host_port` 0 are ignored, as in the field.
    pub ports: Vec<PortMapping>,
    /// Pod annotations, given to plugins that declare `io.kubernetes.cri.pod-annotations`.
    pub annotations: BTreeMap<String, String>,
    /// Resolver settings, given to plugins that declare `dns`.
    pub dns: Option<Dns>,
    /// Traffic limits, given to plugins that declare `bandwidth`.
    pub bandwidth: Option<Bandwidth>,
    /// Addresses asked for, given to plugins that declare `ips`; empty: any.
    pub ips: Vec<IpNet>,
    /// Hardware address asked for, given to plugins that declare `mac`.
    pub mac: Option<String>,
    /// Whether the built-in network will do when there is no configuration, even if it is not for
    /// every pod.
    pub fallback: bool,
}

impl Pod {
    /// A pod with nothing but its id and its network namespace.
    #[must_use]
    pub fn new(id: impl Into<String>, netns: Netns) -> Self {
        Self {
            id: id.into(),
            name: String::new(),
            namespace: String::new(),
            uid: String::new(),
            netns,
            ports: Vec::new(),
            annotations: BTreeMap::new(),
            dns: None,
            bandwidth: None,
            ips: Vec::new(),
            mac: None,
            fallback: false,
        }
    }
}

/// How a network namespace is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Netns {
    /// The namespace of a living process (the pod's shim).
    Pid(u32),
    /// A namespace file, bind-mounted by somebody else.
    Path(PathBuf),
}

/// Transport protocol of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The number in the IP header.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// One host port, in the form of CNI's `portMappings` capability.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Port on the host.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Host address to listen on; `None` or an unspecified address: all of them.
    #[serde(rename = "hostIP", default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

/// Resolver settings, in CNI's form.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Name servers.
    #[serde(alias = "nameservers")]
    pub servers: Vec<String>,
    /// Search domains.
    #[serde(alias = "search")]
    pub searches: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

/// Traffic limits in bits per second and bits, in the form of CNI's `bandwidth` capability.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bandwidth {
    /// Into the pod, bits per second; 0: unlimited.
    pub ingress_rate: u64,
    /// Into the pod, bits.
    pub ingress_burst: u64,
    /// Out of the pod, bits per second; 0: unlimited.
    pub egress_rate: u64,
    /// Out of the pod, bits.
    pub egress_burst: u64,
}

/// What a pod got.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The network's name in its configuration.
    pub network: String,
    /// Addresses of the pod's interface, without prefix, in the order of the configuration.
    pub ips: Vec<IpAddr>,
    /// Interfaces made, those of the host (`sandbox` false) included.
    pub interfaces: Vec<Interface>,
    /// Resolver settings that the plugins returned.
    #[serde(default)]
    pub dns: Dns,
}

/// One interface of an attachment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Name inside its namespace.
    pub name: String,
    /// Hardware address, `aa:bb:cc:dd:ee:ff`, or empty when unknown.
    pub mac: String,
    /// True when it is in the pod's namespace.
    pub sandbox: bool,
}
