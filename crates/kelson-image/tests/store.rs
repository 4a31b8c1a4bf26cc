//! What is kept, under which names, through restarts, damage and full disks.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test may stop at once and say why"
)]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common::{Act, Fixture, Node, chain, hello, id, is_root, large, registry};
use kelson_image::{Images, PullError, PullRequest};
use kelson_snapshot::{Digest, Options, Overlayfs, Snapshotter};

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_moves_and_the_old_image_keeps_its_digest() {
    if !is_root() {
        return;
    }
    let (old, new) = (hello("old"), hello("new"));
    let fixture = Fixture::start(registry(&old), |_, _| Act::Serve).await;
    let node = Node::new();
    let name = fixture.image("hello");
    node.pull(&name).await.unwrap();
    fixture
        .registry
        .lock()
        .unwrap()
        .add_image("hello", "latest", &new);
    assert_eq!(node.pull(&name).await.unwrap(), id(&new));
    let check = |node: &Node| {
        assert_eq!(node.images.list().len(), 2);
        assert_eq!(node.images.resolve(&name).unwrap().id, id(&new));
        let by_digest = format!("{name}@{}", Digest::of(&old.manifest));
        let untagged = node.images.resolve(&by_digest).unwrap();
        assert_eq!((untagged.id, untagged.tags.len()), (id(&old), 0));
        assert_eq!(node.read(&by_digest, "/etc/hello").as_deref(), Some("old"));
    };
    check(&node);
    let node = node.reopen();
    check(&node);
    node.images.remove(&id(&old).digest().hex()[..12]).unwrap();
    assert_eq!(node.images.list().len(), 1);
    assert_eq!(node.read(&name, "/etc/hello").as_deref(), Some("new"));
}

#[tokio::test(flavor = "multi_thread")]
async fn removal_takes_all_names_and_spares_containers() {
    if !is_root() {
        return;
    }
    let image = hello("hi");
    let mut served = registry(&image);
    served.add_image("hello", "other", &image);
    let fixture = Fixture::start(served, |_, _| Act::Serve).await;
    let node = Node::new();
    let name = fixture.image("hello");
    node.pull(&name).await.unwrap();
    node.pull(&format!("{name}:other")).await.unwrap();
    assert_eq!(node.images.resolve(&name).unwrap().tags.len(), 2);

    let held = node.images.hold(&name).unwrap();
    node.images.remove(&format!("{name}:other")).unwrap();
    assert!(node.images.list().is_empty());
    assert_eq!(
        node.snapshots.layers().len(),
        1,
        "somebody is making a container of it"
    );
    node.snapshots.prepare("c1", &held.image.chain).unwrap();
    drop(held);
    node.images.collect().unwrap();
    assert_eq!(
        node.snapshots.layers().len(),
        1,
        "a container is made of it"
    );

    let node = node.reopen();
    node.images.collect().unwrap();
    assert_eq!(node.snapshots.layers().len(), 1, "also after a restart");
    node.snapshots.remove("c1").unwrap();
    node.images.collect().unwrap();
    assert!(node.snapshots.layers().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_and_repaired_by_a_pull() {
    if !is_root() {
        return;
    }
    let image = hello("hi");
    let fixture = Fixture::start(registry(&image), |_, _| Act::Serve).await;
    let mut node = Node::new();
    let name = fixture.image("hello");
    let root = |node: &Node| node.dir.path().join("root");
    for part in ["layers", "blobs/sha256"] {
        node.pull(&name).await.unwrap();
        let directory = root(&node).join(part);
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => std::fs::remove_dir_all(path).unwrap(),
                false => std::fs::write(path, b"garbage").unwrap(),
            }
        }
        node = node.reopen();
        assert!(node.images.resolve(&name).is_none(), "{part} is damaged");
        node.pull(&name).await.unwrap();
        assert_eq!(node.read(&name, "/etc/hello").as_deref(), Some("hi"));
        node = node.reopen();
        assert!(node.images.resolve(&name).is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_dies_leaves_nothing() {
    if !is_root() {
        return;
    }
    let image = large(300_000);
    let fixture = Fixture::start(registry(&image), |seen, _| {
        if seen.is_blob() {
            Act::Drip(5_000, Duration::from_millis(20))
        } else {
            Act::Serve
        }
    })
    .await;
    let node = Node::new();
    let name = fixture.image("hello");
    // What a killed process leaves is copied while the pull is at work.
    let copy = tempfile::tempdir().unwrap();
    let pulling = tokio::time::timeout(Duration::from_millis(500), node.pull(&name)).await;
    assert!(pulling.is_err(), "the pull is slow");
    let begun = {
        let images = node.images.clone();
        let reference = name.parse().unwrap();
        let request = PullRequest {
            reference,
            credentials: Default::default(),
        };
        tokio::spawn(async move { images.pull(request, None).await })
    };
    tokio::time::sleep(Duration::from_millis(400)).await;
    let from = format!("{}/.", node.dir.path().display());
    let copied = Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(copy.path())
        .status()
        .unwrap();
    assert!(copied.success());
    begun.abort();
    let config = common::config(copy.path());
    let snapshots = Arc::new(Overlayfs::open(&config.root, Options::default()).unwrap());
    let images = Images::open(config, Arc::clone(&snapshots) as Arc<dyn Snapshotter>).unwrap();
    assert!(images.list().is_empty() && snapshots.layers().is_empty());
    images.collect().unwrap();
    snapshots.empty_trash().unwrap();
    assert_eq!(images.usage().bytes, 0);
    let size = Command::new("du")
        .arg("-sk")
        .arg(copy.path())
        .output()
        .unwrap();
    let size = String::from_utf8(size.stdout).unwrap();
    let kib: u64 = size.split_whitespace().next().unwrap().parse().unwrap();
    assert!(kib < 5_000, "half of a layer is gone: {kib} KiB");
}

struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let mut command = Command::new("mount");
        command
            .args(["-t", "tmpfs", "-o", &options, "none"])
            .arg(dir.path());
        command.status().unwrap().success().then_some(Self(dir))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named_and_cleaned() {
    if !is_root() {
        return;
    }
    let Some(disk) = Tmpfs::mount("16m") else {
        eprintln!("skipped: cannot mount a tmpfs");
        return;
    };
    let image = large(30_000_000);
    let small = hello("small");
    let mut served = registry(&image);
    served.add_image("small", "latest", &small);
    let fixture = Fixture::start(served, |_, _| Act::Serve).await;
    let config = common::config(disk.path());
    let snapshots = Arc::new(Overlayfs::open(&config.root, Options::default()).unwrap());
    let images = Images::open(config, Arc::clone(&snapshots) as Arc<dyn Snapshotter>).unwrap();
    let request = |name: &str| PullRequest {
        reference: fixture.image(name).parse().unwrap(),
        credentials: Default::default(),
    };
    let error = images.pull(request("hello"), None).await.unwrap_err();
    assert!(matches!(error, PullError::DiskFull(_)), "{}", chain(&error));
    assert!(images.list().is_empty() && snapshots.layers().is_empty());
    snapshots.empty_trash().unwrap();
    images
        .pull(request("small"), None)
        .await
        .expect("there is room again");
}
