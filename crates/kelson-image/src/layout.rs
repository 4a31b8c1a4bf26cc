//! Makes a small OCI image from local files, for demonstrations and tests.
//!
//! An image lives in memory and mostly has one layer; the same input gives the same digests. This is
//! no image builder.

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use kelson_snapshot::Digest;
use serde_json::{Value, json};

use crate::platform::Platform;

const BLOCK: usize = 512;
/// Largest file that a plain tar header can describe.
const MAX_FILE: usize = 0o777_7777_7777;

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A path in the image is empty, absolute after its first slash, or too long for a tar header.
    #[error("{0:?} cannot be the path of a file in the image")]
    Path(String),
    /// A file is too large for a tar header.
    #[error("{0:?} is larger than the limit of 8 GiB for a file in the image")]
    TooLarge(String),
}

/// How the layer is stored in the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerFormat {
    /// Uncompressed.
    Tar,
    /// Compressed with gzip, fast.
    Gzip,
    /// Compressed with zstd, fast.
    Zstd,
    /// Compressed with gzip at zlib's own default level, as most published layers are.
    GzipDefault,
}

impl LayerFormat {
    fn media_type(self) -> &'static str {
        match self {
            Self::Tar => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip | Self::GzipDefault => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// A layer as a registry stores it.
#[derive(Debug, Clone)]
pub struct StoredLayer {
    diff_id: Digest,
    descriptor: Value,
    /// The bytes that are stored.
    pub bytes: Bytes,
}

impl StoredLayer {
    /// Stores a tar archive.
    ///
    /// # Panics
    /// Never: writing to memory does not fail.
    pub fn new(tar: Vec<u8>, format: LayerFormat) -> Self {
        let gzip = |level| {
            let mut encoder = GzEncoder::new(Vec::new(), level);
            let written = encoder.write_all(&tar);
            written.and_then(|()| encoder.finish())
        };
        let diff_id = Digest::of(&tar);
        let bytes = match format {
            LayerFormat::Tar => Ok(tar),
            LayerFormat::Gzip => gzip(Compression::fast()),
            LayerFormat::GzipDefault => gzip(Compression::default()),
            LayerFormat::Zstd => zstd::encode_all(tar.as_slice(), 0),
        };
        let bytes: Bytes = bytes.expect("writing to memory does not fail").into();
        Self {
            diff_id,
            descriptor: descriptor(format.media_type(), &bytes),
            bytes,
        }
    }
}

/// An image of several layers, for this machine.
#[derive(Debug, Clone)]
pub struct StackedImage {
    pub(crate) manifest: Bytes,
    pub(crate) config: Bytes,
    pub(crate) layers: Vec<Bytes>,
}

impl StackedImage {
    /// Stacks layers, the lowest first.
    pub fn new(layers: &[StoredLayer]) -> Self {
        let (manifest, config) = documents(&baseline(), &json!({}), layers);
        Self {
            manifest,
            config,
            layers: layers.iter().map(|layer| layer.bytes.clone()).collect(),
        }
    }
}

/// An image: its manifest, its configuration and its layer.
#[derive(Debug, Clone)]
pub struct BuiltImage {
    /// The manifest.
    pub manifest: Bytes,
    /// The configuration.
    pub config: Bytes,
    /// The layer as it is stored.
    pub layer: Bytes,
}

/// Collects what an image shall hold. Directories above a file are added by themselves.
#[derive(Debug, Clone)]
pub struct ImageBuilder {
    tar: Vec<u8>,
    directories: BTreeSet<String>,
    format: LayerFormat,
    platform: Platform,
    config: Value,
}

impl Default for ImageBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl ImageBuilder {
    /// An empty image for this machine, with a gzip layer.
    pub fn new() -> Self {
        Self {
            tar: Vec::new(),
            directories: BTreeSet::new(),
            format: LayerFormat::Gzip,
            platform: baseline(),
            config: json!({}),
        }
    }

    /// Chooses how the layer is stored.
    #[must_use]
    pub fn format(mut self, format: LayerFormat) -> Self {
        self.format = format;
        self
    }

    /// Chooses the platform that the image says it is for.
    #[must_use]
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platform = platform;
        self
    }

    /// Sets `Env`, in the form `NAME=value`.
    #[must_use]
    pub fn env(self, env: &[&str]) -> Self {
        self.set("Env", json!(env))
    }

    /// Sets `Entrypoint`.
    #[must_use]
    pub fn entrypoint(self, arguments: &[&str]) -> Self {
        self.set("Entrypoint", json!(arguments))
    }

    /// Sets `Cmd`.
    #[must_use]
    pub fn cmd(self, arguments: &[&str]) -> Self {
        self.set("Cmd", json!(arguments))
    }

    /// Sets `User`.
    #[must_use]
    pub fn user(self, user: &str) -> Self {
        self.set("User", json!(user))
    }

    /// Sets `WorkingDir`.
    #[must_use]
    pub fn working_dir(self, path: &str) -> Self {
        self.set("WorkingDir", json!(path))
    }

    /// Sets `Volumes`.
    #[must_use]
    pub fn volumes(self, paths: &[&str]) -> Self {
        let volumes: serde_json::Map<_, _> = paths
            .iter()
            .map(|path| ((*path).to_owned(), json!({})))
            .collect();
        self.set("Volumes", volumes.into())
    }

    fn set(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    /// Adds a file with these bytes. `path` is absolute in the image; permission bits in `mode`.
    ///
    /// # Errors
    /// The path or the size does not fit a tar header.
    pub fn bytes(mut self, path: &str, bytes: &[u8], mode: u32) -> Result<Self, LayoutError> {
        if bytes.len() > MAX_FILE {
            return Err(LayoutError::TooLarge(path.to_owned()));
        }
        self.parents(path)?;
        self.entry(path, b'0', mode, bytes.len(), "")?;
        self.tar.extend_from_slice(bytes);
        self.tar.resize(self.tar.len().next_multiple_of(BLOCK), 0);
        Ok(self)
    }

    /// Adds a copy of a local file; links are followed.
    ///
    /// # Errors
    /// The file cannot be read, or does not fit a tar header.
    pub fn file(self, path: &str, source: &Path, mode: u32) -> Result<Self, LayoutError> {
        let bytes = std::fs::read(source).map_err(|error| LayoutError::Read {
            path: source.to_owned(),
            source: error,
        })?;
        self.bytes(path, &bytes, mode)
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// The path does not fit a tar header.
    pub fn directory(mut self, path: &str, mode: u32) -> Result<Self, LayoutError> {
        self.parents(path)?;
        let name = format!("{}/", path.trim_end_matches('/'));
        if self.directories.insert(name.trim_matches('/').to_owned()) {
            self.entry(&name, b'5', mode, 0, "")?;
        }
        Ok(self)
    }

    /// Adds a symbolic link at `path` to `target`.
    ///
    /// # Errors
    /// A path does not fit a tar header.
    pub fn symlink(mut self, path: &str, target: &str) -> Result<Self, LayoutError> {
        self.parents(path)?;
        self.entry(path, b'2', 0o777, 0, target)?;
        Ok(self)
    }

    fn parents(&mut self, path: &str) -> Result<(), LayoutError> {
        let path = path.trim_matches('/');
        for (at, _) in path.match_indices('/') {
            let parent = &path[..at];
            if self.directories.insert(parent.to_owned()) {
                self.entry(&format!("{parent}/"), b'5', 0o755, 0, "")?;
            }
        }
        Ok(())
    }

    /// Writes a ustar header (POSIX.1-1988).
    fn entry(
        &mut self,
        path: &str,
        kind: u8,
        mode: u32,
        size: usize,
        link: &str,
    ) -> Result<(), LayoutError> {
        let name = path.trim_start_matches('/');
        let fits = |part: &str| !part.is_empty() && part.len() <= 100;
        if !fits(name) || link.len() > 100 || name.split('/').any(|part| part == "..") {
            return Err(LayoutError::Path(path.to_owned()));
        }
        let mut header = [0_u8; BLOCK];
        let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
        put(0, name.as_bytes());
        put(100, format!("{:07o}", mode & 0o7777).as_bytes());
        put(108, b"0000000");
        put(116, b"0000000");
        put(124, format!("{size:011o}").as_bytes());
        put(136, b"00000000000");
        put(148, b"        ");
        put(156, &[kind]);
        put(157, link.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.tar.extend_from_slice(&header);
        Ok(())
    }

    /// Finishes the image.
    pub fn build(mut self) -> BuiltImage {
        let tar = self.take_tar();
        let layer = StoredLayer::new(tar, self.format);
        let (manifest, config) =
            documents(&self.platform, &self.config, std::slice::from_ref(&layer));
        BuiltImage {
            manifest,
            config,
            layer: layer.bytes,
        }
    }

    /// What was collected, as a tar archive for a [`StoredLayer`].
    pub fn into_tar(mut self) -> Vec<u8> {
        self.take_tar()
    }

    fn take_tar(&mut self) -> Vec<u8> {
        let mut tar = std::mem::take(&mut self.tar);
        tar.resize(tar.len() + 2 * BLOCK, 0);
        tar
    }
}

/// This machine, with the baseline of its architecture.
fn baseline() -> Platform {
    Platform {
        variant: String::new(),
        ..Platform::host()
    }
}

/// The manifest and the configuration of an image.
fn documents(platform: &Platform, config: &Value, layers: &[StoredLayer]) -> (Bytes, Bytes) {
    let diff_ids: Vec<_> = layers.iter().map(|layer| &layer.diff_id).collect();
    let mut config = json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    if !platform.variant.is_empty() {
        config["variant"] = json!(platform.variant);
    }
    let config = config.to_string().into_bytes();
    let layers: Vec<_> = layers.iter().map(|layer| &layer.descriptor).collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": layers,
    });
    (manifest.to_string().into_bytes().into(), config.into())
}

/// A descriptor of `bytes` (OCI image specification).
pub fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tar_reads_what_is_written() {
        let image = ImageBuilder::new()
            .format(LayerFormat::Tar)
            .bytes("/etc/hello/world", b"hi\n", 0o640)
            .unwrap()
            .directory("/tmp", 0o1777)
            .unwrap()
            .symlink("/link", "etc/hello")
            .unwrap()
            .build();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("layer.tar");
        std::fs::write(&file, &image.layer).unwrap();
        let listed = std::process::Command::new("tar")
            .arg("tvf")
            .arg(&file)
            .output()
            .unwrap();
        let text = String::from_utf8(listed.stdout).unwrap();
        assert!(listed.status.success(), "{text}");
        let names: Vec<_> = text.lines().map(|line| (&line[..10], line.len())).collect();
        let modes: Vec<_> = names.iter().map(|(mode, _)| *mode).collect();
        assert_eq!(
            modes,
            [
                "drwxr-xr-x",
                "drwxr-xr-x",
                "-rw-r-----",
                "drwxrwxrwt",
                "lrwxrwxrwx"
            ]
        );
        assert!(
            text.contains("etc/hello/world") && text.contains("link -> etc/hello"),
            "{text}"
        );
    }

    #[test]
    fn the_same_input_gives_the_same_image() {
        let build = || {
            ImageBuilder::new()
                .bytes("/a", b"x", 0o644)
                .unwrap()
                .build()
                .manifest
        };
        assert_eq!(build(), build());
        assert!(ImageBuilder::new().bytes("/../a", b"", 0o644).is_err());
        assert!(ImageBuilder::new().bytes("/", b"", 0o644).is_err());
    }
}
