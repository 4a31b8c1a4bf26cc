//! Unpacking whole blobs into real directories.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;

use super::{Extracted, unpack};
use crate::testing::{Header, Tar, expected, gzip, is_root, listing};
use crate::{Digest, Expected, Limits, UnpackError, Which, tree};

/// A directory to unpack into, beside one that must stay as it is.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::create_dir(dir.path().join("sentinel")).unwrap();
        fs::write(dir.path().join("sentinel/file"), "untouched").unwrap();
        Self { dir }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    fn blob(
        &self,
        mut blob: &[u8],
        expected: &Expected,
        limits: &Limits,
    ) -> Result<Extracted, UnpackError> {
        unpack(
            &mut blob,
            expected,
            limits,
            tree::open_dir(&self.root()).unwrap(),
        )
    }

    fn tar(&self, tar: &[u8]) -> Result<Extracted, UnpackError> {
        self.blob(tar, &expected(tar, tar), &Limits::default())
    }

    fn outside(&self) -> Vec<PathBuf> {
        let mut names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        names.sort();
        names
    }

    fn assert_sentinel(&self) {
        let base = self.dir.path();
        assert_eq!(self.outside(), [base.join("root"), base.join("sentinel")]);
        assert_eq!(
            fs::read_to_string(base.join("sentinel/file")).unwrap(),
            "untouched"
        );
        assert_eq!(fs::read_dir(base.join("sentinel")).unwrap().count(), 1);
        let meta = fs::metadata(base.join("sentinel")).unwrap();
        assert_eq!(meta.mode() & 0o7777, 0o755 & !umask());
    }
}

fn umask() -> u32 {
    let probe = TempDir::new().unwrap();
    fs::create_dir(probe.path().join("probe")).unwrap();
    0o755 & !fs::metadata(probe.path().join("probe")).unwrap().mode()
}

/// Unpacks into a fresh place.
fn ok(tar: Tar) -> (Place, Extracted) {
    let place = Place::new();
    let extracted = place.tar(&tar.end()).unwrap();
    place.assert_sentinel();
    (place, extracted)
}

/// Unpacks into a fresh place and must fail.
fn fails(tar: Tar) -> UnpackError {
    let place = Place::new();
    let error = place.tar(&tar.end()).unwrap_err();
    place.assert_sentinel();
    error
}

fn assert_format(tar: Tar, reason: &str) {
    match fails(tar) {
        UnpackError::Format { reason: got, .. } => assert!(got.contains(reason), "{got}"),
        other => panic!("{other:?}"),
    }
}

fn assert_limit(tar: Tar, limited: &str) {
    match fails(tar) {
        UnpackError::Limit { what, .. } => assert_eq!(what, limited),
        other => panic!("{other:?}"),
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn all_kinds_of_entries() {
    if !is_root() {
        return;
    }
    let (place, extracted) = ok(Tar::new()
        .entry(Header::new(b'5', b"./", 0).mode(0o1777), b"")
        .entry(Header::new(b'5', b"./d/", 0).mode(0o2750).owner(7, 8), b"")
        .entry(
            Header::new(b'0', b"d/suid", 3)
                .mode(0o4755)
                .owner(1000, 1001),
            b"abc",
        )
        .hard_link("d/same", "./d/suid")
        .symlink("link", "../../nowhere")
        .entry(Header::new(b'3', b"null", 0).mode(0o666).device(1, 3), b"")
        .entry(
            Header::new(b'4', b"disk", 0)
                .mode(0o660)
                .owner(0, 6)
                .device(8, 0),
            b"",
        )
        .entry(Header::new(b'6', b"pipe", 0).mode(0o622), b"")
        .file("/absolute", b"x"));
    let time = "1000000000.0";
    let expected = format!(
        " 1777 0:0 {time}\n\
         absolute 644 0:0 {time} 1 {}\n\
         d 2750 7:8 {time}\n\
         d/same 4755 1000:1001 {time} 3 {abc}\n\
         d/suid 4755 1000:1001 {time} =d/same 3 {abc}\n\
         disk 660 0:6 {time} b 8:0\n\
         link 777 0:0 {time} -> ../../nowhere\n\
         null 666 0:0 {time} c 1:3\n\
         pipe 622 0:0 {time} p 0:0",
        Digest::of(b"x"),
        abc = Digest::of(b"abc")
    );
    assert_eq!(listing(&place.root()), expected);
    assert_eq!(extracted.usage.inodes, 8);
    assert!(extracted.undescribed.is_empty());
}

#[test]
fn long_names_and_times() {
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(200));
    let gnu = format!("gnu/{}", "n".repeat(250));
    let (place, _) = ok(Tar::new()
        .pax(&[
            ("path", long.as_bytes()),
            ("mtime", b"-1.25"),
            ("uid", b"0"),
            ("comment", b"hi"),
        ])
        .file("short", b"pax")
        .gnu_long(b'L', gnu.as_bytes())
        .gnu_long(b'K', "t".repeat(300).as_bytes())
        .symlink("short", "short")
        .entry(
            Header::new(b'0', b"name", 1)
                .bytes(345, b"some/prefix")
                .bytes(136, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe"),
            b"u",
        )
        .entry(
            Header::new(b'0', b"go", 1)
                .bytes(257, b"ustar  \0")
                .bytes(345, b"old/prefix"),
            b"g",
        ));
    assert_eq!(read(&place.path(&long)), "pax");
    let meta = fs::metadata(place.path(&long)).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (-2, 750_000_000));
    assert_eq!(
        fs::read_link(place.path(&gnu)).unwrap().as_os_str().len(),
        300
    );
    assert_eq!(
        fs::metadata(place.path("some/prefix/name"))
            .unwrap()
            .mtime(),
        -2
    );
    assert_eq!(read(&place.path("old/prefix/go")), "g");
}

#[test]
fn empty_archives_and_missing_ends() {
    for tar in [vec![], vec![0; 512], vec![0; 1024], vec![0; 10240]] {
        Place::new().tar(&tar).unwrap();
    }
    let place = Place::new();
    place.tar(&Tar::new().file("a", b"1").0).unwrap();
    place.tar(&Tar::new().file("b", b"2").0[..513]).unwrap();
    assert_eq!(read(&place.path("b")), "2");
}

#[test]
fn what_follows_the_end_is_hashed_and_ignored() {
    let mut tar = Tar::new().file("a", b"1").end();
    tar.extend_from_slice(&Tar::new().file("b", b"2").end());
    tar.extend(std::iter::repeat_n(7, 3_000_000));
    let place = Place::new();
    place.tar(&tar).unwrap();
    assert!(!place.path("b").exists());
}

#[test]
fn gzip_members_zstd_frames_and_plain() {
    let tar = Tar::new().file("a", &[b'x'; 700_000]).file("b", b"2").end();
    let (front, back) = tar.split_at(300_000);
    let zstd = |data: &[u8]| zstd::encode_all(data, 3).unwrap();
    let skippable = [b"\x50\x2a\x4d\x18\x04\0\0\0skip".to_vec(), zstd(&tar)].concat();
    for blob in [
        tar.clone(),
        gzip(&tar),
        [gzip(front), gzip(b""), gzip(back)].concat(),
        zstd(&tar),
        [zstd(front), zstd(back)].concat(),
        skippable,
    ] {
        let place = Place::new();
        place
            .blob(&blob, &expected(&blob, &tar), &Limits::default())
            .unwrap();
        assert_eq!(read(&place.path("a")).len(), 700_000);
        assert_eq!(read(&place.path("b")), "2");
    }
    for (magic, name) in [(&b"BZh9"[..], "bzip2"), (b"\xfd7zXZ\0", "xz")] {
        let error = Place::new().tar(magic).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn damaged_blobs() {
    let tar = Tar::new().file("a", &[b'x'; 70_000]).end();
    let blob = gzip(&tar);
    let right = expected(&blob, &tar);
    let limits = Limits::default();
    let run =
        |blob: &[u8], expected: &Expected| Place::new().blob(blob, expected, &limits).unwrap_err();

    for cut in [0, 1, 3, 10, blob.len() / 2, blob.len() - 1] {
        let error = run(&blob[..cut], &right);
        let announced = right.size;
        assert!(
            matches!(error, UnpackError::Truncated { got, expected } if got == cut as u64 && expected == announced),
            "{cut}: {error:?}"
        );
    }
    let long = [&blob[..], b"x"].concat();
    assert!(matches!(run(&long, &right), UnpackError::TooLong { .. }));

    let mut flipped = blob.clone();
    flipped[40] ^= 1;
    let is_blob = |error| matches!(error, UnpackError::DigestMismatch { which: Which::Blob, expected, .. } if expected == right.blob);
    assert!(is_blob(run(&flipped, &right)));
    assert!(is_blob(run(
        &gzip(&tar[..512])[..],
        &Expected {
            size: gzip(&tar[..512]).len() as u64,
            ..right
        }
    )));

    let other = Expected {
        diff_id: Digest::of(b"other").into(),
        ..right
    };
    let error = run(&blob, &other);
    assert!(matches!(
        error,
        UnpackError::DigestMismatch {
            which: Which::Uncompressed,
            ..
        }
    ));

    // The right digest of bytes that are no gzip stream.
    let error = run(&flipped, &expected(&flipped, &tar));
    assert!(
        matches!(
            error,
            UnpackError::Format {
                source: Some(_),
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn a_reader_that_fails() {
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::ConnectionReset.into())
        }
    }
    let tar = gzip(&Tar::new().file("a", b"1").end());
    let (half, _) = tar.split_at(20);
    let place = Place::new();
    let root = tree::open_dir(&place.root()).unwrap();
    let mut reader = std::io::Read::chain(half, Broken);
    let error = unpack(&mut reader, &expected(&tar, b""), &Limits::default(), root).unwrap_err();
    assert!(
        matches!(error, UnpackError::Read { got: 20, .. }),
        "{error:?}"
    );
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in [
        "../sentinel/file",
        "a/../../sentinel/x",
        "..",
        "/../x",
        "a/..",
    ] {
        assert!(
            matches!(
                fails(Tar::new().file(name, b"x")),
                UnpackError::Escape { .. }
            ),
            "{name}"
        );
    }
    assert!(matches!(
        fails(Tar::new().dir("../d")),
        UnpackError::Escape { .. }
    ));
    assert!(matches!(
        fails(Tar::new().symlink("../l", "x")),
        UnpackError::Escape { .. }
    ));
    let link = Tar::new().hard_link("stolen", "../sentinel/file");
    assert!(matches!(fails(link), UnpackError::Escape { .. }));
    let pax = Tar::new().pax(&[("path", b"../../x")]).file("x", b"");
    assert!(matches!(fails(pax), UnpackError::Escape { .. }));
}

#[test]
fn links_on_the_way_stay_inside() {
    let out = Tar::new()
        .symlink("out", "../sentinel")
        .file("out/file", b"overwritten");
    assert!(matches!(fails(out), UnpackError::Escape { .. }));
    let chain = Tar::new()
        .dir("a")
        .symlink("a/b", "..")
        .symlink("c", "a/b/../sentinel");
    assert!(matches!(
        fails(chain.file("c/file", b"x")),
        UnpackError::Escape { .. }
    ));
    assert_limit(
        Tar::new()
            .symlink("x", "y")
            .symlink("y", "x")
            .file("x/f", b""),
        "symbolic links in a path",
    );

    let place = Place::new();
    let absolute = place.dir.path().join("sentinel");
    let tar = Tar::new()
        .symlink("abs", absolute.to_str().unwrap())
        .file("abs/file", b"inside");
    place.tar(&tar.end()).unwrap();
    place.assert_sentinel();
    let inside = place.path(absolute.strip_prefix("/").unwrap().to_str().unwrap());
    assert_eq!(read(&inside.join("file")), "inside");

    let (place, extracted) = ok(Tar::new()
        .symlink("lib", "usr/lib")
        .symlink("var/run", "/run")
        .file("lib/a", b"1")
        .file("var/run/b", b"2")
        .dir("usr/lib/sub")
        .symlink("usr/up", "lib/sub/../..")
        .file("usr/up/c", b"3"));
    assert!(
        fs::symlink_metadata(place.path("lib"))
            .unwrap()
            .is_symlink()
    );
    assert_eq!(read(&place.path("usr/lib/a")), "1");
    assert_eq!(read(&place.path("run/b")), "2");
    assert_eq!(read(&place.path("usr/c")), "3");
    let undescribed: Vec<_> = extracted
        .undescribed
        .iter()
        .map(|path| String::from_utf8_lossy(path))
        .collect();
    assert_eq!(undescribed, ["var", "usr/lib", "usr", "run", ""]);
}

#[test]
fn a_link_is_never_written_through() {
    let place = Place::new();
    let target = place.dir.path().join("sentinel/file");
    let target = target.to_str().unwrap();
    let tar = Tar::new()
        .symlink("f", target)
        .entry(Header::new(b'0', b"f", 3).mode(0o777), b"new")
        .symlink("d", "../sentinel")
        .entry(Header::new(b'5', b"d", 0).mode(0o777), b"")
        .symlink("w", "../sentinel")
        .file(".wh.w", b"")
        .symlink("o", "../sentinel");
    place.tar(&tar.end()).unwrap();
    place.assert_sentinel();
    assert_eq!(read(&place.path("f")), "new");
    assert!(fs::symlink_metadata(place.path("d")).unwrap().is_dir());
    let opaque = Tar::new()
        .symlink("o", "../sentinel")
        .file("o/.wh..wh..opq", b"");
    assert!(matches!(fails(opaque), UnpackError::Escape { .. }));
    let root = Tar::new()
        .symlink("x", "/")
        .hard_link("y", "x/../../sentinel/file");
    assert!(matches!(fails(root), UnpackError::Escape { .. }));
}

#[test]
fn the_last_entry_of_a_name_counts() {
    let (place, _) = ok(Tar::new()
        .file("a/b/c", b"old")
        .file("a", b"file over directory")
        .file("d", b"x")
        .file("d", b"file over file")
        .file("e", b"x")
        .entry(Header::new(b'5', b"e/", 0).mode(0o700), b"")
        .file("e/in", b"directory over file")
        .dir("g")
        .file("g/kept", b"kept")
        .entry(Header::new(b'5', b"g", 0).mode(0o711), b"")
        .file("h", b"1")
        .hard_link("i", "h")
        .file("i", b"2")
        .file("a2/x/y", b"1")
        .symlink("a2", "g")
        .file("a2/via", b"link"));
    assert_eq!(read(&place.path("a")), "file over directory");
    assert_eq!(read(&place.path("d")), "file over file");
    assert_eq!(read(&place.path("e/in")), "directory over file");
    assert_eq!(read(&place.path("g/kept")), "kept");
    assert_eq!(read(&place.path("g/via")), "link");
    assert_eq!(fs::metadata(place.path("g")).unwrap().mode() & 0o777, 0o711);
    assert_eq!(
        (read(&place.path("h")), read(&place.path("i"))),
        ("1".into(), "2".into())
    );
}

#[test]
fn whiteouts() {
    if !is_root() {
        return;
    }
    let (place, extracted) = ok(Tar::new()
        .file(".wh.gone", b"")
        .file("dir/.wh.gone", b"")
        .file("both/kept", b"x")
        .file(".wh.both", b"")
        .file(".wh.again", b"")
        .dir("again")
        .file(".wh.file", b"")
        .file("file", b"new")
        .file("file2", b"new")
        .file(".wh.file2", b"")
        .file(".wh.parent", b"")
        .file("parent/in", b"x")
        .dir("opaque")
        .file("opaque/.wh..wh..opq", b"")
        .file("implicit/.wh..wh..opq", b"")
        .file("blocked", b"x")
        .file("blocked/.wh.in", b"")
        .file(".wh..wh.plnk/12.34", b"x")
        .file(".wh..wh.aufs", b"x"));
    let listing = listing(&place.root());
    let lines: Vec<_> = listing
        .lines()
        .map(|line| {
            let name = line.split(' ').next().unwrap();
            let mark = if line.ends_with(" w") {
                " w"
            } else if line.ends_with("opaque") {
                " o"
            } else {
                ""
            };
            format!("{name}{mark}")
        })
        .collect();
    assert_eq!(
        lines,
        [
            "",
            "again o",
            "blocked",
            "both o",
            "both/kept",
            "dir",
            "dir/gone w",
            "file",
            "file2",
            "gone w",
            "implicit o",
            "opaque o",
            "parent o",
            "parent/in"
        ]
    );
    assert!(!extracted.opaque_root);
    let (_, extracted) = ok(Tar::new().file(".wh..wh..opq", b"").file("a", b""));
    assert!(extracted.opaque_root);
    assert_format(Tar::new().file(".wh.", b""), "whiteout names nothing");
    assert_format(Tar::new().file("a/.wh...", b""), "whiteout names nothing");
    assert_format(Tar::new().file(".wh.a/b", b""), "used as a directory");
}

#[test]
fn hard_links() {
    let (place, extracted) = ok(Tar::new()
        .file("d/a", b"1")
        .symlink("s", "d")
        .hard_link("b", "s/a")
        .hard_link("self", "self")
        .hard_link("b", "b")
        .symlink("dangling", "nowhere")
        .hard_link("link2", "dangling")
        .file("lost", b"x")
        .hard_link("lost", "/usr//bin/./tool"));
    assert_eq!(fs::metadata(place.path("b")).unwrap().nlink(), 2);
    assert!(
        fs::symlink_metadata(place.path("link2"))
            .unwrap()
            .is_symlink()
    );
    assert!(!place.path("lost").exists());
    let links: Vec<_> = extracted
        .links
        .iter()
        .map(|(a, b)| (&a[..], &b[..]))
        .collect();
    assert_eq!(
        links,
        [(&b"self"[..], &b"self"[..]), (b"lost", b"usr/bin/tool")]
    );
    assert_format(
        Tar::new().dir("d").hard_link("x", "d"),
        "hard link to the directory",
    );
    assert_format(Tar::new().hard_link("x", "/"), "no file");
    assert_format(Tar::new().hard_link("x", ""), "no file");
}

#[test]
fn extended_attributes() {
    if !is_root() {
        return;
    }
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let (place, _) = ok(Tar::new()
        .pax(&[
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.note", b"a=b\0c"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.selinux", b"label"),
        ])
        .entry(Header::new(b'0', b"ping", 1).owner(5, 5).mode(0o755), b"x")
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.d", b"1"),
        ])
        .dir("dir")
        .pax(&[("SCHILY.xattr.user.x", b"1")])
        .symlink("link", "ping"));
    let listing = listing(&place.root());
    assert!(
        listing.contains("security.capability=[1, 0, 0, 2, 0, 32"),
        "{listing}"
    );
    assert!(
        listing.contains("user.note=[97, 61, 98, 0, 99]"),
        "{listing}"
    );
    assert!(listing.contains("user.d=[49]"), "{listing}");
    assert!(
        !listing.contains("overlay") && !listing.contains("selinux"),
        "{listing}"
    );
    assert!(!listing.contains("opaque"), "{listing}");
}

#[test]
fn sparse_files() {
    let check = |tar: Tar, length: u64| {
        let (place, extracted) = ok(tar);
        let data = fs::read(place.path("sparse")).unwrap();
        assert_eq!(data.len() as u64, length);
        assert_eq!(
            (&data[..4], &data[1_000_000..1_000_004]),
            (&b"head"[..], &b"tail"[..])
        );
        assert!(data[4..1_000_000].iter().all(|byte| *byte == 0));
        let blocks = fs::metadata(place.path("sparse")).unwrap().blocks();
        assert!(blocks * 512 <= 16384, "{blocks}");
        assert!(extracted.usage.bytes < 32768);
        assert_eq!(read(&place.path("after")), "x");
    };
    let length = 2_000_000_u64;
    let text = length.to_string();
    let row = |at: usize, offset: u64, count: u64| (at, offset, count);
    let mut old = Header::new(b'S', b"sparse", 8)
        .bytes(257, b"ustar  \0")
        .octal(483, 12, length);
    for (at, offset, count) in [row(386, 0, 4), row(410, 1_000_000, 4), row(434, length, 0)] {
        old = old.octal(at, 12, offset).octal(at + 12, 12, count);
    }
    check(
        Tar::new().entry(old, b"headtail").file("after", b"x"),
        length,
    );

    // A table that goes on in blocks of its own.
    let mut header = Header::new(b'S', b"sparse", 8)
        .bytes(257, b"ustar  \0")
        .octal(483, 12, length);
    for index in 0..4 {
        header = header
            .octal(386 + index * 24, 12, index as u64)
            .octal(398 + index * 24, 12, 1);
    }
    let mut more = Header { block: [0; 512] };
    more = more
        .octal(0, 12, 1_000_000)
        .octal(12, 12, 4)
        .octal(24, 12, length)
        .octal(36, 12, 0);
    let mut tar = Tar::new()
        .entry(header.bytes(482, &[1]), b"")
        .raw(&more.block);
    tar = tar.raw(b"headtail").raw(&[0; 504]).file("after", b"x");
    check(tar, length);

    let tail = |tar: Tar| tar.file("after", b"x");
    check(
        tail(
            Tar::new()
                .pax(&[
                    ("GNU.sparse.size", text.as_bytes()),
                    ("GNU.sparse.numblocks", b"2"),
                    ("GNU.sparse.offset", b"0"),
                    ("GNU.sparse.numbytes", b"4"),
                    ("GNU.sparse.offset", b"1000000"),
                    ("GNU.sparse.numbytes", b"4"),
                ])
                .file("sparse", b"headtail"),
        ),
        length,
    );
    check(
        tail(
            Tar::new()
                .pax(&[
                    ("GNU.sparse.name", b"sparse"),
                    ("GNU.sparse.size", text.as_bytes()),
                    ("GNU.sparse.map", b"0,4,1000000,4,2000000,0"),
                ])
                .file("GNUSparseFile.1/sparse", b"headtail"),
        ),
        length,
    );
    let mut data = b"2\n0\n4\n1000000\n4\n".to_vec();
    data.resize(512, 0);
    data.extend_from_slice(b"headtail");
    let one = |data: &[u8], length: &str| {
        Tar::new()
            .pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"sparse"),
                ("GNU.sparse.realsize", length.as_bytes()),
            ])
            .file("GNUSparseFile.1/sparse", data)
    };
    check(tail(one(&data, &text)), length);

    assert_format(one(&data, "1000003"), "outside it");
    assert_format(one(&data[..515], &text), "do not add up");
    assert_format(one(b"2\n0\n4\n", &text), "longer than its data");
    assert_format(one(b"1\nx\n4\n", &text), "malformed");
    assert_format(one(b"111111111111111111111111111\n", &text), "malformed");
    assert_limit(one(b"65537\n", &text), "segments of a sparse file");
    assert_limit(one(&data, "999999999999999"), "bytes of a file");
    let map = |map: &[u8]| {
        Tar::new()
            .pax(&[("GNU.sparse.size", b"100"), ("GNU.sparse.map", map)])
            .file("sparse", b"headtail")
    };
    assert_format(map(b"0,4,2,4"), "overlap");
    assert_format(map(b"0,4,5"), "malformed");
    assert_format(map(b"0,18446744073709551615"), "outside it");
    assert_format(map(b""), "malformed");
    let cut = Tar::new().pax(&[("GNU.sparse.size", b"9"), ("GNU.sparse.offset", b"0")]);
    assert_format(cut.file("sparse", b""), "has no length");
}

#[test]
fn absurd_headers() {
    let header = || Header::new(b'0', b"a", 0);
    let spoilt = |at: usize, bytes: &[u8]| Tar::new().entry(header().bytes(at, bytes), b"");
    assert_format(
        spoilt(124, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
        "size",
    );
    assert_format(
        spoilt(124, b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
        "size",
    );
    assert_format(spoilt(124, b"99999999999\0"), "size");
    assert_limit(
        spoilt(124, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"),
        "bytes of a file",
    );
    assert_format(
        spoilt(108, b"\xff\xff\xff\xff\xff\xff\xff\xff"),
        "user or group id",
    );
    assert_format(
        spoilt(116, b"\x80\0\0\0\xff\xff\xff\xff"),
        "user or group id",
    );
    assert_format(spoilt(116, b"\x80\0\0\x01\0\0\0\0"), "user or group id");
    assert_format(spoilt(136, b"zzzzzzzzzzzz"), "time");
    assert_format(spoilt(156, b"Q"), "entry type");
    assert_format(
        Tar::new().raw(b"not an archive").raw(&[1; 600]),
        "wrong checksum",
    );
    assert_format(
        Tar::new().file("a", b"").raw(&[0; 512]).file("b", b""),
        "lone zero block",
    );
    assert_format(
        Tar::new().entry(Header::new(b'3', b"dev", 0).device(4096, 0), b""),
        "device number",
    );
    assert_format(Tar::new().file("dir/", b"data"), "ends with a slash");
    assert_format(Tar::new().symlink(".", "x"), "root of the layer");
    assert_format(Tar::new().file("a", b"").file("a/b", b""), "no directory");
    assert_format(Tar::new().symlink("a", ""), "no target");
    assert_format(Tar::new().pax(&[("size", b"1")]), "followed by no entry");

    let mut cut = Tar::new().file("a", &[1; 5000]).0;
    cut.truncate(3000);
    let error = Place::new().tar(&cut).unwrap_err();
    assert!(
        matches!(error, UnpackError::Format { offset: 3000, .. }),
        "{error:?}"
    );
    cut.truncate(300);
    assert!(matches!(
        Place::new().tar(&cut),
        Err(UnpackError::Format { .. })
    ));
}

#[test]
fn extended_headers_that_disagree() {
    let pax = |key, value: &[u8]| Tar::new().pax(&[(key, value)]);
    assert_format(pax("size", b"1024").file("a", b"x"), "size is given twice");
    assert_format(
        pax("size", b"0").file("a", &[1; 700]),
        "size is given twice",
    );
    assert_format(
        pax("path", b"a").gnu_long(b'L', b"b").file("c", b""),
        "given twice",
    );
    assert_format(
        pax("path", b"a").pax(&[("path", b"a")]).file("c", b""),
        "two extended headers",
    );
    assert_format(pax("path", b"a\0b").file("c", b""), "NUL");
    let raw = |data: &[u8]| {
        let header = Header::new(b'x', b"pax", data.len() as u64);
        Tar::new().entry(header, data).file("a", b"")
    };
    assert_format(raw(b"100 path=a\n"), "record is malformed");
    assert_format(raw(b"8 path=a\n"), "record is malformed");
    // What does not fit into the header is zero there.
    let (place, _) = ok(pax("size", b"3")
        .entry(Header::new(b'0', b"a", 0), b"abc")
        .file("b", b""));
    assert_eq!(read(&place.path("a")), "abc");
    // Global headers are nobody's business.
    let global = Header::new(b'g', b"g", 14);
    let (place, _) = ok(Tar::new().entry(global, b"14 path=hello\n").file("c", b"x"));
    assert_eq!(read(&place.path("c")), "x");
}

#[test]
fn limits() {
    let many: Vec<_> = (0..129).map(|n| format!("SCHILY.xattr.user.{n}")).collect();
    let many: Vec<_> = many.iter().map(|name| (&name[..], &b"1"[..])).collect();
    assert_limit(
        Tar::new().pax(&many).file("a", b""),
        "extended attributes of a file",
    );
    let long = format!("SCHILY.xattr.user.{}", "n".repeat(251));
    assert_limit(
        Tar::new().pax(&[(&long, b"1")]).file("a", b""),
        "bytes of an extended attribute's name",
    );
    assert_limit(
        Tar::new()
            .pax(&[("SCHILY.xattr.user.a", &[0; 65537])])
            .file("a", b""),
        "bytes of an extended attribute",
    );
    assert_limit(
        Tar::new()
            .pax(&[("comment", &vec![b'c'; 1 << 20])])
            .file("a", b""),
        "bytes of an extended header",
    );
    let path = "p/".repeat(2048);
    assert_limit(
        Tar::new().pax(&[("path", path.as_bytes())]).file("a", b""),
        "bytes of a path",
    );
    assert_limit(
        Tar::new().gnu_long(b'L', path.as_bytes()).file("a", b""),
        "bytes of a path",
    );
    assert_limit(
        Tar::new().gnu_long(b'K', path.as_bytes()).symlink("a", "b"),
        "bytes of a link target",
    );
    let name = "n".repeat(256);
    assert_limit(
        Tar::new().pax(&[("path", name.as_bytes())]).file("a", b""),
        "bytes of a file name",
    );
    let deep = "d/".repeat(257);
    assert_limit(
        Tar::new().pax(&[("path", deep.as_bytes())]).dir("a"),
        "depth of a path",
    );
    // Links may not make a path deeper either.
    let half = "d/".repeat(200);
    let tar = Tar::new().gnu_long(b'K', half.as_bytes()).symlink("a", "b");
    let tar = tar
        .pax(&[("path", format!("a/{half}x").as_bytes())])
        .file("a", b"");
    assert_limit(tar, "depth of a path");

    let run = |tar: &[u8], limits: Limits| Place::new().blob(tar, &expected(tar, tar), &limits);
    let what = |result| match result {
        Err(UnpackError::Limit { what, limit }) => Some((what, limit)),
        _ => None,
    };
    let tar = Tar::new()
        .file("a", b"")
        .file("b", b"")
        .file("c", b"")
        .end();
    let entries = |entries| Limits {
        entries,
        ..Limits::default()
    };
    assert_eq!(what(run(&tar, entries(3))), None);
    assert_eq!(what(run(&tar, entries(2))), Some(("entries of a layer", 2)));
    let global = Tar::new()
        .entry(Header::new(b'g', b"g", 0), b"")
        .0
        .repeat(10);
    assert_eq!(
        what(run(&global, entries(9))),
        Some(("entries of a layer", 9))
    );

    let unpacked = |unpacked_bytes| Limits {
        unpacked_bytes,
        ..Limits::default()
    };
    let bomb = [Tar::new().file("a", b"1").end(), vec![0; 50 << 20]].concat();
    let blob = gzip(&bomb);
    let expected = expected(&blob, &bomb);
    let result = Place::new().blob(&blob, &expected, &unpacked(10 << 20));
    assert_eq!(
        what(result),
        Some(("uncompressed bytes of a layer", 10 << 20))
    );
    Place::new()
        .blob(&blob, &expected, &unpacked(bomb.len() as u64))
        .unwrap();
    let result = Place::new().blob(&blob, &expected, &unpacked(bomb.len() as u64 - 1));
    assert_eq!(
        what(result),
        Some(("uncompressed bytes of a layer", bomb.len() as u64 - 1))
    );
}

#[test]
fn a_full_disk_is_said_to_be_full() {
    // A file system of its own, small, and seen by this thread alone.
    if !is_root() {
        return;
    }
    let full = std::thread::spawn(|| {
        let place = Place::new();
        let small = crate::overlay::tests::small_file_system(1 << 20)?;
        let tar = Tar::new().file("a", &vec![1; 4 << 20]).end();
        let error = unpack(
            &mut &tar[..],
            &expected(&tar, &tar),
            &Limits::default(),
            small,
        );
        place.assert_sentinel();
        Some(error.unwrap_err())
    })
    .join()
    .unwrap();
    match full {
        None => eprintln!("skipped: no tmpfs can be mounted here"),
        Some(error) => assert!(matches!(error, UnpackError::DiskFull(_)), "{error:?}"),
    }
}

/// Entries that any builder could make, in any order.
fn entries() -> impl Strategy<Value = Tar> {
    let name = prop::sample::select(vec![
        "a",
        "b",
        "a/b",
        "a/b/c",
        "b/a",
        "./c/",
        "c/d",
        "l",
        "l/x",
        "a/.wh.b",
        ".wh.c",
        "b/.wh..wh..opq",
    ]);
    let entry = (name, 0..6_u8, prop::collection::vec(any::<u8>(), 0..700));
    prop::collection::vec(entry, 0..12).prop_map(|entries| {
        entries
            .into_iter()
            .fold(Tar::new(), |tar, (name, kind, data)| match kind {
                0 => tar.dir(name),
                1 => tar.symlink(name, "a/b"),
                2 => tar.hard_link(name, "a"),
                3 => tar
                    .pax(&[("mtime", b"1.5"), ("SCHILY.xattr.user.a", b"1")])
                    .file(name, &data),
                4 => tar.gnu_long(b'L', name.as_bytes()).file("x", &data),
                _ => tar.symlink(name, "../sentinel"),
            })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_escapes_and_nothing_panics(
        tar in entries(),
        spoil in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        resum in any::<bool>(),
    ) {
        let mut tar = tar.end();
        for (index, byte) in spoil {
            let at = index.index(tar.len());
            tar[at] = byte;
            if resum {
                // Keep the checksum right, or nothing but it is ever tested.
                let start = at / 512 * 512;
                let sum: u32 = (0..512)
                    .map(|i| if (148..156).contains(&i) { 32 } else { u32::from(tar[start + i]) })
                    .sum();
                tar[start + 148..start + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        let place = Place::new();
        let _ = place.tar(&tar);
        place.assert_sentinel();
    }

    #[test]
    fn buffers_may_end_anywhere(tar in entries(), piece in 1..1500_usize) {
        let tar = tar.end();
        let run = |piece: usize| {
            let place = Place::new();
            let stream = super::stream::Stream::of(&tar, piece);
            let mut archive = super::tar::Archive::new(stream, Limits::default());
            let root = tree::open_dir(&place.root()).unwrap();
            let result = super::extract::extract(&mut archive, root);
            // What is left after an error has the time of its run.
            let tree = if result.is_ok() { listing(&place.root()) } else { String::new() };
            (format!("{result:?}"), tree)
        };
        prop_assert_eq!(run(piece), run(usize::MAX));
    }
}

/// What GNU tar makes of the same archive, made by GNU tar in each of its formats.
#[test]
fn agrees_with_gnu_tar() {
    if !is_root() {
        return;
    }
    let run = |program: &str, args: &[&str]| {
        let done = std::process::Command::new(program).args(args).output();
        done.is_ok_and(|done| done.status.success())
    };
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let (from, long) = (source.to_str().unwrap(), "long".repeat(60));
    let made = format!(
        "set -e; cd {from}; umask 022
         mkdir -p a/b/{long} deep; echo 1 > a/one; ln a/one a/two; ln -s ../{long}/{long} a/link
         head -c 300000 /dev/urandom > a/b/{long}/data; chown 1000:2000 a/one; chmod 4711 a/b/{long}/data
         mkfifo -m 640 pipe; mknod -m 600 null c 1 3; mknod disk b 8 17; chmod 1777 deep
         truncate -s 5M holes; printf x | dd of=holes bs=1 seek=3000000 conv=notrunc 2>/dev/null
         touch -d '1969-12-31 23:59:58.5 UTC' a/one; touch -d '2040-01-02 03:04:05 UTC' a/b; ln a/link hard"
    );
    if !run("tar", &["--version"]) || !run("sh", &["-c", &made]) {
        eprintln!("skipped: needs GNU tar");
        return;
    }
    for format in ["gnu", "pax", "oldgnu"] {
        for sparse in [
            &["--sparse"][..],
            &["--sparse", "--sparse-version=0.1"],
            &[],
        ] {
            let archive = dir.path().join("archive");
            let archive = archive.to_str().unwrap();
            let format = format!("--format={format}");
            let mut args = vec!["-C", from, "-cf", archive, &format, "--xattrs"];
            args.extend(sparse);
            args.push(".");
            assert!(run("tar", &args), "{args:?}");
            let theirs = dir.path().join("theirs");
            fs::create_dir(&theirs).unwrap();
            let to = theirs.to_str().unwrap();
            assert!(run(
                "tar",
                &["-C", to, "-xpf", archive, "--numeric-owner", "--same-owner"]
            ));
            let place = Place::new();
            place.tar(&fs::read(archive).unwrap()).unwrap();
            assert_eq!(listing(&place.root()), listing(&theirs), "{args:?}");
            let blocks = fs::metadata(place.path("holes")).unwrap().blocks();
            assert!(sparse.is_empty() || blocks < 100, "{blocks}");
            fs::remove_dir_all(&theirs).unwrap();
        }
    }
}
