//! A real registry and images made by other tools: what is pulled is what containers see.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kelson_client::{Code, Error};
use kelson_cri::v1;
use kelson_image::Platform;
use kelson_image::layout::{BuiltImage, ImageBuilder, descriptor};
use kelson_snapshot::Digest;
use serde_json::{Value, json};

use crate::case::{Case, Outcome, on_node};
use crate::debian_registry::{DebianRegistry, NEEDS, PASSWORD, USER, skopeo};
use crate::node::{Node, PATIENCE};
use crate::pod::{command, pod};
use crate::tree;

pub(super) fn cases() -> Vec<Case> {
    [
        on_node("registry::every_kind_of_manifest_and_layer", |node| {
            Box::pin(kinds(node))
        }),
        on_node("registry::an_index_gives_this_machines_image", |node| {
            Box::pin(index(node))
        }),
        on_node("registry::mirrors", |node| Box::pin(mirrors(node))),
        on_node("registry::one_download_for_concurrent_pulls", |node| {
            Box::pin(concurrent(node))
        }),
        on_node("registry::removal_frees_the_disk", |node| {
            Box::pin(removal(node))
        }),
        on_node("registry::pinned_images", |node| Box::pin(pinned(node))),
        on_node("registry::passwords", |node| Box::pin(passwords(node))),
    ]
    .map(|case| NEEDS.into_iter().fold(case, Case::needs))
    .into()
}

fn spec(image: &str) -> Option<v1::ImageSpec> {
    Some(v1::ImageSpec {
        image: image.to_owned(),
        ..Default::default()
    })
}

async fn pull(node: &Node, image: &str, auth: Option<v1::AuthConfig>) -> Result<String, Error> {
    let request = v1::PullImageRequest {
        image: spec(image),
        auth,
        sandbox_config: None,
    };
    Ok(node.client.pull_image(request).await?.image_ref)
}

async fn image(node: &Node, name: &str) -> anyhow::Result<Option<v1::Image>> {
    let request = v1::ImageStatusRequest {
        image: spec(name),
        verbose: false,
    };
    Ok(node.client.image_status(request).await?.image)
}

async fn remove(node: &Node, name: &str) -> anyhow::Result<()> {
    node.client
        .remove_image(v1::RemoveImageRequest { image: spec(name) })
        .await?;
    Ok(())
}

async fn kinds(node: &mut Node) -> Outcome {
    let registry = DebianRegistry::start(&node.dir().join("registry"), false).await?;
    let layout = tree::make(node.dir()).await?;
    // skopeo would take the gzip layers again that the registry already has, so a layout is between.
    let zstd = node.dir().join("tree/zstd:tree").display().to_string();
    let (from, to) = (format!("oci:{layout}"), format!("oci:{zstd}"));
    let compress = [
        "copy",
        "--quiet",
        "--dest-compress",
        "--dest-compress-format=zstd",
    ];
    skopeo(node.dir(), &[compress.as_slice(), &[&from, &to]].concat()).await?;
    registry.push(&zstd, "zstd:1", &[]).await?;
    registry.push(&layout, "gzip:1", &[]).await?;
    registry
        .push(&layout, "docker:1", &["--format=v2s2"])
        .await?;
    let mut ids = BTreeSet::new();
    for (name, kind) in [
        ("gzip:1", "application/vnd.oci.image.layer.v1.tar+gzip"),
        ("zstd:1", "application/vnd.oci.image.layer.v1.tar+zstd"),
        (
            "docker:1",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ),
    ] {
        let manifest = registry.manifest(name).await?;
        let content: Value = serde_json::from_str(&manifest)?;
        let layers = content["layers"].as_array().context("no layers")?;
        ensure!(
            layers.len() == 3 && layers.iter().all(|layer| layer["mediaType"] == kind),
            "{content}"
        );
        let reference = registry.reference(name);
        let id = pull(node, &reference, None).await?;
        tree::check(node, &reference)
            .await
            .with_context(|| name.to_owned())?;
        let known = image(node, &reference)
            .await?
            .context("the image is not there")?;
        ensure!(
            known.id == id && known.repo_tags == [reference.clone()],
            "{known:?}"
        );
        // Layers that are there are not fetched again, so each kind starts from nothing.
        remove(node, &id).await?;
        ensure!(image(node, &reference).await?.is_none());
        let repository = reference.trim_end_matches(":1");
        let by_digest = format!("{repository}@{}", Digest::of(manifest.as_bytes()));
        ensure!(
            known.repo_digests == [by_digest.clone()],
            "{known:?} {by_digest}"
        );
        ensure!(pull(node, &by_digest, None).await? == id);
        tree::check(node, &by_digest)
            .await
            .with_context(|| by_digest.clone())?;
        let known = image(node, &by_digest)
            .await?
            .context("the image is not there")?;
        ensure!(
            known.repo_tags.is_empty() && known.repo_digests == [by_digest],
            "{known:?}"
        );
        remove(node, &id).await?;
        ids.insert(id);
    }
    ensure!(ids.len() == 1, "one configuration has several ids: {ids:?}");
    Ok(())
}

/// Writes images and an index over them as an OCI layout.
fn write_layout(dir: &Path, images: &[(&str, BuiltImage)]) -> anyhow::Result<()> {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    let write = |bytes: &[u8]| {
        let digest = Digest::of(bytes).to_string();
        std::fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes)
    };
    let mut manifests = Vec::new();
    for (architecture, image) in images {
        for bytes in [&image.config, &image.layer, &image.manifest] {
            write(bytes)?;
        }
        let mut entry = descriptor(
            "application/vnd.oci.image.manifest.v1+json",
            &image.manifest,
        );
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        manifests.push(entry);
    }
    let kind = "application/vnd.oci.image.index.v1+json";
    let index =
        json!({ "schemaVersion": 2, "mediaType": kind, "manifests": manifests }).to_string();
    write(index.as_bytes())?;
    let mut entry = descriptor(kind, index.as_bytes());
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "all" });
    let top = json!({ "schemaVersion": 2, "manifests": [entry] });
    std::fs::write(dir.join("index.json"), top.to_string())?;
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(())
}

async fn index(node: &mut Node) -> Outcome {
    let own = Platform::host().architecture;
    let mut images = Vec::new();
    for architecture in ["s390x", own.as_str(), "riscv64"] {
        let platform = Platform {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: String::new(),
        };
        let built = ImageBuilder::new()
            .platform(platform)
            .file("/bin/busybox", Path::new("/bin/busybox"), 0o755)?
            .bytes("/etc/made-for", architecture.as_bytes(), 0o644)?;
        images.push((architecture, built.build()));
    }
    let dir = node.dir().join("layout");
    write_layout(&dir, &images)?;
    let registry = DebianRegistry::start(&node.dir().join("registry"), false).await?;
    let layout = format!("{}:all", dir.display());
    registry.push(&layout, "many:1", &["--all"]).await?;
    let pushed: Value = serde_json::from_str(&registry.manifest("many:1").await?)?;
    ensure!(
        pushed["manifests"]
            .as_array()
            .is_some_and(|list| list.len() == 3),
        "{pushed}"
    );
    let reference = registry.reference("many:1");
    pull(node, &reference, None).await?;
    let config = command(
        "main",
        &reference,
        &["/bin/busybox", "cat", "/etc/made-for"],
    );
    let (_, container) = node.run(&pod(&node.logs()), config).await?;
    let status = node.exited(&container).await?;
    let log = std::fs::read_to_string(&status.log_path)?;
    ensure!(log.trim_end().ends_with(&own), "{log}");
    // An index without this machine says what it has.
    images.remove(1);
    let dir = node.dir().join("others");
    write_layout(&dir, &images)?;
    registry
        .push(&format!("{}:all", dir.display()), "others:1", &["--all"])
        .await?;
    let error = pull(node, &registry.reference("others:1"), None)
        .await
        .err()
        .context("pulled")?;
    let text = format!("{:#}", anyhow::Error::from(error));
    ensure!(text.contains("s390x") && text.contains(&own), "{text}");
    Ok(())
}

/// A small image with one file, pushed as `name`.
async fn push_small(node: &Node, registry: &DebianRegistry, name: &str) -> anyhow::Result<()> {
    let built = ImageBuilder::new()
        .file("/bin/busybox", Path::new("/bin/busybox"), 0o755)?
        .symlink("/bin/sh", "busybox")?
        .build();
    let dir = node.dir().join("small");
    if !dir.exists() {
        write_layout(&dir, &[(&Platform::host().architecture, built)])?;
    }
    registry
        .push(&format!("{}:all", dir.display()), name, &[])
        .await
}

async fn mirrors(node: &mut Node) -> Outcome {
    let registry = DebianRegistry::start(&node.dir().join("registry"), false).await?;
    push_small(node, &registry, "team/small:1").await?;
    let hosts = node.dir().join("certs.d/far.invalid");
    std::fs::create_dir_all(&hosts)?;
    // The first mirror is dead; the second has it; the registry itself does not exist.
    let text = format!(
        "server = \"https://far.invalid\"\n\
         [host.\"http://127.0.0.1:1\"]\ncapabilities = [\"pull\", \"resolve\"]\n\
         [host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        registry.address()
    );
    std::fs::write(hosts.join("hosts.toml"), text)?;
    let name = "far.invalid/team/small:1";
    let id = pull(node, name, None).await?;
    let known = image(node, name).await?.context("the image is not there")?;
    ensure!(known.id == id && known.repo_tags == [name], "{known:?}");
    ensure!(
        known
            .repo_digests
            .iter()
            .all(|one| one.starts_with("far.invalid/team/small@sha256:"))
    );
    let config = command("main", name, &["/bin/sh", "-c", "exit 9"]);
    let (_, container) = node.run(&pod(&node.logs()), config).await?;
    ensure!(node.exited(&container).await?.exit_code == 9);
    // A mistake in the file is told with its place, and a corrected file needs no restart.
    std::fs::write(
        hosts.join("hosts.toml"),
        "[host.\"http://x\"]\ncapabilities = 7\n",
    )?;
    let error = pull(node, name, None)
        .await
        .err()
        .context("a wrong file was taken")?;
    ensure!(error.code() == Some(Code::FailedPrecondition), "{error:?}");
    let text = format!("{:#}", anyhow::Error::from(error));
    ensure!(text.contains("hosts.toml:2"), "{text}");
    Ok(())
}

async fn concurrent(node: &mut Node) -> Outcome {
    let registry = DebianRegistry::start(&node.dir().join("registry"), false).await?;
    let layout = tree::make(node.dir()).await?;
    registry.push(&layout, "tree:1", &[]).await?;
    let manifest: Value = serde_json::from_str(&registry.manifest("tree:1").await?)?;
    let before = registry.log()?.len();
    let reference = registry.reference("tree:1");
    let mut pulls = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (client, image) = (node.client.clone(), spec(&reference));
        pulls.spawn(async move {
            client
                .pull_image(v1::PullImageRequest {
                    image,
                    ..Default::default()
                })
                .await
        });
    }
    let mut ids = BTreeSet::new();
    while let Some(pulled) = pulls.join_next().await {
        ids.insert(pulled??.image_ref);
    }
    ensure!(ids.len() == 1, "{ids:?}");
    let log = registry.log()?.split_off(before);
    for layer in manifest["layers"].as_array().context("no layers")? {
        let digest = layer["digest"].as_str().context("no digest")?;
        let get = |line: &&str| {
            line.contains("response completed")
                && line.contains("http.request.method=GET")
                && line.contains(&format!("/blobs/{digest}"))
        };
        let count = log.lines().filter(get).count();
        ensure!(count == 1, "{digest} was fetched {count} times");
    }
    tree::check(node, &reference).await
}

/// Bytes in use below a directory.
fn bytes_below(dir: &Path) -> u64 {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(stat) = rustix::fs::lstat(entry.path()) else {
            continue;
        };
        sum += u64::try_from(stat.st_blocks).unwrap_or_default() * 512;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            sum += bytes_below(&entry.path());
        }
    }
    sum
}

/// What images take on a node's disk.
fn image_bytes(node: &Node) -> u64 {
    ["layers", "blobs", "staging", "trash"]
        .map(|folder| bytes_below(&node.dir().join("root").join(folder)))
        .iter()
        .sum()
}

async fn removal(node: &mut Node) -> Outcome {
    let registry = DebianRegistry::start(&node.dir().join("registry"), false).await?;
    let layout = tree::make(node.dir()).await?;
    registry.push(&layout, "tree:1", &[]).await?;
    registry.push(&layout, "tree:2", &[]).await?;
    let before = image_bytes(node);
    let (one, two) = (registry.reference("tree:1"), registry.reference("tree:2"));
    pull(node, &one, None).await?;
    let id = pull(node, &two, None).await?;
    let full = image_bytes(node);
    ensure!(full > before + 1_000_000, "{before} {full}");
    // The layers of a running container stay when its image goes.
    let sleep = command("main", &one, &["/bin/sleep", "1000"]);
    let (pod, container) = node.run(&pod(&node.logs()), sleep).await?;
    remove(node, &two).await?;
    ensure!(image(node, &one).await?.is_none() && image(node, &id).await?.is_none());
    ensure!(node.output(&container, "busybox cat /data/file").await? == "lowest");
    node.remove_pod(&pod).await?;
    // Removing it again is no error.
    remove(node, &two).await?;
    let deadline = Instant::now() + PATIENCE;
    while image_bytes(node) != before {
        let left = image_bytes(node);
        ensure!(
            Instant::now() < deadline,
            "{left} bytes are left, {before} were there before"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn pinned(node: &mut Node) -> Outcome {
    let registry = DebianRegistry::start(&node.dir().join("registry"), false).await?;
    push_small(node, &registry, "kept/small:1").await?;
    push_small(node, &registry, "other/small:1").await?;
    let drop_ins = node.dir().join("conf.d");
    std::fs::create_dir(&drop_ins)?;
    let text = format!("[image]\npinned = [\"{}*\"]\n", registry.reference("kept/"));
    std::fs::write(drop_ins.join("10-pinned.toml"), text)?;
    node.kill().await?;
    node.restart().await?;
    let other = registry.reference("other/small:1");
    pull(node, &other, None).await?;
    ensure!(!image(node, &other).await?.context("not there")?.pinned);
    let kept = registry.reference("kept/small:1");
    pull(node, &kept, None).await?;
    ensure!(image(node, &kept).await?.context("not there")?.pinned);
    Ok(())
}

async fn passwords(node: &mut Node) -> Outcome {
    let registry = DebianRegistry::start(&node.dir().join("registry"), true).await?;
    push_small(node, &registry, "secret/small:1").await?;
    let name = registry.reference("secret/small:1");
    let auth = |username: &str, password: &str| {
        Some(v1::AuthConfig {
            username: username.into(),
            password: password.into(),
            ..Default::default()
        })
    };
    let wrong = "wrong-pass-9c1e";
    for auth in [None, auth(USER, wrong), auth("nobody", PASSWORD)] {
        let error = pull(node, &name, auth)
            .await
            .err()
            .context("pulled with a wrong password")?;
        ensure!(error.code() == Some(Code::PermissionDenied), "{error:?}");
        let text = format!("{:#}", anyhow::Error::from(error));
        ensure!(!text.contains(wrong) && !text.contains(PASSWORD), "{text}");
    }
    ensure!(image(node, &name).await?.is_none());
    // `skipper:kielholer-7f3a` in base64, as it is in Docker's configuration files.
    let encoded = "c2tpcHBlcjpraWVsaG9sZXItN2YzYQ==";
    let as_file = v1::AuthConfig {
        auth: encoded.into(),
        ..Default::default()
    };
    for auth in [auth(USER, PASSWORD), Some(as_file)] {
        let id = pull(node, &name, auth).await?;
        remove(node, &id).await?;
    }
    // A pull without credentials does not profit from an earlier one that had them.
    let error = pull(node, &name, None)
        .await
        .err()
        .context("pulled without a password")?;
    ensure!(error.code() == Some(Code::PermissionDenied), "{error:?}");
    let log = std::fs::read_to_string(node.dir().join("daemon.log"))?;
    for secret in [PASSWORD, wrong, encoded.trim_end_matches('=')] {
        ensure!(!log.contains(secret), "the log has the password {secret}");
    }
    Ok(())
}
