//! A layer that is unpacked but not committed.

use std::path::{Path, PathBuf};

use crate::unpack::Extracted;
use crate::{DiffId, Usage, tree};

/// An unpacked layer whose digests are right. Dropping it deletes its files, which takes a while
/// for a large one.
#[derive(Debug)]
pub struct Staging {
    diff_id: DiffId,
    extracted: Extracted,
    scratch: Scratch,
}

impl Staging {
    pub(crate) fn new(diff_id: DiffId, extracted: Extracted, scratch: Scratch) -> Self {
        Self {
            diff_id,
            extracted,
            scratch,
        }
    }

    /// The layer's diff id.
    pub fn diff_id(&self) -> &DiffId {
        &self.diff_id
    }

    /// Space that the layer takes.
    pub fn usage(&self) -> Usage {
        self.extracted.usage
    }

    /// Its files, as a directory.
    ///
    /// # Errors
    /// The directory cannot be opened.
    pub fn open(&self) -> std::io::Result<std::os::fd::OwnedFd> {
        Ok(tree::open_dir(&self.scratch.path().join("fs"))?)
    }

    /// Moves what is at its top under the plain name `name` to `to`, on the same file system.
    ///
    /// # Errors
    /// It is not there, or something is at `to` already.
    pub fn take(&self, name: &str, to: &Path) -> std::io::Result<()> {
        debug_assert!(!name.contains('/'), "the name is not a plain one");
        std::fs::rename(self.scratch.path().join("fs").join(name), to)
    }

    pub(crate) fn into_parts(self) -> (Extracted, Scratch) {
        (self.extracted, self.scratch)
    }
}

/// A directory that is deleted when it is dropped, unless it was renamed to where it belongs.
#[derive(Debug)]
pub(crate) struct Scratch(Option<PathBuf>);

impl Scratch {
    /// Makes the directory, for nobody else's eyes.
    pub(crate) fn make(path: PathBuf) -> std::io::Result<Self> {
        rustix::fs::mkdir(&path, rustix::fs::Mode::RWXU)?;
        Ok(Self(Some(path)))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new(""))
    }

    /// Moves it to where it stays; `to` must not exist.
    pub(crate) fn keep(mut self, to: &Path) -> std::io::Result<()> {
        std::fs::rename(self.path(), to)?;
        self.0 = None;
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = tree::remove_path(path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot delete an unfinished directory");
        }
    }
}
