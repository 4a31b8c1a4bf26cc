//! `ListImages` and `StreamImages`.

use std::sync::Arc;

use kelson_cri::v1;
use kelson_image::Image;
use tonic::codegen::BoxStream;

use super::to_cri;
use crate::Server;
use crate::stream::batches;

impl Server {
    pub(super) fn image_list(&self, request: v1::ListImagesRequest) -> v1::ListImagesResponse {
        let chosen = self.chosen_images(request.filter);
        v1::ListImagesResponse {
            images: chosen.iter().map(|image| to_cri(image)).collect(),
        }
    }

    pub(super) fn image_stream(
        &self,
        request: v1::StreamImagesRequest,
    ) -> BoxStream<v1::StreamImagesResponse> {
        let chosen = self.chosen_images(request.filter);
        batches(chosen.into_iter().map(|image| to_cri(&image)), |images| {
            v1::StreamImagesResponse { images }
        })
    }

    fn chosen_images(&self, filter: Option<v1::ImageFilter>) -> Vec<Arc<Image>> {
        let name = filter
            .and_then(|filter| filter.image)
            .map(|spec| spec.image);
        match name.filter(|name| !name.is_empty()) {
            Some(name) => self.services.images.resolve(&name).into_iter().collect(),
            None => self.services.images.list(),
        }
    }
}
