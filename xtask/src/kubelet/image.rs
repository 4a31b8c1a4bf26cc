//! The one image that all pods use: Debian's busybox.

use std::path::Path;

use anyhow::Result;
use kelson_image::serve::Registry;

use crate::conformance::images;

/// Nothing listens on this port: without a mirror this image cannot be pulled.
pub(crate) const IMAGE: &str = "127.0.0.1:9/busybox:1";

/// A registry with the image; by two tags, so that one of them can be absent on the node.
pub(crate) fn registry(busybox: &Path) -> Result<Registry> {
    let image = images::base(busybox)?.cmd(&["sh"]).build();
    let mut content = Registry::new();
    content.add_image("busybox", "1", &image);
    content.add_image("busybox", "other", &image);
    Ok(content)
}
