//! `CheckpointContainer`: an archive of a running container, which goes on running.

use std::time::Duration;

use kelson_cri::v1;

use crate::Server;
use crate::error::VerbError;

impl Server {
    pub(super) async fn container_checkpoint(
        &self,
        request: v1::CheckpointContainerRequest,
    ) -> Result<v1::CheckpointContainerResponse, VerbError> {
        let (_, container) = self.container(&request.container_id)?;
        let seconds = u64::try_from(request.timeout)
            .map_err(|_| VerbError::invalid("timeout: must not be negative"))?;
        let timeout = (seconds > 0).then(|| Duration::from_secs(seconds));
        let pods = &self.services.pods;
        pods.checkpoint(&container.id, request.location.into(), timeout)
            .await?;
        Ok(v1::CheckpointContainerResponse {})
    }
}
