//! The directories of a layer while it is being written.
//!
//! Every path is walked component by component from the layer's root through descriptors, so that
//! nothing outside it can be reached: a symbolic link on the way is resolved by hand inside the
//! layer, as if it were the root of a file system, and one that climbs above the root is refused.
//! All directories of the layer were made here, hence are known; owner, mode and time are given to
//! them at the end, because writing into a directory changes its time and a set-group-id directory
//! would pass its group on.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{FileType, Mode, Stat, XattrFlags};
use rustix::io::Errno;

use super::name::components;
use super::tar::Meta;
use crate::error::{at, shown};
use crate::limits::{DEPTH, DIRECTORIES, LINKS_FOLLOWED, PATH};
use crate::tree::{self, is_whiteout, open_child};
use crate::{UnpackError, file};

/// Open directories kept for the entries to come.
const OPEN: usize = 128;
/// Owner and mode of a directory that nobody describes.
pub(crate) const PLAIN: Meta = Meta {
    mode: 0o755,
    uid: 0,
    gid: 0,
    mtime: (0, 0),
};

/// An open directory of the layer.
pub(super) struct Directory {
    /// From the layer's root, without links; empty for the root itself.
    path: Vec<u8>,
    pub(super) fd: OwnedFd,
}

impl Directory {
    /// The path of `name` in this directory.
    pub(super) fn join(&self, name: &[u8]) -> Vec<u8> {
        join(&self.path, name)
    }
}

/// A file of the layer: its directory and its name there.
pub(super) type Found = (Rc<Directory>, Vec<u8>);

/// A layer being written.
pub(super) struct Layer {
    root: Rc<Directory>,
    open: HashMap<Vec<u8>, Rc<Directory>>,
    /// All directories but those that were replaced; `None` until an entry describes one.
    known: BTreeMap<Vec<u8>, Option<Meta>>,
    /// Bytes that went into `known`.
    remembered: u64,
    /// The root directory hides the layers below completely.
    pub(super) opaque_root: bool,
}

impl Layer {
    /// Starts in `root`, which is empty.
    pub(super) fn new(root: OwnedFd) -> Self {
        Self {
            root: Rc::new(Directory {
                path: Vec::new(),
                fd: root,
            }),
            open: HashMap::new(),
            known: BTreeMap::from([(Vec::new(), None)]),
            remembered: 0,
            opaque_root: false,
        }
    }

    /// Opens the directory `path`, making what is missing of it.
    pub(super) fn directory(&mut self, path: &[u8]) -> Result<Rc<Directory>, UnpackError> {
        if path.is_empty() {
            return Ok(self.root.clone());
        }
        if let Some(directory) = self.open.get(path) {
            return Ok(directory.clone());
        }
        self.walk(path, true)?.ok_or_else(|| not_a_directory(path))
    }

    /// As `directory`; nothing if something that is no directory stands in the way.
    pub(super) fn unless_blocked(
        &mut self,
        path: &[u8],
    ) -> Result<Option<Rc<Directory>>, UnpackError> {
        self.walk(path, true)
    }

    /// Opens the directory `path` if it is there.
    pub(super) fn existing(&mut self, path: &[u8]) -> Result<Option<Rc<Directory>>, UnpackError> {
        self.walk(path, false)
    }

    fn walk(&mut self, path: &[u8], make: bool) -> Result<Option<Rc<Directory>>, UnpackError> {
        let mut ahead: Vec<Vec<u8>> = path
            .split(|&byte| byte == b'/')
            .map(<[u8]>::to_vec)
            .collect();
        ahead.reverse();
        let mut here = self.root.clone();
        let mut followed = 0;
        while let Some(name) = ahead.pop() {
            match &name[..] {
                b"" | b"." => continue,
                b".." => {
                    here = self.above(&here, path)?;
                    continue;
                }
                _ => {}
            }
            let next = here.join(&name);
            if let Some(directory) = self.open.get(&next) {
                here = directory.clone();
                continue;
            }
            if self.known.contains_key(&next) {
                here = self.enter(&here, &name, next)?;
                continue;
            }
            match tree::stat(&here.fd, &name) {
                Err(Errno::NOENT) if make => here = self.make(&here, &name, None)?,
                Err(Errno::NOENT) => return Ok(None),
                Err(errno) => return Err(at("look at", &next)(errno)),
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
                    followed += 1;
                    LINKS_FOLLOWED.check(followed)?;
                    let target = rustix::fs::readlinkat(&here.fd, &name[..], Vec::new());
                    let target = target.map_err(at("read link", &next))?.into_bytes();
                    if target.starts_with(b"/") {
                        here = self.root.clone();
                    }
                    ahead.extend(target.split(|&byte| byte == b'/').rev().map(<[u8]>::to_vec));
                }
                Ok(stat) if is_whiteout(&stat) && make => {
                    here = self.make(&here, &name, Some(PLAIN))?;
                }
                Ok(_) => return Ok(None),
            }
        }
        Ok(Some(here))
    }

    fn above(&mut self, here: &Directory, path: &[u8]) -> Result<Rc<Directory>, UnpackError> {
        if here.path.is_empty() {
            return Err(UnpackError::Escape { path: shown(path) });
        }
        let parent = parent_of(&here.path).to_vec();
        // No link is in the path of an open directory, so this cannot be a long way.
        self.directory(&parent)
    }

    fn enter(
        &mut self,
        parent: &Directory,
        name: &[u8],
        path: Vec<u8>,
    ) -> Result<Rc<Directory>, UnpackError> {
        let fd = open_child(&parent.fd, name).map_err(at("open directory", &path))?;
        if self.open.len() >= OPEN {
            self.open.clear();
        }
        let directory = Rc::new(Directory {
            path: path.clone(),
            fd,
        });
        self.open.insert(path, directory.clone());
        Ok(directory)
    }

    /// Makes or describes the directory `name`. In place of a whiteout it hides what the layers
    /// below have there.
    pub(super) fn make(
        &mut self,
        parent: &Directory,
        name: &[u8],
        meta: Option<Meta>,
    ) -> Result<Rc<Directory>, UnpackError> {
        let path = parent.join(name);
        let mut hides = false;
        loop {
            if let Some(known) = self.known.get_mut(&path) {
                *known = meta.or(*known);
                return match self.open.get(&path) {
                    Some(directory) => Ok(directory.clone()),
                    None => self.enter(parent, name, path),
                };
            }
            match rustix::fs::mkdirat(&parent.fd, name, Mode::RWXU) {
                Ok(()) => break,
                Err(Errno::EXIST) => hides |= self.clear(parent, name)?,
                Err(errno) => return Err(at("make directory", &path)(errno)),
            }
        }
        // Links on the way may have made the path longer than its name in the archive.
        PATH.check(path.len() as u64)?;
        DEPTH.check(path.split(|&byte| byte == b'/').count() as u64)?;
        self.remembered += (path.len() + size_of::<Option<Meta>>()) as u64;
        DIRECTORIES.check(self.remembered)?;
        self.known.insert(path.clone(), meta);
        let directory = self.enter(parent, name, path)?;
        if hides {
            self.hide(&directory)?;
        }
        Ok(directory)
    }

    /// Marks that nothing of the layers below shows through `directory`.
    pub(super) fn hide(&mut self, directory: &Directory) -> Result<(), UnpackError> {
        if directory.path.is_empty() {
            // Overlayfs does not look for the mark on the root: the chain is cut there instead.
            self.opaque_root = true;
            return Ok(());
        }
        rustix::fs::fsetxattr(&directory.fd, file::OPAQUE, b"y", XattrFlags::empty())
            .map_err(at("mark as opaque", &directory.path))
    }

    /// Describes the root directory.
    pub(super) fn describe_root(&mut self, meta: Meta) -> Rc<Directory> {
        self.known.insert(Vec::new(), Some(meta));
        self.root.clone()
    }

    /// Puts the mark for "not there" at `name`, unless this layer has something of that name, which
    /// then hides what is below by itself.
    pub(super) fn white_out(&mut self, parent: &Directory, name: &[u8]) -> Result<(), UnpackError> {
        let path = parent.join(name);
        if self.known.contains_key(&path) {
            let directory = self.directory(&path)?;
            return self.hide(&directory);
        }
        let mode = Mode::empty();
        match rustix::fs::mknodat(&parent.fd, name, FileType::CharacterDevice, mode, 0) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(at("make whiteout", &path)(errno)),
        }
    }

    /// Makes a file by `make`; what an earlier entry of the same name made gives way.
    pub(super) fn place<T>(
        &mut self,
        op: &'static str,
        parent: &Directory,
        name: &[u8],
        mut make: impl FnMut(&OwnedFd, &[u8]) -> rustix::io::Result<T>,
    ) -> Result<T, UnpackError> {
        match make(&parent.fd, name) {
            Err(Errno::EXIST) => {
                self.clear(parent, name)?;
                make(&parent.fd, name)
            }
            result => result,
        }
        .map_err(|errno| at(op, &parent.join(name))(errno))
    }

    /// Removes `name` with all below it; tells whether it was a whiteout.
    pub(super) fn clear(&mut self, parent: &Directory, name: &[u8]) -> Result<bool, UnpackError> {
        let path = parent.join(name);
        let whiteout = tree::stat(&parent.fd, name).is_ok_and(|stat: Stat| is_whiteout(&stat));
        if self.known.remove(&path).is_some() {
            let below = |path: &[u8], end: u8| [path, &[end]].concat();
            let (first, last) = (below(&path, b'/'), below(&path, b'/' + 1));
            let gone: Vec<_> = self
                .known
                .range(first..last)
                .map(|(path, _)| path.clone())
                .collect();
            for path in gone {
                self.known.remove(&path);
            }
            self.open.clear();
        }
        tree::remove(parent.fd.as_fd(), name).map_err(at("replace", &path))?;
        Ok(whiteout)
    }

    /// The file that `target`, the link target of a hard link, names: its directory and its name.
    /// `None` if this layer does not have it.
    pub(super) fn find(&mut self, target: &[u8]) -> Result<Option<Found>, UnpackError> {
        let components = components(target)?;
        let Some((name, parents)) = components.split_last() else {
            return Ok(None);
        };
        let Some(directory) = self.existing(&parents.join(&b'/'))? else {
            return Ok(None);
        };
        match tree::stat(&directory.fd, name) {
            Ok(stat) if is_whiteout(&stat) => Ok(None),
            Ok(_) => Ok(Some((directory, name.to_vec()))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(at("look at", target)(errno)),
        }
    }

    /// Number of directories, the root included.
    pub(super) fn directories(&self) -> u64 {
        self.known.len() as u64
    }

    /// Gives all directories their owner, mode and time. Returns those that no entry described.
    pub(super) fn finish(self) -> Result<Vec<Vec<u8>>, UnpackError> {
        let mut undescribed = Vec::new();
        for (path, meta) in self.known.into_iter().rev() {
            let fd =
                tree::open_dir_below(&self.root.fd, &path).map_err(at("open directory", &path))?;
            file::describe(&fd, &meta.unwrap_or(PLAIN)).map_err(at("describe", &path))?;
            if meta.is_none() {
                undescribed.push(path);
            }
        }
        Ok(undescribed)
    }
}

/// The path of `name` in the directory `parent`.
pub(super) fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() {
        name.to_vec()
    } else {
        [parent, b"/", name].concat()
    }
}

fn not_a_directory(path: &[u8]) -> UnpackError {
    UnpackError::Format {
        offset: 0,
        reason: format!("entry lies below {:?}, which is no directory", shown(path)),
        source: None,
    }
}

fn parent_of(path: &[u8]) -> &[u8] {
    &path[..path.iter().rposition(|&byte| byte == b'/').unwrap_or(0)]
}
