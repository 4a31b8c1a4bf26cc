//! `RemovePodSandbox`: idempotent; containers that are left are killed and removed.

use kelson_cri::v1;

use crate::Server;
use crate::error::VerbError;

impl Server {
    pub(super) async fn sandbox_remove(
        &self,
        request: v1::RemovePodSandboxRequest,
    ) -> Result<v1::RemovePodSandboxResponse, VerbError> {
        if let Some(pod) = self.pod_id(&request.pod_sandbox_id)? {
            self.services.pods.remove_pod(&pod).await?;
            self.free_layers().await;
        }
        Ok(v1::RemovePodSandboxResponse {})
    }
}
