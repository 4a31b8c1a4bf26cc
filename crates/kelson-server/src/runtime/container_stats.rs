//! `ContainerStats`, `ListContainerStats` and `StreamContainerStats`.

use std::sync::Arc;

use kelson_cri::v1;
use kelson_pod::{Container, ContainerId};
use tonic::codegen::BoxStream;

use super::matches_labels;
use super::usage::container_stats;
use crate::Server;
use crate::error::VerbError;
use crate::stream::read_batches;

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
        let ids = self.chosen_for_usage(request.filter);
        let stats = self.services.pods.container_stats(&ids).await;
        let root = &self.services.about.root;
        Ok(v1::ListContainerStatsResponse {
            stats: stats.iter().map(|one| container_stats(one, root)).collect(),
        })
    }

    pub(super) fn container_usage_stream(
        &self,
        request: v1::StreamContainerStatsRequest,
    ) -> BoxStream<v1::StreamContainerStatsResponse> {
        let services = Arc::clone(&self.services);
        let read = move |ids: Vec<ContainerId>| {
            let services = Arc::clone(&services);
            async move {
                let stats = services.pods.container_stats(&ids).await;
                let root = &services.about.root;
                stats.iter().map(|one| container_stats(one, root)).collect()
            }
        };
        read_batches(self.chosen_for_usage(request.filter), read, |stats| {
            v1::StreamContainerStatsResponse {
                container_stats: stats,
            }
        })
    }

    fn chosen_for_usage(&self, filter: Option<v1::ContainerStatsFilter>) -> Vec<ContainerId> {
        let filter = filter.unwrap_or_default();
        let snapshot = self.snapshot();
        let all = snapshot.containers().map(|(_, one)| one);
        all.filter(|one| selected(one, &filter))
            .map(|one| one.id)
            .collect()
    }
}

fn selected(container: &Container, filter: &v1::ContainerStatsFilter) -> bool {
    container.id.as_str().starts_with(&filter.id)
        && container.pod.as_str().starts_with(&filter.pod_sandbox_id)
        && matches_labels(&container.config.labels, &filter.label_selector)
}
