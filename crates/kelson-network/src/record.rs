//! The records of attachments: one JSON file per pod, written before the world is changed.
//!
//! A record holds all that is needed to undo its attachment: neither the configuration nor the
//! pod has to exist any more. An index in memory answers who else uses a network or a port.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::conf::is_identifier;
use crate::error::Error;
use crate::pod::{Attachment, PortMapping};

/// The version of the record's form.
const VERSION: u32 = 1;
/// The longest pod id.
pub(crate) const MAX_POD_ID: usize = 128;

/// What an attachment did, or is about to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    v: u32,
    pub(crate) pod_id: String,
    pub(crate) network: String,
    /// The plugin list that was used.
    pub(crate) conf: Value,
    pub(crate) mode: Mode,
    /// The result; absent until the attachment is complete.
    pub(crate) attachment: Option<Attachment>,
}

/// How it was done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// In this process.
    Native {
        /// The host's end of the pair.
        veth: String,
        /// host-local's directory of the network.
        dir: PathBuf,
        /// Ports published.
        ports: Vec<PortMapping>,
    },
    /// By programs.
    External {
        /// Where the namespace is pinned.
        netns: PathBuf,
        /// `CNI_ARGS`.
        args: String,
        /// Arguments of every capability, whoever asks for them.
        capabilities: Map<String, Value>,
        /// What the last plugin of ADD answered.
        result: Option<Value>,
    },
}

impl Record {
    pub(crate) fn new(pod_id: &str, network: &str, conf: Value, mode: Mode) -> Self {
        let (pod_id, network) = (pod_id.to_owned(), network.to_owned());
        Self {
            v: VERSION,
            pod_id,
            network,
            conf,
            mode,
            attachment: None,
        }
    }

    fn ports(&self) -> &[PortMapping] {
        match &self.mode {
            Mode::Native { ports, .. } => ports,
            Mode::External { .. } => &[],
        }
    }
}

/// A record file as it was found.
#[derive(Debug, Clone)]
pub(crate) enum Entry {
    /// A usable record; `leaving` once its removal has begun.
    Known { record: Arc<Record>, leaving: bool },
    /// A file that cannot be read, as a power cut can leave it.
    Damaged,
    /// A record of a later version of this program.
    Newer(u32),
}

/// All records.
#[derive(Debug)]
pub(crate) struct Records {
    dir: PathBuf,
    index: Mutex<HashMap<String, Entry>>,
}

impl Records {
    /// Reads the directory, which is made if missing.
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        let mut index = HashMap::new();
        for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
            let path = entry.map_err(Error::io("list", dir))?.path();
            let Some(pod_id) = path.file_stem().and_then(|stem| stem.to_str()) else {
                continue;
            };
            if path.extension().is_some_and(|known| known == "json") {
                let entry = read(&path);
                if !matches!(entry, Entry::Known { .. }) {
                    tracing::warn!(file = %path.display(), ?entry, "network record not usable");
                }
                index.insert(pod_id.to_owned(), entry);
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            index: Mutex::new(index),
        })
    }

    fn index(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the intent of an attachment, unless another pod has one of its ports.
    pub(crate) fn begin(&self, record: Record) -> Result<Arc<Record>, Error> {
        let record = Arc::new(record);
        let mut index = self.index();
        for entry in index.values() {
            if let Entry::Known {
                record: other,
                leaving: false,
            } = entry
                && other.pod_id != record.pod_id
                && let Some(port) = record.ports().iter().find(|p| conflicts(p, other.ports()))
            {
                let (port, protocol, pod_id) =
                    (port.host_port, port.protocol, other.pod_id.clone());
                return Err(Error::PortInUse {
                    port,
                    protocol,
                    pod_id,
                });
            }
        }
        self.write(&record)?;
        let entry = Entry::Known {
            record: Arc::clone(&record),
            leaving: false,
        };
        index.insert(record.pod_id.clone(), entry);
        Ok(record)
    }

    /// Replaces a pod's record.
    pub(crate) fn update(&self, record: Record) -> Result<(), Error> {
        self.write(&record)?;
        let pod_id = record.pod_id.clone();
        self.index().insert(
            pod_id,
            Entry::Known {
                record: Arc::new(record),
                leaving: false,
            },
        );
        Ok(())
    }

    /// A pod's record, marked as leaving: from now on it keeps no network in use.
    pub(crate) fn leave(&self, pod_id: &str) -> Option<Entry> {
        let mut index = self.index();
        let entry = index.get_mut(pod_id)?;
        if let Entry::Known { leaving, .. } = entry {
            *leaving = true;
        }
        Some(entry.clone())
    }

    /// Deletes a pod's record.
    pub(crate) fn remove(&self, pod_id: &str) -> Result<(), Error> {
        let path = self.path(pod_id);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &path)(source));
            }
            _ => {}
        }
        self.index().remove(pod_id);
        Ok(())
    }

    /// All that there is, by pod id.
    pub(crate) fn all(&self) -> Vec<(String, Entry)> {
        let mut all: Vec<_> = self
            .index()
            .iter()
            .map(|(id, e)| (id.clone(), e.clone()))
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// Whether a pod that stays uses this network natively.
    pub(crate) fn uses(&self, network: &str) -> bool {
        self.index().values().any(|entry| {
            matches!(entry, Entry::Known { record, leaving: false }
                if record.network == network && matches!(record.mode, Mode::Native { .. }))
        })
    }

    fn path(&self, pod_id: &str) -> PathBuf {
        self.dir.join(format!("{pod_id}.json"))
    }

    fn write(&self, record: &Record) -> Result<(), Error> {
        let path = self.path(&record.pod_id);
        let temporary = self.dir.join(format!("{}.tmp", record.pod_id));
        let bytes = serde_json::to_vec(record)
            .map_err(|source| Error::io("encode", &path)(source.into()))?;
        let write = || -> io::Result<()> {
            fs::File::create(&temporary)?.write_all(&bytes)?;
            fs::rename(&temporary, &path)
        };
        write().map_err(Error::io("write", &path))
    }
}

fn read(path: &Path) -> Entry {
    #[derive(Deserialize)]
    struct Versioned {
        v: u32,
    }
    let Ok(bytes) = fs::read(path) else {
        return Entry::Damaged;
    };
    match serde_json::from_slice::<Versioned>(&bytes) {
        Ok(Versioned { v }) if v > VERSION => Entry::Newer(v),
        _ => match serde_json::from_slice::<Record>(&bytes) {
            Ok(record) => Entry::Known {
                record: Arc::new(record),
                leaving: false,
            },
            Err(_) => Entry::Damaged,
        },
    }
}

fn conflicts(port: &PortMapping, others: &[PortMapping]) -> bool {
    let specific = |p: &PortMapping| p.host_ip.filter(|ip| !ip.is_unspecified());
    others.iter().any(|other| {
        let apart = matches!((specific(port), specific(other)), (Some(a), Some(b)) if a != b);
        other.host_port == port.host_port && other.protocol == port.protocol && !apart
    })
}

/// Refuses what cannot be a CNI container id and a file name.
pub(crate) fn check_pod_id(pod_id: &str) -> Result<(), Error> {
    if is_identifier(pod_id, MAX_POD_ID) {
        Ok(())
    } else {
        Err(Error::PodId(pod_id.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::Protocol;

    fn record(pod_id: &str, ports: &[(u16, Option<&str>)]) -> Record {
        let ports = ports.iter().map(|(host_port, ip)| PortMapping {
            host_port: *host_port,
            container_port: 80,
            protocol: Protocol::Tcp,
            host_ip: ip.map(|ip| ip.parse().unwrap()),
        });
        let ports = ports.collect();
        let mode = Mode::Native {
            veth: "v".into(),
            dir: "/d".into(),
            ports,
        };
        Record::new(pod_id, "net", Value::Null, mode)
    }

    #[test]
    fn records_survive_reopening_and_damage_is_told_from_the_future() {
        let temp = tempfile::tempdir().unwrap();
        let records = Records::open(temp.path()).unwrap();
        records.begin(record("a", &[])).unwrap();
        fs::write(temp.path().join("b.json"), "").unwrap();
        fs::write(temp.path().join("c.json"), r#"{"v":99,"whatever":1}"#).unwrap();
        fs::write(temp.path().join("d.tmp"), "half").unwrap();
        let all = Records::open(temp.path()).unwrap().all();
        assert_eq!(all.len(), 3);
        assert!(matches!(&all[0].1, Entry::Known { record: r, .. } if **r == record("a", &[])));
        assert!(matches!(all[1].1, Entry::Damaged));
        assert!(matches!(all[2].1, Entry::Newer(99)));
    }

    #[test]
    fn a_port_belongs_to_one_pod_until_that_leaves() {
        let temp = tempfile::tempdir().unwrap();
        let records = Records::open(temp.path()).unwrap();
        records
            .begin(record("a", &[(80, None), (81, Some("10.0.0.1"))]))
            .unwrap();
        let taken = records
            .begin(record("b", &[(80, Some("10.0.0.9"))]))
            .unwrap_err();
        assert!(
            matches!(taken, Error::PortInUse { port: 80, .. }),
            "{taken}"
        );
        assert!(
            records
                .begin(record("c", &[(81, Some("10.0.0.2"))]))
                .is_ok()
        );
        assert!(records.uses("net"));
        records.leave("a");
        records.leave("c");
        assert!(!records.uses("net"));
        assert!(records.begin(record("b", &[(80, None)])).is_ok());
    }

    #[test]
    fn ids_that_leave_the_directory_are_refused() {
        for bad in ["", "../x", "a/b", ".hidden", &"x".repeat(MAX_POD_ID + 1)] {
            assert!(check_pod_id(bad).is_err(), "{bad}");
        }
        assert!(check_pod_id(&"0a".repeat(32)).is_ok());
    }
}
