//! `PodSandboxStats` and `ListPodSandboxStats`.

use kelson_cri::v1;
use kelson_pod::{Pod, PodId};

use super::matches_labels;
use super::usage::pod_stats;
use crate::Server;
use crate::error::VerbError;

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
        let filter = request.filter.unwrap_or_default();
        let snapshot = self.snapshot();
        let ids: Vec<PodId> = snapshot
            .pods()
            .filter(|pod| selected(pod, &filter))
            .map(|pod| pod.id)
            .collect();
        let stats = self.services.pods.pod_stats(&ids).await;
        let root = &self.services.about.root;
        Ok(v1::ListPodSandboxStatsResponse {
            stats: stats.iter().map(|one| pod_stats(one, root)).collect(),
        })
    }
}

fn selected(pod: &Pod, filter: &v1::PodSandboxStatsFilter) -> bool {
    pod.id.as_str().starts_with(&filter.id)
        && matches_labels(&pod.config.labels, &filter.label_selector)
}
