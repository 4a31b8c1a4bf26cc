//! `ContainerStats` and `ListContainerStats`.

use kelson_cri::v1;
use kelson_pod::{Container, ContainerId};

use super::matches_labels;
use super::usage::container_stats;
use crate::Server;
use crate::error::VerbError;

impl Server {
    pub(super) async fn container_usage(
        &self,
        request: &v1::ContainerStatsRequest,
    ) -> Result<v1::ContainerStatsResponse, VerbError> {
        let (_, container) = self.container(&request.container_id)?;
        let stats = self.services.pods.container_stats(&[container.id]).await;
        let stats = stats
            .first()
            .ok_or_else(|| VerbError::not_found("container", &request.container_id))?;
        let root = &self.services.about.root;
        Ok(v1::ContainerStatsResponse {
            stats: Some(container_stats(stats, root)),
        })
    }

    pub(super) async fn container_usage_list(
        &self,
        request: v1::ListContainerStatsRequest,
    ) -> Result<v1::ListContainerStatsResponse, VerbError> {
        let filter = request.filter.unwrap_or_default();
        let ids: Vec<ContainerId> = self
            .snapshot()
            .containers()
            .filter(|(_, container)| selected(container, &filter))
            .map(|(_, container)| container.id)
            .collect();
        let stats = self.services.pods.container_stats(&ids).await;
        let root = &self.services.about.root;
        Ok(v1::ListContainerStatsResponse {
            stats: stats.iter().map(|one| container_stats(one, root)).collect(),
        })
    }
}

fn selected(container: &Container, filter: &v1::ContainerStatsFilter) -> bool {
    container.id.as_str().starts_with(&filter.id)
        && container.pod.as_str().starts_with(&filter.pod_sandbox_id)
        && matches_labels(&container.config.labels, &filter.label_selector)
}
