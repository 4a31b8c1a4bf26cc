//! `ListImages`.

use kelson_cri::v1;

use super::to_cri;
use crate::Server;

impl Server {
    pub(super) fn image_list(&self, request: v1::ListImagesRequest) -> v1::ListImagesResponse {
        let name = request
            .filter
            .and_then(|filter| filter.image)
            .map(|spec| spec.image);
        let images = match name.filter(|name| !name.is_empty()) {
            Some(name) => self.services.images.resolve(&name).into_iter().collect(),
            None => self.services.images.list(),
        };
        v1::ListImagesResponse {
            images: images.iter().map(|image| to_cri(image)).collect(),
        }
    }
}
