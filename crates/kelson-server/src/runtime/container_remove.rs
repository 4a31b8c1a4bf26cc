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
            self.free_layers().await;
        }
        Ok(v1::RemoveContainerResponse {})
    }

    /// Frees the layers of removed images of which a removed container was the last user.
    pub(super) async fn free_layers(&self) {
        let images = self.services.images.clone();
        if !images.has_kept_layers() {
            return;
        }
        let freed = tokio::task::spawn_blocking(move || images.collect()).await;
        if let Ok(Err(error)) = freed {
            // The next removal tries again.
            tracing::warn!(%error, "layers that nobody uses could not be removed");
        }
    }
}
