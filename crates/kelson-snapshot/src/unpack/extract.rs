//! Writes the entries of an archive into a layer's directory.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::layer::{Directory, Layer, join};
use super::name::Target;
use super::tar::{Archive, Entry, Kind};
use crate::error::{at, shown};
use crate::limits::{LINK, LOWER_LINKS};
use crate::{UnpackError, Usage, file};

/// Unit in which file systems give space to files.
const PAGE: u64 = 4096;
/// Symbolic links shorter than this live in the inode.
const INLINE: usize = 60;

/// What was written, and what has to wait for the layers below.
#[derive(Debug, Default)]
pub(crate) struct Extracted {
    /// Space taken, from the lengths of the files: what an entry replaced is still counted.
    pub(crate) usage: Usage,
    /// Directories that no entry describes.
    pub(crate) undescribed: Vec<Vec<u8>>,
    /// Hard links, in order: the new path, and the path of a file that this layer does not have.
    pub(crate) links: Vec<(Vec<u8>, Vec<u8>)>,
    /// Nothing of the layers below shows through.
    pub(crate) opaque_root: bool,
}

/// Writes all entries into `root`, an empty directory into which nobody else writes.
pub(super) fn extract(archive: &mut Archive, root: OwnedFd) -> Result<Extracted, UnpackError> {
    let layer = Layer::new(root);
    let mut extractor = Extractor {
        layer,
        done: Extracted::default(),
        remembered: 0,
    };
    while let Some(entry) = archive.next()? {
        extractor.entry(archive, &entry)?;
    }
    archive.drain();
    let Extractor {
        layer, mut done, ..
    } = extractor;
    done.usage.inodes += layer.directories();
    done.usage.bytes += layer.directories() * PAGE;
    done.opaque_root = layer.opaque_root;
    done.undescribed = layer.finish()?;
    Ok(done)
}

struct Extractor {
    layer: Layer,
    done: Extracted,
    /// Bytes of `done.links`.
    remembered: u64,
}

impl Extractor {
    fn entry(&mut self, archive: &mut Archive, entry: &Entry) -> Result<(), UnpackError> {
        match Target::parse(&entry.path)? {
            Target::Nothing => Ok(()),
            Target::Opaque(path) => {
                let directory = self.layer.directory(&path)?;
                self.layer.hide(&directory)
            }
            Target::Whiteout { parent, name } => {
                // A file in place of the directory hides what was in it; umoci writes whiteouts
                // below it nevertheless.
                let Some(parent) = self.layer.unless_blocked(&parent)? else {
                    return Ok(());
                };
                self.done.usage.inodes += 1;
                self.layer.white_out(&parent, &name)
            }
            Target::Root if entry.kind == Kind::Directory => {
                let root = self.layer.describe_root(entry.meta);
                set_xattrs(&root.fd, entry)
            }
            Target::Root => Err(archive.malformed("root of the layer is no directory")),
            Target::Entry { parent, name } => {
                let parent = self.layer.directory(&parent)?;
                self.place(archive, entry, &parent, &name)
            }
        }
    }

    fn place(
        &mut self,
        archive: &mut Archive,
        entry: &Entry,
        parent: &Directory,
        name: &[u8],
    ) -> Result<(), UnpackError> {
        match entry.kind {
            Kind::Directory => {
                let directory = self.layer.make(parent, name, Some(entry.meta))?;
                return set_xattrs(&directory.fd, entry);
            }
            Kind::File => self.file(archive, entry, parent, name)?,
            Kind::HardLink => return self.hard_link(archive, entry, parent, name),
            Kind::Symlink => {
                let target = &entry.link[..];
                LINK.check(target.len() as u64)?;
                if target.is_empty() {
                    return Err(archive.malformed("symbolic link has no target"));
                }
                if target.len() >= INLINE {
                    self.done.usage.bytes += PAGE;
                }
                self.layer
                    .place("make symbolic link", parent, name, |dir, name| {
                        rustix::fs::symlinkat(target, dir, name)?;
                        file::describe_at(dir, name, &entry.meta, true)
                    })?;
            }
            Kind::CharDevice => self.node(entry, parent, name, FileType::CharacterDevice)?,
            Kind::BlockDevice => self.node(entry, parent, name, FileType::BlockDevice)?,
            Kind::Fifo => self.node(entry, parent, name, FileType::Fifo)?,
        }
        self.done.usage.inodes += 1;
        Ok(())
    }

    fn file(
        &mut self,
        archive: &mut Archive,
        entry: &Entry,
        parent: &Directory,
        name: &[u8],
    ) -> Result<(), UnpackError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Set-id bits only once the owner is right.
        let mode = Mode::from_raw_mode(entry.meta.mode & 0o777);
        let fd = self.layer.place("create", parent, name, |dir, name| {
            rustix::fs::openat(dir, name, flags, mode)
        })?;
        let path = &entry.path;
        match &entry.sparse {
            None => {
                write(archive, &fd, entry.size, None, path)?;
                self.done.usage.bytes += entry.size.next_multiple_of(PAGE);
            }
            Some(sparse) => {
                rustix::fs::ftruncate(&fd, sparse.length).map_err(at("set length of", path))?;
                for &(offset, count) in &sparse.segments {
                    write(archive, &fd, count, Some(offset), path)?;
                    self.done.usage.bytes += count.next_multiple_of(PAGE);
                }
            }
        }
        file::describe(&fd, &entry.meta).map_err(at("describe", path))?;
        set_xattrs(&fd, entry)
    }

    fn node(
        &mut self,
        entry: &Entry,
        parent: &Directory,
        name: &[u8],
        kind: FileType,
    ) -> Result<(), UnpackError> {
        let device = rustix::fs::makedev(entry.device.0, entry.device.1);
        self.layer
            .place("make device or fifo", parent, name, |dir, name| {
                rustix::fs::mknodat(dir, name, kind, Mode::empty(), device)?;
                file::describe_at(dir, name, &entry.meta, false)
            })
    }

    fn hard_link(
        &mut self,
        archive: &Archive,
        entry: &Entry,
        parent: &Directory,
        name: &[u8],
    ) -> Result<(), UnpackError> {
        let path = parent.join(name);
        let Some((from, target)) = self.layer.find(&entry.link)? else {
            let Target::Entry {
                parent: from,
                name: target,
            } = Target::parse(&entry.link)?
            else {
                return Err(archive.malformed("hard link to something that is no file"));
            };
            let target = join(&from, &target);
            self.remembered += (path.len() + target.len()) as u64;
            LOWER_LINKS.check(self.remembered)?;
            self.layer.clear(parent, name)?;
            self.done.links.push((path, target));
            return Ok(());
        };
        if from.join(&target) == path {
            return Ok(());
        }
        let linked = self.layer.place("link", parent, name, |dir, name| {
            rustix::fs::linkat(&from.fd, &target[..], dir, name, AtFlags::empty())
        });
        match linked {
            Err(UnpackError::Io { source, .. })
                if Errno::from_io_error(&source) == Some(Errno::PERM) =>
            {
                Err(archive.malformed(format!(
                    "hard link to the directory {:?}",
                    shown(&entry.link)
                )))
            }
            result => result,
        }
    }
}

/// Writes `count` bytes of the current entry's data, from `offset` if given.
fn write(
    archive: &mut Archive,
    fd: &OwnedFd,
    count: u64,
    offset: Option<u64>,
    path: &[u8],
) -> Result<(), UnpackError> {
    let mut left = count;
    while left > 0 {
        let data = archive.data()?;
        let data = &data[..data.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
        let written = match offset {
            None => rustix::io::write(fd, data),
            Some(offset) => rustix::io::pwrite(fd, data, offset + (count - left)),
        };
        let written = match written {
            Err(Errno::INTR) => 0,
            result => result.map_err(at("write", path))?,
        };
        archive.consume(written);
        left -= written as u64;
    }
    Ok(())
}

fn set_xattrs(fd: impl AsFd, entry: &Entry) -> Result<(), UnpackError> {
    for (name, value) in &entry.xattrs {
        // Not `at`: a file system says "no space" here when a single file has too many.
        file::set_xattr(&fd, name, value).map_err(|errno| UnpackError::Io {
            op: "set extended attribute of",
            path: shown(&entry.path),
            source: errno.into(),
        })?;
    }
    Ok(())
}
