//! `RemoveContainer`: idempotent; a running container is killed first.

use kelson_cri::v1;

use crate::Server;
use crate::error::VerbError;

impl Server {
    pub(super) async fn container_remove(
        &self,
        request: &v1::RemoveContainerRequest,
    ) -> Result<v1::RemoveContainerResponse, VerbError> {
        if let Some(container) = self.container_id(&request.container_id)? {
            self.services.pods.remove_container(&container).await?;
        }
        Ok(v1::RemoveContainerResponse {})
    }
}
