//! Pods.

use std::collections::BTreeMap;

use kelson_cri::v1;
use serde::Serialize;

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodMetadata {
    name: String,
    uid: String,
    namespace: String,
    attempt: u32,
}

impl From<Option<v1::PodSandboxMetadata>> for PodMetadata {
    fn from(metadata: Option<v1::PodSandboxMetadata>) -> Self {
        let v1::PodSandboxMetadata {
            name,
            uid,
            namespace,
            attempt,
        } = metadata.unwrap_or_default();
        Self {
            name,
            uid,
            namespace,
            attempt,
        }
    }
}

/// A pod in a list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodItem {
    id: String,
    metadata: PodMetadata,
    state: &'static str,
    created_at: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    runtime_handler: String,
}

impl From<v1::PodSandbox> for PodItem {
    fn from(pod: v1::PodSandbox) -> Self {
        Self {
            state: pod.state().as_str_name(),
            id: pod.id,
            metadata: pod.metadata.into(),
            created_at: pod.created_at.to_string(),
            labels: pod.labels,
            annotations: pod.annotations,
            runtime_handler: pod.runtime_handler,
        }
    }
}

/// A pod's status. Times are RFC 3339.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodStatusView {
    id: String,
    metadata: PodMetadata,
    state: &'static str,
    created_at: String,
    network: Network,
    linux: Linux,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    runtime_handler: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Network {
    ip: String,
    additional_ips: Vec<Ip>,
}

#[derive(Debug, Serialize)]
struct Ip {
    ip: String,
}

#[derive(Debug, Serialize)]
struct Linux {
    namespaces: Namespaces,
}

#[derive(Debug, Serialize)]
struct Namespaces {
    options: Option<Options>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Options {
    network: &'static str,
    pid: &'static str,
    ipc: &'static str,
    target_id: String,
}

impl From<v1::PodSandboxStatus> for PodStatusView {
    fn from(status: v1::PodSandboxStatus) -> Self {
        let network = status.network.clone().unwrap_or_default();
        let options = status
            .linux
            .as_ref()
            .and_then(|linux| linux.namespaces.clone());
        let options = options
            .and_then(|namespace| namespace.options)
            .map(|options| Options {
                network: options.network().as_str_name(),
                pid: options.pid().as_str_name(),
                ipc: options.ipc().as_str_name(),
                target_id: options.target_id,
            });
        Self {
            state: status.state().as_str_name(),
            id: status.id,
            metadata: status.metadata.into(),
            created_at: crate::ui::text::timestamp(status.created_at),
            network: Network {
                ip: network.ip,
                additional_ips: network
                    .additional_ips
                    .into_iter()
                    .map(|ip| Ip { ip: ip.ip })
                    .collect(),
            },
            linux: Linux {
                namespaces: Namespaces { options },
            },
            labels: status.labels,
            annotations: status.annotations,
            runtime_handler: status.runtime_handler,
        }
    }
}
