//! The runtime service: pods and containers.

mod container_checkpoint;
mod container_create;
mod container_exec;
mod container_exec_sync;
mod container_list;
mod container_log_reopen;
mod container_remove;
mod container_start;
mod container_stats;
mod container_status;
mod container_stop;
mod container_update;
mod events;
mod metrics;
mod runtime_update;
mod sandbox_list;
mod sandbox_port_forward;
mod sandbox_remove;
mod sandbox_run;
mod sandbox_stats;
mod sandbox_status;
mod sandbox_stop;
mod sandbox_update;
mod service;
mod status;
mod usage;

pub(crate) use usage::now;

use std::collections::BTreeMap;

use kelson_pod::{ErrorKind, ExecError, PodError};
use tonic::Code;

use crate::error::VerbError;

impl From<PodError> for VerbError {
    fn from(error: PodError) -> Self {
        Self::new(code(error.kind()), &error)
    }
}

impl From<ExecError> for VerbError {
    fn from(error: ExecError) -> Self {
        Self::new(code(error.kind()), &error)
    }
}

fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::Unsupported => Code::Unimplemented,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::State => Code::FailedPrecondition,
        ErrorKind::Timeout => Code::DeadlineExceeded,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::Exhausted => Code::ResourceExhausted,
        ErrorKind::Internal => Code::Internal,
    }
}

/// Whether `labels` has all of `wanted`.
fn matches_labels(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

/// Labels or annotations in protobuf's form.
fn to_map(map: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    map.clone().into_iter().collect()
}

/// The `info` of a verbose answer: one entry that holds a JSON document.
fn info(document: &serde_json::Value) -> BTreeMap<String, String> {
    BTreeMap::from([("info".to_owned(), document.to_string())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_wants_all_of_its_labels() {
        let labels = BTreeMap::from([("app".into(), "web".into()), ("tier".into(), "1".into())]);
        let wanted = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect::<BTreeMap<_, _>>()
        };
        assert!(matches_labels(&labels, &wanted(&[])));
        assert!(matches_labels(&labels, &wanted(&[("app", "web")])));
        assert!(!matches_labels(
            &labels,
            &wanted(&[("app", "web"), ("tier", "2")])
        ));
        assert!(!matches_labels(&labels, &wanted(&[("zone", "")])));
    }
}
