//! The runtime as a whole, and its events.

use std::collections::BTreeMap;

use kelson_cri::v1;
use serde::Serialize;
use serde_json::Value;

use super::{ContainerStatusView, PodStatusView};

/// Versions of this program and of the runtime.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VersionView {
    pub(crate) client_version: &'static str,
    pub(crate) version: String,
    pub(crate) runtime_name: String,
    pub(crate) runtime_version: String,
    pub(crate) runtime_api_version: String,
}

/// The state of the runtime.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InfoView {
    pub(crate) status: Conditions,
    pub(crate) runtime_handlers: Vec<Handler>,
    pub(crate) features: Option<Features>,
    /// Null where the runtime does not say.
    pub(crate) cgroup_driver: Option<&'static str>,
    pub(crate) image_filesystems: Vec<Filesystem>,
    #[serde(flatten)]
    pub(crate) info: BTreeMap<String, Value>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Conditions {
    pub(crate) conditions: Vec<Condition>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Condition {
    pub(crate) r#type: String,
    pub(crate) status: bool,
    pub(crate) reason: String,
    pub(crate) message: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct Handler {
    pub(crate) name: String,
    pub(crate) features: HandlerFeatures,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HandlerFeatures {
    pub(crate) recursive_read_only_mounts: bool,
    pub(crate) user_namespaces: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Features {
    supplemental_groups_policy: bool,
    user_namespaces_host_network: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Filesystem {
    pub(crate) mountpoint: String,
    pub(crate) used_bytes: u64,
    pub(crate) inodes_used: u64,
}

impl InfoView {
    /// Puts together what the runtime's answers say.
    pub(crate) fn new(
        status: v1::StatusResponse,
        config: Option<&v1::RuntimeConfigResponse>,
        filesystems: Vec<v1::FilesystemUsage>,
    ) -> Self {
        let conditions = status.status.unwrap_or_default().conditions;
        let linux = config.and_then(|config| config.linux.as_ref());
        Self {
            status: Conditions {
                conditions: conditions.into_iter().map(Into::into).collect(),
            },
            runtime_handlers: status
                .runtime_handlers
                .into_iter()
                .map(Into::into)
                .collect(),
            features: status.features.map(|features| Features {
                supplemental_groups_policy: features.supplemental_groups_policy,
                user_namespaces_host_network: features.user_namespaces_host_network,
            }),
            cgroup_driver: linux.map(|linux| linux.cgroup_driver().as_str_name()),
            image_filesystems: filesystems.into_iter().map(Into::into).collect(),
            info: super::details(status.info),
        }
    }
}

impl From<v1::RuntimeCondition> for Condition {
    fn from(condition: v1::RuntimeCondition) -> Self {
        let v1::RuntimeCondition {
            r#type,
            status,
            reason,
            message,
        } = condition;
        Self {
            r#type,
            status,
            reason,
            message,
        }
    }
}

impl From<v1::RuntimeHandler> for Handler {
    fn from(handler: v1::RuntimeHandler) -> Self {
        let features = handler.features.unwrap_or_default();
        Self {
            name: handler.name,
            features: HandlerFeatures {
                recursive_read_only_mounts: features.recursive_read_only_mounts,
                user_namespaces: features.user_namespaces,
            },
        }
    }
}

impl From<v1::FilesystemUsage> for Filesystem {
    fn from(usage: v1::FilesystemUsage) -> Self {
        Self {
            mountpoint: usage.fs_id.unwrap_or_default().mountpoint,
            used_bytes: usage.used_bytes.unwrap_or_default().value,
            inodes_used: usage.inodes_used.unwrap_or_default().value,
        }
    }
}

/// One container event.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventView {
    container_id: String,
    container_event_type: &'static str,
    created_at: String,
    pod_sandbox_status: Option<PodStatusView>,
    containers_statuses: Vec<ContainerStatusView>,
}

impl From<v1::ContainerEventResponse> for EventView {
    fn from(event: v1::ContainerEventResponse) -> Self {
        Self {
            container_event_type: event.container_event_type().as_str_name(),
            container_id: event.container_id,
            created_at: event.created_at.to_string(),
            pod_sandbox_status: event.pod_sandbox_status.map(Into::into),
            containers_statuses: event
                .containers_statuses
                .into_iter()
                .map(Into::into)
                .collect(),
        }
    }
}
