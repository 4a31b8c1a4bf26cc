//! A directory tree that no path can leave.
//!
//! Every path is resolved as if the tree were `/`: absolute paths and symlinks start at its top,
//! `..` stops there, and the magic links of procfs are refused. Paths are those of a container or
//! an image and are taken to be hostile.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Most symlinks followed in one resolution; the kernel's own limit.
const MAX_SYMLINKS: usize = 40;
/// Most components of one path, counted after symlinks are expanded.
const MAX_COMPONENTS: usize = 1024;
/// How often a resolution that lost a race against a rename is tried again.
const MAX_RETRIES: usize = 32;

/// Why an operation in a tree failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootError {
    /// A system call failed.
    #[error("cannot {operation} {} beneath {}", path.display(), root.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The path as given.
        path: PathBuf,
        /// The tree.
        root: PathBuf,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// The file is larger than the caller is ready to read.
    #[error("{} beneath {} is larger than {limit} bytes", path.display(), root.display())]
    TooLarge {
        /// The path as given.
        path: PathBuf,
        /// The tree.
        root: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// Something other than a regular file is where one must be.
    #[error("{} beneath {} is not a regular file", path.display(), root.display())]
    NotAFile {
        /// The path as given.
        path: PathBuf,
        /// The tree.
        root: PathBuf,
    },
}

impl RootError {
    /// The kernel's error number, where a system call failed.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            RootError::Io { source, .. } => Some(*source),
            _ => None,
        }
    }

    /// Whether the path does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self.errno(), Some(Errno::NOENT | Errno::NOTDIR))
    }
}

/// Result of an operation in a tree.
pub type Result<T, E = RootError> = std::result::Result<T, E>;

/// An open directory whose tree is resolved in.
#[derive(Debug)]
pub struct Root {
    dir: OwnedFd,
    label: PathBuf,
}

impl Root {
    /// Opens the directory at `path`, a path of the host that the caller trusts.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(|source| RootError::Io {
            operation: "open",
            path: PathBuf::from("/"),
            root: path.to_owned(),
            source,
        })?;
        Ok(Self {
            dir,
            label: path.to_owned(),
        })
    }

    /// The tree of an open directory; `label` stands for it in errors.
    pub fn from_fd(dir: OwnedFd, label: impl Into<PathBuf>) -> Self {
        Self {
            dir,
            label: label.into(),
        }
    }

    /// Opens `path` with `O_PATH`, following symlinks within the tree.
    pub fn open_path(&self, path: &Path) -> Result<OwnedFd> {
        self.open_at(
            path,
            OFlags::PATH,
            Mode::empty(),
            ResolveFlags::empty(),
            "find",
        )
    }

    /// As [`Root::open_path`], but fails with `ELOOP` on any symlink.
    pub fn open_path_no_symlinks(&self, path: &Path) -> Result<OwnedFd> {
        self.open_at(
            path,
            OFlags::PATH,
            Mode::empty(),
            ResolveFlags::NO_SYMLINKS,
            "find",
        )
    }

    /// Opens the file at `path` with `flags`; `O_CLOEXEC` and `O_NOCTTY` are added.
    pub fn open_file(&self, path: &Path, flags: OFlags) -> Result<OwnedFd> {
        self.open_at(path, flags, Mode::empty(), ResolveFlags::empty(), "open")
    }

    /// Opens the directory at `path` for reading.
    pub fn open_dir(&self, path: &Path) -> Result<OwnedFd> {
        self.open_file(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Reads a regular file of at most `limit` bytes. Never blocks on a FIFO or a device.
    pub fn read_capped(&self, path: &Path, limit: u64) -> Result<Vec<u8>> {
        let fd = self.open_file(path, OFlags::RDONLY | OFlags::NONBLOCK)?;
        let stat = rustix::fs::fstat(&fd).map_err(|e| self.error("stat", path, e))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(RootError::NotAFile {
                path: path.into(),
                root: self.label.clone(),
            });
        }
        let mut contents = Vec::new();
        let file = std::fs::File::from(fd);
        std::io::Read::read_to_end(&mut std::io::Read::take(file, limit + 1), &mut contents)
            .map_err(|e| {
                let errno = Errno::from_io_error(&e).unwrap_or(Errno::IO);
                self.error("read", path, errno)
            })?;
        if contents.len() as u64 > limit {
            let (path, root) = (path.into(), self.label.clone());
            return Err(RootError::TooLarge { path, root, limit });
        }
        Ok(contents)
    }

    /// Makes the directory at `path` with its parents, with `mode`, and returns it opened with
    /// `O_PATH`. What exists is left as it is; where a symlink points at nothing, what it points
    /// at is made.
    pub fn mkdir_all(&self, path: &Path, mode: Mode) -> Result<OwnedFd> {
        match self.open_at(
            path,
            OFlags::PATH | OFlags::DIRECTORY,
            Mode::empty(),
            ResolveFlags::empty(),
            "make",
        ) {
            Err(error) if error.errno() == Some(Errno::NOENT) => {}
            other => return other,
        }
        self.walk(path, mode)
            .and_then(|end| end.directory(mode))
            .map_err(|e| self.error("make directory", path, e))
    }

    /// Makes an empty regular file at `path` with `mode`, and its parents with mode 0755. Returns
    /// what is there, opened with `O_PATH`: an existing file of any kind is left as it is.
    pub fn create_file(&self, path: &Path, mode: Mode) -> Result<OwnedFd> {
        match self.open_path(path) {
            Err(error) if error.errno() == Some(Errno::NOENT) => {}
            other => return other,
        }
        self.walk(path, Mode::from_raw_mode(0o755))
            .and_then(|end| end.file(mode))
            .map_err(|e| self.error("make file", path, e))
    }

    /// Opens the parent directory of `path`, making it as [`Root::mkdir_all`] does, and returns it
    /// with the last component of `path`, which is not resolved. Fails with `EINVAL` when there is
    /// no last component.
    pub fn parent(&self, path: &Path) -> Result<(OwnedFd, OsString)> {
        let name = path
            .file_name()
            .ok_or_else(|| self.error("use", path, Errno::INVAL))?;
        let parent = path.parent().unwrap_or(Path::new("/"));
        Ok((
            self.mkdir_all(parent, Mode::from_raw_mode(0o755))?,
            name.to_owned(),
        ))
    }

    fn open_at(
        &self,
        path: &Path,
        flags: OFlags,
        mode: Mode,
        resolve: ResolveFlags,
        operation: &'static str,
    ) -> Result<OwnedFd> {
        open_in(self.dir.as_fd(), path, flags, mode, resolve)
            .map_err(|e| self.error(operation, path, e))
    }

    fn error(&self, operation: &'static str, path: &Path, source: Errno) -> RootError {
        RootError::Io {
            operation,
            path: path.to_owned(),
            root: self.label.clone(),
            source,
        }
    }

    /// Walks to `path`, making missing directories, and stops at the first missing component if
    /// it is the last one. No step follows a symlink in the kernel, so none can leave the tree.
    fn walk(&self, path: &Path, mode: Mode) -> rustix::io::Result<End> {
        let mut todo: VecDeque<OsString> = VecDeque::new();
        push_front(&mut todo, path)?;
        let top = rustix::io::fcntl_dupfd_cloexec(&self.dir, 3)?;
        let mut stack = vec![top];
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            let here = &stack[stack.len() - 1];
            if name == ".." {
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let next = match rustix::fs::openat(here, &name, flags, Mode::empty()) {
                Ok(fd) => fd,
                Err(Errno::NOENT) if todo.is_empty() => {
                    let parent = stack.pop().ok_or(Errno::NOENT)?;
                    return Ok(End::Missing(parent, name));
                }
                Err(Errno::NOENT) => make_dir(here.as_fd(), &name, mode)?,
                Err(error) => return Err(error),
            };
            let stat = rustix::fs::fstat(&next)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Symlink => {
                    links += 1;
                    if links > MAX_SYMLINKS {
                        return Err(Errno::LOOP);
                    }
                    let target = rustix::fs::readlinkat(&next, c"", Vec::new())?;
                    let target = Path::new(OsStr::from_bytes(target.to_bytes()));
                    if target.is_absolute() {
                        stack.truncate(1);
                    }
                    push_front(&mut todo, target)?;
                }
                FileType::Directory => stack.push(next),
                _ if todo.is_empty() => return Ok(End::Found(next)),
                _ => return Err(Errno::NOTDIR),
            }
        }
        Ok(End::Found(stack.pop().ok_or(Errno::NOENT)?))
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// Where a walk ended.
enum End {
    Found(OwnedFd),
    Missing(OwnedFd, OsString),
}

impl End {
    fn directory(self, mode: Mode) -> rustix::io::Result<OwnedFd> {
        match self {
            End::Found(fd) => {
                let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
                if kind == FileType::Directory {
                    Ok(fd)
                } else {
                    Err(Errno::NOTDIR)
                }
            }
            End::Missing(parent, name) => make_dir(parent.as_fd(), &name, mode),
        }
    }

    fn file(self, mode: Mode) -> rustix::io::Result<OwnedFd> {
        match self {
            End::Found(fd) => Ok(fd),
            End::Missing(parent, name) => {
                let make = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                match rustix::fs::openat(&parent, &name, make | OFlags::NOFOLLOW, mode) {
                    Ok(_) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error),
                }
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(&parent, &name, flags, Mode::empty())?;
                let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
                // A symlink can only be there if somebody put it there this instant.
                if kind == FileType::Symlink {
                    Err(Errno::LOOP)
                } else {
                    Ok(fd)
                }
            }
        }
    }
}

/// Makes directory `name`, or takes the one that appeared meanwhile, and opens it.
fn make_dir(parent: BorrowedFd<'_>, name: &OsStr, mode: Mode) -> rustix::io::Result<OwnedFd> {
    match rustix::fs::mkdirat(parent, name, mode) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Puts the components of `path` before those that are left.
fn push_front(todo: &mut VecDeque<OsString>, path: &Path) -> rustix::io::Result<()> {
    for component in path.components().rev() {
        match component {
            Component::Normal(name) => todo.push_front(name.to_owned()),
            Component::ParentDir => todo.push_front("..".into()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    if todo.len() > MAX_COMPONENTS {
        Err(Errno::NAMETOOLONG)
    } else {
        Ok(())
    }
}

/// openat2 in the tree of `dir`. The kernel answers `EAGAIN` when a rename anywhere disturbed a
/// resolution with `..` in it.
fn open_in(
    dir: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let flags = if flags.contains(OFlags::PATH) {
        flags
    } else {
        flags | OFlags::NOCTTY
    } | OFlags::CLOEXEC;
    let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let path = if path.as_os_str().is_empty() {
        Path::new("/")
    } else {
        path
    };
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(dir, path, flags, mode, resolve) {
            Err(Errno::AGAIN) if tries < MAX_RETRIES => tries += 1,
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// The type and device number of what is behind `fd`: how a device node is told from an impostor.
pub fn kind_and_device(fd: BorrowedFd<'_>) -> rustix::io::Result<(FileType, u64)> {
    let stat = rustix::fs::statat(fd, c"", AtFlags::EMPTY_PATH)?;
    Ok((FileType::from_raw_mode(stat.st_mode), stat.st_rdev))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    const DIR: Mode = Mode::RWXU;

    fn tree() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::write(dir.path().join("secret"), "outside").unwrap();
        let root = Root::open(&dir.path().join("root")).unwrap();
        (dir, root)
    }

    #[test]
    fn absolute_links_and_dots_stay_inside() {
        let (dir, root) = tree();
        symlink(dir.path().join("secret"), dir.path().join("root/abs")).unwrap();
        symlink("../secret", dir.path().join("root/up")).unwrap();
        for path in ["abs", "up", "../secret", "/../../secret", "a/../../secret"] {
            let error = root.read_capped(Path::new(path), 100).unwrap_err();
            assert!(error.is_not_found(), "{path}: {error}");
        }
    }

    #[test]
    fn directories_are_made_inside_whatever_links_say() {
        let (dir, root) = tree();
        let outside = dir.path().join("elsewhere");
        symlink(&outside, dir.path().join("root/link")).unwrap();
        symlink("../../../up", dir.path().join("root/climb")).unwrap();
        root.mkdir_all(Path::new("link/a/b"), DIR).unwrap();
        root.mkdir_all(Path::new("/climb/c"), DIR).unwrap();
        assert!(!outside.exists());
        assert!(!dir.path().join("up").exists());
        let inside = dir
            .path()
            .join("root")
            .join(outside.strip_prefix("/").unwrap());
        assert!(inside.join("a/b").is_dir());
        assert!(dir.path().join("root/up/c").is_dir());
    }

    #[test]
    fn a_dangling_link_gets_its_file() {
        let (dir, root) = tree();
        fs::create_dir(dir.path().join("root/etc")).unwrap();
        symlink(
            "../run/resolve/stub",
            dir.path().join("root/etc/resolv.conf"),
        )
        .unwrap();
        root.create_file(Path::new("/etc/resolv.conf"), Mode::RUSR)
            .unwrap();
        assert!(dir.path().join("root/run/resolve/stub").is_file());
    }

    #[test]
    fn what_exists_is_left_alone() {
        let (dir, root) = tree();
        fs::write(dir.path().join("root/file"), "text").unwrap();
        root.create_file(Path::new("file"), Mode::RUSR).unwrap();
        assert_eq!(root.read_capped(Path::new("file"), 4).unwrap(), b"text");
        let error = root.mkdir_all(Path::new("file/below"), DIR).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::NOTDIR));
    }

    #[test]
    fn a_ring_of_links_ends() {
        let (dir, root) = tree();
        symlink("b", dir.path().join("root/a")).unwrap();
        symlink("a", dir.path().join("root/b")).unwrap();
        let error = root.mkdir_all(Path::new("a/c"), DIR).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::LOOP));
    }

    #[test]
    fn a_path_of_too_many_components_is_refused() {
        let (_dir, root) = tree();
        let error = root
            .mkdir_all(Path::new(&"a/".repeat(MAX_COMPONENTS + 1)), DIR)
            .unwrap_err();
        assert_eq!(error.errno(), Some(Errno::NAMETOOLONG));
    }

    #[test]
    fn reading_is_capped_and_for_files_only() {
        let (dir, root) = tree();
        fs::write(dir.path().join("root/file"), "12345").unwrap();
        let error = root.read_capped(Path::new("file"), 4).unwrap_err();
        assert!(matches!(error, RootError::TooLarge { limit: 4, .. }));
        let fifo = rustix::fs::CWD;
        let path = dir.path().join("root/fifo");
        rustix::fs::mknodat(fifo, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let error = root.read_capped(Path::new("fifo"), 4).unwrap_err();
        assert!(matches!(error, RootError::NotAFile { .. }));
    }

    #[test]
    fn magic_links_are_refused() {
        let root = Root::open(Path::new("/")).unwrap();
        let error = root
            .open_path(Path::new("/proc/self/root/etc"))
            .unwrap_err();
        assert_eq!(error.errno(), Some(Errno::LOOP));
        let error = root.mkdir_all(Path::new("/proc/self/cwd"), DIR).map(drop);
        // Walked as text, the link's target is looked up in the tree: no magic either way.
        assert!(error.is_err());
    }
}
