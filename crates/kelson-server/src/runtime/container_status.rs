//! `ContainerStatus`.

use kelson_cri::v1;
use kelson_pod::{Container, ContainerState};

use super::container_list::{metadata, state};
use super::{info, to_map};
use crate::Server;
use crate::error::VerbError;
use crate::translate::{container_mounts, image_spec, resources_back, signal_number};

impl Server {
    pub(super) fn container_lookup(
        &self,
        request: &v1::ContainerStatusRequest,
    ) -> Result<v1::ContainerStatusResponse, VerbError> {
        let (_, container) = self.container(&request.container_id)?;
        Ok(v1::ContainerStatusResponse {
            status: Some(status(&container)),
            info: if request.verbose {
                info(&details(&container))
            } else {
                Default::default()
            },
        })
    }
}

/// The container's status, which events carry too.
pub(super) fn status(container: &Container) -> v1::ContainerStatus {
    let resolved = &container.resolved;
    let mut status = v1::ContainerStatus {
        id: container.id.to_string(),
        metadata: Some(metadata(container)),
        state: state(container),
        created_at: container.created_at,
        image: Some(image_spec(&container.config.image)),
        image_ref: resolved.image_ref.clone(),
        image_id: resolved.image_id.clone(),
        labels: to_map(&container.config.labels),
        annotations: to_map(&container.config.annotations),
        mounts: container_mounts(&container.config.mounts, &resolved.image_mounts),
        log_path: resolved
            .log
            .as_ref()
            .map(|log| log.display().to_string())
            .unwrap_or_default(),
        resources: Some(v1::ContainerResources {
            linux: Some(resources_back(&resolved.resources)),
            windows: None,
        }),
        user: Some(v1::ContainerUser {
            linux: Some(v1::LinuxContainerUser {
                uid: resolved.user.uid.into(),
                gid: resolved.user.gid.into(),
                supplemental_groups: resolved.user.groups.iter().map(|&id| id.into()).collect(),
            }),
        }),
        stop_signal: signal_number(resolved.stop_signal),
        ..Default::default()
    };
    match &container.state {
        ContainerState::Created => {}
        ContainerState::Running { started_at, .. } => status.started_at = *started_at,
        ContainerState::Exited(exited) => {
            status.started_at = exited.started_at.unwrap_or(0);
            status.finished_at = exited.finished_at;
            status.exit_code = exited.exit_code;
            status.reason = exited.reason.as_str().to_owned();
            status.message = exited.message.clone();
        }
    }
    status
}

fn details(container: &Container) -> serde_json::Value {
    let pid = match container.state {
        ContainerState::Running { pid, .. } => pid,
        _ => 0,
    };
    serde_json::json!({
        "sandboxID": container.pod.to_string(),
        "pid": pid,
        "cgroup": container.resolved.cgroup,
        "config": *container.config,
    })
}
