//! `UpdatePodSandboxResources`: kept and told by the verbose status. The pod's cgroup is the kubelet's own.

use kelson_cri::v1;

use crate::Server;
use crate::error::VerbError;
use crate::translate::resources;

impl Server {
    pub(super) async fn sandbox_update(
        &self,
        request: v1::UpdatePodSandboxResourcesRequest,
    ) -> Result<v1::UpdatePodSandboxResourcesResponse, VerbError> {
        let pod = self.pod(&request.pod_sandbox_id)?;
        let overhead = request.overhead.map(resources);
        let all = request.resources.map(resources);
        let pods = &self.services.pods;
        pods.update_pod(&pod.id, overhead, all).await?;
        Ok(v1::UpdatePodSandboxResourcesResponse {})
    }
}
