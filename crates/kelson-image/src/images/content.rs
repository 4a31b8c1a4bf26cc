//! Manifests, indexes and image configurations on disk: `blobs/sha256/<hex>`, one file each, written
//! once under a name of their content. Layer blobs are not kept.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use kelson_snapshot::{Digest, Usage};

use crate::error::ImageError;
use crate::manifest::MAX_CONFIG;

/// Allocation unit assumed for a small file.
const BLOCK: u64 = 4096;

/// The directory of small blobs.
#[derive(Debug)]
pub(crate) struct Content {
    blobs: PathBuf,
    ingest: PathBuf,
}

impl Content {
    /// Opens the store below `root` and drops what was half-written.
    pub(crate) fn open(root: &Path) -> Result<Self, ImageError> {
        let blobs = root.join("blobs/sha256");
        let ingest = root.join("blobs/ingest");
        match fs::remove_dir_all(&ingest) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(ImageError::Io {
                    op: "remove",
                    path: ingest,
                    source,
                });
            }
            _ => {}
        }
        for path in [&blobs, &ingest] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(|source| ImageError::Io {
                    op: "create directory",
                    path: path.clone(),
                    source,
                })?;
        }
        Ok(Self { blobs, ingest })
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    /// The blob's bytes, checked; `None` if it is absent or damaged.
    pub(crate) fn read(&self, digest: &Digest) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = File::open(self.path(digest)).ok()?;
        file.take(MAX_CONFIG + 1).read_to_end(&mut bytes).ok()?;
        (Digest::of(&bytes) == *digest).then_some(bytes)
    }

    /// Writes a blob, which the caller makes durable. One that is there and whole is left alone.
    pub(crate) fn write(&self, digest: &Digest, bytes: &[u8]) -> Result<(), ImageError> {
        if self.read(digest).is_some() {
            return Ok(());
        }
        let temporary = self.ingest.join(digest.hex());
        let failed = |op, path: &Path| {
            let path = path.to_owned();
            move |source| ImageError::Io { op, path, source }
        };
        let written = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| file.write_all(bytes));
        if let Err(source) = written {
            // The first error is the one to report; the rest of a full disk is cleaned at start.
            let _ = fs::remove_file(&temporary);
            return Err(failed("write", &temporary)(source));
        }
        let path = self.path(digest);
        fs::rename(&temporary, &path).map_err(failed("rename", &path))
    }

    /// Removes all blobs that `keep` does not name.
    pub(crate) fn retain(&self, keep: impl Fn(&Digest) -> bool) -> Result<(), ImageError> {
        for (digest, path, _) in self.files()? {
            if !digest.is_some_and(|digest| keep(&digest)) {
                match fs::remove_file(&path) {
                    Err(source) if source.kind() != io::ErrorKind::NotFound => {
                        return Err(ImageError::Io {
                            op: "remove",
                            path,
                            source,
                        });
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Space that the blobs take.
    pub(crate) fn usage(&self) -> Result<Usage, ImageError> {
        let mut usage = Usage::default();
        for (_, _, length) in self.files()? {
            usage.bytes += length.next_multiple_of(BLOCK);
            usage.inodes += 1;
        }
        Ok(usage)
    }

    /// Files with the digest that their name is, if it is one, and their length.
    fn files(&self) -> Result<Vec<(Option<Digest>, PathBuf, u64)>, ImageError> {
        let read = || {
            fs::read_dir(&self.blobs)?
                .map(|entry| {
                    let entry = entry?;
                    let name = entry.file_name().to_string_lossy().into_owned();
                    let length = entry.metadata().map_or(0, |metadata| metadata.len());
                    Ok((format!("sha256:{name}").parse().ok(), entry.path(), length))
                })
                .collect::<io::Result<Vec<_>>>()
        };
        read().map_err(|source| ImageError::Io {
            op: "read",
            path: self.blobs.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_are_whole_or_absent() {
        let dir = tempfile::tempdir().unwrap();
        let content = Content::open(dir.path()).unwrap();
        let digest = Digest::of(b"hello");
        assert_eq!(content.read(&digest), None);
        content.write(&digest, b"hello").unwrap();
        assert_eq!(content.read(&digest).as_deref(), Some(&b"hello"[..]));
        fs::write(content.path(&digest), b"hellO").unwrap();
        assert_eq!(content.read(&digest), None, "damaged");
        content.write(&digest, b"hello").unwrap();
        assert!(content.read(&digest).is_some(), "repaired");
        assert_eq!(
            content.usage().unwrap(),
            Usage {
                bytes: BLOCK,
                inodes: 1
            }
        );
        fs::write(dir.path().join("blobs/ingest/x"), b"half").unwrap();
        let content = Content::open(dir.path()).unwrap();
        assert!(!dir.path().join("blobs/ingest/x").exists());
        content.retain(|_| false).unwrap();
        assert_eq!(content.usage().unwrap(), Usage::default());
    }
}
