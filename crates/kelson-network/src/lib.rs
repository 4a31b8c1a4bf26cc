//! CNI: configuration, external plugins, native plugins.
//!
//! [`Network`] attaches a pod's network namespace to the network that the machine's CNI
//! configuration describes, and detaches it again. The standard plugin types (loopback, bridge
//! with host-local, portmap) run inside this process over netlink; any other type makes the whole
//! chain run as external programs by the CNI specification.
//!
//! This crate never decides whether a pod has a network of its own: pods on the host's network
//! are not shown to it.

mod config;
mod error;
mod pod;
mod stats;

use std::collections::HashSet;
use std::sync::Arc;

pub use config::{Fallback, NetworkConfig};
pub use error::{Error, NotReady, StatsError};
pub use pod::{Attachment, Bandwidth, Dns, Interface, Netns, Pod, PortMapping, Protocol};
pub use stats::{InterfaceStats, interface_stats};

/// The pod network of this machine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Network {
    config: Arc<NetworkConfig>,
}

/// What the record of an attachment tells at start-up.
#[derive(Debug, Clone)]
pub struct RecordSummary {
    /// The pod sandbox id.
    pub pod_id: String,
    /// The network's name.
    pub network: String,
    /// The result, or `None` when the attachment was never finished.
    pub attachment: Option<Attachment>,
}

#[expect(clippy::unused_async, reason = "signatures first")]
impl Network {
    /// Prepares the directories; reads no configuration yet and touches no interface.
    pub fn open(config: NetworkConfig) -> Result<Self, Error> {
        Ok(Self {
            config: Arc::new(config),
        })
    }

    /// Whether pods can be attached now. Rereads what changed in `conf_dir`; runs the plugins'
    /// STATUS where the configuration's version has it.
    pub async fn status(&self) -> Result<(), NotReady> {
        Err(NotReady {
            reason: "NetworkPluginNotReady",
            message: String::new(),
        })
    }

    /// Attaches the pod: `lo` up, `eth0` made and addressed, ports published. On an error
    /// everything is undone.
    pub async fn add(&self, pod: Pod) -> Result<Attachment, Error> {
        let _ = (&self.config, pod);
        Ok(Attachment::default())
    }

    /// Detaches the pod. Idempotent; needs neither the namespace (give it if it lives) nor the
    /// configuration of the time of `add`. On an error the record stays, so that a later call
    /// can finish.
    pub async fn del(&self, pod_id: &str, netns: Option<Netns>) -> Result<(), Error> {
        let _ = (pod_id, netns);
        Ok(())
    }

    /// Every attachment that has a record, finished or not.
    pub fn records(&self) -> Result<Vec<RecordSummary>, Error> {
        Ok(Vec::new())
    }

    /// Detaches every recorded pod that is not in `valid`; returns the ids that were detached.
    pub async fn gc(&self, valid: &HashSet<String>) -> Result<Vec<String>, Error> {
        let _ = valid;
        Ok(Vec::new())
    }

    /// Removes the built-in network's bridge, rules and address directory if no pod uses it.
    /// Returns false when one still does.
    pub async fn destroy_fallback(&self) -> Result<bool, Error> {
        Ok(true)
    }
}
