//! Containers.

use std::collections::BTreeMap;

use kelson_cri::v1;
use serde::Serialize;

use super::image::ImageSpecView;

#[derive(Debug, Serialize)]
pub(super) struct ContainerMetadataView {
    name: String,
    attempt: u32,
}

impl From<Option<v1::ContainerMetadata>> for ContainerMetadataView {
    fn from(metadata: Option<v1::ContainerMetadata>) -> Self {
        let v1::ContainerMetadata { name, attempt } = metadata.unwrap_or_default();
        Self { name, attempt }
    }
}

/// A container in a list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ContainerItem {
    id: String,
    pod_sandbox_id: String,
    metadata: ContainerMetadataView,
    image: Option<ImageSpecView>,
    image_ref: String,
    image_id: String,
    state: &'static str,
    created_at: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

impl From<v1::Container> for ContainerItem {
    fn from(container: v1::Container) -> Self {
        Self {
            state: container.state().as_str_name(),
            id: container.id,
            pod_sandbox_id: container.pod_sandbox_id,
            metadata: container.metadata.into(),
            image: container.image.map(Into::into),
            image_ref: container.image_ref,
            image_id: container.image_id,
            created_at: container.created_at.to_string(),
            labels: container.labels,
            annotations: container.annotations,
        }
    }
}

/// A container's status. Times are RFC 3339; empty where something has not happened.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ContainerStatusView {
    id: String,
    metadata: ContainerMetadataView,
    state: &'static str,
    created_at: String,
    started_at: String,
    finished_at: String,
    exit_code: i32,
    reason: String,
    message: String,
    image: Option<ImageSpecView>,
    image_ref: String,
    image_id: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    mounts: Vec<MountView>,
    log_path: String,
    resources: Option<Resources>,
    user: Option<User>,
    stop_signal: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct MountView {
    container_path: String,
    host_path: String,
    readonly: bool,
    propagation: &'static str,
    selinux_relabel: bool,
    recursive_read_only: bool,
    image: Option<ImageSpecView>,
    image_sub_path: String,
}

#[derive(Debug, Serialize)]
struct Resources {
    linux: Option<LinuxResources>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LinuxResources {
    cpu_period: String,
    cpu_quota: String,
    cpu_shares: String,
    memory_limit_in_bytes: String,
    memory_swap_limit_in_bytes: String,
    oom_score_adj: String,
    cpuset_cpus: String,
    cpuset_mems: String,
    hugepage_limits: Vec<HugepageLimit>,
    unified: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct HugepageLimit {
    page_size: String,
    limit: String,
}

impl From<v1::HugepageLimit> for HugepageLimit {
    fn from(limit: v1::HugepageLimit) -> Self {
        Self {
            page_size: limit.page_size,
            limit: limit.limit.to_string(),
        }
    }
}

#[derive(Debug, Serialize)]
struct User {
    linux: Option<LinuxUser>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LinuxUser {
    uid: String,
    gid: String,
    supplemental_groups: Vec<String>,
}

impl From<v1::ContainerStatus> for ContainerStatusView {
    fn from(status: v1::ContainerStatus) -> Self {
        let time = crate::ui::text::timestamp;
        Self {
            state: status.state().as_str_name(),
            stop_signal: status.stop_signal().as_str_name(),
            id: status.id,
            metadata: status.metadata.into(),
            created_at: time(status.created_at),
            started_at: time(status.started_at),
            finished_at: time(status.finished_at),
            exit_code: status.exit_code,
            reason: status.reason,
            message: status.message,
            image: status.image.map(Into::into),
            image_ref: status.image_ref,
            image_id: status.image_id,
            labels: status.labels,
            annotations: status.annotations,
            mounts: status.mounts.into_iter().map(Into::into).collect(),
            log_path: status.log_path,
            resources: status.resources.map(|r| Resources {
                linux: r.linux.map(Into::into),
            }),
            user: status.user.map(|user| User {
                linux: user.linux.map(Into::into),
            }),
        }
    }
}

impl From<v1::Mount> for MountView {
    fn from(mount: v1::Mount) -> Self {
        Self {
            propagation: mount.propagation().as_str_name(),
            container_path: mount.container_path,
            host_path: mount.host_path,
            readonly: mount.readonly,
            selinux_relabel: mount.selinux_relabel,
            recursive_read_only: mount.recursive_read_only,
            image: mount.image.map(Into::into),
            image_sub_path: mount.image_sub_path,
        }
    }
}

impl From<v1::LinuxContainerResources> for LinuxResources {
    fn from(resources: v1::LinuxContainerResources) -> Self {
        Self {
            cpu_period: resources.cpu_period.to_string(),
            cpu_quota: resources.cpu_quota.to_string(),
            cpu_shares: resources.cpu_shares.to_string(),
            memory_limit_in_bytes: resources.memory_limit_in_bytes.to_string(),
            memory_swap_limit_in_bytes: resources.memory_swap_limit_in_bytes.to_string(),
            oom_score_adj: resources.oom_score_adj.to_string(),
            cpuset_cpus: resources.cpuset_cpus,
            cpuset_mems: resources.cpuset_mems,
            hugepage_limits: resources
                .hugepage_limits
                .into_iter()
                .map(Into::into)
                .collect(),
            unified: resources.unified,
        }
    }
}

impl From<v1::LinuxContainerUser> for LinuxUser {
    fn from(user: v1::LinuxContainerUser) -> Self {
        Self {
            uid: user.uid.to_string(),
            gid: user.gid.to_string(),
            supplemental_groups: user
                .supplemental_groups
                .iter()
                .map(i64::to_string)
                .collect(),
        }
    }
}
