//! Real layers, containers and mounts.

use std::ffi::CString;
use std::fs;
use std::io::Read;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kelson_sys::mount::Filesystem;
use tempfile::TempDir;

use super::{Options, Overlayfs, view};
use crate::testing::{Header, Tar, expected, gzip, is_root, listing};
use crate::{
    ChainId, Digest, Extras, Limits, Rootfs, SnapshotError, Snapshotter as _, Staging, UnpackError,
    Usage,
};

/// A detached tmpfs of `bytes`.
pub(crate) fn small_file_system(bytes: u64) -> Option<OwnedFd> {
    let tmpfs = Filesystem::open(c"tmpfs").ok()?;
    tmpfs
        .set(c"size", &CString::new(bytes.to_string()).ok()?)
        .ok()?;
    tmpfs.mount(0).ok()
}

fn open(root: &Path) -> Overlayfs {
    Overlayfs::open(
        root,
        Options {
            sync: false,
            limits: Limits::default(),
        },
    )
    .unwrap()
}

fn stage(layers: &Overlayfs, tar: &[u8]) -> Staging {
    let blob = gzip(tar);
    layers.stage(&mut &blob[..], &expected(&blob, tar)).unwrap()
}

/// Stages and commits archives on top of each other.
fn image(layers: &Overlayfs, tars: Vec<Tar>) -> Vec<ChainId> {
    let mut chain = Vec::new();
    for tar in tars {
        let staging = stage(layers, &tar.end());
        let top = layers.commit(staging, chain.last()).unwrap();
        chain.push(top);
    }
    chain
}

fn text(name: &str, text: &str) -> CString {
    CString::new(text).unwrap_or_else(|_| panic!("{name}"))
}

/// The root file system as a container would see it, detached.
fn mount(rootfs: &Rootfs) -> OwnedFd {
    let overlay = Filesystem::open(c"overlay").unwrap();
    for lower in &rootfs.lower {
        overlay
            .set(c"lowerdir+", &text("lower", lower.to_str().unwrap()))
            .unwrap();
    }
    overlay
        .set(c"upperdir", &text("upper", rootfs.upper.to_str().unwrap()))
        .unwrap();
    overlay
        .set(c"workdir", &text("work", rootfs.work.to_str().unwrap()))
        .unwrap();
    overlay.mount(0).unwrap()
}

fn path(fd: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}/.", fd.as_raw_fd()).into()
}

/// Names of all files of a tree, sorted.
fn names(root: &Path) -> Vec<String> {
    listing(root)
        .lines()
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect()
}

fn entries(dir: PathBuf) -> usize {
    fs::read_dir(dir).unwrap().count()
}

#[test]
fn layers_merge_as_their_whiteouts_say() {
    if !is_root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let layers = open(dir.path());
    let chain = image(
        &layers,
        vec![
            Tar::new()
                .entry(Header::new(b'5', b"./", 0).mode(0o711).owner(3, 4), b"")
                .file("etc/passwd", b"old")
                .file("etc/gone", b"x")
                .file("opaque/below", b"x")
                .file("replaced/below", b"x")
                .file("dir/a", b"x")
                .file("merged/a", b"a"),
            Tar::new()
                .file("etc/passwd", b"new")
                .file("etc/.wh.gone", b"")
                .file("opaque/.wh..wh..opq", b"")
                .file("opaque/mine", b"x")
                .file(".wh.replaced", b"")
                .file("replaced/mine", b"x")
                .file("dir", b"a file now")
                .file("merged/b", b"b"),
        ],
    );
    let merged = [
        "",
        "dir",
        "etc",
        "etc/passwd",
        "merged",
        "merged/a",
        "merged/b",
        "opaque",
        "opaque/mine",
        "replaced",
        "replaced/mine",
    ];
    let view = layers.view(&chain).unwrap();
    assert_eq!(names(&path(&view)), merged);
    assert_eq!(
        fs::read_to_string(path(&view).join("etc/passwd")).unwrap(),
        "new"
    );
    let refused = fs::write(path(&view).join("x"), "").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    let below = layers.view(&chain[..1]).unwrap();
    assert_eq!(
        fs::read_to_string(path(&below).join("etc/passwd")).unwrap(),
        "old"
    );

    let rootfs = layers.prepare("c1", &chain).unwrap();
    assert_eq!(rootfs.lower.len(), 2);
    let root = mount(&rootfs);
    assert_eq!(names(&path(&root)), merged);
    let meta = fs::metadata(path(&root)).unwrap();
    assert_eq!(
        (meta.mode() & 0o7777, meta.uid(), meta.gid()),
        (0o711, 3, 4)
    );
    fs::write(path(&root).join("etc/passwd"), "mine").unwrap();
    fs::remove_file(path(&root).join("merged/a")).unwrap();
    assert_eq!(
        fs::read_to_string(rootfs.upper.join("etc/passwd")).unwrap(),
        "mine"
    );
    assert_eq!(
        fs::read_to_string(path(&view).join("etc/passwd")).unwrap(),
        "new"
    );
    assert_eq!(layers.rootfs("c1").unwrap(), rootfs);

    // The way of older kernels gives the same.
    let old = view::by_list(&rootfs.lower).unwrap();
    assert_eq!(listing(&path(&old)), listing(&path(&view)));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(dir.path().to_str().unwrap()));
}

#[test]
fn an_image_without_layers() {
    if !is_root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let layers = open(dir.path());
    let rootfs = layers.prepare("empty", &[]).unwrap();
    let root = mount(&rootfs);
    assert_eq!(names(&path(&root)), [""]);
    assert_eq!(names(&path(&layers.view(&[]).unwrap())), [""]);
    let expected = Usage {
        inodes: 1,
        ..layers.usage("empty").unwrap()
    };
    assert_eq!(layers.usage("empty").unwrap(), expected);
}

#[test]
fn an_opaque_root_cuts_the_chain() {
    if !is_root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let layers = open(dir.path());
    let chain = image(
        &layers,
        vec![
            Tar::new().file("below", b""),
            Tar::new().file(".wh..wh..opq", b"").file("above", b""),
            Tar::new().file("top", b""),
        ],
    );
    assert_eq!(
        names(&path(&layers.view(&chain).unwrap())),
        ["", "above", "top"]
    );
    assert_eq!(layers.prepare("c", &chain).unwrap().lower.len(), 2);
    drop(layers);
    assert_eq!(open(dir.path()).rootfs("c").unwrap().lower.len(), 2);
}

#[test]
fn undescribed_directories_look_like_those_below() {
    if !is_root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let layers = open(dir.path());
    let chain = image(
        &layers,
        vec![
            Tar::new()
                .entry(Header::new(b'5', b".", 0).mode(0o1750).owner(9, 9), b"")
                .pax(&[("mtime", b"77.5"), ("SCHILY.xattr.user.kept", b"yes")])
                .entry(Header::new(b'5', b"var", 0).mode(0o2770).owner(1, 2), b"")
                .entry(Header::new(b'5', b"hidden", 0).mode(0o700), b"")
                .entry(Header::new(b'5', b"hidden/sub", 0).mode(0o700), b"")
                .symlink("lib", "usr/lib"),
            Tar::new()
                .file("var/new/file", b"x")
                .file("lib/file", b"x")
                .file("hidden/.wh..wh..opq", b"")
                .file("hidden/sub/file", b"x"),
        ],
    );
    let view = listing(&path(&layers.view(&chain).unwrap()));
    let line = |start: &str| {
        view.lines()
            .find(|line| line.starts_with(start))
            .unwrap()
            .to_owned()
    };
    assert!(line(" ").starts_with(" 1750 9:9 1000000000.0"), "{view}");
    assert_eq!(
        line("var "),
        "var 2770 1:2 77.500000000 user.kept=[121, 101, 115]"
    );
    assert!(line("var/new ").starts_with("var/new 755 0:0"), "{view}");
    assert!(line("lib ").starts_with("lib 755 0:0"), "{view}");
    assert!(
        line("hidden/sub ").starts_with("hidden/sub 755 0:0"),
        "{view}"
    );
}

#[test]
fn hard_links_to_files_of_layers_below() {
    if !is_root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let layers = open(dir.path());
    let base = || {
        Tar::new()
            .entry(Header::new(b'5', b"usr", 0).mode(0o750), b"")
            .entry(Header::new(b'5', b"usr/bin", 0).mode(0o710), b"")
            .pax(&[("SCHILY.xattr.user.a", b"1"), ("mtime", b"5")])
            .entry(
                Header::new(b'0', b"usr/bin/tool", 4)
                    .mode(0o4755)
                    .owner(1, 1),
                b"tool",
            )
            .symlink("usr/bin/link", "tool")
            .entry(Header::new(b'6', b"usr/pipe", 0), b"")
    };
    let chain = image(
        &layers,
        vec![
            base(),
            Tar::new()
                .dir("opt")
                .hard_link("opt/tool", "usr/bin/tool")
                .hard_link("opt/again", "opt/tool")
                .hard_link("opt/link", "usr/bin/link")
                .hard_link("opt/pipe", "usr/pipe")
                .hard_link("opt/late", "usr/bin/tool")
                .file("opt/late", b"a later entry"),
        ],
    );
    let view = layers.view(&chain).unwrap();
    let tool = fs::metadata(path(&view).join("usr/bin/tool")).unwrap();
    assert_eq!(
        (tool.nlink(), tool.mode() & 0o7777, tool.uid(), tool.mtime()),
        (3, 0o4755, 1, 5)
    );
    let again = fs::metadata(path(&view).join("opt/again")).unwrap();
    assert_eq!(again.ino(), tool.ino());
    assert_eq!(
        fs::read_to_string(path(&view).join("opt/tool")).unwrap(),
        "tool"
    );
    assert_eq!(
        fs::read_to_string(path(&view).join("opt/late")).unwrap(),
        "a later entry"
    );
    assert_eq!(
        fs::read_link(path(&view).join("opt/link")).unwrap(),
        Path::new("tool")
    );
    assert!(listing(&path(&view)).contains("user.a=[49]"));
    let opt = fs::metadata(path(&view).join("opt")).unwrap();
    assert_eq!(opt.mtime(), 1_000_000_000);
    let bin = fs::metadata(path(&view).join("usr/bin")).unwrap();
    assert_eq!((bin.mode() & 0o777, bin.mtime()), (0o710, 1_000_000_000));

    for bad in [
        Tar::new().hard_link("x", "usr/bin/none"),
        Tar::new().hard_link("x", "usr/bin"),
        Tar::new()
            .file("usr/.wh.bin", b"")
            .hard_link("x", "usr/bin/tool"),
        Tar::new()
            .file("usr/.wh..wh..opq", b"")
            .hard_link("x", "usr/bin/tool"),
        Tar::new()
            .file(".wh..wh..opq", b"")
            .hard_link("x", "usr/bin/tool"),
        Tar::new()
            .file("usr/bin/.wh.tool", b"")
            .hard_link("x", "usr/bin/tool"),
        Tar::new().file("usr", b"").hard_link("x", "usr/bin/tool"),
    ] {
        let staging = stage(&layers, &bad.end());
        let error = layers.commit(staging, Some(&chain[0])).unwrap_err();
        assert!(
            matches!(error, SnapshotError::Unfit(UnpackError::Format { .. })),
            "{error:?}"
        );
    }
    let alone = stage(&layers, &Tar::new().hard_link("x", "y").end());
    assert!(matches!(
        layers.commit(alone, None),
        Err(SnapshotError::Unfit(_))
    ));
    assert_eq!(entries(dir.path().join("staging")), 0);
    assert_eq!(layers.layers().len(), 2);
}

#[test]
fn nothing_half_made_stays() {
    let dir = TempDir::new().unwrap();
    let layers = open(dir.path());
    let tar = Tar::new().file("a/b/c", &[1; 100_000]).end();
    let blob = gzip(&tar);
    let right = expected(&blob, &tar);
    assert!(layers.stage(&mut &blob[..50], &right).is_err());
    assert!(layers.stage(&mut &tar[..], &right).is_err());
    let wrong = crate::Expected {
        diff_id: Digest::of(b"").into(),
        ..right
    };
    assert!(layers.stage(&mut &blob[..], &wrong).is_err());
    assert_eq!(entries(dir.path().join("staging")), 0);
    let staging = layers.stage(&mut &blob[..], &right).unwrap();
    assert_eq!(entries(dir.path().join("staging")), 1);
    let nobody = ChainId::from(Digest::of(b"nobody"));
    let error = layers.commit(staging, Some(&nobody)).unwrap_err();
    assert!(matches!(error, SnapshotError::UnknownLayer(chain) if chain == nobody));
    drop(layers.stage(&mut &blob[..], &right).unwrap());
    assert_eq!(entries(dir.path().join("staging")), 0);
    assert!(layers.layers().is_empty());
    assert_eq!(layers.disk_usage(), Usage::default());
}

#[test]
fn images_that_a_container_mounts_stay_as_long_as_it() {
    let dir = TempDir::new().unwrap();
    let layers = open(dir.path());
    let own = image(&layers, vec![Tar::new().file("a", b"1")]);
    let other = image(&layers, vec![Tar::new().file("b", b"2")]);
    let extras = || Extras {
        chains: &other,
        ..Extras::default()
    };
    layers.prepare_with("c", &own, extras()).unwrap();
    let in_use = |layers: &Overlayfs| {
        matches!(
            layers.remove_layer(&other[0]),
            Err(SnapshotError::InUse { .. })
        )
    };
    assert!(in_use(&layers));
    assert_eq!(layers.tree(&other).unwrap().len(), 2);
    drop(layers);
    let layers = open(dir.path());
    assert!(in_use(&layers));
    layers.remove("c").unwrap();
    layers.remove_layer(&other[0]).unwrap();
    let missing = layers.prepare_with("d", &own, extras());
    assert!(matches!(missing, Err(SnapshotError::UnknownLayer(_))));
    assert!(layers.containers().is_empty());
}

#[test]
fn volumes_are_copies_that_go_with_their_container() {
    if !is_root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let layers = open(dir.path());
    let chain = image(
        &layers,
        vec![
            Tar::new().file("data/old", b"old").file("data/sub/f", b"f"),
            Tar::new()
                .file("data/old", b"new")
                .file("plain", b"p")
                .file("data/.wh.none", b""),
        ],
    );
    let names = |volumes: &[&str]| -> Vec<String> {
        volumes.iter().map(|name| (*name).to_owned()).collect()
    };
    fn extras(volumes: &[String]) -> Extras<'_> {
        Extras {
            volumes,
            ..Extras::default()
        }
    }
    let wanted = names(&["/data", "/not/there"]);
    layers.prepare_with("c", &chain, extras(&wanted)).unwrap();
    let first = layers.volume("c", 0);
    assert_eq!(fs::read_to_string(first.join("old")).unwrap(), "new");
    assert_eq!(fs::read_to_string(first.join("sub/f")).unwrap(), "f");
    assert!(!first.join(".wh.none").exists());
    let second = fs::metadata(layers.volume("c", 1)).unwrap();
    assert!(second.is_dir() && second.mode() & 0o777 == 0o755);
    for bad in ["/plain", "/plain/below"] {
        let wanted = names(&[bad]);
        let made = layers.prepare_with("d", &chain, extras(&wanted));
        assert!(matches!(made, Err(SnapshotError::Volume { .. })), "{bad}");
        assert!(!layers.volume("d", 0).exists());
    }
    layers.remove("c").unwrap();
    assert!(!first.exists());
    // The number of files is bounded.
    drop(layers);
    let limits = Limits {
        entries: 2,
        ..Limits::default()
    };
    let options = Options {
        sync: false,
        limits,
    };
    let small = Overlayfs::open(dir.path(), options).unwrap();
    let wanted = names(&["/data"]);
    let made = small.prepare_with("e", &chain, extras(&wanted));
    assert!(matches!(made, Err(SnapshotError::Limit { .. })), "{made:?}");
}

#[test]
fn what_is_in_use_stays() {
    let dir = TempDir::new().unwrap();
    let layers = open(dir.path());
    let chain = image(
        &layers,
        vec![Tar::new().file("a", b"1"), Tar::new().file("b", b"2")],
    );
    let in_use = |layer: &ChainId| match layers.remove_layer(layer) {
        Err(SnapshotError::InUse { by, .. }) => by,
        other => panic!("{other:?}"),
    };
    assert!(in_use(&chain[0]).contains(&chain[1].to_string()));
    layers.prepare("pod-1", &chain).unwrap();
    assert_eq!(in_use(&chain[1]), "container pod-1");
    assert!(matches!(
        layers.prepare("pod-1", &chain),
        Err(SnapshotError::ContainerExists(_))
    ));
    layers.remove("pod-1").unwrap();
    layers.remove("pod-1").unwrap();
    let (one, two) = (
        layers.hold(&chain[1]).unwrap(),
        layers.hold(&chain[1]).unwrap(),
    );
    drop(one);
    in_use(&chain[1]);
    drop(two);
    layers.remove_layer(&chain[1]).unwrap();
    layers.remove_layer(&chain[1]).unwrap();
    assert!(layers.hold(&chain[1]).is_none());
    assert!(matches!(
        layers.prepare("x", &chain),
        Err(SnapshotError::UnknownLayer(_))
    ));
    assert!(matches!(
        layers.view(&chain),
        Err(SnapshotError::UnknownLayer(_))
    ));
    assert!(matches!(
        layers.usage("x"),
        Err(SnapshotError::UnknownContainer(_))
    ));
    assert!(matches!(
        layers.rootfs("x"),
        Err(SnapshotError::UnknownContainer(_))
    ));
    layers.remove_layer(&chain[0]).unwrap();
    assert_eq!(entries(dir.path().join("trash")), 3);
    layers.empty_trash().unwrap();
    for dir in ["trash", "layers", "containers", "staging"].map(|name| path_in(&layers, name)) {
        assert_eq!(entries(dir), 0);
    }
    for bad in [
        "",
        ".",
        "..",
        "a/b",
        ".hidden",
        "a b",
        "ü",
        &"x".repeat(129),
    ] {
        let result = layers.prepare(bad, &[]);
        assert!(
            matches!(result, Err(SnapshotError::ContainerName(_))),
            "{bad}"
        );
    }
}

fn path_in(layers: &Overlayfs, name: &str) -> PathBuf {
    layers.0.dir(name)
}

#[test]
fn everything_is_found_again() {
    let dir = TempDir::new().unwrap();
    let layers = open(dir.path());
    assert!(matches!(
        Overlayfs::open(dir.path(), Options::default()),
        Err(SnapshotError::Busy(_))
    ));
    let chain = image(
        &layers,
        vec![Tar::new().file("a", b"1"), Tar::new().file("b", b"2")],
    );
    let rootfs = layers.prepare("c1", &chain).unwrap();
    let usage = layers.disk_usage();
    assert_eq!(usage.inodes, 4);
    let forgotten = std::mem::ManuallyDrop::new(stage(&layers, &Tar::new().file("c", b"").end()));
    assert_eq!(forgotten.usage().inodes, 2);
    layers.remove("c1").unwrap();
    let lower = rootfs.lower;
    let rootfs = layers.prepare("c2", &chain).unwrap();
    assert_eq!(rootfs.lower, lower);
    drop(layers);

    let layers = open(dir.path());
    let mut found = layers.layers();
    found.sort();
    let mut all = chain.clone();
    all.sort();
    assert_eq!(found, all);
    assert_eq!(layers.disk_usage(), usage);
    assert_eq!(layers.layer_usage(&chain[0]).unwrap().inodes, 2);
    assert_eq!(layers.containers(), ["c2"]);
    assert_eq!(layers.rootfs("c2").unwrap(), rootfs);
    assert_eq!(entries(dir.path().join("staging")), 0);
    layers.empty_trash().unwrap();
    assert_eq!(entries(dir.path().join("trash")), 0);
    // New names do not meet old ones.
    let third = stage(&layers, &Tar::new().file("c", b"3").end());
    let third = layers.commit(third, chain.last()).unwrap();
    assert_eq!(layers.rootfs("c2").unwrap(), rootfs);
    assert!(layers.has(&third));
}

#[test]
fn damaged_and_foreign_records() {
    let dir = TempDir::new().unwrap();
    let layers = open(dir.path());
    let make = |name: &str, count: usize| {
        image(
            &layers,
            (0..count)
                .map(|n| Tar::new().file(name, &[n as u8]))
                .collect(),
        )
    };
    let (whole, cut, headless) = (make("whole", 1), make("cut", 3), make("headless", 1));
    let (foreign, twice) = (make("foreign", 1), make("twice", 1));
    let place = |chain: &ChainId| {
        layers.0.lower(Some(chain)).unwrap()[0]
            .parent()
            .unwrap()
            .to_owned()
    };
    fs::write(place(&cut[0]).join("layer.json"), "{\"v\":1,\"chain").unwrap();
    fs::remove_dir_all(place(&headless[0]).join("fs")).unwrap();
    let newer = fs::read_to_string(place(&foreign[0]).join("layer.json")).unwrap();
    let newer = newer.replace("\"v\":1", "\"v\":2");
    fs::write(place(&foreign[0]).join("layer.json"), &newer).unwrap();
    let copy = dir.path().join("layers/zz");
    fs::create_dir_all(copy.join("fs")).unwrap();
    fs::copy(place(&twice[0]).join("layer.json"), copy.join("layer.json")).unwrap();
    fs::create_dir_all(dir.path().join("containers/half/upper")).unwrap();
    let foreign_place = place(&foreign[0]);
    drop(layers);

    let layers = open(dir.path());
    assert_eq!(layers.layers().len(), 2);
    assert!(layers.has(&whole[0]) && layers.has(&twice[0]));
    assert!(foreign_place.join("layer.json").exists());
    assert_eq!(entries(dir.path().join("layers")), 3);
    assert!(layers.containers().is_empty());
    assert!(!dir.path().join("containers/half").exists());
    // What was dropped can be had again.
    image(
        &layers,
        vec![Tar::new().file("cut", &[0]), Tar::new().file("cut", &[1])],
    );
    assert!(layers.has(&cut[1]));
}

#[test]
fn the_same_chain_twice_at_once() {
    let dir = TempDir::new().unwrap();
    let layers = open(dir.path());
    let tar = Tar::new().file("a", &[1; 10_000]).end();
    let chains: Vec<_> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| layers.commit(stage(&layers, &tar), None).unwrap()))
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert!(chains.iter().all(|chain| *chain == chains[0]));
    assert_eq!(layers.layers().len(), 1);
    assert_eq!(entries(dir.path().join("layers")), 1);
    assert_eq!(entries(dir.path().join("staging")), 0);
}

#[test]
fn container_usage() {
    let dir = TempDir::new().unwrap();
    let layers = open(dir.path());
    let upper = layers.prepare("c", &[]).unwrap().upper;
    let empty = layers.usage("c").unwrap();
    fs::write(upper.join("a"), vec![1; 1 << 20]).unwrap();
    fs::hard_link(upper.join("a"), upper.join("b")).unwrap();
    fs::File::create(upper.join("hole"))
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    std::os::unix::fs::symlink("/", upper.join("root")).unwrap();
    // Deeper than directories are held open.
    let deep = upper.join("d/".repeat(300));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), "x").unwrap();
    let usage = layers.usage("c").unwrap();
    assert_eq!(usage.inodes - empty.inodes, 1 + 1 + 1 + 300 + 1);
    let bytes = usage.bytes - empty.bytes;
    assert!((1 << 20..3 << 20).contains(&bytes), "{bytes}");
}

#[test]
fn trash_of_any_shape_is_deleted() {
    let dir = TempDir::new().unwrap();
    let layers = open(dir.path());
    let upper = layers.prepare("c", &[]).unwrap().upper;
    fs::create_dir(dir.path().join("outside")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("outside"), upper.join("out")).unwrap();
    fs::create_dir(upper.join("locked")).unwrap();
    fs::write(upper.join("locked/file"), "").unwrap();
    fs::set_permissions(upper.join("locked"), fs::Permissions::from_mode(0o500)).unwrap();
    // Deeper than any path can say.
    let mut here = crate::tree::open_dir(&upper).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&here, "deep-directory", rustix::fs::Mode::RWXU).unwrap();
        here = crate::tree::open_child(&here, b"deep-directory").unwrap();
    }
    drop(here);
    layers.remove("c").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| layers.empty_trash().unwrap());
        }
    });
    layers.empty_trash().unwrap();
    assert_eq!(entries(dir.path().join("trash")), 0);
    assert!(dir.path().join("outside").exists());
}

#[test]
fn a_thousand_layers_open_fast() {
    let dir = TempDir::new().unwrap();
    drop(open(dir.path()));
    for number in 1..=1000_u32 {
        let place = dir.path().join("layers").join(number.to_string());
        fs::create_dir_all(place.join("fs")).unwrap();
        let diff = Digest::of(&number.to_be_bytes()).into();
        let record = super::records::LayerRecord {
            chain: ChainId::new(None, &diff),
            diff,
            parent: None,
            usage: Usage {
                bytes: 1,
                inodes: 1,
            },
            opaque_root: false,
            boot: None,
        };
        super::records::write(&place.join("layer.json"), &record).unwrap();
    }
    let start = Instant::now();
    let layers = open(dir.path());
    let took = start.elapsed();
    assert_eq!(
        layers.disk_usage(),
        Usage {
            bytes: 1000,
            inodes: 1000
        }
    );
    eprintln!("1000 layers opened in {took:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn a_layer_that_power_loss_overtook_is_dropped_with_those_above() {
    let dir = TempDir::new().unwrap();
    let open = |boot| Overlayfs::open_in_boot(dir.path(), Options::default(), boot).unwrap();
    let record = |number: usize| -> (PathBuf, String) {
        let path = dir.path().join(format!("layers/{number}/layer.json"));
        let text = fs::read_to_string(&path).unwrap();
        (path, text)
    };
    let layers = open("first");
    let tar = |name: &str| Tar::new().file(name, b"data");
    let chain = image(&layers, vec![tar("a"), tar("b"), tar("c")]);
    let places: Vec<usize> = (1..10)
        .filter(|number| dir.path().join(format!("layers/{number}")).exists())
        .collect();
    assert!(record(places[1]).1.contains(r#""boot":"first""#));
    // A daemon that ends leaves nothing to chance.
    drop(layers);
    for number in &places {
        assert!(!record(*number).1.contains("boot"));
    }
    let layers = open("second");
    assert_eq!(layers.layers().len(), 3, "what is on disk survives");
    drop(layers);

    // As if the daemon, or the machine, had ended before the second layer was on disk.
    let (path, text) = record(places[1]);
    let mut unsettled: serde_json::Value = serde_json::from_str(&text).unwrap();
    unsettled["boot"] = "second".into();
    fs::write(&path, unsettled.to_string()).unwrap();
    let layers = open("second");
    assert_eq!(
        layers.layers().len(),
        3,
        "the end of a daemon costs nothing"
    );
    drop(layers);
    assert_eq!(
        record(places[1]).1,
        text,
        "the next daemon makes it durable"
    );
    fs::write(&path, unsettled.to_string()).unwrap();
    let layers = open("third");
    assert_eq!(
        layers.layers(),
        chain[..1],
        "the third layer lost its parent"
    );
}

#[test]
fn a_stack_may_be_as_high_as_overlayfs_takes() {
    if !is_root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let layers = open(dir.path());
    let mut chain: Vec<ChainId> = Vec::new();
    let error = loop {
        let tar = Tar::new()
            .file("number", chain.len().to_string().as_bytes())
            .end();
        match layers.commit(stage(&layers, &tar), chain.last()) {
            Ok(top) => chain.push(top),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(error, SnapshotError::Limit { limit: 500, .. }),
        "{error:?}"
    );
    assert_eq!(chain.len(), 500);
    let view = layers.view(&chain).unwrap();
    assert_eq!(
        fs::read_to_string(path(&view).join("number")).unwrap(),
        "499"
    );
}

const CRASH: &str = "KELSON_SNAPSHOT_CRASH_TEST";

/// Unpacks and commits until it is killed; does nothing unless the test below starts it.
#[test]
fn crash_worker() {
    let Some(root) = std::env::var_os(CRASH) else {
        return;
    };
    let layers = Overlayfs::open(Path::new(&root), Options::default()).unwrap();
    for number in 0_u32.. {
        let tar = crash_layer(number % 7 + 1);
        let base = layers.commit(stage(&layers, &tar), None).unwrap();
        let top = layers
            .commit(stage(&layers, &crash_layer(number % 5 + 20)), Some(&base))
            .unwrap();
        layers.prepare(&format!("c{number}"), &[base, top]).unwrap();
        layers.remove(&format!("c{number}")).unwrap();
        layers.remove_layer(&top).unwrap();
        layers.remove_layer(&base).unwrap();
        layers.empty_trash().unwrap();
    }
}

fn crash_layer(files: u32) -> Vec<u8> {
    let name = |number: u32| format!("d{number}/file");
    (0..files)
        .fold(Tar::new(), |tar, n| tar.file(&name(n), &[n as u8; 3000]))
        .end()
}

#[test]
fn killed_at_any_time_nothing_half_made_is_seen() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("root");
    let mut seen = 0;
    for round in 0..40 {
        let mut worker = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "overlay::tests::crash_worker",
                "--test-threads=1",
            ])
            .env(CRASH, &root)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while !root.join("trash").exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(20 + round * 3));
        worker.kill().unwrap();
        worker.wait().unwrap();

        let layers = open(&root);
        for chain in layers.layers() {
            let fs = &layers.0.lower(Some(&chain)).unwrap()[0];
            let files = names(fs)
                .iter()
                .filter(|name| name.ends_with("/file"))
                .count();
            let usage = layers.layer_usage(&chain).unwrap();
            assert_eq!(usage.inodes as usize, files * 2 + 1);
            for number in 0..files {
                let data = fs::read(fs.join(format!("d{number}/file"))).unwrap();
                assert_eq!(data, [number as u8; 3000]);
            }
            seen += 1;
        }
        for container in layers.containers() {
            let rootfs = layers.rootfs(&container).unwrap();
            assert!(rootfs.upper.is_dir() && rootfs.work.is_dir());
            layers.remove(&container).unwrap();
        }
        assert_eq!(entries(root.join("staging")), 0);
        assert_eq!(entries(root.join("layers")), layers.layers().len());
        assert_eq!(entries(root.join("containers")), 0);
        layers.empty_trash().unwrap();
        assert_eq!(entries(root.join("trash")), 0);
    }
    assert!(seen > 0, "the worker never got as far as a layer");
}

/// An image made by umoci, unpacked by umoci and by us.
#[test]
fn agrees_with_umoci() {
    if !is_root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let umoci = |args: &[&str]| {
        std::process::Command::new("umoci")
            .args(args)
            .output()
            .is_ok_and(|done| {
                if !done.status.success() {
                    eprintln!("umoci {args:?}: {}", String::from_utf8_lossy(&done.stderr));
                }
                done.status.success()
            })
    };
    if !umoci(&["--version"]) {
        eprintln!("skipped: needs umoci");
        return;
    }
    let time: &[(&str, &[u8])] = &[("mtime", b"1234567890.123456789")];
    let tars = [
        Tar::new()
            .entry(Header::new(b'5', b"./", 0).mode(0o755), b"")
            .entry(Header::new(b'5', b"etc", 0).mode(0o750).owner(1, 2), b"")
            .pax(time)
            .entry(Header::new(b'0', b"etc/passwd", 3).mode(0o640), b"old")
            .hard_link("etc/passwd-", "etc/passwd")
            .dir("usr")
            .dir("usr/lib")
            .symlink("lib", "usr/lib")
            .file("usr/lib/gone", b"x")
            .dir("opaque")
            .file("opaque/below", b"x")
            .entry(Header::new(b'5', b"tmp", 0).mode(0o1777), b"")
            .entry(Header::new(b'3', b"null", 0).mode(0o666).device(1, 3), b"")
            .entry(Header::new(b'6', b"pipe", 0), b""),
        Tar::new()
            .entry(Header::new(b'5', b"./", 0).mode(0o755), b"")
            .dir("etc")
            .file("etc/passwd", b"new")
            .dir("usr")
            .dir("usr/lib")
            .file("usr/lib/.wh.gone", b"")
            .dir("opaque")
            .file("opaque/.wh..wh..opq", b"")
            .pax(&[("SCHILY.xattr.user.note", b"1")])
            .entry(
                Header::new(b'0', b"opaque/mine", 1)
                    .mode(0o4711)
                    .owner(7, 7),
                b"m",
            )
            .file(".wh.null", b""),
        Tar::new()
            .entry(Header::new(b'5', b"./", 0).mode(0o711), b"")
            .file("null", b"a file")
            .symlink("pipe", "tmp"),
    ]
    .map(Tar::end);
    let image_name = at("image:test");
    assert!(umoci(&["init", "--layout", &at("image")]));
    assert!(umoci(&["new", "--image", &image_name]));
    for (number, tar) in tars.iter().enumerate() {
        let file = at(&format!("{number}.tar"));
        fs::write(&file, tar).unwrap();
        assert!(umoci(&["raw", "add-layer", "--image", &image_name, &file]));
    }
    assert!(umoci(&["unpack", "--image", &image_name, &at("bundle")]));

    let json = |path: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    };
    let blob = |digest: &serde_json::Value| {
        at(&format!(
            "image/blobs/sha256/{}",
            digest.as_str().unwrap().trim_start_matches("sha256:")
        ))
    };
    let manifest = json(&blob(
        &json(&at("image/index.json"))["manifests"][0]["digest"],
    ));
    let config = json(&blob(&manifest["config"]["digest"]));
    let layers = open(&dir.path().join("root"));
    let mut chain: Vec<ChainId> = Vec::new();
    for (number, layer) in manifest["layers"].as_array().unwrap().iter().enumerate() {
        let expected = crate::Expected {
            blob: layer["digest"].as_str().unwrap().parse().unwrap(),
            size: layer["size"].as_u64().unwrap(),
            diff_id: config["rootfs"]["diff_ids"][number]
                .as_str()
                .unwrap()
                .parse()
                .unwrap(),
        };
        let mut file: Box<dyn Read + Send> =
            Box::new(fs::File::open(blob(&layer["digest"])).unwrap());
        let staging = layers.stage(&mut *file, &expected).unwrap();
        chain.push(layers.commit(staging, chain.last()).unwrap());
    }
    let theirs = listing(&dir.path().join("bundle/rootfs"));
    let ours = listing(&path(&layers.view(&chain).unwrap()));
    assert_eq!(ours, theirs);
}
