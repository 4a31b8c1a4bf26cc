//! The images of a run, made here and served on loopback by this program.
//!
//! One holds the programs that the pods run. The others are for pulling: the same four layers with gzip and
//! with zstd, and a second image that differs in its last layer.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use kelson_image::layout::{ImageBuilder, LayerFormat, StackedImage, StoredLayer};
use kelson_image::serve::{self, Registry};

use super::content;
use crate::linked;

/// Programs that pods run.
const PROGRAMS: &[&str] = &["sleep", "true", "dd"];
/// Shares of the layers of a pull image, in percent; the last is the one that differs.
const LAYERS: &[u64] = &[35, 30, 20, 15];
/// Where the programs are looked for.
const PLACES: &[&str] = &["/bin", "/usr/bin", "/usr/local/bin"];

/// A way in which layers are stored, as it is called in a report and in a repository.
pub(super) const FORMATS: &[(&str, LayerFormat)] = &[
    ("gzip", LayerFormat::GzipDefault),
    ("zstd", LayerFormat::Zstd),
];

/// A registry that serves until the program ends.
#[derive(Debug)]
pub(super) struct Images {
    address: SocketAddr,
}

impl Images {
    /// Makes the images; those for pulling only if `pull_bytes`, their unpacked size, is not 0.
    pub(super) fn serve(pull_bytes: u64) -> Result<Self> {
        let mut content = Registry::new();
        content.add_image("bench", "latest", &programs()?.build());
        if pull_bytes > 0 {
            add_pull_images(&mut content, pull_bytes)?;
        }
        let (send, receive) = std::sync::mpsc::channel();
        // A thread of its own, so that it takes no time from those who measure.
        std::thread::Builder::new()
            .name("registry".into())
            .spawn(move || {
                let served = run(content, &send);
                // Once it listens there is nobody to tell.
                let _ = served.map_err(|error| send.send(Err(error)));
            })
            .context("start the registry's thread")?;
        let address = receive.recv().context("the registry has ended")??;
        Ok(Self { address })
    }

    /// The image that pods run.
    pub(super) fn programs(&self) -> String {
        format!("{}/bench:latest", self.address)
    }

    /// An image for pulling; the `second` shares all layers but one with the first.
    pub(super) fn pull(&self, format: &str, second: bool) -> String {
        let tag = if second { "second" } else { "first" };
        format!("{}/pull-{format}:{tag}", self.address)
    }
}

type Told = std::sync::mpsc::Sender<Result<SocketAddr>>;

fn run(content: Registry, told: &Told) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the registry")?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .context("listen on loopback")?;
        let address = listener.local_addr().context("find the registry's port")?;
        // If nobody waits any more the run has ended.
        let _ = told.send(Ok(address));
        serve::serve(listener, Arc::new(content)).await;
        Ok(())
    })
}

/// Busybox where it is, else the machine's own programs, with their libraries.
pub(super) fn programs() -> Result<ImageBuilder> {
    let mut builder = ImageBuilder::new()
        .env(&["PATH=/bin"])
        .cmd(&["sleep", "infinity"]);
    match find("busybox") {
        Some(busybox) => {
            builder = linked::add(builder, "/bin/busybox", &busybox, "true")?;
            for name in PROGRAMS {
                builder = builder.symlink(&format!("/bin/{name}"), "busybox")?;
            }
        }
        None => {
            for name in PROGRAMS {
                let Some(program) = find(name) else {
                    bail!(
                        "neither busybox nor {name} is in {}; name an image with --image",
                        PLACES.join(", ")
                    );
                };
                builder = linked::add(builder, &format!("/bin/{name}"), &program, "--version")?;
            }
        }
    }
    for folder in ["/proc", "/sys", "/dev"] {
        builder = builder.directory(folder, 0o755)?;
    }
    Ok(builder.directory("/tmp", 0o1777)?)
}

pub(super) fn find(name: &str) -> Option<PathBuf> {
    let mut places = PLACES.iter().map(|place| Path::new(place).join(name));
    places.find(|path| path.is_file())
}

fn add_pull_images(registry: &mut Registry, bytes: u64) -> Result<()> {
    let sizes = LAYERS.iter().map(|share| bytes * share / 100);
    let mut tars = Vec::new();
    for (number, size) in sizes.enumerate() {
        tars.push(content::layer(
            &format!("layer{number}"),
            size,
            number as u64 * 97 + 5,
        )?);
    }
    let last = bytes * LAYERS[LAYERS.len() - 1] / 100;
    tars.push(content::layer("other", last, 1_000_003)?);
    // Compressing is most of the work.
    let stored = |format: LayerFormat| -> Vec<StoredLayer> {
        tars.iter()
            .map(|tar| StoredLayer::new(tar.clone(), format))
            .collect()
    };
    let all: Vec<_> = std::thread::scope(|scope| {
        let threads = FORMATS
            .iter()
            .map(|(name, format)| (name, scope.spawn(|| stored(*format))));
        let threads: Vec<_> = threads.collect();
        let results = threads
            .into_iter()
            .map(|(name, one)| Some((name, one.join().ok()?)));
        results.collect::<Option<_>>()
    })
    .context("compressing the layers failed")?;
    for (name, layers) in all {
        let repository = format!("pull-{name}");
        let (last, lower) = layers.split_last().context("an image without layers")?;
        registry.add_stack(&repository, "first", &StackedImage::new(lower));
        let second: Vec<StoredLayer> = lower[..lower.len() - 1]
            .iter()
            .chain([last])
            .cloned()
            .collect();
        registry.add_stack(&repository, "second", &StackedImage::new(&second));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_images_are_served() {
        let images = Images::serve(1 << 20).unwrap();
        let get = |path: &str| {
            use std::io::{Read, Write};
            let mut stream = std::net::TcpStream::connect(images.address).unwrap();
            write!(
                stream,
                "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
            )
            .unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        };
        let layers = |name: &str| -> Vec<String> {
            let manifest = get(&format!("/v2/{name}"));
            let body = manifest.split("\r\n\r\n").nth(1).unwrap();
            let value: serde_json::Value = serde_json::from_str(body).unwrap();
            let layers = value["layers"].as_array().unwrap().iter();
            layers.map(|layer| layer["digest"].to_string()).collect()
        };
        assert_eq!(layers("bench/manifests/latest").len(), 1);
        let (first, second) = (
            layers("pull-zstd/manifests/first"),
            layers("pull-zstd/manifests/second"),
        );
        assert_eq!((first.len(), &first[..3]), (4, &second[..3]));
        assert_ne!(first[3], second[3]);
        assert_ne!(layers("pull-gzip/manifests/first"), first);
        assert!(images.pull("gzip", true).ends_with("/pull-gzip:second"));
    }
}
