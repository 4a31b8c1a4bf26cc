//! `PodSandboxStats`, `ListPodSandboxStats` and `StreamPodSandboxStats`.

use std::sync::Arc;

use kelson_cri::v1;
use kelson_pod::{Pod, PodId};
use tonic::codegen::BoxStream;

use super::matches_labels;
use super::usage::pod_stats;
use crate::Server;
use crate::error::VerbError;
use crate::stream::read_batches;

impl Server {
    pub(super) async fn sandbox_usage(
        &self,
        request: &v1::PodSandboxStatsRequest,
    ) -> Result<v1::PodSandboxStatsResponse, VerbError> {
        let pod = self.pod(&request.pod_sandbox_id)?;
        let stats = self.services.pods.pod_stats(&[pod.id]).await;
        let stats = stats
            .first()
            .ok_or_else(|| VerbError::not_found("pod sandbox", &request.pod_sandbox_id))?;
        let root = &self.services.about.root;
        Ok(v1::PodSandboxStatsResponse {
            stats: Some(pod_stats(stats, root)),
        })
    }

    pub(super) async fn sandbox_usage_list(
        &self,
        request: v1::ListPodSandboxStatsRequest,
    ) -> Result<v1::ListPodSandboxStatsResponse, VerbError> {
        let ids = self.chosen_pods_for_usage(request.filter);
        let stats = self.services.pods.pod_stats(&ids).await;
        let root = &self.services.about.root;
        Ok(v1::ListPodSandboxStatsResponse {
            stats: stats.iter().map(|one| pod_stats(one, root)).collect(),
        })
    }

    pub(super) fn sandbox_usage_stream(
        &self,
        request: v1::StreamPodSandboxStatsRequest,
    ) -> BoxStream<v1::StreamPodSandboxStatsResponse> {
        let services = Arc::clone(&self.services);
        let read = move |ids: Vec<PodId>| {
            let services = Arc::clone(&services);
            async move {
                let stats = services.pods.pod_stats(&ids).await;
                let root = &services.about.root;
                stats.iter().map(|one| pod_stats(one, root)).collect()
            }
        };
        read_batches(self.chosen_pods_for_usage(request.filter), read, |stats| {
            v1::StreamPodSandboxStatsResponse {
                pod_sandbox_stats: stats,
            }
        })
    }

    fn chosen_pods_for_usage(&self, filter: Option<v1::PodSandboxStatsFilter>) -> Vec<PodId> {
        let filter = filter.unwrap_or_default();
        let snapshot = self.snapshot();
        let chosen = snapshot.pods().filter(|pod| selected(pod, &filter));
        chosen.map(|pod| pod.id).collect()
    }
}

fn selected(pod: &Pod, filter: &v1::PodSandboxStatsFilter) -> bool {
    pod.id.as_str().starts_with(&filter.id)
        && matches_labels(&pod.config.labels, &filter.label_selector)
}
