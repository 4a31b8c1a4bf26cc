//! `RunPodSandbox`.

use kelson_cri::v1;

use crate::Server;
use crate::error::VerbError;
use crate::translate::pod_config;

impl Server {
    pub(super) async fn sandbox_run(
        &self,
        request: v1::RunPodSandboxRequest,
    ) -> Result<v1::RunPodSandboxResponse, VerbError> {
        let config = request
            .config
            .ok_or_else(|| VerbError::invalid("config is missing"))?;
        let config = pod_config(config, request.runtime_handler)?;
        let pod = self.services.pods.run_pod(config).await?;
        Ok(v1::RunPodSandboxResponse {
            pod_sandbox_id: pod.to_string(),
        })
    }
}
