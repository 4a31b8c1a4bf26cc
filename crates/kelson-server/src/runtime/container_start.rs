//! `StartContainer`: once only. A failed start leaves an exited container with code 128.

use kelson_cri::v1;

use crate::Server;
use crate::error::VerbError;

impl Server {
    pub(super) async fn container_start(
        &self,
        request: &v1::StartContainerRequest,
    ) -> Result<v1::StartContainerResponse, VerbError> {
        let (_, container) = self.container(&request.container_id)?;
        self.services.pods.start_container(&container.id).await?;
        Ok(v1::StartContainerResponse {})
    }
}
