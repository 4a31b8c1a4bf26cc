//! Bad images and bad registries: the right code, a text that says what is wrong, nothing half-made
//! on the disk, and a daemon that goes on.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use kelson_client::Code;
use kelson_cri::v1;
use kelson_image::layout::{BuiltImage, ImageBuilder, LayerFormat, descriptor};
use kelson_image::serve::Registry as Content;
use kelson_snapshot::Digest;
use serde_json::json;

use super::bad_archives::of_tar;
use crate::bad_registry::{BadRegistry, Reply};
use crate::case::{Case, Outcome, on_node};
use crate::node::Node;
use crate::tool;

pub(super) fn cases() -> Vec<Case> {
    vec![
        on_node("bad_images::wrong_digest", |node| {
            Box::pin(wrong_digest(node))
        }),
        on_node("bad_images::wrong_uncompressed_digest", |node| {
            Box::pin(wrong_diff_id(node))
        }),
        on_node("bad_images::truncated_layer", |node| {
            Box::pin(truncated(node))
        }),
        on_node("bad_images::longer_layer_than_announced", |node| {
            Box::pin(longer(node))
        }),
        on_node("bad_images::huge_manifest", |node| {
            Box::pin(huge_manifest(node))
        }),
        on_node("bad_images::malformed_documents", |node| {
            Box::pin(malformed(node))
        }),
        on_node("bad_images::server_errors", |node| {
            Box::pin(server_errors(node))
        }),
        on_node("bad_images::redirects_for_ever", |node| {
            Box::pin(redirects(node))
        }),
        on_node("bad_images::silent_registry", |node| {
            Box::pin(silence(node))
        }),
        on_node("bad_images::full_disk", |node| Box::pin(full_disk(node))),
    ]
}

/// Pulls `name`, which must fail with `code` and a text with `words`, and leave nothing.
pub(super) async fn refused(
    node: &Node,
    registry: &BadRegistry,
    name: &str,
    code: Code,
    words: &[&str],
) -> Outcome {
    let image = v1::ImageSpec {
        image: registry.reference(name),
        ..Default::default()
    };
    let request = v1::PullImageRequest {
        image: Some(image),
        ..Default::default()
    };
    let error = node
        .client
        .pull_image(request)
        .await
        .err()
        .context("it was pulled")?;
    let got = error.code();
    let text = format!("{:#}", anyhow::Error::from(error));
    ensure!(
        got == Some(code),
        "{name}: {got:?} instead of {code:?}: {text}"
    );
    for word in words {
        ensure!(text.contains(word), "{name}: no {word:?} in {text}");
    }
    nothing_is_left(node).await.with_context(|| name.to_owned())
}

/// Nothing of an image is on the disk or in the list.
pub(super) async fn nothing_is_left(node: &Node) -> Outcome {
    let images = node
        .client
        .list_images(v1::ListImagesRequest::default())
        .await?
        .images;
    ensure!(images.is_empty(), "{images:?}");
    for folder in ["layers", "staging", "blobs/sha256"] {
        let folder = node.dir().join("root").join(folder);
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let left: Vec<_> = entries.map(|entry| entry.path()).collect();
        ensure!(left.is_empty(), "left behind: {left:?}");
    }
    Ok(())
}

fn small() -> anyhow::Result<BuiltImage> {
    Ok(ImageBuilder::new()
        .bytes("/etc/hello", b"ahoy\n", 0o644)?
        .build())
}

/// A registry that serves these bytes in place of the layer of an image `x:1`.
async fn with_layer(image: &BuiltImage, head: String, body: Bytes) -> anyhow::Result<BadRegistry> {
    let mut content = Content::new();
    content.add_image("x", "1", image);
    let layer = Digest::of(&image.layer).to_string();
    BadRegistry::start(content, move |path| match path.ends_with(&layer) {
        true => Reply::Raw(head.clone(), body.clone()),
        false => Reply::Good,
    })
    .await
}

fn ok(length: usize) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {length}")
}

async fn wrong_digest(node: &mut Node) -> Outcome {
    let image = small()?;
    let mut bytes = image.layer.to_vec();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let registry = with_layer(&image, ok(bytes.len()), bytes.into()).await?;
    refused(node, &registry, "x:1", Code::DataLoss, &["digest"]).await?;
    // A manifest pulled by digest is checked as well.
    let mut content = Content::new();
    content.add_image("x", "1", &image);
    let other = small()?.config;
    let registry = BadRegistry::start(content, move |path| match path.contains("/manifests/") {
        true => Reply::Raw(
            format!(
                "{}\r\ncontent-type: application/vnd.oci.image.manifest.v1+json",
                ok(other.len())
            ),
            other.clone(),
        ),
        false => Reply::Good,
    })
    .await?;
    let name = format!("x@{}", Digest::of(&image.manifest));
    refused(node, &registry, &name, Code::DataLoss, &["digest"]).await
}

async fn wrong_diff_id(node: &mut Node) -> Outcome {
    let honest = small()?;
    let config = String::from_utf8(honest.config.to_vec())?;
    let start = config
        .find("\"diff_ids\":[\"sha256:")
        .context("no diff_ids")?
        + 20;
    let lie = format!(
        "{}{}{}",
        &config[..start],
        "0".repeat(64),
        &config[start + 64..]
    );
    let manifest = String::from_utf8(honest.manifest.to_vec())?;
    let (old, new) = (Digest::of(config.as_bytes()), Digest::of(lie.as_bytes()));
    let manifest = manifest.replace(&old.to_string(), &new.to_string());
    let image = BuiltImage {
        manifest: manifest.into(),
        config: lie.into(),
        layer: honest.layer,
    };
    let mut content = Content::new();
    content.add_image("x", "1", &image);
    let registry = BadRegistry::start(content, |_| Reply::Good).await?;
    refused(node, &registry, "x:1", Code::DataLoss, &["digest"]).await
}

async fn truncated(node: &mut Node) -> Outcome {
    let image = small()?;
    let half = image.layer.slice(..image.layer.len() / 2);
    // The server breaks off in the middle, again and again.
    let registry = with_layer(&image, ok(image.layer.len()), half.clone()).await?;
    refused(node, &registry, "x:1", Code::Unavailable, &["blob"]).await?;
    // The server believes that half of it is all.
    let registry = with_layer(&image, ok(half.len()), half).await?;
    refused(
        node,
        &registry,
        "x:1",
        Code::DataLoss,
        &[&image.layer.len().to_string()],
    )
    .await?;
    // The archive itself ends early, and the digests are those of the shorter one.
    let tar = ImageBuilder::new()
        .format(LayerFormat::Tar)
        .bytes("/a", &[7; 5000], 0o644)?
        .build();
    let mut content = Content::new();
    content.add_image("x", "1", &of_tar(tar.layer[..2048].to_vec()));
    let registry = BadRegistry::start(content, |_| Reply::Good).await?;
    refused(node, &registry, "x:1", Code::FailedPrecondition, &["layer"]).await
}

async fn longer(node: &mut Node) -> Outcome {
    let image = small()?;
    let announced = image.layer.len().to_string();
    let mut bytes = image.layer.to_vec();
    bytes.extend_from_slice(&[0; 1000]);
    let registry = with_layer(&image, ok(bytes.len()), bytes.into()).await?;
    refused(node, &registry, "x:1", Code::DataLoss, &[&announced]).await?;
    // An endless one, whose length the server does not tell.
    let mut content = Content::new();
    content.add_image("x", "1", &image);
    let layer = Digest::of(&image.layer).to_string();
    let registry = BadRegistry::start(content, move |path| match path.ends_with(&layer) {
        true => Reply::Flood("HTTP/1.1 200 OK".to_owned(), u64::MAX),
        false => Reply::Good,
    })
    .await?;
    refused(node, &registry, "x:1", Code::DataLoss, &[]).await
}

async fn huge_manifest(node: &mut Node) -> Outcome {
    let size: u64 = 100 << 20;
    for length in [format!("\r\ncontent-length: {size}"), String::new()] {
        let registry = BadRegistry::start(Content::new(), move |_| {
            let kind = "content-type: application/vnd.oci.image.manifest.v1+json";
            Reply::Flood(format!("HTTP/1.1 200 OK\r\n{kind}{length}"), size)
        })
        .await?;
        refused(node, &registry, "x:1", Code::ResourceExhausted, &["limit"]).await?;
    }
    Ok(())
}

async fn malformed(node: &mut Node) -> Outcome {
    let image = small()?;
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = |layers: serde_json::Value| {
        let config = descriptor("application/vnd.oci.image.config.v1+json", &image.config);
        json!({ "schemaVersion": 2, "config": config, "layers": layers }).to_string()
    };
    let layer_kind = "application/vnd.oci.image.layer.v1.tar+gzip";
    let mut climbing = descriptor(layer_kind, &image.layer);
    climbing["digest"] = "sha256:../../../../etc/passwd".into();
    let mut enormous = descriptor(layer_kind, &image.layer);
    enormous["size"] = i64::MAX.into();
    let foreign = descriptor("application/vnd.kelson.unknown", &image.layer);
    for (what, text, code) in [
        (
            "no-json",
            "{ this is no JSON".to_owned(),
            Code::FailedPrecondition,
        ),
        ("deep", "[".repeat(1_000_000), Code::FailedPrecondition),
        ("empty", String::new(), Code::FailedPrecondition),
        (
            "climbing-digest",
            manifest(json!([climbing])),
            Code::FailedPrecondition,
        ),
        (
            "enormous-layer",
            manifest(json!([enormous])),
            Code::ResourceExhausted,
        ),
        (
            "foreign-layer",
            manifest(json!([foreign])),
            Code::FailedPrecondition,
        ),
        (
            "too-few-layers",
            manifest(json!([])),
            Code::FailedPrecondition,
        ),
    ] {
        let mut content = Content::new();
        content.add_blob(image.config.clone());
        content.add_blob(image.layer.clone());
        content.add_manifest("x", what, kind, text.into());
        let registry = BadRegistry::start(content, |_| Reply::Good).await?;
        refused(node, &registry, &format!("x:{what}"), code, &[]).await?;
    }
    Ok(())
}

async fn server_errors(node: &mut Node) -> Outcome {
    let registry = BadRegistry::start(Content::new(), |_| {
        Reply::Raw(
            "HTTP/1.1 500 Oh no\r\ncontent-length: 5".into(),
            "sorry".into(),
        )
    })
    .await?;
    refused(node, &registry, "x:1", Code::Unavailable, &["500"]).await?;
    let registry = BadRegistry::start(Content::new(), |_| Reply::Hangup).await?;
    refused(node, &registry, "x:1", Code::Unavailable, &[]).await?;
    let registry = BadRegistry::start(Content::new(), |_| {
        Reply::Raw("SSH-2.0-Surprise".into(), Bytes::new())
    })
    .await?;
    refused(node, &registry, "x:1", Code::Unavailable, &[]).await
}

async fn redirects(node: &mut Node) -> Outcome {
    let registry = BadRegistry::start(Content::new(), |path| {
        let head = format!("HTTP/1.1 307 Again\r\nlocation: {path}\r\ncontent-length: 0");
        Reply::Raw(head, Bytes::new())
    })
    .await?;
    refused(node, &registry, "x:1", Code::Unavailable, &["redirects"]).await?;
    // Not even one step to another machine's files.
    let registry = BadRegistry::start(Content::new(), |_| {
        let head = "HTTP/1.1 307 There\r\nlocation: file:///etc/passwd\r\ncontent-length: 0";
        Reply::Raw(head.into(), Bytes::new())
    })
    .await?;
    refused(node, &registry, "x:1", Code::Unavailable, &["redirect"]).await
}

/// A registry that says nothing is waited for; a caller that goes away ends it, and others go on.
async fn silence(node: &mut Node) -> Outcome {
    let image = small()?;
    let mut content = Content::new();
    content.add_image("x", "1", &image);
    let layer = Digest::of(&image.layer).to_string();
    let registry = BadRegistry::start(content, move |path| match path {
        path if path.contains("/y/") || path.ends_with(&layer) => Reply::Silence,
        _ => Reply::Good,
    })
    .await?;
    for name in ["x:1", "y:1"] {
        let image = v1::ImageSpec {
            image: registry.reference(name),
            ..Default::default()
        };
        let request = v1::PullImageRequest {
            image: Some(image),
            ..Default::default()
        };
        let waiting = tokio::time::timeout(Duration::from_secs(1), node.client.pull_image(request));
        ensure!(waiting.await.is_err(), "{name} was answered");
        node.busybox()
            .await
            .context("a silent registry holds up another")?;
        node.client
            .remove_image(v1::RemoveImageRequest {
                image: Some(v1::ImageSpec {
                    image: node.registry.reference("busybox:latest"),
                    ..Default::default()
                }),
            })
            .await?;
    }
    // The abandoned pulls end by themselves.
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        match nothing_is_left(node).await {
            Ok(()) => return Ok(()),
            Err(error) if std::time::Instant::now() > deadline => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// A small file system of its own for a node's images; unmounted when dropped.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    async fn mount(path: &'a Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(path)?;
        let options = ["-t", "tmpfs", "-o", "size=16m,mode=700", "kelson-test"];
        tool::output("mount", options.iter().copied().chain(path.to_str())).await?;
        Ok(Self(path))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        // It may be in use when the case has failed.
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

async fn full_disk(node: &mut Node) -> Outcome {
    node.kill().await?;
    let root = node.dir().join("root");
    let disk = SmallDisk::mount(&root).await?;
    node.restart().await?;
    let mut content = Content::new();
    let large = vec![7; 24 << 20];
    content.add_image(
        "x",
        "1",
        &ImageBuilder::new().bytes("/large", &large, 0o644)?.build(),
    );
    let registry = BadRegistry::start(content, |_| Reply::Good).await?;
    let words = ["no space is left", "remove unused images"];
    refused(node, &registry, "x:1", Code::ResourceExhausted, &words).await?;
    // What fits is pulled and runs.
    let image = node.busybox().await?;
    let config = crate::pod::shell("main", &image, "exit 4");
    let pod = crate::pod::pod(&node.logs());
    let (pod, container) = node.run(&pod, config).await?;
    ensure!(node.exited(&container).await?.exit_code == 4);
    node.remove_pod(&pod).await?;
    node.kill().await?;
    drop(disk);
    Ok(())
}
