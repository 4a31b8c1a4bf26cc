//! Manifests and indexes: what may be in them, and how much of it.
//!
//! Documents come from a registry and are hostile. Each is read under a size limit, must say
//! nothing ambiguous (a document with both `layers` and `manifests` is refused, and a `mediaType`
//! inside must not contradict its content), and becomes one of two typed forms. OCI's image
//! manifests and indexes and Docker's version 2 schema 2 are understood; Docker's schema 1 and
//! artifacts that are not images are refused by name.

use kelson_snapshot::Digest;
use serde::Deserialize;

use crate::error::PullError;
use crate::platform::Platform;

/// Largest manifest or index in bytes, as registries and other runtimes have it.
pub const MAX_MANIFEST: u64 = 4 << 20;
/// Largest image configuration in bytes. Histories and labels of real images stay below 1 MiB; it
/// is held in memory while a pull goes on and parsed at every start.
pub const MAX_CONFIG: u64 = 8 << 20;
/// Most entries of an index. Real ones have a few dozen.
pub const MAX_INDEX_ENTRIES: usize = 1000;
/// Most layers of an image. Overlayfs takes 500 lower directories; tools stop at 127.
pub const MAX_LAYERS: usize = 500;
/// Deepest nesting of indexes.
pub const MAX_INDEX_DEPTH: usize = 3;
/// Largest layer blob in bytes, as its manifest declares it.
pub const MAX_LAYER: u64 = 256 << 30;

/// Media types that a registry is asked for.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const SCHEMA1: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];

/// A blob by name and size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// An image manifest: its configuration and its layers, the lowest first.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// One manifest or index of an index.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) target: Descriptor,
    pub(crate) platform: Option<Platform>,
}

/// A parsed document.
#[derive(Debug, Clone)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Vec<Entry>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: i64,
    #[serde(default)]
    urls: Option<Vec<String>>,
    #[serde(default)]
    platform: Option<RawPlatform>,
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
}

/// Reads a document whose bytes have `digest`. `content_type` is what the registry called it, if it
/// said anything.
pub(crate) fn parse(
    bytes: &[u8],
    digest: &Digest,
    content_type: Option<&str>,
) -> Result<Document, PullError> {
    let malformed = |reason: String| PullError::Malformed {
        what: "manifest",
        digest: *digest,
        reason,
    };
    let raw: RawDocument = serde_json::from_slice(bytes)
        .map_err(|error| malformed(format!("it is not the JSON of a manifest: {error}")))?;
    let stated = raw.media_type.as_deref();
    if raw.schema_version == Some(1)
        || raw.fs_layers.is_some()
        || [stated, content_type]
            .into_iter()
            .flatten()
            .any(|t| SCHEMA1.contains(&t))
    {
        return Err(PullError::Unsupported {
            what: "a Docker schema 1 manifest".to_owned(),
            hint: "push the image again with a current tool",
        });
    }
    if raw.schema_version != Some(2) {
        return Err(malformed("schemaVersion is not 2".to_owned()));
    }
    match (raw.layers, raw.manifests) {
        (Some(_), Some(_)) => Err(malformed("it has both layers and manifests".to_owned())),
        (None, None) => Err(malformed("it has neither layers nor manifests".to_owned())),
        (Some(layers), None) => {
            check_type(stated, content_type, &[OCI_MANIFEST, DOCKER_MANIFEST])
                .map_err(malformed)?;
            let config = raw
                .config
                .ok_or_else(|| malformed("it has no config".to_owned()))?;
            manifest(config, layers, raw.artifact_type, malformed).map(Document::Manifest)
        }
        (None, Some(entries)) => {
            check_type(stated, content_type, &[OCI_INDEX, DOCKER_INDEX]).map_err(malformed)?;
            if raw.config.is_some() {
                return Err(malformed("it has both config and manifests".to_owned()));
            }
            index(entries, malformed).map(Document::Index)
        }
    }
}

/// A type that is stated must fit the content. Registries may say nothing, or something that is no
/// manifest type at all (plain JSON), which proves nothing.
fn check_type(
    stated: Option<&str>,
    content_type: Option<&str>,
    fitting: &[&str],
) -> Result<(), String> {
    if let Some(stated) = stated
        && !fitting.contains(&stated)
    {
        return Err(format!(
            "its mediaType {:?} does not fit its content",
            shorten(stated)
        ));
    }
    let known = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST];
    match content_type {
        Some(sent) if known.contains(&sent) && !fitting.contains(&sent) => Err(format!(
            "the registry calls it {sent}, which does not fit its content"
        )),
        Some(sent) if known.contains(&sent) && stated.is_some_and(|stated| stated != sent) => Err(
            format!("the registry calls it {sent}, it calls itself otherwise"),
        ),
        _ => Ok(()),
    }
}

fn manifest(
    config: RawDescriptor,
    layers: Vec<RawDescriptor>,
    artifact_type: Option<String>,
    malformed: impl Fn(String) -> PullError + Copy,
) -> Result<Manifest, PullError> {
    if !matches!(config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG) {
        let kind = artifact_type
            .filter(|kind| !kind.is_empty())
            .unwrap_or(config.media_type);
        return Err(PullError::Unsupported {
            what: format!("an artifact of type {:?}", shorten(&kind)),
            hint: "only container images can be run",
        });
    }
    if layers.len() > MAX_LAYERS {
        return Err(too_large("number of layers", MAX_LAYERS as u64));
    }
    let config = descriptor(&config, malformed)?;
    if config.size > MAX_CONFIG {
        return Err(too_large("size of the image configuration", MAX_CONFIG));
    }
    let layers = layers
        .iter()
        .map(|raw| layer(raw, malformed))
        .collect::<Result<_, _>>()?;
    Ok(Manifest { config, layers })
}

/// Layers are not fetched from the URLs that a manifest may name: a registry holds what it serves,
/// and a manifest must not make the node call on other hosts. So a layer that says it is to be
/// fetched elsewhere is refused, whatever its type is called; a "nondistributable" one without URLs
/// is fetched from the registry like any other.
fn layer(
    raw: &RawDescriptor,
    malformed: impl Fn(String) -> PullError,
) -> Result<Descriptor, PullError> {
    if raw.urls.as_ref().is_some_and(|urls| !urls.is_empty()) {
        return Err(PullError::Unsupported {
            what: "a layer that is to be fetched from outside the registry".to_owned(),
            hint: "push the image again with all its layers",
        });
    }
    if raw.media_type.ends_with("+encrypted") {
        return Err(PullError::Unsupported {
            what: "an encrypted layer".to_owned(),
            hint: "push the image without encryption",
        });
    }
    let is_tar = [
        "application/vnd.oci.image.layer.",
        "application/vnd.docker.image.rootfs.",
    ]
    .iter()
    .any(|prefix| raw.media_type.starts_with(prefix));
    if !is_tar {
        return Err(PullError::Unsupported {
            what: format!("a layer of type {:?}", shorten(&raw.media_type)),
            hint: "layers are tar archives, plain or compressed with gzip or zstd",
        });
    }
    let layer = descriptor(raw, malformed)?;
    if layer.size > MAX_LAYER {
        return Err(too_large("size of a layer", MAX_LAYER));
    }
    Ok(layer)
}

fn index(
    entries: Vec<RawDescriptor>,
    malformed: impl Fn(String) -> PullError + Copy,
) -> Result<Vec<Entry>, PullError> {
    if entries.len() > MAX_INDEX_ENTRIES {
        return Err(too_large(
            "number of entries of the index",
            MAX_INDEX_ENTRIES as u64,
        ));
    }
    let known = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST];
    entries
        .iter()
        // An index may hold other things beside images: signatures, attestations.
        .filter(|raw| known.contains(&raw.media_type.as_str()))
        .map(|raw| {
            let target = descriptor(raw, malformed)?;
            if target.size > MAX_MANIFEST {
                return Err(too_large("size of a manifest", MAX_MANIFEST));
            }
            let platform = raw.platform.as_ref().map(|raw| Platform {
                os: raw.os.clone(),
                architecture: raw.architecture.clone(),
                variant: raw.variant.clone(),
            });
            Ok(Entry { target, platform })
        })
        .collect()
}

fn descriptor(
    raw: &RawDescriptor,
    malformed: impl Fn(String) -> PullError,
) -> Result<Descriptor, PullError> {
    let digest = raw
        .digest
        .parse()
        .map_err(|error| malformed(format!("{error}")))?;
    let size = u64::try_from(raw.size).map_err(|_| malformed("a size is negative".to_owned()))?;
    Ok(Descriptor { digest, size })
}

/// Entries of an index that suit `wanted`, the best first; those of equal worth in their order, and
/// those that state no platform last (their configuration will tell).
///
/// # Errors
/// [`PullError::NoMatchingPlatform`] if there are none.
pub(crate) fn choose(entries: &[Entry], wanted: &Platform) -> Result<Vec<Descriptor>, PullError> {
    let mut suitable: Vec<(u32, &Descriptor)> = entries
        .iter()
        .filter_map(|entry| match &entry.platform {
            None => Some((0, &entry.target)),
            Some(platform) => wanted.suits(platform).map(|rank| (rank + 1, &entry.target)),
        })
        .collect();
    suitable.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
    if suitable.is_empty() {
        let mut offered: Vec<String> = entries
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            // Attestations hang in an index as manifests for "unknown/unknown".
            .filter(|platform| platform.os != "unknown")
            .map(|platform| shorten(&platform.to_string()))
            .collect();
        offered.dedup();
        offered.truncate(16);
        return Err(PullError::NoMatchingPlatform {
            wanted: wanted.to_string(),
            offered,
        });
    }
    Ok(suitable
        .into_iter()
        .map(|(_, target)| target.clone())
        .collect())
}

fn too_large(what: &str, limit: u64) -> PullError {
    PullError::TooLarge {
        what: what.to_owned(),
        limit,
    }
}

/// Cuts a hostile text to a length that fits a message.
fn shorten(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn digest() -> Digest {
        Digest::of(b"x")
    }

    fn read(document: &Value) -> Result<Document, PullError> {
        parse(document.to_string().as_bytes(), &digest(), None)
    }

    fn blob(media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": digest(), "size": 7 })
    }

    fn image() -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": blob(OCI_CONFIG),
            "layers": [blob("application/vnd.oci.image.layer.v1.tar+gzip")],
        })
    }

    #[test]
    fn both_families_are_read() {
        assert!(matches!(read(&image()), Ok(Document::Manifest(m)) if m.layers.len() == 1));
        let docker = json!({
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": blob(DOCKER_CONFIG),
            "layers": [blob("application/vnd.docker.image.rootfs.diff.tar.gzip")],
        });
        assert!(matches!(read(&docker), Ok(Document::Manifest(_))));
        let list = json!({ "schemaVersion": 2, "manifests": [blob(DOCKER_MANIFEST), blob("a/b")] });
        assert!(matches!(read(&list), Ok(Document::Index(entries)) if entries.len() == 1));
    }

    #[test]
    fn ambiguity_is_refused() {
        let mut both = image();
        both["manifests"] = json!([]);
        assert!(matches!(read(&both), Err(PullError::Malformed { .. })));
        let mut lying = image();
        lying["mediaType"] = json!(OCI_INDEX);
        assert!(matches!(read(&lying), Err(PullError::Malformed { .. })));
        let sent = parse(
            image().to_string().as_bytes(),
            &digest(),
            Some(DOCKER_INDEX),
        );
        assert!(matches!(sent, Err(PullError::Malformed { .. })));
        let sent = parse(
            image().to_string().as_bytes(),
            &digest(),
            Some("application/json"),
        );
        assert!(sent.is_ok());
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let schema1 = json!({ "schemaVersion": 1, "fsLayers": [] });
        assert!(matches!(read(&schema1), Err(PullError::Unsupported { .. })));
        let mut chart = image();
        chart["config"] = blob("application/vnd.cncf.helm.config.v1+json");
        assert!(matches!(read(&chart), Err(PullError::Unsupported { .. })));
        let mut foreign = image();
        foreign["layers"][0]["urls"] = json!(["http://elsewhere/"]);
        assert!(matches!(read(&foreign), Err(PullError::Unsupported { .. })));
        for text in ["", "[]", "{}", "null", "{\"schemaVersion\":2}"] {
            let got = parse(text.as_bytes(), &digest(), None);
            assert!(matches!(got, Err(PullError::Malformed { .. })), "{text}");
        }
    }

    #[test]
    fn limits_hold() {
        let mut deep = image();
        let one = blob("application/vnd.oci.image.layer.v1.tar");
        deep["layers"] = Value::Array(vec![one; MAX_LAYERS + 1]);
        assert!(matches!(
            read(&deep),
            Err(PullError::TooLarge { limit: 500, .. })
        ));
        let many = vec![blob(OCI_MANIFEST); MAX_INDEX_ENTRIES + 1];
        let wide = json!({ "schemaVersion": 2, "manifests": many });
        assert!(matches!(
            read(&wide),
            Err(PullError::TooLarge { limit: 1000, .. })
        ));
        for size in [json!(-1), json!(u64::MAX), json!(1.5)] {
            let mut odd = image();
            odd["layers"][0]["size"] = size;
            assert!(matches!(read(&odd), Err(PullError::Malformed { .. })));
        }
        let mut large = image();
        large["config"]["size"] = json!(MAX_CONFIG + 1);
        assert!(matches!(read(&large), Err(PullError::TooLarge { .. })));
    }

    #[test]
    fn the_best_platform_comes_first() {
        let wanted = Platform {
            os: "linux".into(),
            architecture: "amd64".into(),
            variant: "v2".into(),
        };
        let entry = |architecture: &str, variant: &str, size| Entry {
            target: Descriptor {
                digest: digest(),
                size,
            },
            platform: (!architecture.is_empty()).then(|| Platform {
                os: if architecture == "unknown" {
                    "unknown".into()
                } else {
                    "linux".into()
                },
                architecture: architecture.into(),
                variant: variant.into(),
            }),
        };
        let all = [
            entry("unknown", "", 0),
            entry("", "", 1),
            entry("amd64", "", 2),
            entry("amd64", "v3", 3),
            entry("amd64", "v2", 4),
            entry("arm64", "", 5),
        ];
        let sizes: Vec<u64> = choose(&all, &wanted)
            .unwrap()
            .iter()
            .map(|d| d.size)
            .collect();
        assert_eq!(sizes, [4, 2, 1]);
        let error = choose(&[entry("arm64", "", 0), entry("unknown", "", 0)], &wanted).unwrap_err();
        assert!(
            matches!(error, PullError::NoMatchingPlatform { offered, .. }
            if offered == ["linux/arm64"])
        );
    }
}
