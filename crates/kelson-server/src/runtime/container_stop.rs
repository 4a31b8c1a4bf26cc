//! `StopContainer`: idempotent; a timeout of 0 or less kills at once.

use std::time::Duration;

use kelson_cri::v1;

use crate::Server;
use crate::error::VerbError;

impl Server {
    pub(super) async fn container_stop(
        &self,
        request: &v1::StopContainerRequest,
    ) -> Result<v1::StopContainerResponse, VerbError> {
        let timeout = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
        if let Some(container) = self.container_id(&request.container_id)? {
            self.services
                .pods
                .stop_container(&container, timeout)
                .await?;
        }
        Ok(v1::StopContainerResponse {})
    }
}
