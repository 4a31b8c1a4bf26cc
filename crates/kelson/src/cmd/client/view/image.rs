//! Images, and how other things name them.

use std::collections::BTreeMap;

use kelson_cri::v1;
use serde::Serialize;

/// An image in a list or on its own.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ImageView {
    id: String,
    repo_tags: Vec<String>,
    repo_digests: Vec<String>,
    size: String,
    uid: Option<Uid>,
    username: String,
    spec: Option<ImageSpecView>,
    pinned: bool,
}

#[derive(Debug, Serialize)]
struct Uid {
    value: String,
}

impl From<v1::Image> for ImageView {
    fn from(image: v1::Image) -> Self {
        Self {
            id: image.id,
            repo_tags: image.repo_tags,
            repo_digests: image.repo_digests,
            size: image.size.to_string(),
            uid: image.uid.map(|uid| Uid {
                value: uid.value.to_string(),
            }),
            username: image.username,
            spec: image.spec.map(Into::into),
            pinned: image.pinned,
        }
    }
}

/// How a container names its image.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ImageSpecView {
    image: String,
    annotations: BTreeMap<String, String>,
    user_specified_image: String,
    runtime_handler: String,
    image_ref: String,
}

impl From<v1::ImageSpec> for ImageSpecView {
    fn from(spec: v1::ImageSpec) -> Self {
        Self {
            image: spec.image,
            annotations: spec.annotations,
            user_specified_image: spec.user_specified_image,
            runtime_handler: spec.runtime_handler,
            image_ref: spec.image_ref,
        }
    }
}
