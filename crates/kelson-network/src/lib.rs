//! CNI: configuration, external plugins, native plugins.
//!
//! [`Network`] attaches a pod's network namespace to the network that the machine's CNI
//! configuration describes, and detaches it again. The standard plugin types (loopback, bridge
//! with host-local, portmap) run inside this process over netlink; any other type, or a key that
//! is not built in, makes the whole chain run as external programs by the CNI specification.
//!
//! This crate never decides whether a pod has a network of its own: pods on the host's network
//! are not shown to it.

mod conf;
mod confdir;
mod config;
mod error;
mod external;
mod native;
mod netlink;
mod netns;
mod network;
mod plan;
mod pod;
mod record;
mod stats;
mod template;

pub use config::{Fallback, NetworkConfig};
pub use error::{Error, NotReady, StatsError};
pub use network::{Network, RecordSummary};
pub use pod::{Attachment, Bandwidth, Dns, Interface, Netns, Pod, PortMapping, Protocol};
pub use stats::{InterfaceStats, interface_stats};
pub use template::TemplateError;
