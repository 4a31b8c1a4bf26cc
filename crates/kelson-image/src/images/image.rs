//! An image as the store knows it, and the table of all of them that readers see.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use kelson_snapshot::{ChainId, Digest, DigestError};
use kelson_store::Record;
use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use crate::reference::Reference;

/// Fewest characters of an id that name an image, so that short names are not taken for ids.
pub(crate) const MIN_ID_PREFIX: usize = 6;

/// The identity of an image: the digest of its configuration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageId(Digest);

impl ImageId {
    /// The digest of the configuration.
    pub const fn digest(&self) -> &Digest {
        &self.0
    }
}

impl From<Digest> for ImageId {
    fn from(digest: Digest) -> Self {
        Self(digest)
    }
}

impl FromStr for ImageId {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        text.parse().map(Self)
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The user that an image names, in the CRI's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageUser {
    /// None is named: root.
    Unset,
    /// A number.
    Uid(u32),
    /// A name, to be looked up in the image; also a number that is no user id, so that nobody takes
    /// it for one.
    Name(String),
}

/// An image that is wholly on disk.
#[derive(Debug, Clone)]
pub struct Image {
    /// The digest of the configuration.
    pub id: ImageId,
    /// Canonical names with tags, such as `docker.io/library/busybox:latest`; sorted, may be empty.
    pub tags: Vec<String>,
    /// Names with the digest of what was pulled (the index, if there is one), such as
    /// `docker.io/library/busybox@sha256:…`; sorted.
    pub digests: Vec<String>,
    /// Digest of the manifest for this platform.
    pub manifest: Digest,
    /// Bytes as they were pulled: the manifest, the configuration and the compressed layers, which
    /// is what containerd reports to the kubelet.
    pub size: u64,
    /// The configuration. Its content is the image author's, not to be trusted.
    pub config: ImageConfiguration,
    /// Chain ids of the layers, bottom first; empty for an image without layers.
    pub chain: Vec<ChainId>,
    /// Whether garbage collection shall spare it.
    pub pinned: bool,
}

impl Image {
    /// The user of the configuration, without the group.
    pub fn user(&self) -> ImageUser {
        let user = self
            .config
            .config()
            .as_ref()
            .and_then(|config| config.user().as_deref());
        let name = user
            .unwrap_or_default()
            .split(':')
            .next()
            .unwrap_or_default();
        if name.is_empty() {
            return ImageUser::Unset;
        }
        match name.parse::<u32>() {
            Ok(uid) if name.bytes().all(|byte| byte.is_ascii_digit()) => ImageUser::Uid(uid),
            _ => ImageUser::Name(name.to_owned()),
        }
    }
}

/// What is on disk of an image, beside its blobs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) manifest: Digest,
    pub(crate) size: u64,
    pub(crate) chain: Vec<ChainId>,
    pub(crate) tags: Vec<String>,
    pub(crate) digests: Vec<String>,
}

impl Record for ImageRecord {
    const TABLE: &'static str = "images";
    const VERSION: u32 = 1;
}

impl ImageRecord {
    /// Digests of the blobs that the image needs besides its configuration.
    pub(crate) fn documents(&self) -> impl Iterator<Item = Digest> {
        let targets = self
            .digests
            .iter()
            .filter_map(|name| name.rsplit_once('@')?.1.parse().ok());
        std::iter::once(self.manifest).chain(targets)
    }

    pub(crate) fn image(
        &self,
        id: ImageId,
        config: ImageConfiguration,
        pinned: &[String],
    ) -> Arc<Image> {
        let Self {
            manifest,
            size,
            chain,
            tags,
            digests,
        } = self.clone();
        let pinned = tags
            .iter()
            .chain(&digests)
            .any(|name| is_pinned(name, pinned));
        Arc::new(Image {
            id,
            tags,
            digests,
            manifest,
            size,
            config,
            chain,
            pinned,
        })
    }
}

/// Whether one of the patterns fits: `*part*`, `prefix*`, or a reference in any of its forms.
fn is_pinned(name: &str, patterns: &[String]) -> bool {
    patterns.iter().any(|pattern| {
        let inner = pattern
            .strip_prefix('*')
            .and_then(|rest| rest.strip_suffix('*'));
        match (inner, pattern.strip_suffix('*')) {
            (Some(part), _) => name.contains(part),
            (None, Some(prefix)) => name.starts_with(prefix),
            _ => pattern
                .parse::<Reference>()
                .is_ok_and(|reference| reference.name() == name),
        }
    })
}

/// All images, for readers. It is replaced as a whole.
#[derive(Debug, Clone, Default)]
pub(crate) struct Index {
    pub(crate) images: BTreeMap<ImageId, Arc<Image>>,
    names: HashMap<String, ImageId>,
}

/// What a name finds.
pub(crate) enum Found {
    Image(Arc<Image>),
    Nothing,
    /// The beginning of several ids.
    Several,
}

impl Found {
    pub(crate) fn is_image(&self) -> bool {
        matches!(self, Self::Image(_))
    }
}

impl Index {
    pub(crate) fn new(images: impl IntoIterator<Item = Arc<Image>>) -> Self {
        let mut index = Self::default();
        for image in images {
            for name in image.tags.iter().chain(&image.digests) {
                index.names.insert(name.clone(), image.id);
            }
            index.images.insert(image.id, image);
        }
        index
    }

    /// Finds an image by id, with or without `sha256:`, by the beginning of an id, by tag or by
    /// digest. A name wins over the beginning of an id.
    pub(crate) fn find(&self, name: &str) -> Found {
        let (hex, qualified) = match name.strip_prefix("sha256:") {
            Some(hex) => (hex, true),
            None => (name, false),
        };
        let id = format!("sha256:{hex}").parse::<ImageId>();
        if let Some(image) = id.ok().and_then(|id| self.images.get(&id)) {
            return Found::Image(Arc::clone(image));
        }
        let reference = name.parse::<Reference>().ok().filter(|_| !qualified);
        let named = reference.and_then(|reference| self.names.get(&reference.name()));
        if let Some(image) = named.and_then(|id| self.images.get(id)) {
            return Found::Image(Arc::clone(image));
        }
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if hex.len() < MIN_ID_PREFIX || !hex.bytes().all(is_hex) {
            return Found::Nothing;
        }
        let mut found = self
            .images
            .iter()
            .filter(|(id, _)| id.digest().hex().starts_with(hex));
        match (found.next(), found.next()) {
            (None, _) => Found::Nothing,
            (Some((_, image)), None) => Found::Image(Arc::clone(image)),
            (Some(_), Some(_)) => Found::Several,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(seed: &str, tags: &[&str], user: &str) -> Arc<Image> {
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": { "User": user },
            "rootfs": { "type": "layers", "diff_ids": [] },
        });
        let record = ImageRecord {
            manifest: Digest::of(seed.as_bytes()),
            size: 1,
            chain: Vec::new(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            digests: vec![format!("docker.io/library/{seed}@{}", Digest::of(b"index"))],
        };
        let id = Digest::of(format!("config of {seed}").as_bytes()).into();
        record.image(id, serde_json::from_value(config).unwrap(), &[])
    }

    #[test]
    fn every_name_finds_its_image() {
        let one = image("one", &["docker.io/library/one:latest"], "");
        let index = Index::new([
            Arc::clone(&one),
            image("two", &["localhost:5000/two:x"], ""),
        ]);
        let hex = one.id.digest().hex();
        let found = |name: &str| match index.find(name) {
            Found::Image(image) => Some(image.id),
            _ => None,
        };
        let digest = format!("one@{}", Digest::of(b"index"));
        let tagged = format!("one:old@{}", Digest::of(b"index"));
        for name in [
            "one",
            "docker.io/one",
            &hex,
            &format!("sha256:{hex}"),
            &hex[..13],
            &digest,
            &tagged,
        ] {
            assert_eq!(found(name), Some(one.id), "{name}");
        }
        for name in [
            "three",
            "one:other",
            "two",
            &hex[..MIN_ID_PREFIX - 1],
            "",
            "sha256:",
            "/",
            "ffffffffffff",
        ] {
            assert_eq!(found(name), None, "{name}");
        }
    }

    #[test]
    fn users_are_told_apart_from_numbers() {
        let user = |text| image("x", &[], text).user();
        assert_eq!(user(""), ImageUser::Unset);
        assert_eq!(user(":100"), ImageUser::Unset);
        assert_eq!(user("1000:1000"), ImageUser::Uid(1000));
        assert_eq!(user("nobody:x"), ImageUser::Name("nobody".into()));
        for odd in ["4294967296", "-1", "+5", " 5", "99999999999999999999"] {
            assert_eq!(user(odd), ImageUser::Name(odd.into()));
        }
    }

    #[test]
    fn pinning_patterns() {
        let pinned =
            |pattern: &str| is_pinned("docker.io/library/pause:3.10", &[pattern.to_owned()]);
        for yes in [
            "pause:3.10",
            "docker.io/library/pause:3.10",
            "docker.io/library/*",
            "*pause*",
        ] {
            assert!(pinned(yes), "{yes}");
        }
        for no in ["pause", "pause*", "*other*", "quay.io/*", "Bad"] {
            assert!(!pinned(no), "{no}");
        }
    }
}
