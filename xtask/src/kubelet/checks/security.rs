//! Security contexts, and the user namespace.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Check, passed};
use crate::kubelet::manifests::{idle, mount, pod};
use crate::kubelet::report::Verdict;
use crate::kubelet::world::World;

/// The pods that only stay.
pub(super) const PODS: &[&str] = &["strict", "unconfined"];

pub(super) const CHECKS: &[Check] = &[
    (
        "user and groups are those of the security context",
        |world| {
            world.wait_until_ready("strict")?;
            let lines = status(world, "strict", "main")?;
            expect(&lines, "Uid:", "1234 1234 1234 1234")?;
            expect(&lines, "Gid:", "3456 3456 3456 3456")?;
            expect(&lines, "Groups:", "2000 3456 4000")?;
            let owner = world.run("strict", "main", &["stat", "-c", "%g", "/data"])?;
            ensure!(owner == "2000\n", "the volume's group is {owner:?}");
            passed()
        },
    ),
    (
        "the root file system is read-only, volumes are not",
        |world| {
            let touch = world.run("strict", "main", &["touch", "/x"]);
            ensure!(touch.is_err(), "a file can be made in the root");
            world.run("strict", "main", &["touch", "/data/x"])?;
            passed()
        },
    ),
    ("capabilities are dropped and added", |world| {
        let lines = status(world, "strict", "main")?;
        // CAP_NET_BIND_SERVICE is number 10.
        expect(&lines, "CapBnd:", "0000000000000400")?;
        passed()
    }),
    (
        "the default seccomp profile applies, no_new_privs too",
        |world| {
            let lines = status(world, "strict", "main")?;
            expect(&lines, "Seccomp:", "2")?;
            expect(&lines, "NoNewPrivs:", "1")?;
            passed()
        },
    ),
    (
        "seccompDefault gives the profile to who names none; Unconfined has none",
        |world| {
            world.wait_until_ready("unconfined")?;
            expect(&status(world, "unconfined", "silent")?, "Seccomp:", "2")?;
            expect(&status(world, "unconfined", "free")?, "Seccomp:", "0")?;
            passed()
        },
    ),
    (
        "a privileged container has all capabilities and the machine's devices",
        |world| {
            world.wait_until_ready("unconfined")?;
            let lines = status(world, "unconfined", "privileged")?;
            let own = std::fs::read_to_string("/proc/self/status").context("no status")?;
            let all = value(&own, "CapBnd:").context("no capabilities")?;
            expect(&lines, "CapEff:", &all)?;
            let devices = world.run("unconfined", "privileged", &["ls", "/dev"])?;
            ensure!(
                devices.lines().any(|name| name == "kmsg"),
                "/dev has {devices:?}"
            );
            passed()
        },
    ),
    ("a safe sysctl is set", |world| {
        let path = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
        let text = world.run("strict", "main", &["cat", path])?;
        ensure!(text == "79\n", "it is {text:?}");
        passed()
    }),
    ("hostUsers: false gives a user namespace", user_namespace),
];

fn user_namespace(world: &mut World) -> Result<Verdict> {
    let info: Value = serde_json::from_str(&world.node.client(&["info", "-o", "json"])?)
        .context("info gives no JSON")?;
    let handlers = info["runtimeHandlers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    if !handlers
        .iter()
        .any(|handler| handler["features"]["userNamespaces"] == true)
    {
        let reason = "Status tells of no handler with user namespaces";
        return Ok(Verdict::Skipped(reason.to_owned()));
    }
    let spec = json!({
        "hostUsers": false,
        "volumes": [{ "name": "data", "emptyDir": {} }, { "name": "ram", "emptyDir": { "medium": "Memory" } }],
        "containers": [idle("main", json!({
            "volumeMounts": [mount("data", "/data"), mount("ram", "/ram")],
        }))],
    });
    world.apply(&pod("userns", spec))?;
    let pod = world.wait_until_ready("userns")?;
    let map = world.run("userns", "main", &["cat", "/proc/self/uid_map"])?;
    let fields: Vec<&str> = map.split_whitespace().collect();
    let host: u32 = fields
        .get(1)
        .and_then(|id| id.parse().ok())
        .context("no mapping")?;
    ensure!(
        fields[0] == "0" && host >= 65536 && fields[2] == "65536",
        "the map is {map:?}"
    );
    world.run("userns", "main", &["touch", "/data/x", "/ram/x"])?;
    let owner = world.run(
        "userns",
        "main",
        &["stat", "-c", "%u", "/data/x", "/ram/x", "/bin/busybox"],
    )?;
    ensure!(owner == "0\n0\n0\n", "files belong to {owner:?}");
    let volume = format!("pods/{}/volumes/kubernetes.io~empty-dir/data/x", pod.uid());
    let path = world.kubelet_root().join(volume);
    let outside = std::os::unix::fs::MetadataExt::uid(&path.metadata().context("no file")?);
    ensure!(
        outside == 0,
        "on the volume the file belongs to {outside}: it is not id-mapped"
    );
    let pid = world.inspect(&pod.id("main")?)?["info"]["pid"]
        .as_u64()
        .context("no pid")?;
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).context("no status")?;
    let uid = value(&text, "Uid:").unwrap_or_default();
    ensure!(
        uid.starts_with(&host.to_string()),
        "the machine sees user {uid}"
    );
    passed()
}

/// `/proc/self/status` as a process of the container reads it.
fn status(world: &World, pod: &str, container: &str) -> Result<String> {
    world.run(pod, container, &["cat", "/proc/self/status"])
}

fn expect(status: &str, key: &str, expected: &str) -> Result<()> {
    let value = value(status, key);
    ensure!(
        value.as_deref() == Some(expected),
        "{key} {value:?}, not {expected}"
    );
    Ok(())
}

/// The words after `key`, with one space between them.
fn value(status: &str, key: &str) -> Option<String> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.split_whitespace().collect::<Vec<_>>().join(" "))
}

pub(super) fn pods(_: &World) -> Result<Vec<Value>> {
    let strict = json!({
        "securityContext": {
            "runAsUser": 1234, "runAsGroup": 3456, "fsGroup": 2000, "supplementalGroups": [4000],
            "seccompProfile": { "type": "RuntimeDefault" },
            "sysctls": [{ "name": "net.ipv4.ip_unprivileged_port_start", "value": "79" }],
        },
        "volumes": [{ "name": "data", "emptyDir": {} }],
        "containers": [idle("main", json!({
            "volumeMounts": [mount("data", "/data")],
            "securityContext": {
                "readOnlyRootFilesystem": true,
                "allowPrivilegeEscalation": false,
                "capabilities": { "drop": ["ALL"], "add": ["NET_BIND_SERVICE"] },
            },
        }))],
    });
    let free = json!({ "securityContext": { "seccompProfile": { "type": "Unconfined" } } });
    let privileged = json!({ "securityContext": { "privileged": true } });
    let unconfined = json!({ "containers": [
        idle("silent", json!({})), idle("free", free), idle("privileged", privileged),
    ] });
    Ok(vec![pod("strict", strict), pod("unconfined", unconfined)])
}
