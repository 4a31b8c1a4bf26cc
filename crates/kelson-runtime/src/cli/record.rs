//! What is kept about a container: one directory with a record, the specification, and the gate.

use std::fmt;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use kelson_cgroup::{Cgroup, Hierarchy};
use oci_spec::runtime::Spec;
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::args::Global;
use super::error::CliError;
use crate::HookContext;

/// The version of [`Record`].
const VERSION: u32 = 1;
/// Largest file that is read: a specification with thousands of mounts stays far below.
pub(super) const MAX_FILE: u64 = 16 << 20;
/// Longest id.
const MAX_ID: usize = 1024;

/// A container on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) v: u32,
    pub(super) id: String,
    pub(super) bundle: PathBuf,
    pub(super) rootfs: PathBuf,
    pub(super) cgroup: String,
    pub(super) created: String,
    /// The first process, from when it exists on.
    pub(super) init: Option<Init>,
}

/// A process, told from a later one of the same number by when it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Init {
    pub(super) pid: u32,
    pub(super) start_time: u64,
}

/// The states of the runtime specification, and `paused` as engines know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        })
    }
}

/// A container's directory.
#[derive(Debug)]
pub(super) struct Container {
    dir: PathBuf,
    pub(super) record: Record,
}

impl Container {
    /// Makes the directory of a new container.
    pub(super) fn create(global: &Global, record: Record, spec: &Spec) -> Result<Self, CliError> {
        let dir = directory(global, &record.id)?;
        let mut builder = fs::DirBuilder::new();
        let made = builder.mode(0o711).recursive(true).create(&global.root);
        made.map_err(|e| CliError::io("make", &global.root, e))?;
        match builder.mode(0o700).recursive(false).create(&dir) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                return Err(CliError::Exists { id: record.id });
            }
            Err(e) => return Err(CliError::io("make", dir, e)),
        }
        let container = Self { dir, record };
        let saved = container
            .write("config.json", spec)
            .and_then(|()| container.save());
        match saved {
            Ok(()) => Ok(container),
            Err(error) => {
                container.forget()?;
                Err(error)
            }
        }
    }

    /// Opens an existing container.
    pub(super) fn open(global: &Global, id: &str) -> Result<Self, CliError> {
        let dir = directory(global, id)?;
        let path = dir.join("state.json");
        match read_json::<Record>(&path) {
            Ok(record) if record.v == VERSION => Ok(Self { dir, record }),
            Ok(record) => Err(CliError::Usage(format!(
                "container {id} was made by another version of Kelson (record version {})",
                record.v
            ))),
            Err(CliError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                Err(CliError::NotFound { id: id.to_owned() })
            }
            Err(error) => Err(error),
        }
    }

    /// The ids of all containers.
    pub(super) fn ids(global: &Global) -> Result<Vec<String>, CliError> {
        let entries = match fs::read_dir(&global.root) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(CliError::io("read", &global.root, e)),
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut ids: Vec<_> = names
            .filter(|id| global.root.join(id).join("state.json").exists())
            .collect();
        ids.sort();
        Ok(ids)
    }

    /// Writes the record.
    pub(super) fn save(&self) -> Result<(), CliError> {
        self.write("state.json", &self.record)
    }

    /// The specification it was made from.
    pub(super) fn spec(&self) -> Result<Spec, CliError> {
        read_json(&self.dir.join("config.json"))
    }

    /// Its cgroup.
    pub(super) fn cgroup(&self) -> Result<Cgroup, CliError> {
        Ok(Cgroup::new(&Hierarchy::detect()?, &self.record.cgroup)?)
    }

    /// Where the gate of a created container is, see [`crate::Options::gate`].
    pub(super) fn gate(&self) -> PathBuf {
        self.dir.join("start.sock")
    }

    /// Removes the directory.
    pub(super) fn forget(&self) -> Result<(), CliError> {
        fs::remove_dir_all(&self.dir).map_err(|e| CliError::io("remove", &self.dir, e))
    }

    /// The pidfd of the first process; `None` when it has ended.
    pub(super) fn pidfd(&self) -> Result<Option<OwnedFd>, CliError> {
        let Some(init) = self.record.init else {
            return Ok(None);
        };
        let Some(pid) = Pid::from_raw(init.pid.cast_signed()) else {
            return Ok(None);
        };
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(e) => return Err(CliError::io("open", format!("process {}", init.pid), e)),
        };
        // Asked after the pidfd is held: what is found now is what the pidfd stands for.
        Ok((alive(init.pid) == Some(init.start_time)).then_some(pidfd))
    }

    /// Its status, as the kernel has it.
    pub(super) fn status(&self) -> Result<Status, CliError> {
        if self.record.init.is_none() {
            return Ok(Status::Creating);
        }
        if self.pidfd()?.is_none() {
            return Ok(Status::Stopped);
        }
        if self.gate().exists() {
            return Ok(Status::Created);
        }
        let frozen = self.cgroup()?.frozen()?;
        Ok(if frozen {
            Status::Paused
        } else {
            Status::Running
        })
    }

    /// What hooks are told.
    pub(super) fn hook_context(&self, spec: &Spec) -> HookContext {
        HookContext {
            id: self.record.id.clone(),
            bundle: self.record.bundle.clone(),
            annotations: spec.annotations().clone().unwrap_or_default(),
        }
    }

    /// The state of the runtime specification, with what runc adds to it.
    pub(super) fn state(&self) -> Result<Value, CliError> {
        let status = self.status()?;
        let pid = match (status, self.record.init) {
            (Status::Stopped, _) | (_, None) => 0,
            (_, Some(init)) => init.pid,
        };
        let annotations = self.spec()?.annotations().clone().unwrap_or_default();
        Ok(json!({
            "ociVersion": crate::OCI_VERSION,
            "id": self.record.id,
            "pid": pid,
            "status": status.to_string(),
            "bundle": self.record.bundle,
            "rootfs": self.record.rootfs,
            "created": self.record.created,
            "annotations": annotations,
            "owner": "",
        }))
    }

    fn write(&self, name: &str, value: &impl Serialize) -> Result<(), CliError> {
        let path = self.dir.join(name);
        let new = self.dir.join(format!("{name}.new"));
        let text = serde_json::to_vec(value).map_err(|source| CliError::Json {
            path: path.clone(),
            source,
        })?;
        fs::write(&new, text).map_err(|e| CliError::io("write", &new, e))?;
        fs::rename(&new, &path).map_err(|e| CliError::io("write", path, e))
    }
}

/// A new record.
pub(super) fn record(id: &str, bundle: PathBuf, rootfs: PathBuf, cgroup: String) -> Record {
    let created = super::time::rfc3339(std::time::SystemTime::now());
    Record {
        v: VERSION,
        id: id.to_owned(),
        bundle,
        rootfs,
        cgroup,
        created,
        init: None,
    }
}

/// The directory of an id, which is checked: it becomes a file name.
fn directory(global: &Global, id: &str) -> Result<PathBuf, CliError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    if id.is_empty() || id.len() > MAX_ID || id == "." || id == ".." || !id.chars().all(legal) {
        return Err(CliError::BadId { id: id.to_owned() });
    }
    Ok(global.root.join(id))
}

/// Reads a JSON file of at most [`MAX_FILE`] bytes.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, CliError> {
    let failed = |e| CliError::io("read", path, e);
    let mut text = Vec::new();
    let file = fs::File::open(path).map_err(failed)?;
    file.take(MAX_FILE + 1)
        .read_to_end(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        let error = std::io::Error::other(format!("it is larger than {MAX_FILE} bytes"));
        return Err(failed(error));
    }
    serde_json::from_slice(&text).map_err(|source| CliError::Json {
        path: path.into(),
        source,
    })
}

/// When a process was started, in ticks since boot, unless it has ended.
pub(super) fn alive(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; what follows the last one is numbers.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    let start_time = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(start_time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_are_no_file_names_are_refused() {
        let global =
            <super::super::args::Cli as clap::Parser>::parse_from(["x", "features"]).global;
        let long = "a".repeat(1025);
        for id in ["", ".", "..", "a/b", "a b", "a\0", "é", &long] {
            assert!(
                matches!(directory(&global, id), Err(CliError::BadId { .. })),
                "{id:?}"
            );
        }
        assert_eq!(
            directory(&global, "a.b_c+d-1").unwrap(),
            global.root.join("a.b_c+d-1")
        );
    }

    #[test]
    fn a_process_has_one_start_time() {
        let own = alive(std::process::id()).unwrap();
        assert_eq!(alive(std::process::id()), Some(own));
        assert_eq!(alive(u32::MAX), None);
    }
}
