//! SELinux: the labels of a container's processes, and of what they may touch.
//!
//! A label is `user:role:type:level`. Kelson takes the labels that the machine's policy has for containers and
//! puts a level of the pod's own into them, so that the policy keeps pods apart; a request can replace parts.
//! Pods that share the host's processes or its IPC have no labels, and processes of privileged containers the
//! type that may do everything. Where SELinux is off, labels mean nothing: they are accepted and kept.

mod levels;
mod relabel;

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::config::{ContainerSecurity, NamespaceMode, PodConfig, Selinux};
use crate::world::FileError;

pub(crate) use levels::Held;
use levels::Levels;
pub(crate) use relabel::{Scope, is_protected, relabel};

/// A type that the policy lets do everything: what it uses keeps its labels.
const UNCONFINED: &str = "spc_t";

/// Why labels cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum SelinuxError {
    /// The policy's labels for containers cannot be read.
    #[error(
        "cannot read {}, which has the policy's labels for containers; install the package container-selinux",
        path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The policy's labels for containers are none.
    #[error("{} has no label {key:?} of the form user:role:type:level", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The name of the label.
        key: &'static str,
    },
    /// The loaded policy does not know a label.
    #[error("the policy of this machine does not know the label {label:?}")]
    Unknown {
        /// The label.
        label: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Every level is in use.
    #[error("no level is free for the pod")]
    Exhausted,
}

/// The labels of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Labels {
    /// Of its processes.
    pub(crate) process: Option<String>,
    /// Of its root, its own file systems, and the volumes that are to be given its label.
    pub(crate) files: String,
    /// Whether its volumes are given the label when that is asked for.
    pub(crate) relabels: bool,
}

/// SELinux on this machine.
pub(crate) struct Policy(Option<Loaded>);

struct Loaded {
    /// The kernel's interface.
    interface: PathBuf,
    process: Label,
    files: Label,
    levels: Levels,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Label {
    user: String,
    role: String,
    kind: String,
    /// Empty in a policy without levels.
    level: String,
}

impl Label {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let label = Self {
            user: parts.next()?,
            role: parts.next()?,
            kind: parts.next()?,
            level: parts.next().unwrap_or_default(),
        };
        let whole = [&label.user, &label.role, &label.kind];
        whole.iter().all(|part| !part.is_empty()).then_some(label)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.user, self.role, self.kind)?;
        match self.level.as_str() {
            "" => Ok(()),
            level => write!(f, ":{level}"),
        }
    }
}

impl Policy {
    /// SELinux of this machine: off unless it is `wanted` and the kernel has it.
    pub(crate) fn host(wanted: bool) -> Result<Self, SelinuxError> {
        Self::open(
            wanted,
            Path::new("/sys/fs/selinux"),
            Path::new("/etc/selinux"),
        )
    }

    /// What [`tests::make_up`] has put into a directory; no SELinux where it has not.
    #[cfg(test)]
    pub(crate) fn made_up(dir: &Path) -> Self {
        Self::open(true, &dir.join("sys"), &dir.join("etc")).unwrap()
    }

    /// How many levels are in use.
    #[cfg(test)]
    pub(crate) fn levels_in_use(&self) -> usize {
        self.0.as_ref().map_or(0, |policy| policy.levels.in_use())
    }

    fn open(wanted: bool, interface: &Path, settings: &Path) -> Result<Self, SelinuxError> {
        match (wanted, interface.join("enforce").exists()) {
            (false, false) => Ok(Self(None)),
            (false, true) => {
                tracing::warn!(
                    "SELinux is on at this machine and off in the configuration: containers get no labels; \
                     set security.selinux"
                );
                Ok(Self(None))
            }
            (true, false) => {
                tracing::info!("SELinux is off at this machine: containers get no labels");
                Ok(Self(None))
            }
            (true, true) => {
                let kind = kind_of_policy(&settings.join("config"));
                let path = settings.join(kind).join("contexts/lxc_contexts");
                let text = fs::read_to_string(&path).map_err(|source| SelinuxError::Read {
                    path: path.clone(),
                    source,
                })?;
                let label = |key: &'static str| {
                    let label = value(&text, key).and_then(|text| Label::parse(&text));
                    let path = path.clone();
                    label.ok_or(SelinuxError::Missing { path, key })
                };
                Ok(Self(Some(Loaded {
                    interface: interface.to_owned(),
                    process: label("process")?,
                    files: label("file")?,
                    levels: Levels::default(),
                })))
            }
        }
    }

    /// Gives the pod a level, if it can have labels: the one it asks for, or one that no other pod has. It is
    /// the pod's as long as the answer lives.
    pub(crate) fn assign(&self, pod: &mut PodConfig) -> Result<Option<Held>, SelinuxError> {
        pod.selinux_level.clear();
        let Some(policy) = self.0.as_ref().filter(|_| has_labels(pod)) else {
            return Ok(None);
        };
        let asked = pod.security.selinux.level.clone();
        let held = match policy.process.level.split(':').next().unwrap_or_default() {
            _ if !asked.is_empty() => policy.levels.hold(&asked),
            "" => return policy.check_pod(pod).map(|()| None),
            sensitivity => {
                let fresh = policy.levels.fresh(sensitivity);
                fresh.ok_or(SelinuxError::Exhausted)?
            }
        };
        pod.selinux_level = held.level().to_owned();
        policy.check_pod(pod)?;
        Ok(Some(held))
    }

    /// The level of a pod that has one, which no other gets as long as the answer lives.
    pub(crate) fn hold(&self, pod: &PodConfig) -> Option<Held> {
        let policy = self.0.as_ref()?;
        (!pod.selinux_level.is_empty()).then(|| policy.levels.hold(&pod.selinux_level))
    }

    /// The labels of a container; none where SELinux is off or the pod has no labels.
    pub(crate) fn labels(
        &self,
        pod: &PodConfig,
        security: &ContainerSecurity,
    ) -> Result<Option<Labels>, SelinuxError> {
        let Some(policy) = self.0.as_ref().filter(|_| has_labels(pod)) else {
            return Ok(None);
        };
        let (process, files) = policy.labels(pod, &security.selinux);
        policy.check(&process)?;
        policy.check(&files)?;
        let relabels = process.kind != UNCONFINED;
        let typed = [&security.selinux.kind, &pod.security.selinux.kind];
        let process = if security.privileged && typed.iter().all(|kind| kind.is_empty()) {
            policy.unconfined(pod, &security.selinux)
        } else {
            Some(process)
        };
        Ok(Some(Labels {
            process: process.map(|label| label.to_string()),
            files: files.to_string(),
            relabels,
        }))
    }

    /// The label of the files that Kelson makes for a pod.
    pub(crate) fn of_pod_files(&self, pod: &PodConfig) -> Option<String> {
        let policy = self.0.as_ref().filter(|_| has_labels(pod))?;
        Some(policy.labels(pod, &Selinux::default()).1.to_string())
    }

    /// Gives files and directories a label, themselves only.
    pub(crate) fn set(&self, paths: &[&Path], label: &str) -> Result<(), FileError> {
        let mut each = paths.iter();
        each.try_for_each(|path| relabel(path, label, Scope::Itself))
    }
}

impl Loaded {
    /// The labels of processes and files; what the container asks for wins over what the pod does.
    fn labels(&self, pod: &PodConfig, wanted: &Selinux) -> (Label, Label) {
        let of_pod = &pod.security.selinux;
        let part = |wanted: &str, of_pod: &str, default: &str| {
            let given = [wanted, of_pod].into_iter().find(|part| !part.is_empty());
            given.unwrap_or(default).to_owned()
        };
        let level = |default: &str| part(&wanted.level, &pod.selinux_level, default);
        let user = |default: &str| part(&wanted.user, &of_pod.user, default);
        let process = Label {
            user: user(&self.process.user),
            role: part(&wanted.role, &of_pod.role, &self.process.role),
            kind: part(&wanted.kind, &of_pod.kind, &self.process.kind),
            level: level(&self.process.level),
        };
        let files = Label {
            user: user(&self.files.user),
            level: level(&self.files.level),
            ..self.files.clone()
        };
        (process, files)
    }

    /// What processes of a privileged container have, if the policy knows such a type.
    fn unconfined(&self, pod: &PodConfig, wanted: &Selinux) -> Option<Label> {
        let mut label = self.labels(pod, wanted).0;
        label.kind = UNCONFINED.to_owned();
        if wanted.level.is_empty() && pod.security.selinux.level.is_empty() {
            label.level.clone_from(&self.process.level);
        }
        self.check(&label).is_ok().then_some(label)
    }

    fn check_pod(&self, pod: &PodConfig) -> Result<(), SelinuxError> {
        let (process, files) = self.labels(pod, &Selinux::default());
        self.check(&process)?;
        self.check(&files)
    }

    /// Asks the kernel whether a label is one.
    fn check(&self, label: &Label) -> Result<(), SelinuxError> {
        let label = label.to_string();
        let ask = || {
            let path = self.interface.join("context");
            let mut file = fs::OpenOptions::new().write(true).open(path)?;
            file.write_all(format!("{label}\0").as_bytes())
        };
        ask().map_err(|source| SelinuxError::Unknown {
            label: label.clone(),
            source,
        })
    }
}

/// Whether the containers of a pod have labels.
fn has_labels(pod: &PodConfig) -> bool {
    let namespaces = &pod.namespaces;
    namespaces.pid != NamespaceMode::Node && namespaces.ipc != NamespaceMode::Node
}

/// The name of the policy that is loaded at the start of the machine.
fn kind_of_policy(config: &Path) -> String {
    let text = fs::read_to_string(config).unwrap_or_default();
    value(&text, "SELINUXTYPE").unwrap_or_else(|| "targeted".to_owned())
}

/// The value of a `key = "value"` line.
fn value(text: &str, key: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == key).then(|| value.trim().trim_matches('"').to_owned())
    })
}

#[cfg(test)]
pub(crate) mod tests;
