//! The configuration directory: the first usable file by name is the network.
//!
//! A file that cannot be used is passed over and its error kept for the status, as CRI-O does
//! (containerd gives up at the first broken file). The directory is read again whenever it is
//! asked for and something in it has changed: nothing watches and nothing polls.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::conf::{ConfError, MAX_CONF_BYTES, NetworkConf};
use crate::error::{NotReady, chain};

/// A directory with more entries than this is not searched further.
const MAX_FILES: usize = 1024;

/// Everything about a file that changes when its content does.
type Stamp = (PathBuf, u64, u64, i64, i64);

/// The directory with what was read from it last.
#[derive(Debug)]
pub(crate) struct ConfDir {
    dir: PathBuf,
    last: Mutex<Option<Reading>>,
}

#[derive(Debug, Clone)]
struct Reading {
    stamps: Vec<Stamp>,
    outcome: Result<Arc<NetworkConf>, NotReady>,
}

impl ConfDir {
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            last: Mutex::new(None),
        }
    }

    /// The network that is configured now.
    pub(crate) fn current(&self) -> Result<Arc<NetworkConf>, NotReady> {
        let stamps = self.stamps()?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reading) = last.as_ref().filter(|reading| reading.stamps == stamps) {
            return reading.outcome.clone();
        }
        let outcome = self.read(&stamps);
        *last = Some(Reading {
            stamps,
            outcome: outcome.clone(),
        });
        outcome
    }

    fn stamps(&self) -> Result<Vec<Stamp>, NotReady> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => {
                let dir = self.dir.display();
                return Err(NotReady::new(format!("cannot read {dir}: {source}")));
            }
        };
        let mut stamps: Vec<Stamp> = entries
            .take(MAX_FILES)
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let known = path.extension()?.to_str()?;
                if !["conf", "conflist", "json"].contains(&known) {
                    return None;
                }
                let meta = fs::metadata(&path).ok()?;
                let stamp = (
                    path,
                    meta.ino(),
                    meta.size(),
                    meta.mtime(),
                    meta.mtime_nsec(),
                );
                meta.is_file().then_some(stamp)
            })
            .collect();
        stamps.sort();
        Ok(stamps)
    }

    fn read(&self, stamps: &[Stamp]) -> Result<Arc<NetworkConf>, NotReady> {
        let mut mistakes = Vec::new();
        for (path, ..) in stamps {
            match read_file(path) {
                Ok(conf) => {
                    tracing::info!(network = conf.name, file = %path.display(), "pod network");
                    return Ok(Arc::new(conf));
                }
                Err(mistake) => {
                    let mistake = format!("{}: {}", path.display(), chain(&mistake));
                    tracing::warn!(%mistake, "network configuration passed over");
                    mistakes.push(mistake);
                }
            }
        }
        let dir = self.dir.display();
        Err(NotReady::new(if mistakes.is_empty() {
            format!(
                "no network configuration in {dir}: install a CNI conflist there, or set \
                 network.fallback = \"bridge\""
            )
        } else {
            format!(
                "no usable network configuration in {dir}: {}",
                mistakes.join("; ")
            )
        }))
    }
}

fn read_file(path: &Path) -> Result<NetworkConf, ConfError> {
    let file = fs::File::open(path).map_err(ConfError::Read)?;
    let mut bytes = Vec::new();
    file.take(MAX_CONF_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(ConfError::Read)?;
    if bytes.len() as u64 > MAX_CONF_BYTES {
        return Err(ConfError::TooLong);
    }
    NetworkConf::parse(
        &bytes,
        path.extension().is_some_and(|known| known == "conflist"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conflist(name: &str) -> String {
        format!(r#"{{"name":"{name}","cniVersion":"1.0.0","plugins":[{{"type":"x"}}]}}"#)
    }

    #[test]
    fn the_first_usable_file_by_name_wins_and_changes_are_seen() {
        let temp = tempfile::tempdir().unwrap();
        let dir = ConfDir::new(&temp.path().join("net.d"));
        let missing = dir.current().unwrap_err();
        assert_eq!(missing.reason, "NetworkPluginNotReady");
        assert!(missing.message.contains("no network configuration"));

        let put = |name: &str, text: &str| fs::write(dir.dir.join(name), text).unwrap();
        fs::create_dir(&dir.dir).unwrap();
        put("05-broken.conflist", "{ not json");
        put("notes.txt", "ignored");
        fs::create_dir(dir.dir.join("06-dir.conf")).unwrap();
        let broken = dir.current().unwrap_err();
        assert!(
            broken
                .message
                .contains("05-broken.conflist: it is not valid JSON"),
            "{broken}"
        );

        put("20-b.conflist", &conflist("b"));
        assert_eq!(dir.current().unwrap().name, "b");
        put(
            "10-a.conf",
            r#"{"name":"a","cniVersion":"1.0.0","type":"x"}"#,
        );
        assert_eq!(dir.current().unwrap().name, "a");
        put(
            "10-a.conf",
            r#"{"name":"a2","cniVersion":"1.0.0","type":"x"}"#,
        );
        assert_eq!(dir.current().unwrap().name, "a2");
        fs::remove_file(dir.dir.join("10-a.conf")).unwrap();
        assert_eq!(dir.current().unwrap().name, "b");
        fs::remove_dir_all(&dir.dir).unwrap();
        assert!(dir.current().is_err());
    }

    #[test]
    fn a_file_that_is_too_long_is_refused_by_its_limit() {
        let temp = tempfile::tempdir().unwrap();
        let padding = " ".repeat(usize::try_from(MAX_CONF_BYTES).unwrap());
        fs::write(temp.path().join("1.conflist"), padding + &conflist("a")).unwrap();
        let err = ConfDir::new(temp.path()).current().unwrap_err();
        assert!(err.message.contains("longer than 1048576 bytes"), "{err}");
    }
}
