//! For tests: archives made by hand, also such as no program would make, and trees as text.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use crate::{Digest, Expected};

/// One header with its fields open to be spoilt.
#[derive(Clone)]
pub(crate) struct Header {
    pub(crate) block: [u8; 512],
}

impl Header {
    pub(crate) fn new(kind: u8, name: &[u8], size: u64) -> Self {
        let mut header = Self { block: [0; 512] };
        header.block[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
        header.block[156] = kind;
        header.block[257..265].copy_from_slice(b"ustar\x0000");
        let mode = if kind == b'5' { 0o755 } else { 0o644 };
        let header = header.octal(100, 8, mode).octal(108, 8, 0).octal(116, 8, 0);
        header.octal(124, 12, size).octal(136, 12, 1_000_000_000)
    }

    pub(crate) fn octal(self, at: usize, length: usize, value: u64) -> Self {
        let text = format!("{value:0width$o}\0", width = length - 1);
        self.bytes(at, text.as_bytes())
    }

    pub(crate) fn bytes(mut self, at: usize, bytes: &[u8]) -> Self {
        self.block[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(crate) fn link(self, target: &[u8]) -> Self {
        self.bytes(157, target)
    }

    pub(crate) fn device(self, major: u64, minor: u64) -> Self {
        self.octal(329, 8, major).octal(337, 8, minor)
    }

    pub(crate) fn mode(self, mode: u64) -> Self {
        self.octal(100, 8, mode)
    }

    pub(crate) fn owner(self, uid: u64, gid: u64) -> Self {
        self.octal(108, 8, uid).octal(116, 8, gid)
    }

    fn sealed(mut self) -> [u8; 512] {
        self.block[148..156].fill(b' ');
        let sum: u64 = self.block.iter().map(|byte| u64::from(*byte)).sum();
        self.bytes(148, format!("{sum:06o}\0 ").as_bytes()).block
    }
}

/// An archive being written.
#[derive(Clone, Default)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

impl std::fmt::Debug for Tar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.escape_ascii().to_string().replace("\\x00", ""))
    }
}

impl Tar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn entry(self, header: Header, data: &[u8]) -> Self {
        let padding = data.len().next_multiple_of(512) - data.len();
        self.raw(&header.sealed()).raw(data).raw(&vec![0; padding])
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(Header::new(b'0', name.as_bytes(), data.len() as u64), data)
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.entry(Header::new(b'5', name.as_bytes(), 0), b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(
            Header::new(b'2', name.as_bytes(), 0).link(target.as_bytes()),
            b"",
        )
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(
            Header::new(b'1', name.as_bytes(), 0).link(target.as_bytes()),
            b"",
        )
    }

    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let data: Vec<u8> = records
            .iter()
            .flat_map(|(key, value)| record(key, value))
            .collect();
        self.entry(Header::new(b'x', b"pax", data.len() as u64), &data)
    }

    pub(crate) fn gnu_long(self, kind: u8, name: &[u8]) -> Self {
        let data = [name, b"\0"].concat();
        let header = Header::new(kind, b"././@LongLink", data.len() as u64);
        self.entry(header.bytes(257, b"ustar  \0"), &data)
    }

    /// The archive with its end.
    pub(crate) fn end(self) -> Vec<u8> {
        self.raw(&[0; 1024]).0
    }
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// What is to be said of a blob that holds `tar`.
pub(crate) fn expected(blob: &[u8], tar: &[u8]) -> Expected {
    Expected {
        blob: Digest::of(blob),
        size: blob.len() as u64,
        diff_id: Digest::of(tar).into(),
    }
}

pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// Whether the test may go on; says so if not.
pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// All of a tree in a comparable form: type, mode, owner, time, links, data, attributes. A
/// whiteout shows as `w`, an opaque directory with `opaque`.
pub(crate) fn listing(root: &Path) -> String {
    let mut lines = Vec::new();
    let mut first_names = std::collections::HashMap::new();
    list(root, root, &mut first_names, &mut lines);
    lines.join("\n")
}

fn list(
    root: &Path,
    path: &Path,
    first_names: &mut std::collections::HashMap<u64, String>,
    lines: &mut Vec<String>,
) {
    let name = path.strip_prefix(root).unwrap().display().to_string();
    let meta = path.symlink_metadata().unwrap();
    let kind = meta.file_type();
    let mut line = format!(
        "{name} {:o} {}:{}",
        meta.mode() & 0o7777,
        meta.uid(),
        meta.gid()
    );
    write!(line, " {}.{}", meta.mtime(), meta.mtime_nsec()).unwrap();
    if !kind.is_dir() && meta.nlink() > 1 {
        let first = first_names
            .entry(meta.ino())
            .or_insert_with(|| name.clone());
        if *first != name {
            write!(line, " ={first}").unwrap();
        }
    }
    if kind.is_symlink() {
        write!(line, " -> {}", std::fs::read_link(path).unwrap().display()).unwrap();
    } else if kind.is_file() {
        write!(
            line,
            " {} {}",
            meta.len(),
            Digest::of(&std::fs::read(path).unwrap())
        )
        .unwrap();
    } else if kind.is_char_device() && meta.rdev() == 0 {
        lines.push(format!("{name} w"));
        return;
    } else if !kind.is_dir() {
        let letter = if kind.is_fifo() {
            'p'
        } else if kind.is_char_device() {
            'c'
        } else {
            'b'
        };
        let (major, minor) = (
            rustix::fs::major(meta.rdev()),
            rustix::fs::minor(meta.rdev()),
        );
        write!(line, " {letter} {major}:{minor}").unwrap();
    }
    if kind.is_dir() || kind.is_file() {
        for (attribute, value) in xattrs(path) {
            match &attribute[..] {
                crate::file::OPAQUE => line.push_str(" opaque"),
                attribute => write!(line, " {attribute}={value:?}").unwrap(),
            }
        }
    }
    lines.push(line);
    if kind.is_dir() {
        let mut children: Vec<_> = std::fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        children.sort();
        for child in children {
            list(root, &child, first_names, lines);
        }
    }
}

fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = [0; 4096];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let mut all: Vec<_> = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = [0; 4096];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (
                String::from_utf8_lossy(name).into_owned(),
                value[..length].to_vec(),
            )
        })
        .collect();
    all.sort();
    all
}
