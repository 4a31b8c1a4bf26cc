//! `StopPodSandbox`: idempotent; a pod that is not there is stopped.

use kelson_cri::v1;

use crate::Server;
use crate::error::VerbError;

impl Server {
    pub(super) async fn sandbox_stop(
        &self,
        request: v1::StopPodSandboxRequest,
    ) -> Result<v1::StopPodSandboxResponse, VerbError> {
        if let Some(pod) = self.pod_id(&request.pod_sandbox_id)? {
            self.services.pods.stop_pod(&pod).await?;
        }
        Ok(v1::StopPodSandboxResponse {})
    }
}
