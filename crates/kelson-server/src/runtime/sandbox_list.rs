//! `ListPodSandbox` and `StreamPodSandboxes`.

use std::sync::Arc;

use kelson_cri::v1;
use kelson_pod::Pod;
use tonic::codegen::BoxStream;

use super::{matches_labels, to_map};
use crate::Server;
use crate::error::VerbError;
use crate::stream::batches;
use crate::translate::pod_metadata;

impl Server {
    pub(super) fn sandbox_list(
        &self,
        request: v1::ListPodSandboxRequest,
    ) -> Result<v1::ListPodSandboxResponse, VerbError> {
        let chosen = self.chosen_pods(request.filter);
        Ok(v1::ListPodSandboxResponse {
            items: chosen.iter().map(|pod| item(pod)).collect(),
        })
    }

    pub(super) fn sandbox_stream(
        &self,
        request: v1::StreamPodSandboxesRequest,
    ) -> BoxStream<v1::StreamPodSandboxesResponse> {
        let chosen = self.chosen_pods(request.filter);
        batches(chosen.into_iter().map(|pod| item(&pod)), |pod_sandboxes| {
            v1::StreamPodSandboxesResponse { pod_sandboxes }
        })
    }

    fn chosen_pods(&self, filter: Option<v1::PodSandboxFilter>) -> Vec<Arc<Pod>> {
        let filter = filter.unwrap_or_default();
        let snapshot = self.snapshot();
        let chosen = snapshot.pods().filter(|pod| selected(pod, &filter));
        chosen.cloned().collect()
    }
}

fn selected(pod: &Pod, filter: &v1::PodSandboxFilter) -> bool {
    pod.id.as_str().starts_with(&filter.id)
        && filter
            .state
            .as_ref()
            .is_none_or(|wanted| wanted.state == state(pod))
        && matches_labels(&pod.config.labels, &filter.label_selector)
}

/// The pod's state by the CRI's number.
pub(super) fn state(pod: &Pod) -> i32 {
    if pod.is_ready() {
        v1::PodSandboxState::SandboxReady
    } else {
        v1::PodSandboxState::SandboxNotready
    }
    .into()
}

fn item(pod: &Pod) -> v1::PodSandbox {
    v1::PodSandbox {
        id: pod.id.to_string(),
        metadata: Some(pod_metadata(&pod.config.metadata)),
        state: state(pod),
        created_at: pod.created_at,
        labels: to_map(&pod.config.labels),
        annotations: to_map(&pod.config.annotations),
        runtime_handler: pod.config.runtime_handler.clone(),
    }
}
