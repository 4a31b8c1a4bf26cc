//! `RemoveImage`: by any of its names or its id, and with it all its names; idempotent.

use kelson_cri::v1;
use kelson_image::ImageError;
use tonic::Code;

use super::name;
use crate::Server;
use crate::error::VerbError;

impl Server {
    pub(super) async fn image_remove(
        &self,
        request: v1::RemoveImageRequest,
    ) -> Result<v1::RemoveImageResponse, VerbError> {
        let name = name(request.image)?;
        let images = self.services.images.clone();
        tokio::task::spawn_blocking(move || images.remove(&name))
            .await
            .map_err(|error| VerbError::new(Code::Internal, &error))??;
        Ok(v1::RemoveImageResponse {})
    }
}

impl From<ImageError> for VerbError {
    fn from(error: ImageError) -> Self {
        let code = match &error {
            ImageError::Ambiguous(_) => Code::InvalidArgument,
            error if error.is_disk_full() => Code::ResourceExhausted,
            _ => Code::Internal,
        };
        Self::new(code, &error)
    }
}
