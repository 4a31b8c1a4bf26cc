//! The files that describe devices: one JSON or YAML document each.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use kelson_sys::root::{Root, RootError};
use serde::Deserialize;

use crate::edits::{EditError, Edits};
use crate::name;

/// Largest file, in bytes.
pub(crate) const MAX_FILE: u64 = 4 << 20;
/// Most files of a directory that are read.
pub(crate) const MAX_FILES: usize = 1024;
/// Most devices of a file.
pub(crate) const MAX_DEVICES: usize = 8192;
/// The newest version of the specification whose fields are known.
const NEWEST: (u32, u32) = (1, 1);

/// A file that was read and makes sense.
pub(crate) struct Spec {
    path: PathBuf,
    document: Document,
}

/// A device as some file describes it.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    /// What is for every device of the file.
    pub(crate) common: Edits,
    pub(crate) edits: Edits,
    /// Another file of the same directory that describes it.
    pub(crate) conflict: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    cdi_version: String,
    kind: String,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    #[serde(default)]
    container_edits: Edits,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("cannot read it")]
    Read(#[source] RootError),
    #[error("it is no JSON document of this form")]
    Json(#[source] serde_json::Error),
    #[error("it is no YAML document of this form")]
    Yaml(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("it is not text in UTF-8")]
    Text(#[source] std::str::Utf8Error),
    #[error("cdiVersion {0:?} is not one from 0.3.0 to 1.1.0")]
    Version(String),
    #[error("kind {0:?} is not like vendor.com/class")]
    Kind(String),
    #[error("it describes no device")]
    Empty,
    #[error("it describes more than {MAX_DEVICES} devices")]
    TooMany,
    #[error("{0:?} is not the name of a device")]
    Name(String),
    #[error("it describes device {0:?} twice")]
    Twice(String),
    #[error("device {device:?}")]
    Edits {
        device: String,
        #[source]
        source: EditError,
    },
}

/// The files of a directory that make sense. A directory that is not there has none.
pub(crate) fn read_dir(dir: &Path) -> Vec<Spec> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!(dir = %dir.display(), %error, "descriptions of devices cannot be read");
            return Vec::new();
        }
    };
    let mut names: Vec<_> = entries
        .flatten()
        .map(|entry| entry.file_name())
        .filter(|name| {
            let kind = Path::new(name).extension();
            kind.is_some_and(|kind| kind == "json" || kind == "yaml")
        })
        .collect();
    names.sort();
    if names.len() > MAX_FILES {
        tracing::warn!(
            dir = %dir.display(),
            files = names.len(),
            limit = MAX_FILES,
            "there are too many descriptions of devices; the last ones are not read"
        );
        names.truncate(MAX_FILES);
    }
    let read = |name: &std::ffi::OsString| match read(dir, Path::new(name)) {
        Ok(document) => Some(Spec {
            path: dir.join(name),
            document,
        }),
        Err(error) => {
            let file = dir.join(name);
            tracing::warn!(file = %file.display(), error = %Chain(&error), "a description of devices is not used");
            None
        }
    };
    names.iter().filter_map(read).collect()
}

fn read(dir: &Path, name: &Path) -> Result<Document, FileError> {
    // Never blocks on a fifo, and a link may lead anywhere on the host: the directory is the operator's.
    let path = dir.join(name);
    let root = Root::open(Path::new("/")).map_err(FileError::Read)?;
    let bytes = root.read_capped(&path, MAX_FILE).map_err(FileError::Read)?;
    let document: Document = if name.extension().is_some_and(|kind| kind == "json") {
        serde_json::from_slice(&bytes).map_err(FileError::Json)?
    } else {
        let text = std::str::from_utf8(&bytes).map_err(FileError::Text)?;
        serde_saphyr::from_str(text).map_err(|error| FileError::Yaml(Box::new(error)))?
    };
    check(&document)?;
    Ok(document)
}

fn check(document: &Document) -> Result<(), FileError> {
    if !is_known(&document.cdi_version) {
        let version = document.cdi_version.chars().take(80).collect();
        return Err(FileError::Version(version));
    }
    if !name::is_kind(&document.kind) {
        return Err(FileError::Kind(document.kind.chars().take(80).collect()));
    }
    if document.devices.is_empty() {
        return Err(FileError::Empty);
    }
    if document.devices.len() > MAX_DEVICES {
        return Err(FileError::TooMany);
    }
    let edits = |device: &str, edits: &Edits| {
        edits.check().map_err(|source| FileError::Edits {
            device: device.to_owned(),
            source,
        })
    };
    edits("*", &document.container_edits)?;
    let mut names = std::collections::HashSet::new();
    for device in &document.devices {
        if !name::is_device(&device.name) {
            return Err(FileError::Name(device.name.chars().take(80).collect()));
        }
        if !names.insert(device.name.as_str()) {
            return Err(FileError::Twice(device.name.clone()));
        }
        edits(&device.name, &device.container_edits)?;
    }
    Ok(())
}

fn is_known(version: &str) -> bool {
    let numbers: Vec<u32> = version
        .split('.')
        .map_while(|part| part.parse().ok())
        .collect();
    let [major, minor, _] = numbers[..] else {
        return false;
    };
    version.split('.').count() == 3 && (0, 3) <= (major, minor) && (major, minor) <= NEWEST
}

impl Spec {
    /// Adds its devices to those of its directory.
    pub(crate) fn devices(self, all: &mut BTreeMap<String, Found>) {
        let Document {
            kind,
            devices,
            container_edits,
            ..
        } = self.document;
        for device in devices {
            let name = format!("{kind}={}", device.name);
            if let Some(known) = all.get_mut(&name) {
                known.conflict.get_or_insert_with(|| self.path.clone());
                continue;
            }
            let found = Found {
                path: self.path.clone(),
                common: container_edits.clone(),
                edits: device.container_edits,
                conflict: None,
            };
            all.insert(name, found);
        }
    }
}

/// An error with its causes, for the log.
struct Chain<'a>(&'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
