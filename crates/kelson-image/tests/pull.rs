//! Pulling from registries that behave, and from such that do not.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test may stop at once and say why"
)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Act, Fixture, Node, chain, hello, id, is_root, large, registry};
use kelson_image::layout::descriptor;
use kelson_image::serve::Registry;
use kelson_image::{ImageUser, LayerState, Platform, Progress, PullError, PullRequest};
use kelson_snapshot::{Digest, Snapshotter as _};
use serde_json::json;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[tokio::test(flavor = "multi_thread")]
async fn an_image_comes_whole() {
    if !is_root() {
        return;
    }
    let image = hello("hi");
    let fixture = Fixture::start(registry(&image), |_, _| Act::Serve).await;
    let node = Node::new();
    let name = fixture.image("hello");
    assert_eq!(node.pull(&name).await.unwrap(), id(&image));
    let got = node.images.resolve(&name).unwrap();
    assert_eq!(got.tags, [format!("{name}:latest")]);
    assert_eq!(
        got.digests,
        [format!("{name}@{}", Digest::of(&image.manifest))]
    );
    assert_eq!(got.user(), ImageUser::Uid(1000));
    let size = image.manifest.len() + image.config.len() + image.layer.len();
    assert_eq!(got.size, size as u64);
    assert_eq!(node.read(&name, "/etc/hello").as_deref(), Some("hi"));
    let usage = node.images.usage();
    assert!(usage.bytes > 0 && usage.inodes >= 4, "{usage:?}");

    // The second pull asks only what the tag points to.
    let before = fixture.seen().len();
    assert_eq!(node.pull(&name).await.unwrap(), id(&image));
    let after: Vec<_> = fixture
        .seen()
        .into_iter()
        .skip(before)
        .map(|seen| seen.method)
        .collect();
    assert_eq!(after, [http::Method::HEAD]);

    // By digest too, with nothing to ask at all.
    let before = fixture.seen().len();
    node.pull(&got.digests[0]).await.unwrap();
    assert_eq!(fixture.seen().len(), before);

    assert_eq!(node.images.remove(&name).unwrap(), Some(id(&image)));
    assert_eq!(node.images.remove(&name).unwrap(), None);
    assert!(node.snapshots.layers().is_empty());
    assert_eq!(
        std::fs::read_dir(node.dir.path().join("root/blobs/sha256"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_leads_to_the_platform() {
    if !is_root() {
        return;
    }
    let (image, v3) = (hello("amd64"), hello("v3"));
    let mut registry = Registry::new();
    registry.add_image("multi", "inner", &image);
    registry.add_image("multi", "v3", &v3);
    let entry = |bytes: &Bytes, os: &str, architecture: &str, variant: &str| {
        let mut entry = descriptor(MANIFEST, bytes);
        entry["platform"] = json!({ "os": os, "architecture": architecture, "variant": variant });
        entry
    };
    let arm = Bytes::from_static(b"{\"arm\":true}");
    let index = |entries| json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
    let inner = index(json!([
        entry(&arm, "unknown", "unknown", ""),
        entry(&arm, "linux", "arm64", ""),
        entry(&v3.manifest, "linux", "amd64", "v3"),
        entry(&image.manifest, "linux", "amd64", ""),
    ]));
    let inner = Bytes::from(inner.to_string());
    let digest = registry.add_manifest("multi", "latest", INDEX, inner.clone());
    let outer = index(json!([descriptor(INDEX, &inner)])).to_string();
    registry.add_manifest("multi", "nested", INDEX, outer.into());
    let foreign = index(json!([entry(&arm, "linux", "arm64", "")])).to_string();
    registry.add_manifest("multi", "foreign", INDEX, foreign.into());
    let fixture = Fixture::start(registry, |_, _| Act::Serve).await;
    let node = Node::new();
    let name = fixture.image("multi");
    assert_eq!(node.pull(&name).await.unwrap(), id(&image));
    let got = node.images.resolve(&name).unwrap();
    assert_eq!(
        got.digests,
        [format!("{name}@{digest}")],
        "the index is what was pulled"
    );
    assert_eq!(got.manifest, Digest::of(&image.manifest));
    assert_eq!(
        node.pull(&format!("{name}:nested")).await.unwrap(),
        id(&image)
    );
    let error = node.pull(&format!("{name}:foreign")).await.unwrap_err();
    assert!(
        matches!(&error, PullError::NoMatchingPlatform { offered, .. }
        if offered == &["linux/arm64"]),
        "{error}"
    );
    // Everything that the image needs is still known after a restart.
    let node = node.reopen();
    assert_eq!(node.images.resolve(&name).unwrap().tags.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_manifest_for_another_machine_is_refused() {
    if !is_root() {
        return;
    }
    let platform = Platform {
        architecture: "s390x".into(),
        variant: String::new(),
        ..common::amd64()
    };
    let image = common::builder("x").platform(platform).build();
    let fixture = Fixture::start(registry(&image), |_, _| Act::Serve).await;
    let node = Node::new();
    let error = node.pull(&fixture.image("hello")).await.unwrap_err();
    assert!(
        matches!(error, PullError::NoMatchingPlatform { .. }),
        "{error}"
    );
    node.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_registry_is_asked_again() {
    if !is_root() {
        return;
    }
    let image = hello("hi");
    let fixture = Fixture::start(registry(&image), |_, before| match before {
        0 => Act::Status(429, Some(("retry-after", "1".into()))),
        2 => Act::Status(503, None),
        4 => Act::Status(408, None),
        _ => Act::Serve,
    })
    .await;
    let node = Node::new();
    let start = Instant::now();
    node.pull(&fixture.image("hello")).await.unwrap();
    assert!(
        start.elapsed() >= Duration::from_secs(1),
        "Retry-After is honoured"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_registry_is_given_up() {
    if !is_root() {
        return;
    }
    let image = hello("hi");
    let node = Node::new();
    let body = r#"{"errors":[{"code":"UNAVAILABLE","message":"on fire"}]}"#;
    let fixture = Fixture::start(registry(&image), |_, _| {
        Act::Body(500, Vec::new(), body.into())
    })
    .await;
    let error = node.pull(&fixture.image("hello")).await.unwrap_err();
    assert!(
        matches!(error, PullError::RegistryUnavailable { .. }),
        "{error}"
    );
    assert!(
        chain(&error).contains("UNAVAILABLE: on fire"),
        "{}",
        chain(&error)
    );
    assert_eq!(fixture.seen().len(), 3, "as many attempts as configured");

    let fixture = Fixture::start(registry(&image), |_, _| Act::Hang).await;
    let error = node.pull(&fixture.image("hello")).await.unwrap_err();
    assert!(
        matches!(error, PullError::RegistryUnavailable { .. }),
        "{error}"
    );

    let gone = fixture.image("hello");
    drop(fixture);
    let error = node.pull(&gone).await.unwrap_err();
    assert!(
        matches!(error, PullError::RegistryUnavailable { .. }),
        "{error}"
    );

    let fixture = Fixture::start(Registry::new(), |_, _| Act::Serve).await;
    let error = node.pull(&fixture.image("hello")).await.unwrap_err();
    assert!(matches!(error, PullError::NotFound { .. }), "{error}");
    node.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_download_is_resumed() {
    if !is_root() {
        return;
    }
    let image = large(600_000);
    let layer = format!("/v2/hello/blobs/{}", Digest::of(&image.layer));
    for ranges in [true, false] {
        let path = layer.clone();
        let tries = AtomicUsize::new(0);
        let bytes = image.layer.clone();
        let fixture = Fixture::start(registry(&image), move |seen, _| {
            if seen.path != path {
                return Act::Serve;
            }
            match (tries.fetch_add(1, Ordering::Relaxed), ranges) {
                (0 | 1, true) => Act::Cut(100_000),
                (0, false) => Act::Cut(100_000),
                (1, false) => Act::Instead(bytes.clone()),
                _ => Act::Serve,
            }
        })
        .await;
        let node = Node::new();
        node.pull(&fixture.image("hello")).await.unwrap();
        let asked: Vec<_> = fixture
            .seen()
            .iter()
            .filter(|seen| seen.path == layer)
            .map(|seen| seen.header("range").map(str::to_owned))
            .collect();
        let resumed = |at: &str| Some(format!("bytes={at}-"));
        match ranges {
            true => assert_eq!(asked, [None, resumed("100000"), resumed("200000")]),
            false => assert_eq!(asked, [None, resumed("100000")]),
        }
        assert_eq!(
            node.read(&fixture.image("hello"), "/etc/hello").as_deref(),
            Some("large")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trickle_is_no_progress() {
    if !is_root() {
        return;
    }
    let image = large(600_000);
    let layer = format!("/v2/hello/blobs/{}", Digest::of(&image.layer));
    let fixture = Fixture::start(registry(&image), move |seen, _| {
        if seen.path == layer {
            Act::Drip(1, Duration::from_millis(10))
        } else {
            Act::Serve
        }
    })
    .await;
    let node = Node::new();
    let start = Instant::now();
    let error = node.pull(&fixture.image("hello")).await.unwrap_err();
    assert!(
        chain(&error).contains("fewer than 16384 bytes"),
        "{}",
        chain(&error)
    );
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "three windows of 0.6 s"
    );
    node.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_redirects_end() {
    if !is_root() {
        return;
    }
    let image = hello("hi");
    let fixture = Fixture::start(registry(&image), |seen, _| {
        Act::Status(307, Some(("location", format!("{}?x", seen.path))))
    })
    .await;
    let node = Node::new();
    let error = node.pull(&fixture.image("hello")).await.unwrap_err();
    assert!(
        chain(&error).contains("more than 10 redirects"),
        "{}",
        chain(&error)
    );
    assert_eq!(fixture.seen().len(), 11);
    node.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_refused() {
    if !is_root() {
        return;
    }
    let (image, other) = (hello("hi"), hello("HI"));
    let node = Node::new();
    assert_eq!(
        image.layer.len(),
        other.layer.len(),
        "so that only the digest tells"
    );
    let swap = |path: String, bytes: Bytes| {
        Fixture::start(registry(&image), move |seen, _| {
            if seen.path == path {
                Act::Instead(bytes.clone())
            } else {
                Act::Serve
            }
        })
    };
    let blob = |bytes: &Bytes| format!("/v2/hello/blobs/{}", Digest::of(bytes));
    let mut config = image.config.to_vec();
    config[0] = b' ';
    let by_digest = format!("/v2/hello/manifests/{}", Digest::of(&image.manifest));
    for (path, bytes, reference) in [
        (blob(&image.layer), other.layer.clone(), "hello".to_owned()),
        (blob(&image.config), config.into(), "hello".to_owned()),
        (
            by_digest,
            other.manifest.clone(),
            format!("hello@{}", Digest::of(&image.manifest)),
        ),
    ] {
        let fixture = swap(path.clone(), bytes).await;
        let error = node.pull(&fixture.image(&reference)).await.unwrap_err();
        assert!(
            matches!(error, PullError::DigestMismatch { .. }),
            "{path}: {}",
            chain(&error)
        );
        node.assert_empty();
    }
    // Fewer or more bytes than announced.
    let fixture = swap(blob(&image.layer), image.layer.slice(1..)).await;
    let error = node.pull(&fixture.image("hello")).await.unwrap_err();
    assert!(
        matches!(error, PullError::SizeMismatch { .. }),
        "{}",
        chain(&error)
    );
    node.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_read_without_end() {
    if !is_root() {
        return;
    }
    let image = hello("hi");
    let node = Node::new();
    let layer = format!("/v2/hello/blobs/{}", Digest::of(&image.layer));
    let fixture = Fixture::start(registry(&image), move |seen, _| {
        if seen.path == layer {
            Act::Endless
        } else {
            Act::Serve
        }
    })
    .await;
    let error = node.pull(&fixture.image("hello")).await.unwrap_err();
    let refused = matches!(error, PullError::SizeMismatch { .. });
    assert!(
        refused || matches!(error, PullError::DigestMismatch { .. }),
        "{}",
        chain(&error)
    );

    let fixture = Fixture::start(registry(&image), |_, _| Act::Endless).await;
    let error = node.pull(&fixture.image("hello")).await.unwrap_err();
    assert!(
        matches!(
            error,
            PullError::TooLarge {
                limit: 4_194_304,
                ..
            }
        ),
        "{error}"
    );

    let huge = Bytes::from(vec![b' '; 100 << 20]);
    let fixture = Fixture::start(registry(&image), move |_, _| Act::Instead(huge.clone())).await;
    let error = node.pull(&fixture.image("hello")).await.unwrap_err();
    assert!(matches!(error, PullError::TooLarge { .. }), "{error}");
    node.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_share_downloads() {
    if !is_root() {
        return;
    }
    let image = large(300_000);
    // Another image with the same layer.
    let mut registry = registry(&image);
    let mut config: serde_json::Value = serde_json::from_slice(&image.config).unwrap();
    config["author"] = json!("somebody");
    let config = Bytes::from(config.to_string());
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
    manifest["config"] = descriptor("application/vnd.oci.image.config.v1+json", &config);
    registry.add_blob(config);
    registry.add_manifest("twin", "latest", MANIFEST, manifest.to_string().into());
    let fixture = Fixture::start(registry, |seen, _| {
        if seen.is_blob() {
            Act::Drip(30_000, Duration::from_millis(20))
        } else {
            Act::Serve
        }
    })
    .await;
    let node = Arc::new(Node::new());
    let mut pulls = tokio::task::JoinSet::new();
    for number in 0..10 {
        let name = fixture.image(if number % 2 == 0 { "hello" } else { "twin" });
        let node = Arc::clone(&node);
        pulls.spawn(async move { node.pull(&name).await.unwrap() });
    }
    let ids: std::collections::BTreeSet<_> = pulls.join_all().await.into_iter().collect();
    assert_eq!(ids.len(), 2);
    assert_eq!(
        fixture.blob_requests(),
        3,
        "one layer and two configurations"
    );
    assert_eq!(node.snapshots.layers().len(), 1);

    // The layer stays while one of the images needs it.
    node.images.remove(&fixture.image("hello")).unwrap();
    assert_eq!(
        node.read(&fixture.image("twin"), "/etc/hello").as_deref(),
        Some("large")
    );
    node.images.remove(&fixture.image("twin")).unwrap();
    assert!(node.snapshots.layers().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_may_go_away() {
    if !is_root() {
        return;
    }
    let image = large(300_000);
    let fixture = Fixture::start(registry(&image), |seen, _| {
        if seen.is_blob() {
            Act::Drip(10_000, Duration::from_millis(20))
        } else {
            Act::Serve
        }
    })
    .await;
    let node = Arc::new(Node::new());
    let name = fixture.image("hello");
    let begin = || {
        let (node, name) = (Arc::clone(&node), name.clone());
        tokio::spawn(async move { node.pull(&name).await })
    };
    let first = begin();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let second = begin();
    tokio::time::sleep(Duration::from_millis(50)).await;
    first.abort();
    second.await.unwrap().unwrap();
    assert_eq!(
        fixture.blob_requests(),
        2,
        "the second caller went on with the first one's work"
    );
    node.images.remove(&name).unwrap();

    // With nobody left, nothing is left.
    let only = begin();
    tokio::time::sleep(Duration::from_millis(150)).await;
    only.abort();
    tokio::time::sleep(Duration::from_millis(300)).await;
    node.assert_empty();
    assert!(node.snapshots.layers().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_published() {
    if !is_root() {
        return;
    }
    let image = large(300_000);
    let fixture = Fixture::start(registry(&image), |seen, _| {
        if seen.is_blob() {
            Act::Drip(10_000, Duration::from_millis(20))
        } else {
            Act::Serve
        }
    })
    .await;
    let node = Node::new();
    let (sender, mut receiver) = tokio::sync::watch::channel(Progress::default());
    let request = PullRequest {
        reference: fixture.image("hello").parse().unwrap(),
        credentials: Default::default(),
    };
    let pull = node.images.pull(request, Some(sender));
    let watch = async {
        let mut middle = false;
        while receiver.changed().await.is_ok() {
            let progress = receiver.borrow_and_update().clone();
            middle |= progress.layers.iter().any(|layer| {
                layer.state == LayerState::Downloading && layer.done > 0 && layer.done < layer.total
            });
        }
        middle
    };
    let (result, middle) = tokio::join!(pull, watch);
    result.unwrap();
    assert!(middle, "a download was seen under way");
    let end = receiver.borrow().clone();
    assert_eq!(end.layers.len(), 1);
    assert_eq!(end.layers[0].state, LayerState::Done);
    assert_eq!(end.layers[0].done, image.layer.len() as u64);
}

/// Eight layers, each with a file of its own and one that all of them have.
fn eight() -> Vec<kelson_image::layout::BuiltImage> {
    (0..8)
        .map(|number| {
            common::builder(&format!("layer {number}"))
                .bytes(&format!("/own/{number}"), b"x", 0o644)
                .unwrap()
                .build()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_come_side_by_side_and_stay_in_order() {
    if !is_root() {
        return;
    }
    let layers = eight();
    let mut served = Registry::new();
    common::stack(&mut served, &layers);
    let lowest = Digest::of(&layers[0].layer).to_string();
    let fixture = Fixture::start(served, move |seen, _| {
        if seen.path.ends_with(&lowest) {
            Act::Drip(20, Duration::from_millis(200))
        } else {
            Act::Serve
        }
    })
    .await;
    // Slow as it is, the lowest does not count as stalled.
    let node = Node::with(|config| config.network.progress_window = Duration::from_secs(60));
    let name = fixture.image("stack");
    let pull = node.pull(&name);
    let watch = async {
        // The lowest takes some seconds.
        let begin = std::time::Instant::now();
        while fixture.blob_requests() < 9 && begin.elapsed() < Duration::from_secs(7) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        (fixture.blob_requests(), node.snapshots.layers().len())
    };
    let (result, (asked, committed)) = tokio::join!(pull, watch);
    result.unwrap();
    assert_eq!(
        asked, 9,
        "all others were fetched while the lowest was slow"
    );
    assert_eq!(committed, 0, "and waited for it");
    assert_eq!(node.read(&name, "/etc/hello").as_deref(), Some("layer 7"));
    for number in 0..8 {
        assert_eq!(
            node.read(&name, &format!("/own/{number}")).as_deref(),
            Some("x")
        );
    }
    // All but the top layer are common with a smaller image.
    common::stack(&mut fixture.registry.lock().unwrap(), &layers[..7]);
    let before = fixture.blob_requests();
    node.pull(&name).await.unwrap();
    assert_eq!(
        fixture.blob_requests() - before,
        1,
        "only the configuration was missing"
    );
    assert_eq!(node.read(&name, "/etc/hello").as_deref(), Some("layer 6"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_failed_pull_got_serves_the_next_one() {
    if !is_root() {
        return;
    }
    let layers = eight();
    let mut served = Registry::new();
    common::stack(&mut served, &layers);
    let broken = Digest::of(&layers[5].layer).to_string();
    let fixed = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let works = Arc::clone(&fixed);
    let fixture = Fixture::start(served, move |seen, _| {
        if seen.path.ends_with(&broken) && !works.load(Ordering::Relaxed) {
            // Late enough for the layers below.
            Act::Cut(0)
        } else {
            Act::Serve
        }
    })
    .await;
    let node = Node::new();
    let name = fixture.image("stack");
    let error = node.pull(&name).await.unwrap_err();
    assert!(
        matches!(error, PullError::RegistryUnavailable { .. }),
        "{error}"
    );
    assert!(node.images.list().is_empty());
    node.images.collect().unwrap();
    let kept = node.snapshots.layers().len();
    assert_eq!(kept, 5, "they are kept for the next attempt");
    fixed.store(true, Ordering::Relaxed);
    let before = fixture.blob_requests();
    node.pull(&name).await.unwrap();
    assert_eq!(
        fixture.blob_requests() - before,
        4,
        "the configuration and three layers"
    );
    node.images.remove(&name).unwrap();
    assert!(node.snapshots.layers().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_small_registry_serves_by_itself() {
    if !is_root() {
        return;
    }
    let image = hello("hi");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let name = format!("{}/hello", listener.local_addr().unwrap());
    let serving = tokio::spawn(kelson_image::serve::serve(
        listener,
        Arc::new(registry(&image)),
    ));
    let node = Node::new();
    assert_eq!(node.pull(&name).await.unwrap(), id(&image));
    let error = node.pull(&format!("{name}:other")).await.unwrap_err();
    assert!(matches!(error, PullError::NotFound { .. }), "{error}");
    serving.abort();
}
