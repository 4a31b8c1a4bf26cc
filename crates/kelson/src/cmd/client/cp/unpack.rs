//! Unpacking what a container has packed. Nothing of it is believed: every name is resolved beneath the
//! target's descriptor without following a link, names and headers have limits, and what is neither a
//! file, a directory nor a link is skipped.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::tar::{Entry, Kind, Reader};

/// The most names that are told of as skipped; more are skipped without a word each.
const MAX_SKIPPED: usize = 100;

/// Where an archive goes.
#[derive(Debug)]
pub(super) struct Unpacker {
    target: OwnedFd,
    /// The first name of every path in the archive, and what it becomes.
    from: OsString,
    to: OsString,
    skipped: Vec<String>,
}

impl Unpacker {
    /// Unpacks into a directory of this machine, where `from` becomes `to`.
    pub(super) fn new(target: &Path, from: &str, to: &OsStr) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let target = rustix::fs::open(target, flags, Mode::empty())
            .with_context(|| format!("open the directory {}", target.display()))?;
        Ok(Self {
            target,
            from: from.into(),
            to: to.to_owned(),
            skipped: Vec::new(),
        })
    }

    /// Unpacks everything; returns what was skipped.
    pub(super) fn unpack(mut self, archive: impl Read) -> Result<Vec<String>> {
        let mut archive = Reader::new(archive);
        let mut any = false;
        while let Some(entry) = archive.entry().context("read what the container sends")? {
            let shown = String::from_utf8_lossy(&entry.name)
                .escape_debug()
                .to_string();
            self.entry(&entry, &mut archive)
                .with_context(|| format!("unpack {shown}"))?;
            any = true;
        }
        ensure!(any, "the container sends nothing");
        Ok(self.skipped)
    }

    fn entry(&mut self, entry: &Entry, data: &mut impl Read) -> Result<()> {
        let path = self.place(&entry.name)?;
        let (parent, name) = self.parent(&path)?;
        match entry.kind {
            Kind::File => {
                clear(&parent, &name)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let mode = Mode::from_raw_mode(entry.mode);
                let file = rustix::fs::openat(&parent, &name, flags, mode)?;
                io::copy(data, &mut File::from(file))?;
            }
            Kind::Directory => {
                // Its owner has to get into it.
                let mode = Mode::from_raw_mode(entry.mode | 0o700);
                match rustix::fs::mkdirat(&parent, &name, mode) {
                    Err(Errno::EXIST) => {
                        let there = rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW)?;
                        let there = FileType::from_raw_mode(there.st_mode);
                        ensure!(there == FileType::Directory, "something else is in the way");
                    }
                    made => made?,
                }
            }
            Kind::Symlink => {
                clear(&parent, &name)?;
                rustix::fs::symlinkat(OsStr::from_bytes(&entry.link), &parent, &name)?;
            }
            Kind::HardLink => {
                let (old_parent, old) = self.parent(&self.place(&entry.link)?)?;
                clear(&parent, &name)?;
                rustix::fs::linkat(&old_parent, &old, &parent, &name, AtFlags::empty())?;
            }
            Kind::Other if self.skipped.len() < MAX_SKIPPED => {
                self.skipped
                    .push(path.to_string_lossy().escape_debug().to_string());
            }
            Kind::Other => {}
        }
        Ok(())
    }

    /// The path beneath the target of a name in the archive.
    fn place(&self, name: &[u8]) -> Result<PathBuf> {
        ensure!(
            !name.starts_with(b"/"),
            "the container sent an absolute name"
        );
        let mut path = PathBuf::new();
        for part in name.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => bail!("the container sent a name with .. in it"),
                _ if path.as_os_str().is_empty() => {
                    ensure!(
                        part == self.from.as_bytes(),
                        "the container sent something that was not asked for"
                    );
                    path.push(&self.to);
                }
                _ => path.push(OsString::from_vec(part.to_vec())),
            }
        }
        ensure!(
            !path.as_os_str().is_empty(),
            "the container sent a name without a name"
        );
        Ok(path)
    }

    /// The directory that a path is in, and its last name. No link is followed on the way.
    fn parent(&self, path: &Path) -> Result<(OwnedFd, OsString)> {
        let name = path.file_name().context("a name without a name")?;
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let open =
            || rustix::fs::openat2(self.target.as_fd(), parent, flags, Mode::empty(), resolve);
        let parent = match rustix::io::retry_on_intr(open) {
            Err(Errno::LOOP) => bail!("a symbolic link is in the way"),
            opened => opened?,
        };
        Ok((parent, name.to_owned()))
    }
}

/// Takes away what is to be replaced; a directory is not.
fn clear(parent: &OwnedFd, name: &OsStr) -> Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => bail!("a directory is in the way"),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tar::Writer;
    use super::*;

    type Packed<'a> = (Kind, &'a str, &'a str);

    /// Packs entries: kind, name, link or data.
    fn archive(entries: &[Packed<'_>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        for &(kind, name, text) in entries {
            let (link, data) = match kind {
                Kind::Symlink | Kind::HardLink => (text, ""),
                _ => ("", text),
            };
            let entry = Entry {
                kind,
                name: name.into(),
                link: link.into(),
                mode: 0o755,
                mtime: 0,
                size: data.len() as u64,
            };
            writer.entry(&entry, &mut data.as_bytes()).unwrap();
        }
        writer.end().unwrap();
        bytes
    }

    fn unpack(to: &Path, entries: &[Packed<'_>]) -> Result<Vec<String>> {
        let unpacker = Unpacker::new(to, "a", OsStr::new("b"))?;
        unpacker.unpack(archive(entries).as_slice())
    }

    use Kind::{Directory, File as Regular, HardLink as Link, Symlink};

    #[test]
    fn files_directories_and_links_are_made_under_the_new_name() {
        let dir = tempfile::tempdir().unwrap();
        let entries = [
            (Directory, "./a", ""),
            (Regular, "./a/file", "text"),
            (Symlink, "./a/sym", "/etc/passwd"),
            (Link, "./a/hard", "./a/file"),
        ];
        for _ in 0..2 {
            assert!(unpack(dir.path(), &entries).unwrap().is_empty());
        }
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(
            (read("b/file"), read("b/hard")),
            ("text".into(), "text".into())
        );
        let link = std::fs::read_link(dir.path().join("b/sym")).unwrap();
        assert_eq!(link, Path::new("/etc/passwd"));
        assert!(!dir.path().join("a").exists());
    }

    #[test]
    fn nothing_gets_out_of_the_target() {
        let outer = tempfile::tempdir().unwrap();
        let victim = outer.path().join("victim");
        std::fs::write(&victim, "safe").unwrap();
        let dir = outer.path().join("target");
        std::fs::create_dir(&dir).unwrap();
        let secret = victim.to_str().unwrap();
        let attacks: [&[Packed<'_>]; 9] = [
            &[(Regular, "../victim", "bad")],
            &[(Regular, "a/../../victim", "bad")],
            &[(Regular, "/a", "bad")],
            &[(Regular, "other", "bad")],
            &[(Regular, ".", "bad")],
            &[(Symlink, "a", ".."), (Regular, "a/victim", "bad")],
            &[
                (Directory, "a", ""),
                (Symlink, "a/l", "../.."),
                (Regular, "a/l/victim", "bad"),
            ],
            &[(Directory, "a", ""), (Link, "a/h", "../victim")],
            &[
                (Directory, "a", ""),
                (Symlink, "a/l", ".."),
                (Link, "a/h", "a/l/../victim"),
            ],
        ];
        for attack in attacks {
            assert!(unpack(&dir, attack).is_err(), "{attack:?}");
            let _ = std::fs::remove_file(dir.join("b"));
            let _ = std::fs::remove_dir_all(dir.join("b"));
        }
        // A link is replaced, not written through.
        let replace = [(Symlink, "a", secret), (Regular, "a", "new")];
        unpack(&dir, &replace).unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("b")).unwrap(), "new");
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "safe");
        assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_is_no_file_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = archive(&[(Regular, "a", ""), (Regular, "a", "text")]);
        // A pipe instead of the first file; the sum of the header follows.
        let sum: u32 = 6;
        bytes[156] = b'6';
        let digits = std::str::from_utf8(&bytes[148..154]).unwrap();
        let sum = u32::from_str_radix(digits, 8).unwrap() + sum;
        bytes[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
        let unpacker = Unpacker::new(dir.path(), "a", OsStr::new("b")).unwrap();
        assert_eq!(unpacker.unpack(&bytes[..]).unwrap(), ["b"]);
        assert_eq!(
            std::fs::read_to_string(dir.path().join("b")).unwrap(),
            "text"
        );
    }

    #[test]
    fn broken_archives_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let whole = archive(&[(Regular, "a", "some text")]);
        for (what, bytes) in [
            ("nothing", &b""[..]),
            ("half", &whole[..514]),
            ("noise", &[7; 1024]),
        ] {
            let unpacker = Unpacker::new(dir.path(), "a", OsStr::new("b")).unwrap();
            assert!(unpacker.unpack(bytes).is_err(), "{what}");
        }
    }
}
