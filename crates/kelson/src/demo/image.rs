//! The demo's image: this program, the libraries it is linked with, and nothing else.

use anyhow::Context;
use kelson_image::layout::ImageBuilder;
use kelson_image::serve::Registry;

use super::steps::PROGRAM;
use crate::linked;

/// A registry that has the image as `demo:latest`.
pub(super) fn registry() -> anyhow::Result<Registry> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut builder = linked::add(ImageBuilder::new(), PROGRAM, &program, "--version")?;
    for folder in ["/proc", "/sys", "/dev", "/tmp"] {
        builder = builder.directory(folder, 0o755)?;
    }
    let mut registry = Registry::new();
    registry.add_image("demo", "latest", &builder.entrypoint(&[PROGRAM]).build());
    Ok(registry)
}
