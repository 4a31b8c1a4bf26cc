//! The pods that the kubelet is given.

use serde_json::{Value, json};

use super::image::IMAGE;

/// The end of a container's script: it stays, and ends at once when it is told to.
pub(crate) const STAY: &str = "trap 'exit 0' TERM; sleep 86400 & wait";

/// A pod; `spec` is merged over defaults.
pub(crate) fn pod(name: &str, spec: Value) -> Value {
    let defaults = json!({ "terminationGracePeriodSeconds": 5, "enableServiceLinks": false });
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": { "deck": name },
            "annotations": { "kelson.test/cargo": "rope" },
        },
        "spec": merge(defaults, spec),
    })
}

/// A container that runs a shell script; `more` is merged over defaults.
pub(crate) fn container(name: &str, script: &str, more: Value) -> Value {
    let defaults = json!({
        "name": name,
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script],
    });
    merge(defaults, more)
}

/// A container that does nothing until it is ended.
pub(crate) fn idle(name: &str, more: Value) -> Value {
    container(name, STAY, more)
}

/// The members of `more` added to `base` or in place of its own.
fn merge(mut base: Value, more: Value) -> Value {
    if let (Some(base), Value::Object(more)) = (base.as_object_mut(), more) {
        base.extend(more);
    }
    base
}

/// A volume that is a directory of this machine.
pub(crate) fn host_path(name: &str, path: &std::path::Path) -> Value {
    json!({ "name": name, "hostPath": { "path": path, "type": "Directory" } })
}

/// A mount of a volume.
pub(crate) fn mount(volume: &str, path: &str) -> Value {
    json!({ "name": volume, "mountPath": path })
}

/// A probe every second.
pub(crate) fn probe(action: &Value, failures: u32) -> Value {
    let pace = json!({ "periodSeconds": 1, "failureThreshold": failures, "timeoutSeconds": 5 });
    merge(action.clone(), pace)
}
