//! `ReopenContainerLog`: after a rotation; running containers only.

use kelson_cri::v1;

use crate::Server;
use crate::error::VerbError;

impl Server {
    pub(super) async fn container_log_reopen(
        &self,
        request: &v1::ReopenContainerLogRequest,
    ) -> Result<v1::ReopenContainerLogResponse, VerbError> {
        let (_, container) = self.container(&request.container_id)?;
        self.services.pods.reopen_log(&container.id).await?;
        Ok(v1::ReopenContainerLogResponse {})
    }
}
