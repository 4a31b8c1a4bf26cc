//! Init containers, sidecars, and volumes that containers share.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{Check, passed};
use crate::kubelet::manifests::{STAY, container, host_path, mount, pod};
use crate::kubelet::world::World;

/// The pod; its deletion is checked elsewhere.
pub(super) const POD: &str = "order";

pub(super) const CHECKS: &[Check] = &[
    (
        "init containers run one after the other, then the others",
        |world| {
            let pod = world.wait_until_ready(POD)?;
            let text = world.run(POD, "main", &["cat", "/data/order"])?;
            ensure!(
                text == "first\nsidecar\nsecond\nmain\n",
                "the order was {text:?}"
            );
            for name in ["first", "second"] {
                let end = &pod.container(name)["state"]["terminated"];
                ensure!(end["exitCode"] == 0, "{name} ended with {end}");
                ensure!(end["reason"] == "Completed", "{name} ended with {end}");
            }
            passed()
        },
    ),
    ("a sidecar goes on beside the other containers", |world| {
        let pod = world.wait_until_ready(POD)?;
        let sidecar = pod.container("sidecar");
        ensure!(
            sidecar["state"]["running"].is_object(),
            "it is {}",
            sidecar["state"]
        );
        ensure!(
            sidecar["started"] == true && sidecar["ready"] == true,
            "{sidecar}"
        );
        passed()
    }),
    (
        "an emptyDir is shared by the containers of a pod",
        |world| {
            let seen = world.run(POD, "sidecar", &["cat", "/data/order"])?;
            ensure!(seen.ends_with("main\n"), "the sidecar sees {seen:?}");
            passed()
        },
    ),
    ("an emptyDir in memory is a tmpfs of its size", |world| {
        let seen = world.run(POD, "sidecar", &["cat", "/ram/word"])?;
        ensure!(seen == "from main\n", "the sidecar sees {seen:?}");
        let mounts = world.run(POD, "main", &["cat", "/proc/mounts"])?;
        let line = mounts.lines().find(|line| line.contains(" /ram "));
        ensure!(
            line.is_some_and(|line| line.contains(" tmpfs ") && line.contains("size=16384k")),
            "the mount is {line:?}"
        );
        passed()
    }),
];

pub(super) fn pods(world: &World) -> Result<Vec<Value>> {
    let mounts = json!([
        mount("data", "/data"),
        mount("ram", "/ram"),
        mount("out", "/out")
    ]);
    let mounted = json!({ "volumeMounts": mounts });
    let sidecar = json!({
        "volumeMounts": mounts,
        "restartPolicy": "Always",
        "startupProbe": { "exec": { "command": ["test", "-e", "/data/up"] }, "periodSeconds": 1 },
    });
    let main = json!({
        "volumeMounts": mounts,
        "lifecycle": { "preStop": { "exec": {
            "command": ["sh", "-c", "echo main is told >> /out/order"] } } },
    });
    let stay =
        |name: &str| STAY.replace("exit 0", &format!("echo {name} ends >> /out/order; exit 0"));
    let spec = json!({
        "terminationGracePeriodSeconds": 20,
        "volumes": [
            { "name": "data", "emptyDir": {} },
            { "name": "ram", "emptyDir": { "medium": "Memory", "sizeLimit": "16Mi" } },
            host_path("out", &world.out(POD)?),
        ],
        "initContainers": [
            container("first", "sleep 1; echo first >> /data/order", mounted.clone()),
            container("sidecar", &format!(
                "echo sidecar >> /data/order; sleep 1; touch /data/up; {}", stay("sidecar")), sidecar),
            container("second", "test -e /data/up && echo second >> /data/order", mounted),
        ],
        "containers": [container("main", &format!(
            "echo main >> /data/order; echo from main > /ram/word; {}", stay("main")), main)],
    });
    Ok(vec![pod(POD, spec)])
}
