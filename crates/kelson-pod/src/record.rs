//! What is kept in the store about pods and containers.
//!
//! A pod's record is written before anything of the pod exists and deleted after nothing of it is left.

use std::net::IpAddr;

use kelson_shim::ids::PodId;
use kelson_shim::proto::{SeccompFilter, StdinPolicy};
use kelson_store::Record;
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use crate::config::{ContainerConfig, PodConfig};
use crate::view::{Exited, Resolved};

/// A pod. The key is its id.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    pub(crate) config: PodConfig,
    /// Nanoseconds since 1970.
    pub(crate) created_at: i64,
    /// The kernel's boot id when it was made.
    pub(crate) boot: String,
    pub(crate) phase: PodPhase,
}

/// How far a pod is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PodPhase {
    /// The intent to make it: what exists of it is to be undone.
    Starting,
    /// It runs.
    Ready {
        ips: Vec<IpAddr>,
        shim_pid: u32,
        init_pid: Option<u32>,
    },
    /// The intent to take it down, or that it is down when `clean`.
    NotReady { reason: String, clean: bool },
}

impl Record for PodRecord {
    const TABLE: &'static str = "pods";
    const VERSION: u32 = 1;
}

/// A container. The key is its id.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) pod: PodId,
    pub(crate) config: ContainerConfig,
    pub(crate) resolved: Resolved,
    /// Nanoseconds since 1970.
    pub(crate) created_at: i64,
    pub(crate) state: ContainerPhase,
}

/// How far a container is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ContainerPhase {
    Created,
    Running { pid: u32, started_at: i64 },
    Exited(Exited),
}

impl Record for ContainerRecord {
    const TABLE: &'static str = "containers";
    const VERSION: u32 = 1;
}

/// What is needed to start a container and to run commands in it; read when that happens, not kept in
/// memory. The key is the container's id.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SpecRecord {
    /// Without its seccomp profile.
    pub(crate) spec: Spec,
    pub(crate) seccomp: Seccomp,
    pub(crate) stdin: StdinPolicy,
    /// It starts from a checkpoint, whose images lie beside its writable directory.
    #[serde(default)]
    pub(crate) restored: Option<Restored>,
}

/// What is kept of a checkpoint beside its images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Restored {
    /// Standard input, output and error as CRIU names them.
    pub(crate) streams: [Option<String>; 3],
}

/// A container's seccomp filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Seccomp {
    None,
    /// The default for the capabilities in the specification.
    Default,
    /// One of the machine's, compiled when the container was made.
    Compiled(SeccompFilter),
}

impl Record for SpecRecord {
    const TABLE: &'static str = "specs";
    const VERSION: u32 = 1;
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::PodMetadata;

    pub(crate) fn pod_record(name: &str) -> PodRecord {
        PodRecord {
            config: PodConfig {
                metadata: PodMetadata {
                    name: name.into(),
                    ..PodMetadata::default()
                },
                ..PodConfig::default()
            },
            created_at: 1,
            boot: "boot".into(),
            phase: PodPhase::Starting,
        }
    }

    /// A record as version 1 writes it; reading it must go on working.
    #[test]
    fn records_of_version_1_are_read() {
        let json = r#"{"config":{"metadata":{"name":"p"}},"created_at":1,"boot":"b",
            "phase":{"ready":{"ips":["10.0.0.2"],"shim_pid":7,"init_pid":null}}}"#;
        let record: PodRecord = serde_json::from_str(json).unwrap();
        assert_eq!(record.config.metadata.name, "p");
        assert!(matches!(record.phase, PodPhase::Ready { shim_pid: 7, .. }));
        let json = r#"{"not_ready":{"reason":"stopped","clean":true}}"#;
        let phase: PodPhase = serde_json::from_str(json).unwrap();
        assert_eq!(
            phase,
            PodPhase::NotReady {
                reason: "stopped".into(),
                clean: true
            }
        );
    }
}
