//! `CreateContainer`.

use kelson_cri::v1;

use crate::Server;
use crate::error::VerbError;
use crate::translate::container_config;

impl Server {
    /// `sandbox_config` repeats what the pod was made with and is not looked at: the pod knows.
    pub(super) async fn container_create(
        &self,
        request: v1::CreateContainerRequest,
    ) -> Result<v1::CreateContainerResponse, VerbError> {
        let pod = self.pod(&request.pod_sandbox_id)?;
        let config = request
            .config
            .ok_or_else(|| VerbError::invalid("config is missing"))?;
        let config = container_config(config)?;
        let container = self.services.pods.create_container(&pod.id, config).await?;
        Ok(v1::CreateContainerResponse {
            container_id: container.to_string(),
        })
    }
}
