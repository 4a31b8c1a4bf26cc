//! Layers whose archive is hostile: nothing outside the layer is touched, and nothing stays.

use anyhow::{Context, ensure};
use kelson_client::Code;
use kelson_cri::v1;
use kelson_image::Platform;
use kelson_image::layout::{BuiltImage, descriptor};
use kelson_image::serve::Registry as Content;
use kelson_snapshot::Digest;
use serde_json::json;

use super::bad_images::{nothing_is_left, refused};
use crate::bad_registry::{BadRegistry, Reply};
use crate::case::{Case, Outcome, on_node};
use crate::node::Node;

pub(super) fn cases() -> Vec<Case> {
    vec![
        on_node("bad_archives::climbing_out", |node| {
            Box::pin(climbing(node))
        }),
        on_node("bad_archives::absurd_headers", |node| {
            Box::pin(absurd(node))
        }),
    ]
}

/// An image whose layer is these bytes, uncompressed and truthfully described.
pub(super) fn of_tar(tar: Vec<u8>) -> BuiltImage {
    let platform = Platform::host();
    let config = json!({
        "os": platform.os,
        "architecture": platform.architecture,
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&tar)] },
    })
    .to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "config": descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes()),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &tar)],
    });
    BuiltImage {
        manifest: manifest.to_string().into_bytes().into(),
        config: config.into_bytes().into(),
        layer: tar.into(),
    }
}

/// A tar entry.
fn entry(name: &str, kind: u8, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, b"0000644\x000000000\x000000000\x00");
    put(124, format!("{:011o}\0", content.len()).as_bytes());
    put(136, b"00000000000\0        ");
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    let mut bytes = seal(header).to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// Puts the checksum into a header.
fn seal(mut header: [u8; 512]) -> [u8; 512] {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}

async fn climbing(node: &mut Node) -> Outcome {
    let outside = node.dir().join("outside");
    std::fs::create_dir(&outside)?;
    std::fs::write(outside.join("kept"), "untouched")?;
    let target = outside.display().to_string();
    let up = "../".repeat(20);
    let evil = b"evil";
    for (what, entries) in [
        (
            "dots",
            vec![entry(&format!("{up}{}", &target[1..]), b'0', "", evil)],
        ),
        (
            "inner-dots",
            vec![entry(
                &format!("a/{up}{}/evil", &target[1..]),
                b'0',
                "",
                evil,
            )],
        ),
        (
            "absolute-link",
            vec![
                entry("link", b'2', &target, b""),
                entry("link/evil", b'0', "", evil),
            ],
        ),
        (
            "climbing-link",
            vec![
                entry("link", b'2', &format!("{up}{}", &target[1..]), b""),
                entry("link/evil", b'0', "", evil),
            ],
        ),
        (
            "hard-link",
            vec![
                entry("hard", b'1', &format!("{target}/kept"), b""),
                entry("hard", b'0', "", evil),
            ],
        ),
        (
            "whiteout-through-link",
            vec![
                entry("link", b'2', &target, b""),
                entry("link/.wh.kept", b'0', "", b""),
            ],
        ),
        (
            "absolute-name",
            vec![entry(&format!("{target}/evil"), b'0', "", evil)],
        ),
    ] {
        let mut content = Content::new();
        content.add_image(
            "x",
            what,
            &of_tar([entries.concat(), vec![0; 1024]].concat()),
        );
        let registry = BadRegistry::start(content, |_| Reply::Good).await?;
        let name = format!("x:{what}");
        // What stays inside when it is resolved in the image's own root may be accepted.
        let image = v1::ImageSpec {
            image: registry.reference(&name),
            ..Default::default()
        };
        let request = v1::PullImageRequest {
            image: Some(image.clone()),
            ..Default::default()
        };
        let pulled = node.client.pull_image(request).await;
        ensure!(
            !(what.ends_with("dots") && pulled.is_ok()),
            "{what} was accepted"
        );
        match pulled {
            Ok(_) => {
                node.client
                    .remove_image(v1::RemoveImageRequest { image: Some(image) })
                    .await?;
            }
            Err(error) => {
                ensure!(
                    error.code() == Some(Code::FailedPrecondition),
                    "{what}: {error:?}"
                );
                nothing_is_left(node).await.context(what)?;
            }
        }
        let names: Vec<_> = std::fs::read_dir(&outside)?
            .flatten()
            .map(|e| e.file_name())
            .collect();
        ensure!(names == ["kept"], "{what}: {names:?}");
        ensure!(
            std::fs::read(outside.join("kept"))? == b"untouched",
            "{what}"
        );
    }
    Ok(())
}

async fn absurd(node: &mut Node) -> Outcome {
    let mut wrong_sum = entry("a", b'0', "", b"x");
    wrong_sum[0] = b'b';
    let sized = |size: &[u8; 12]| {
        let mut header: [u8; 512] = entry("a", b'0', "", b"")[..512]
            .try_into()
            .unwrap_or([0; 512]);
        header[124..136].copy_from_slice(size);
        seal(header).to_vec()
    };
    let negative = sized(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xf0");
    let enormous = sized(b"\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff");
    let no_number = sized(b"hello world\0");
    let garbage: Vec<u8> = (0..4096_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let wrong = (Code::FailedPrecondition, "malformed");
    for (what, tar, (code, word)) in [
        ("wrong-sum", wrong_sum, wrong),
        ("negative", negative, wrong),
        ("enormous", enormous, (Code::ResourceExhausted, "limit")),
        ("no-number", no_number, wrong),
        ("garbage", garbage, wrong),
    ] {
        let mut content = Content::new();
        content.add_image("x", what, &of_tar([tar, vec![0; 1024]].concat()));
        let registry = BadRegistry::start(content, |_| Reply::Good).await?;
        refused(
            node,
            &registry,
            &format!("x:{what}"),
            code,
            &["layer", word],
        )
        .await?;
    }
    Ok(())
}
