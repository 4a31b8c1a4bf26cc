//! The image service.

mod image_fs_info;
mod image_list;
mod image_pull;
mod image_remove;
mod image_status;
mod service;

use kelson_cri::v1;
use kelson_image::{Image, ImageUser};

use crate::error::VerbError;

/// An image as the CRI tells it.
fn to_cri(image: &Image) -> v1::Image {
    let (uid, username) = match image.user() {
        // The kubelet takes "no uid and no name" as root; a uid of 0 says the same plainly.
        ImageUser::Unset => (Some(v1::Int64Value { value: 0 }), String::new()),
        ImageUser::Uid(uid) => (Some(v1::Int64Value { value: uid.into() }), String::new()),
        ImageUser::Name(name) => (None, name),
    };
    v1::Image {
        id: image.id.to_string(),
        repo_tags: image.tags.clone(),
        repo_digests: image.digests.clone(),
        size: image.size,
        uid,
        username,
        spec: None,
        pinned: image.pinned,
    }
}

/// The name in a request's image; that there is none, or no such handler, is an error.
fn name(image: Option<v1::ImageSpec>) -> Result<String, VerbError> {
    match image {
        Some(spec) if !kelson_pod::is_handler(&spec.runtime_handler) => {
            Err(VerbError::invalid(format!(
                "image.runtime_handler: there is no handler {:?}; leave it empty",
                spec.runtime_handler
            )))
        }
        Some(spec) if !spec.image.is_empty() => Ok(spec.image),
        _ => Err(VerbError::invalid("image.image is empty")),
    }
}

/// The name in a request's image, for its span.
fn subject(image: Option<&v1::ImageSpec>) -> &str {
    image.map_or("", |spec| &spec.image)
}
