//! From a reference to the documents of an image: manifest and configuration for this platform.

use std::sync::Arc;

use bytes::Bytes;
use kelson_snapshot::{DiffId, Digest};
use oci_spec::image::ImageConfiguration;

use super::{Pull, blocking};
use crate::error::PullError;
use crate::manifest::{self, Descriptor, Document, MAX_INDEX_DEPTH, Manifest};
use crate::platform::Platform;
use crate::reference::DEFAULT_TAG;
use crate::registry::Session;

/// Most manifests of an index that are looked at because they do not state their platform.
const MAX_CANDIDATES: usize = 8;

/// A document and its digest.
pub(super) struct Read {
    pub(super) bytes: Bytes,
    pub(super) digest: Digest,
    document: Document,
}

/// An image's documents, checked against each other.
pub(super) struct Resolved {
    pub(super) target: Read,
    pub(super) manifest: Manifest,
    pub(super) manifest_digest: Digest,
    pub(super) manifest_bytes: Bytes,
    pub(super) config: ImageConfiguration,
    pub(super) config_bytes: Bytes,
    pub(super) diff_ids: Vec<DiffId>,
}

impl Pull {
    /// Finds the manifest and the configuration for this platform.
    pub(super) async fn resolve(&self, session: &Session) -> Result<Resolved, PullError> {
        let target = self.target(session).await?;
        let mut last = None;
        for found in self.manifests(session, &target).await? {
            let Read {
                bytes,
                digest,
                document: Document::Manifest(manifest),
            } = found
            else {
                continue;
            };
            match self.config(session, &manifest).await {
                Ok((config, config_bytes, diff_ids)) => {
                    return Ok(Resolved {
                        target,
                        manifest,
                        manifest_digest: digest,
                        manifest_bytes: bytes,
                        config,
                        config_bytes,
                        diff_ids,
                    });
                }
                Err(error @ PullError::NoMatchingPlatform { .. }) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| PullError::NoMatchingPlatform {
            wanted: self.inner.config.platform.to_string(),
            offered: Vec::new(),
        }))
    }

    /// What the reference points to.
    async fn target(&self, session: &Session) -> Result<Read, PullError> {
        if let Some(digest) = self.reference.digest() {
            return self.by_digest(session, digest).await;
        }
        let tag = self.reference.tag().unwrap_or(DEFAULT_TAG);
        // A name that is known here probably has not moved: asking for its digest is cheaper than
        // fetching the manifest.
        let known = self.inner.index().find(&self.reference.name()).is_image();
        if known
            && let Some(digest) = session.head(tag).await
            && let Some(read) = self.stored(&digest).await?
        {
            return Ok(read);
        }
        let fetched = session.manifest_by_tag(tag).await?;
        let document = manifest::parse(
            &fetched.bytes,
            &fetched.digest,
            fetched.content_type.as_deref(),
        )?;
        Ok(Read {
            bytes: fetched.bytes,
            digest: fetched.digest,
            document,
        })
    }

    async fn by_digest(&self, session: &Session, digest: &Digest) -> Result<Read, PullError> {
        if let Some(read) = self.stored(digest).await? {
            return Ok(read);
        }
        let fetched = session.manifest_by_digest(digest).await?;
        let document = manifest::parse(&fetched.bytes, digest, fetched.content_type.as_deref())?;
        Ok(Read {
            bytes: fetched.bytes,
            digest: *digest,
            document,
        })
    }

    async fn stored(&self, digest: &Digest) -> Result<Option<Read>, PullError> {
        let (inner, digest) = (Arc::clone(&self.inner), *digest);
        let Some(bytes) = blocking(move || inner.document(&digest)).await? else {
            return Ok(None);
        };
        let document = manifest::parse(&bytes, &digest, None)?;
        Ok(Some(Read {
            bytes: Bytes::from(bytes),
            digest,
            document,
        }))
    }

    /// The manifests to try for this platform: one, unless an index does not state platforms.
    async fn manifests(&self, session: &Session, target: &Read) -> Result<Vec<Read>, PullError> {
        let mut level = vec![Read {
            bytes: target.bytes.clone(),
            digest: target.digest,
            document: target.document.clone(),
        }];
        for _ in 0..=MAX_INDEX_DEPTH {
            let mut next = Vec::new();
            let mut indexes = false;
            for read in level {
                let Document::Index(entries) = &read.document else {
                    next.push(read);
                    continue;
                };
                indexes = true;
                let candidates = manifest::choose(entries, &self.inner.config.platform)?;
                let stated = entries.iter().any(|entry| {
                    entry.platform.is_some() && candidates.first() == Some(&entry.target)
                });
                let take = if stated { 1 } else { MAX_CANDIDATES };
                for candidate in candidates.iter().take(take) {
                    next.push(self.by_digest(session, &candidate.digest).await?);
                }
            }
            next.truncate(MAX_CANDIDATES);
            level = next;
            if !indexes {
                return Ok(level);
            }
        }
        let what = "nesting of image indexes".to_owned();
        Err(PullError::TooLarge {
            what,
            limit: MAX_INDEX_DEPTH as u64,
        })
    }

    async fn config(
        &self,
        session: &Session,
        manifest: &Manifest,
    ) -> Result<(ImageConfiguration, Bytes, Vec<DiffId>), PullError> {
        let Descriptor { digest, .. } = manifest.config;
        let inner = Arc::clone(&self.inner);
        let bytes = match blocking(move || inner.document(&digest)).await? {
            Some(bytes) => Bytes::from(bytes),
            None => session.small_blob(&manifest.config).await?,
        };
        let malformed = |reason: String| PullError::Malformed {
            what: "image configuration",
            digest,
            reason,
        };
        let config: ImageConfiguration = serde_json::from_slice(&bytes)
            .map_err(|error| malformed(format!("it is not the JSON of one: {error}")))?;
        let wanted = &self.inner.config.platform;
        let offered = Platform {
            os: config.os().to_string(),
            architecture: config.architecture().to_string(),
            variant: config.variant().clone().unwrap_or_default(),
        };
        if wanted.suits(&offered).is_none() {
            let offered = vec![offered.to_string()];
            return Err(PullError::NoMatchingPlatform {
                wanted: wanted.to_string(),
                offered,
            });
        }
        let diff_ids = config.rootfs().diff_ids();
        if diff_ids.len() != manifest.layers.len() {
            let (ids, layers) = (diff_ids.len(), manifest.layers.len());
            return Err(malformed(format!(
                "it names {ids} layers, the manifest {layers}"
            )));
        }
        let diff_ids = diff_ids
            .iter()
            .map(|id| id.parse::<DiffId>())
            .collect::<Result<_, _>>();
        let diff_ids =
            diff_ids.map_err(|error| malformed(format!("a diff id is wrong: {error}")))?;
        Ok((config, bytes, diff_ids))
    }
}
