//! Pods that are taken from the kubelet.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Check, order, passed};
use crate::kubelet::manifests::{container, pod};
use crate::kubelet::world::{World, full_name, wait};

/// The pod that does not end when it is told to.
const POD: &str = "stubborn";
/// What it is given, in seconds.
const GRACE: u64 = 3;

pub(super) const CHECKS: &[Check] = &[
    (
        "a pod is ended in order: preStop, containers, then sidecars",
        |world| {
            world.take(order::POD)?;
            gone(world, order::POD)?;
            let text = world.written(order::POD, "order")?;
            ensure!(
                text == "main is told\nmain ends\nsidecar ends\n",
                "it ended so: {text:?}"
            );
            passed()
        },
    ),
    (
        "a pod that ignores the signal is killed when its time is over",
        |world| {
            let id = world.wait_until_ready(POD)?.id("main")?;
            let begin = Instant::now();
            world.take(POD)?;
            wait(|| {
                let running = world.node.client(&["ps", "--quiet"])?;
                ensure!(!running.contains(&id[..12]), "it still runs");
                Ok(())
            })?;
            let took = begin.elapsed();
            ensure!(
                took >= Duration::from_secs(GRACE),
                "it was killed after {took:?}"
            );
            ensure!(
                took < Duration::from_secs(GRACE + 8),
                "it was killed after {took:?}"
            );
            // The kubelet may have removed it by now.
            if let Ok(container) = world.inspect(&id) {
                let code = &container["status"]["exitCode"];
                ensure!(*code == 137, "it ended with {code}");
            }
            gone(world, POD)
        },
    ),
    (
        "nothing of a pod that is gone is left: volumes, cgroup, address",
        |world| {
            let pod = world.wait_until_ready("brief")?;
            let uid = pod.uid().to_owned();
            let address = pod.address().to_owned();
            world.take("brief")?;
            gone(world, "brief")?;
            wait(|| {
                let table = std::fs::read_to_string("/proc/self/mountinfo").context("no mounts")?;
                ensure!(!table.contains(&uid), "a volume is mounted");
                let folder = world.kubelet_root().join("pods").join(&uid);
                ensure!(!folder.exists(), "{} is there", folder.display());
                for hierarchy in crate::kubelet::agent::hierarchies()? {
                    let kubepods = hierarchy.join(world.cgroup_root()).join("kubepods");
                    for class in ["", "burstable", "besteffort"] {
                        let path = kubepods.join(class).join(format!("pod{uid}"));
                        ensure!(!path.exists(), "{} is there", path.display());
                    }
                }
                let lease = world.lease(&address)?;
                ensure!(
                    lease.is_none(),
                    "its address {address} is in use: {lease:?}"
                );
                Ok(())
            })?;
            passed()
        },
    ),
];

/// Waits until neither the kubelet has the pod nor the runtime a ready sandbox of it.
fn gone(world: &World, name: &str) -> Result<crate::kubelet::report::Verdict> {
    wait(|| {
        ensure!(world.pod(name)?.is_none(), "the kubelet still has it");
        let full = full_name(name);
        let arguments = ["pods", "--quiet", "--state", "ready", "--name", &full];
        let ready = world.node.client(&arguments)?;
        ensure!(ready.is_empty(), "its sandbox is still ready");
        Ok(())
    })?;
    passed()
}

pub(super) fn pods(_: &World) -> Result<Vec<Value>> {
    let deaf = container("main", "trap '' TERM; while :; do sleep 1; done", json!({}));
    let ram = json!({ "name": "ram", "emptyDir": { "medium": "Memory" } });
    let mounted = json!({ "volumeMounts": [{ "name": "ram", "mountPath": "/ram" }] });
    Ok(vec![
        pod(
            POD,
            json!({ "terminationGracePeriodSeconds": GRACE, "containers": [deaf] }),
        ),
        pod(
            "brief",
            json!({
                "volumes": [ram],
                "containers": [crate::kubelet::manifests::idle("main", mounted)],
            }),
        ),
    ])
}
