//! An archive of a file or a directory of this machine.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::OFlags;

use super::tar::{Entry, Kind, Writer};

/// How much is sent at once.
const PIECE: usize = 64 << 10;
/// The deepest directory.
const MAX_DEPTH: usize = 256;

/// Packs `source` under `name`: symlinks as they are, hard links as files. Returns what was left out, as
/// it is neither a file, a directory nor a link.
pub(super) fn pack(source: &Path, name: &OsStr, to: impl Write) -> Result<Vec<String>> {
    let mut archive = Writer::new(BufWriter::with_capacity(PIECE, to));
    let mut skipped = Vec::new();
    add(&mut archive, source, name.as_bytes(), 0, &mut skipped)?;
    archive.end().context("end the archive")?;
    Ok(skipped)
}

fn add(
    archive: &mut Writer<impl Write>,
    source: &Path,
    name: &[u8],
    depth: usize,
    skipped: &mut Vec<String>,
) -> Result<()> {
    let what = || format!("pack {}", source.display());
    ensure!(
        depth <= MAX_DEPTH,
        "{} is deeper than the limit of {MAX_DEPTH} directories",
        source.display()
    );
    let found = std::fs::symlink_metadata(source).with_context(what)?;
    let none = &mut io::empty();
    if found.is_dir() {
        let entry = describe(&found, Kind::Directory, name, b"");
        archive.entry(&entry, none).with_context(what)?;
        let mut children = Vec::new();
        for child in std::fs::read_dir(source).with_context(what)? {
            children.push(child.with_context(what)?.file_name());
        }
        children.sort();
        for child in children {
            let inner = [name, b"/", child.as_bytes()].concat();
            add(archive, &source.join(&child), &inner, depth + 1, skipped)?;
        }
    } else if found.is_symlink() {
        let link = std::fs::read_link(source).with_context(what)?;
        let entry = describe(&found, Kind::Symlink, name, link.as_os_str().as_bytes());
        archive.entry(&entry, none).with_context(what)?;
    } else if found.is_file() {
        // Something else may have taken its place by now; opening that must not wait for anybody.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let flags = i32::try_from(flags.bits()).unwrap_or(0);
        let file = File::options().read(true).custom_flags(flags).open(source);
        let mut file = file.with_context(what)?;
        let found = file.metadata().with_context(what)?;
        ensure!(
            found.is_file(),
            "{} has changed meanwhile",
            source.display()
        );
        let entry = describe(&found, Kind::File, name, b"");
        archive.entry(&entry, &mut file).with_context(what)?;
    } else {
        skipped.push(source.display().to_string());
    }
    Ok(())
}

fn describe(found: &Metadata, kind: Kind, name: &[u8], link: &[u8]) -> Entry {
    let size = if kind == Kind::File { found.len() } else { 0 };
    Entry {
        kind,
        name: name.to_vec(),
        link: link.to_vec(),
        mode: found.mode() & 0o777,
        mtime: u64::try_from(found.mtime()).unwrap_or(0),
        size,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tar::Reader;
    use super::*;

    #[test]
    fn a_tree_is_packed_under_its_new_name() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("sub")).unwrap();
        std::fs::write(tree.join("sub/file"), "text").unwrap();
        std::os::unix::fs::symlink("/etc", tree.join("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();
        let mut bytes = Vec::new();
        let skipped = pack(&tree, OsStr::new("new"), &mut bytes).unwrap();
        assert_eq!(skipped, [tree.join("socket").display().to_string()]);
        let mut reader = Reader::new(&bytes[..]);
        let mut seen = Vec::new();
        while let Some(entry) = reader.entry().unwrap() {
            seen.push((entry.kind, String::from_utf8(entry.name).unwrap()));
        }
        let expected = [
            (Kind::Directory, "new"),
            (Kind::Symlink, "new/link"),
            (Kind::Directory, "new/sub"),
            (Kind::File, "new/sub/file"),
        ];
        assert_eq!(seen, expected.map(|(kind, name)| (kind, name.to_owned())));
        assert!(pack(&dir.path().join("none"), OsStr::new("x"), io::sink()).is_err());
    }
}
