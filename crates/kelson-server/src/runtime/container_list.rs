//! `ListContainers` and `StreamContainers`.

use std::sync::Arc;

use kelson_cri::v1;
use kelson_pod::{Container, ContainerState};
use tonic::codegen::BoxStream;

use super::{matches_labels, to_map};
use crate::Server;
use crate::error::VerbError;
use crate::stream::batches;
use crate::translate::image_spec;

impl Server {
    pub(super) fn container_list(
        &self,
        request: v1::ListContainersRequest,
    ) -> Result<v1::ListContainersResponse, VerbError> {
        let chosen = self.chosen_containers(request.filter);
        Ok(v1::ListContainersResponse {
            containers: chosen.iter().map(|one| item(one)).collect(),
        })
    }

    pub(super) fn container_stream(
        &self,
        request: v1::StreamContainersRequest,
    ) -> BoxStream<v1::StreamContainersResponse> {
        let chosen = self.chosen_containers(request.filter);
        batches(chosen.into_iter().map(|one| item(&one)), |containers| {
            v1::StreamContainersResponse { containers }
        })
    }

    fn chosen_containers(&self, filter: Option<v1::ContainerFilter>) -> Vec<Arc<Container>> {
        let filter = filter.unwrap_or_default();
        let snapshot = self.snapshot();
        let all = snapshot.containers().map(|(_, one)| one);
        all.filter(|one| selected(one, &filter)).cloned().collect()
    }
}

fn selected(container: &Container, filter: &v1::ContainerFilter) -> bool {
    container.id.as_str().starts_with(&filter.id)
        && container.pod.as_str().starts_with(&filter.pod_sandbox_id)
        && filter
            .state
            .as_ref()
            .is_none_or(|wanted| wanted.state == state(container))
        && matches_labels(&container.config.labels, &filter.label_selector)
}

/// The container's state by the CRI's number.
pub(super) fn state(container: &Container) -> i32 {
    match container.state {
        ContainerState::Created => v1::ContainerState::ContainerCreated,
        ContainerState::Running { .. } => v1::ContainerState::ContainerRunning,
        ContainerState::Exited(_) => v1::ContainerState::ContainerExited,
    }
    .into()
}

/// The container's name and attempt.
pub(super) fn metadata(container: &Container) -> v1::ContainerMetadata {
    v1::ContainerMetadata {
        name: container.config.name.clone(),
        attempt: container.config.attempt,
    }
}

fn item(container: &Container) -> v1::Container {
    v1::Container {
        id: container.id.to_string(),
        pod_sandbox_id: container.pod.to_string(),
        metadata: Some(metadata(container)),
        image: Some(image_spec(&container.config.image)),
        image_ref: container.resolved.image_ref.clone(),
        image_id: container.resolved.image_id.clone(),
        state: state(container),
        created_at: container.created_at,
        labels: to_map(&container.config.labels),
        annotations: to_map(&container.config.annotations),
    }
}
