//! Checkpoints that are refused, with programs in the place of CRIU, and hostile archives.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::ensure;
use kelson_checkpoint::tar::{Entry, Kind, Writer};
use kelson_client::Code;
use kelson_cri::v1;

use super::checkpoint::{checkpoint, enable, refused};
use crate::case::{Case, Outcome, on_node};
use crate::node::Node;
use crate::pod::{pod, shell};

pub(super) fn cases() -> Vec<Case> {
    vec![
        on_node("checkpoint::is_off_by_default", |node| Box::pin(off(node))),
        on_node("checkpoint::mistakes_are_named", |node| {
            Box::pin(mistakes(node))
        }),
        on_node("checkpoint::a_program_that_fails", |node| {
            Box::pin(failing(node))
        }),
        on_node("checkpoint::hostile_archives", |node| {
            Box::pin(hostile(node))
        }),
    ]
}

async fn sleeper(node: &Node) -> anyhow::Result<String> {
    let image = node.busybox().await?;
    let config = shell("sleep", &image, "sleep 1000");
    Ok(node.run(&pod(&node.logs()), config).await?.1)
}

async fn off(node: &mut Node) -> Outcome {
    let container = sleeper(node).await?;
    let place = node.dir().join("c.tar");
    let error = refused(checkpoint(node, &container, &place, 0).await)?;
    ensure!(error.code() == Some(Code::Unimplemented), "{error}");
    ensure!(error.to_string().contains("checkpoint.enabled"), "{error}");
    let config = pod(&node.logs());
    let sandbox = node.run_pod(&config).await?;
    let error = refused(
        node.create(&sandbox, &config, shell("r", "/c.tar", "true"))
            .await,
    )?;
    ensure!(
        format!("{error:#}").contains("checkpoint.enabled"),
        "{error:#}"
    );
    Ok(())
}

/// A program in the place of CRIU.
fn program(node: &Node, name: &str, script: &str) -> anyhow::Result<PathBuf> {
    let path = node.dir().join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n"))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

async fn mistakes(node: &mut Node) -> Outcome {
    let missing = node.dir().join("no-criu");
    enable(node, &missing).await?;
    let container = sleeper(node).await?;
    let place = node.dir().join("c.tar");
    let error = refused(checkpoint(node, &container, &place, 0).await)?;
    ensure!(error.code() == Some(Code::FailedPrecondition), "{error}");
    ensure!(error.to_string().contains("install CRIU"), "{error}");

    let error = refused(checkpoint(node, &"0".repeat(64), &place, 0).await)?;
    ensure!(error.code() == Some(Code::NotFound), "{error}");
    for bad in ["c.tar", "/no/such/directory/c.tar", "/tmp/../c.tar", "/tmp"] {
        let error = refused(checkpoint(node, &container, bad.as_ref(), 0).await)?;
        ensure!(
            error.code() == Some(Code::InvalidArgument),
            "{bad}: {error}"
        );
        ensure!(error.to_string().contains("location: "), "{bad}: {error}");
    }
    let error = refused(checkpoint(node, &container, &place, -1).await)?;
    ensure!(error.code() == Some(Code::InvalidArgument), "{error}");

    let config = pod(&node.logs());
    let sandbox = node.run_pod(&config).await?;
    let image = node.busybox().await?;
    let created = node
        .create(&sandbox, &config, shell("c", &image, "true"))
        .await?;
    let error = refused(checkpoint(node, &created, &place, 0).await)?;
    ensure!(error.code() == Some(Code::FailedPrecondition), "{error}");
    ensure!(error.to_string().contains("must be running"), "{error}");
    ensure!(!place.exists());
    Ok(())
}

async fn failing(node: &mut Node) -> Outcome {
    let fails = program(
        node,
        "fails",
        "echo '(00.01) Error (criu/x.c:1): the sails are torn' >&2; exit 1",
    )?;
    enable(node, &fails).await?;
    let container = sleeper(node).await?;
    let place = node.dir().join("c.tar");
    let error = refused(checkpoint(node, &container, &place, 0).await)?;
    ensure!(error.code() == Some(Code::Internal), "{error}");
    ensure!(
        error.to_string().contains("CRIU: the sails are torn"),
        "{error}"
    );

    let hangs = program(node, "hangs", "exec sleep 1000")?;
    enable(node, &hangs).await?;
    let begin = Instant::now();
    let error = refused(checkpoint(node, &container, &place, 1).await)?;
    ensure!(error.code() == Some(Code::DeadlineExceeded), "{error}");
    ensure!(
        begin.elapsed() < Duration::from_secs(10),
        "{:?}",
        begin.elapsed()
    );
    ensure!(!place.exists());
    ensure!(node.output(&container, "echo alive").await? == "alive");
    Ok(())
}

const CONFIG: &str = r#"{"id":"c","name":"c","rootfsImageName":"IMAGE"}"#;

/// Parts of an archive: path, link target (empty: a file), content.
type Parts<'a> = &'a [(&'a str, &'a str, &'a [u8])];

fn tar(parts: Parts<'_>) -> anyhow::Result<Vec<u8>> {
    let mut writer = Writer::new(Vec::new());
    for (path, link, content) in parts {
        let (kind, size) = match link.is_empty() {
            true => (Kind::File, content.len() as u64),
            false => (Kind::Symlink, 0),
        };
        let mut entry = Entry::plain(path.as_bytes(), kind, 0o644, size);
        entry.link = link.as_bytes();
        writer.entry(&entry, &mut &content[..])?;
    }
    Ok(writer.end()?)
}

async fn hostile(node: &mut Node) -> Outcome {
    let stand_in = program(node, "criu", "exit 1")?;
    enable(node, &stand_in).await?;
    let image = node.busybox().await?;
    let config = CONFIG.replace("IMAGE", &image);
    let config = config.as_bytes();
    let secret = node.dir().join("secret");
    std::fs::write(&secret, "secret")?;
    let secret = secret.display().to_string();
    let images = ("checkpoint/core-1.img", "", &b"x"[..]);
    let climbing = tar(&[("../../evil", "", b"x")])?;
    let other = CONFIG.replace("IMAGE", "registry.example/other:1");
    let huge = vec![b' '; 17 << 20];
    let binds =
        br#"[{"source":"/etc","destination":"/host","file_type":"directory","permissions":493}]"#;
    let archives: Vec<(&str, Vec<u8>, &str)> = vec![
        ("not a tar", vec![7; 4096], "uncompressed tar file"),
        ("nothing", tar(&[])?, "there is no config.dump"),
        (
            "no images",
            tar(&[("config.dump", "", config)])?,
            "there is no checkpoint",
        ),
        (
            "wrong JSON",
            tar(&[("config.dump", "", b"{"), images])?,
            "config.dump is not what",
        ),
        (
            "huge JSON",
            tar(&[("config.dump", "", &huge), images])?,
            "config.dump is larger",
        ),
        // CVE-2026-53489: no file of the host is opened by a link in an archive.
        (
            "a link for the configuration",
            tar(&[("config.dump", &secret, b""), images])?,
            "config.dump cannot be used",
        ),
        (
            "a link among the images",
            tar(&[
                ("config.dump", "", config),
                ("checkpoint/a.img", &secret, b""),
            ])?,
            "checkpoint/a.img is not a plain file",
        ),
        (
            "climbing out",
            tar(&[
                ("config.dump", "", config),
                images,
                ("../../evil", "", b"x"),
            ])?,
            "not a checkpoint archive",
        ),
        (
            "changes that climb out",
            tar(&[
                ("config.dump", "", config),
                images,
                ("rootfs-diff.tar", "", &climbing),
            ])?,
            "its changes of the root",
        ),
        (
            "deletions that climb out",
            tar(&[
                ("config.dump", "", config),
                images,
                ("deleted.files", "", br#"["/../x"]"#),
            ])?,
            "leads out of the container",
        ),
        (
            "a stream that is an option",
            tar(&[
                ("config.dump", "", config),
                ("checkpoint/descriptors.json", "", br#"["--root","",""]"#),
            ])?,
            "a stream that is none",
        ),
        // CVE-2024-8676 and CVE-2026-53492: mounts and devices are not taken from an archive.
        (
            "a mount of its own",
            tar(&[
                ("config.dump", "", config),
                images,
                ("bind.mounts", "", binds),
            ])?,
            "needs something mounted at \"/host\"",
        ),
        // CVE-2026-50195: an archive pulls and names nothing.
        (
            "an image that is not here",
            tar(&[("config.dump", "", other.as_bytes()), images])?,
            "pull it first",
        ),
    ];
    let before = node
        .client
        .list_images(v1::ListImagesRequest::default())
        .await?;
    let sandbox_config = pod(&node.logs());
    let sandbox = node.run_pod(&sandbox_config).await?;
    let path = node.dir().join("hostile.tar");
    for (what, bytes, why) in archives {
        std::fs::write(&path, bytes)?;
        let request = shell("r", &path.display().to_string(), "true");
        let error = node.create(&sandbox, &sandbox_config, request).await;
        let text = format!("{:#}", refused(error)?);
        ensure!(text.contains(why), "{what}: {text}");
    }
    let request = shell("r", "/no/such/archive.tar", "true");
    let error = refused(node.create(&sandbox, &sandbox_config, request).await)?;
    ensure!(
        format!("{error:#}").contains("/no/such/archive.tar"),
        "{error:#}"
    );

    let after = node
        .client
        .list_images(v1::ListImagesRequest::default())
        .await?;
    ensure!(before == after, "the images are others");
    for dir in ["root/containers", "root/staging"] {
        let count = std::fs::read_dir(node.dir().join(dir))?.count();
        ensure!(count == 0, "{count} things are left in {dir}");
    }
    ensure!(!node.dir().join("root/evil").exists() && !node.dir().join("evil").exists());
    Ok(())
}
