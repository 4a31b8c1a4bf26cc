//! What a container has changed in its root: an archive of what is new or different, and the paths of
//! what is gone. Read from the upper directory of its overlay.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::tar::{Entry, Kind, Writer};

/// Deepest directory that is looked into.
const DEPTH: usize = 256;
/// Most deleted paths that are told.
const DELETED: usize = 1_000_000;
/// Longest list of names, and longest value, of extended attributes that the kernel gives.
const XATTR: usize = 64 << 10;
/// The mark of a directory that hides what the layers below have in it.
const OPAQUE: &CStr = c"trusted.overlay.opaque";
/// The mark of a directory that was renamed.
const REDIRECT: &CStr = c"trusted.overlay.redirect";

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Why the changes could not be saved.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// A file could not be read or written.
    #[error("cannot {operation} {path:?} of the writable layer")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The path in the container.
        path: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// There is too much of something.
    #[error("the writable layer has more than {limit} {what}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// The archive cannot say it.
    #[error(
        "{path:?} of the writable layer is a renamed directory of the image, which an archive cannot tell"
    )]
    Renamed {
        /// The path in the container.
        path: String,
    },
}

/// Writes the changes in `upper`, above `lower` (the top layer first), to `out` as a tar archive, and
/// returns the deleted paths, absolute in the container. Sockets are left out.
///
/// # Errors
/// See [`DiffError`].
pub fn write(upper: &Path, lower: &[PathBuf], out: impl Write) -> Result<Vec<String>, DiffError> {
    let open = |path: &Path| {
        rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty()).map_err(|errno| DiffError::Io {
            operation: "open the directory of",
            path: path.display().to_string(),
            source: errno.into(),
        })
    };
    let root = open(upper)?;
    let lower = lower
        .iter()
        .map(|path| open(path))
        .collect::<Result<_, _>>()?;
    let mut walk = Walk {
        out: Writer::new(out),
        lower,
        deleted: Vec::new(),
        names: HashMap::new(),
    };
    walk.root(&root)?;
    walk.directory(&root, b"", false, 0)?;
    walk.out.end().map_err(on("write the archive of", b""))?;
    Ok(walk.deleted)
}

struct Walk<W> {
    out: Writer<W>,
    lower: Vec<OwnedFd>,
    deleted: Vec<String>,
    /// Files with more than one name: device and inode, and their first path.
    names: HashMap<(u64, u64), Vec<u8>>,
}

impl<W: Write> Walk<W> {
    fn root(&mut self, root: &OwnedFd) -> Result<(), DiffError> {
        let stat = rustix::fs::fstat(root).map_err(|e| on("look at", b"")(e.into()))?;
        let xattrs = xattrs(root).map_err(|e| on("look at", b"")(e.into()))?;
        let entry = entry(b"./", Kind::Directory, &stat, &xattrs);
        let written = self.out.entry(&entry, &mut io::empty());
        written.map_err(on("write", b""))
    }

    /// Writes what is in a directory. `hides`: nothing of the layers below shows through.
    fn directory(
        &mut self,
        dir: &OwnedFd,
        path: &[u8],
        hides: bool,
        depth: usize,
    ) -> Result<(), DiffError> {
        if depth > DEPTH {
            let (what, limit) = ("levels of directories", DEPTH);
            return Err(DiffError::Limit { what, limit });
        }
        let names = names(dir).map_err(|e| on("read", path)(e.into()))?;
        if hides {
            let here: HashSet<&CString> = names.iter().collect();
            for gone in self.below(path)? {
                if !here.contains(&gone) {
                    self.gone(join(path, gone.to_bytes()))?;
                }
            }
        }
        for name in &names {
            let path = join(path, name.to_bytes());
            let stat = rustix::fs::statat(dir, &**name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| on("look at", &path)(e.into()))?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    let child = rustix::fs::openat(dir, &**name, DIRECTORY, Mode::empty())
                        .map_err(|e| on("open", &path)(e.into()))?;
                    if has(&child, REDIRECT) {
                        let path = shown(&path);
                        return Err(DiffError::Renamed { path });
                    }
                    let xattrs = xattrs(&child).map_err(|e| on("look at", &path)(e.into()))?;
                    let entry = entry(&path, Kind::Directory, &stat, &xattrs);
                    let written = self.out.entry(&entry, &mut io::empty());
                    written.map_err(on("write", &path))?;
                    let hides = hides || has(&child, OPAQUE);
                    self.directory(&child, &path, hides, depth + 1)?;
                }
                FileType::CharacterDevice if stat.st_rdev == 0 => self.gone(path)?,
                FileType::Socket => {}
                kind => self.leaf(dir, name, &path, kind, &stat)?,
            }
        }
        Ok(())
    }

    fn leaf(
        &mut self,
        dir: &OwnedFd,
        name: &CStr,
        path: &[u8],
        kind: FileType,
        stat: &Stat,
    ) -> Result<(), DiffError> {
        let io = |operation| move |errno: Errno| on(operation, path)(errno.into());
        if stat.st_nlink > 1 {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.names.get(&key) {
                let mut entry = entry(path, Kind::HardLink, stat, &[]);
                entry.link = first;
                let written = self.out.entry(&entry, &mut io::empty());
                return written.map_err(on("write", path));
            }
            self.names.insert(key, path.to_vec());
        }
        let written = match kind {
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let file =
                    rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(io("open"))?;
                let xattrs = xattrs(&file).map_err(io("look at"))?;
                let mut entry = entry(path, Kind::File, stat, &xattrs);
                entry.size = u64::try_from(stat.st_size).unwrap_or(0);
                self.out.entry(&entry, &mut File::from(file))
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, name, Vec::new()).map_err(io("read"))?;
                let mut entry = entry(path, Kind::Symlink, stat, &[]);
                entry.link = target.to_bytes();
                self.out.entry(&entry, &mut io::empty())
            }
            kind => {
                let kind = match kind {
                    FileType::CharacterDevice => Kind::CharDevice,
                    FileType::BlockDevice => Kind::BlockDevice,
                    _ => Kind::Fifo,
                };
                let mut entry = entry(path, kind, stat, &[]);
                let device = stat.st_rdev;
                entry.device = (rustix::fs::major(device), rustix::fs::minor(device));
                self.out.entry(&entry, &mut io::empty())
            }
        };
        written.map_err(on("write", path))
    }

    fn gone(&mut self, path: Vec<u8>) -> Result<(), DiffError> {
        if self.deleted.len() >= DELETED {
            let (what, limit) = ("deleted files", DELETED);
            return Err(DiffError::Limit { what, limit });
        }
        self.deleted
            .push(format!("/{}", String::from_utf8_lossy(&path)));
        Ok(())
    }

    /// The names that the layers below have in a directory.
    fn below(&self, path: &[u8]) -> Result<Vec<CString>, DiffError> {
        let path = if path.is_empty() { b"." } else { path };
        let (mut found, mut hidden) = (Vec::new(), HashSet::new());
        for layer in &self.lower {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            let dir = match rustix::fs::openat2(layer, path, DIRECTORY, Mode::empty(), resolve) {
                Ok(dir) => dir,
                Err(Errno::NOENT) => continue,
                // A file or a whiteout in its place hides what is below.
                Err(Errno::NOTDIR | Errno::LOOP) => break,
                Err(errno) => return Err(on("open", path)(errno.into())),
            };
            for name in names(&dir).map_err(|e| on("read", path)(e.into()))? {
                let stat = rustix::fs::statat(&dir, &*name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|e| on("look at", path)(e.into()))?;
                let kind = FileType::from_raw_mode(stat.st_mode);
                let whiteout = kind == FileType::CharacterDevice && stat.st_rdev == 0;
                if hidden.insert(name.clone()) && !whiteout {
                    found.push(name);
                }
            }
            if has(&dir, OPAQUE) {
                break;
            }
        }
        Ok(found)
    }
}

fn entry<'a>(
    path: &'a [u8],
    kind: Kind,
    stat: &Stat,
    xattrs: &'a [(Vec<u8>, Vec<u8>)],
) -> Entry<'a> {
    Entry {
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: stat.st_mtime,
        xattrs,
        ..Entry::plain(path, kind, stat.st_mode & 0o7777, 0)
    }
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    match path.is_empty() {
        true => name.to_vec(),
        false => [path, b"/", name].concat(),
    }
}

fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    format!("/{}", text.chars().take(200).collect::<String>())
}

fn on(operation: &'static str, path: &[u8]) -> impl FnOnce(io::Error) -> DiffError {
    let path = shown(path);
    move |source| DiffError::Io {
        operation,
        path,
        source,
    }
}

/// The names in a directory, sorted.
fn names(dir: &OwnedFd) -> rustix::io::Result<Vec<CString>> {
    let dir = rustix::fs::openat(dir, c".", DIRECTORY, Mode::empty())?;
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut entries = RawDir::new(&dir, buffer.spare_capacity_mut());
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn has(dir: &OwnedFd, name: &CStr) -> bool {
    rustix::fs::fgetxattr(dir, name, &mut [0_u8; 4096][..]).is_ok_and(|length| length > 0)
}

/// The extended attributes that are the container's own: not those of overlayfs.
fn xattrs(file: impl AsFd) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut list = vec![0; XATTR];
    let length = match rustix::fs::flistxattr(&file, &mut list[..]) {
        Err(Errno::NOTSUP) => 0,
        result => result?,
    };
    let own = |name: &&[u8]| name.starts_with(b"user.") || *name == b"security.capability";
    let names = list[..length].split(|byte| *byte == 0).filter(own);
    let mut all = Vec::new();
    let mut value = vec![0; XATTR];
    for name in names {
        let length = rustix::fs::fgetxattr(&file, name, &mut value[..])?;
        all.push((name.to_vec(), value[..length].to_vec()));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;

    #[test]
    fn changes_and_deletions_are_told() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (upper, lower) = (dir.path().join("upper"), dir.path().join("lower"));
        fs::create_dir_all(lower.join("again/deep")).unwrap();
        fs::write(lower.join("again/gone"), "").unwrap();
        fs::write(lower.join("again/deep/gone"), "").unwrap();
        fs::write(lower.join("again/kept"), "").unwrap();
        fs::create_dir_all(upper.join("again/deep")).unwrap();
        fs::write(upper.join("again/kept"), "new").unwrap();
        fs::write(upper.join("file"), "text").unwrap();
        fs::hard_link(upper.join("file"), upper.join("name")).unwrap();
        symlink("/etc/shadow", upper.join("link")).unwrap();
        let again = rustix::fs::open(upper.join("again"), DIRECTORY, Mode::empty()).unwrap();
        rustix::fs::fsetxattr(&again, OPAQUE, b"y", rustix::fs::XattrFlags::empty()).unwrap();
        let upper_dir = rustix::fs::open(&upper, DIRECTORY, Mode::empty()).unwrap();
        rustix::fs::mknodat(
            &upper_dir,
            "passwd",
            FileType::CharacterDevice,
            Mode::empty(),
            0,
        )
        .unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(upper.join("socket")).unwrap();

        let tar = dir.path().join("diff.tar");
        let deleted = write(&upper, &[lower], File::create(&tar).unwrap()).unwrap();
        assert_eq!(deleted, ["/again/gone", "/again/deep/gone", "/passwd"]);
        let out = Command::new("tar").arg("-tf").arg(&tar).output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&out.stdout)
                .lines()
                .collect::<Vec<_>>(),
            [
                "./",
                "again",
                "again/deep",
                "again/kept",
                "file",
                "link",
                "name"
            ]
        );
    }
}
