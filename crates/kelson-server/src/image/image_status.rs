//! `ImageStatus`: an image that is not there is an answer without an image, not an error.

use std::collections::BTreeMap;

use kelson_cri::v1;
use kelson_image::Image;

use super::{name, to_cri};
use crate::Server;
use crate::error::VerbError;

impl Server {
    pub(super) fn image_lookup(
        &self,
        request: v1::ImageStatusRequest,
    ) -> Result<v1::ImageStatusResponse, VerbError> {
        let Some(image) = self.services.images.resolve(&name(request.image)?) else {
            return Ok(v1::ImageStatusResponse::default());
        };
        Ok(v1::ImageStatusResponse {
            info: if request.verbose {
                details(&image)
            } else {
                BTreeMap::new()
            },
            image: Some(to_cri(&image)),
        })
    }
}

fn details(image: &Image) -> BTreeMap<String, String> {
    let chain: Vec<String> = image.chain.iter().map(ToString::to_string).collect();
    let document = serde_json::json!({
        "manifest": image.manifest.to_string(),
        "chainIDs": chain,
        "imageSpec": image.config,
    });
    BTreeMap::from([("info".to_owned(), document.to_string())])
}
