//! The errors that callers see.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::pod::Protocol;

/// Why the network cannot take pods, in the form of the CRI's `NetworkReady` condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct NotReady {
    /// Always `NetworkPluginNotReady`, the word that kubelets know.
    pub reason: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

impl NotReady {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            reason: "NetworkPluginNotReady",
            message: message.into(),
        }
    }
}

/// Why an attachment could not be made or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no usable configuration.
    #[error("the pod network is not ready")]
    NotReady(#[from] NotReady),
    /// The pod id cannot be a CNI container id.
    #[error("pod id {0:?} is not usable: letters, digits, `_`, `.` and `-` only, at most 128")]
    PodId(String),
    /// A file operation failed.
    #[error("cannot {op} {path}", path = path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a step of the set-up.
    #[error("cannot {step}")]
    Kernel {
        /// What was tried.
        step: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The pod's network namespace cannot be opened.
    #[error("cannot open the pod's network namespace {path}; is the pod still alive?", path = path.display())]
    Netns {
        /// The namespace file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No address is left.
    #[error(
        "network {network}: no free address in {ranges}; remove pods, or widen the range in the \
         network's configuration (addresses in use: {dir})",
        dir = dir.display()
    )]
    Exhausted {
        /// The network.
        network: String,
        /// The ranges of the set that is full.
        ranges: String,
        /// Where the addresses in use are kept, one file each.
        dir: PathBuf,
    },
    /// An address that was asked for is in use or not in any range.
    #[error("network {network}: address {address} is in use or outside the network's ranges")]
    AddressUnavailable {
        /// The network.
        network: String,
        /// The address.
        address: std::net::IpAddr,
    },
    /// The bridge has another address than the network's gateway.
    #[error(
        "bridge {bridge} has the address {found} but network {network} needs {wanted}; remove \
         the address, or set forceAddress in the network's configuration"
    )]
    BridgeAddress {
        /// The bridge.
        bridge: String,
        /// The network.
        network: String,
        /// What it has.
        found: ipnet::IpNet,
        /// What it should have.
        wanted: ipnet::IpNet,
    },
    /// The name of the bridge belongs to something else.
    #[error("interface {name} is not a bridge; choose another bridge name in the configuration")]
    NotABridge {
        /// The interface.
        name: String,
    },
    /// The host port belongs to another pod.
    #[error("host port {port}/{protocol} is published by pod {pod_id} already")]
    PortInUse {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// The pod that has it.
        pod_id: String,
    },
    /// A value given for the pod cannot be used.
    #[error("{what} {value:?} is not valid")]
    Value {
        /// What it is.
        what: &'static str,
        /// The value.
        value: String,
    },
    /// A plugin's program is in none of the directories.
    #[error(
        "network {network} needs the plugin program {plugin:?}, which is not in {dirs}; {why}",
        dirs = join_paths(dirs)
    )]
    PluginMissing {
        /// The network.
        network: String,
        /// The plugin type.
        plugin: String,
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
        /// Why external programs are used at all.
        why: String,
    },
    /// A plugin's program could not be run.
    #[error("cannot run plugin {plugin} for {verb}")]
    PluginRun {
        /// The plugin type.
        plugin: String,
        /// The CNI verb.
        verb: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A plugin did not finish in time and was killed.
    #[error("plugin {plugin} did not finish {verb} within {limit:?}")]
    PluginTimeout {
        /// The plugin type.
        plugin: String,
        /// The CNI verb.
        verb: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// A plugin reported an error.
    #[error("plugin {plugin} failed {verb}: {message} (code {code})")]
    Plugin {
        /// The plugin type.
        plugin: String,
        /// The CNI verb.
        verb: &'static str,
        /// The code of the CNI specification, or 0 when the plugin printed no error object.
        code: u32,
        /// What the plugin said.
        message: String,
    },
    /// A plugin's answer is not what the specification asks for.
    #[error("plugin {plugin} answered {verb} with {problem}")]
    PluginOutput {
        /// The plugin type.
        plugin: String,
        /// The CNI verb.
        verb: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The pod was attached by a later version of this program.
    #[error("the network record of pod {pod_id} has version {version}; upgrade to remove it")]
    NewerRecord {
        /// The pod.
        pod_id: String,
        /// The record's version.
        version: u32,
    },
    /// Some steps of a removal failed; the others were done. Try again.
    #[error("pod {pod_id} is not wholly detached: {}", join_errors(failures))]
    Incomplete {
        /// The pod.
        pod_id: String,
        /// Everything that failed.
        failures: Vec<Error>,
    },
}

impl Error {
    /// Makes the `map_err` argument for a file operation.
    pub(crate) fn io(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { op, path, source }
    }

    pub(crate) fn kernel(step: impl Into<String>, source: io::Error) -> Self {
        Self::Kernel {
            step: step.into(),
            source,
        }
    }
}

fn join_paths(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    paths.join(" or ")
}

fn join_errors(errors: &[Error]) -> String {
    let texts: Vec<String> = errors.iter().map(|error| chain(error)).collect();
    texts.join("; ")
}

/// An error with its causes on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// Why statistics could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read interface counters from {path}", path = path.display())]
pub struct StatsError {
    /// The file.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}
