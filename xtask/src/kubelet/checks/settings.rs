//! What a container finds: its resources, its environment, its name server and its names.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Check, passed};
use crate::kubelet::agent::{DOMAIN, HOSTNAME, NAME_SERVER, hierarchies};
use crate::kubelet::manifests::{idle, mount, pod};
use crate::kubelet::world::{World, full_name};

/// The pods that only stay.
pub(super) const PODS: &[&str] = &["limits", "names", "plain"];

pub(super) const CHECKS: &[Check] = &[
    (
        "resource requests and limits are in the container's cgroup",
        |world| {
            let pod = world.wait_until_ready("limits")?;
            let id = pod.id("limited")?;
            let expected: [(&str, &str, &str); 4] = [
                ("memory", "memory.limit_in_bytes", "67108864"),
                ("cpu", "cpu.cfs_quota_us", "25000"),
                ("cpu", "cpu.cfs_period_us", "100000"),
                ("cpu", "cpu.shares", "102"),
            ];
            let unified: [(&str, &str, &str); 2] = [
                ("", "memory.max", "67108864"),
                ("", "cpu.max", "25000 100000"),
            ];
            expect(world, &id, &expected, &unified)
        },
    ),
    (
        "the pod's cgroup has the sums, and the limit of processes",
        |world| {
            let pod = world.wait_until_ready("limits")?;
            let name = format!("pod{}", pod.uid());
            let expected: [(&str, &str, &str); 3] = [
                ("memory", "memory.limit_in_bytes", "67108864"),
                ("cpu", "cpu.cfs_quota_us", "25000"),
                ("pids", "pids.max", "200"),
            ];
            let unified: [(&str, &str, &str); 2] =
                [("", "memory.max", "67108864"), ("", "pids.max", "200")];
            expect(world, &name, &expected, &unified)
        },
    ),
    ("the cluster's name server is in resolv.conf", |world| {
        world.wait_until_ready("plain")?;
        let text = world.run("plain", "main", &["cat", "/etc/resolv.conf"])?;
        let search = format!("search default.svc.{DOMAIN} svc.{DOMAIN} {DOMAIN}");
        let expected = [
            &format!("nameserver {NAME_SERVER}"),
            search.as_str(),
            "options ndots:5",
        ];
        ensure!(
            expected.iter().all(|line| text.lines().any(|l| l == *line)),
            "it is {text:?}"
        );
        passed()
    }),
    ("a pod's own DNS configuration is in resolv.conf", |world| {
        world.wait_until_ready("names")?;
        let text = world.run("names", "main", &["cat", "/etc/resolv.conf"])?;
        // The kubelet gives the options in any order.
        let words: BTreeSet<&str> = text.split_whitespace().collect();
        let expected = BTreeSet::from([
            "nameserver",
            "198.18.255.1",
            "search",
            "deck.test",
            "options",
            "ndots:2",
            "edns0",
        ]);
        ensure!(words == expected, "it is {text:?}");
        passed()
    }),
    ("host name and host aliases are there", |world| {
        let name = world.run("names", "main", &["hostname"])?;
        ensure!(name == "lookout\n", "the name is {name:?}");
        let hosts = world.run("names", "main", &["cat", "/etc/hosts"])?;
        ensure!(
            hosts.contains("198.18.255.2\tcrow.test\tnest.test"),
            "{hosts:?}"
        );
        ensure!(
            hosts.contains(&format!("lookout.mast.default.svc.{DOMAIN}\tlookout")),
            "{hosts:?}"
        );
        passed()
    }),
    ("fields of the pod are in the environment", |world| {
        let pod = world.wait_until_ready("plain")?;
        let text = world.run("plain", "main", &["env"])?;
        let expected = [
            format!("POD_NAME={}", full_name("plain")),
            "POD_NAMESPACE=default".to_owned(),
            format!("POD_UID={}", pod.uid()),
            format!("POD_IP={}", pod.address()),
            format!("NODE={HOSTNAME}"),
            "MEMORY=128".to_owned(),
            "EXPANDED=in default".to_owned(),
        ];
        for line in &expected {
            ensure!(text.lines().any(|l| l == line), "{line} is not in {text:?}");
        }
        passed()
    }),
    ("fields of the pod are in a volume", |world| {
        let labels = world.run("plain", "main", &["cat", "/pod/labels"])?;
        ensure!(
            labels.contains("deck=\"plain\""),
            "the labels are {labels:?}"
        );
        let cargo = world.run("plain", "main", &["cat", "/pod/cargo"])?;
        ensure!(cargo == "rope", "the annotation is {cargo:?}");
        let cpu = world.run("plain", "main", &["cat", "/pod/cpu"])?;
        ensure!(cpu == "500", "the limit is {cpu:?}");
        passed()
    }),
];

/// Compares files of the cgroup called `name` below the kubelet's: controller, file, content; for
/// cgroup version 1 or, as `unified`, 2.
fn expect(
    world: &World,
    name: &str,
    v1: &[(&str, &str, &str)],
    unified: &[(&str, &str, &str)],
) -> Result<crate::kubelet::report::Verdict> {
    let roots = hierarchies()?;
    let is_unified = roots
        .iter()
        .any(|root| root.join("cgroup.controllers").exists() && root.ends_with("cgroup"));
    for (controller, file, content) in if is_unified { unified } else { v1 } {
        let root = roots
            .iter()
            .find(|root| is_unified || root.ends_with(controller))
            .with_context(|| format!("no hierarchy of {controller}"))?;
        let cgroup = find(&root.join(world.cgroup_root()), name, 0)
            .with_context(|| format!("no cgroup {name} in {}", root.display()))?;
        let path = cgroup.join(file);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(
            text.trim() == *content,
            "{} is {}",
            path.display(),
            text.trim()
        );
    }
    passed()
}

/// The directory called `name` below `folder`.
fn find(folder: &std::path::Path, name: &str, depth: usize) -> Option<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    let folders: Vec<_> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    let found = folders.iter().find(|path| path.ends_with(name)).cloned();
    let below = || folders.iter().find_map(|path| find(path, name, depth + 1));
    if depth > 4 {
        found
    } else {
        found.or_else(below)
    }
}

pub(super) fn pods(_: &World) -> Result<Vec<Value>> {
    let limits = json!({ "resources": {
        "limits": { "cpu": "250m", "memory": "64Mi", "ephemeral-storage": "1Gi" },
        "requests": { "cpu": "100m", "memory": "32Mi" },
    } });
    let names = json!({
        "dnsPolicy": "None",
        "dnsConfig": {
            "nameservers": ["198.18.255.1"],
            "searches": ["deck.test"],
            "options": [{ "name": "ndots", "value": "2" }, { "name": "edns0" }],
        },
        "hostname": "lookout",
        "subdomain": "mast",
        "hostAliases": [{ "ip": "198.18.255.2", "hostnames": ["crow.test", "nest.test"] }],
        "containers": [idle("main", json!({}))],
    });
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let memory = json!({ "name": "MEMORY", "valueFrom": { "resourceFieldRef": {
        "resource": "limits.memory", "divisor": "1Mi" } } });
    let plain = json!({
        "volumes": [
            // A projected volume would need a cluster, whatever it is of.
            { "name": "pod", "downwardAPI": { "items": [
                { "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } },
                { "path": "cargo",
                    "fieldRef": { "fieldPath": "metadata.annotations['kelson.test/cargo']" } },
                { "path": "cpu", "resourceFieldRef": { "containerName": "main",
                    "resource": "limits.cpu", "divisor": "1m" } },
            ] } },
        ],
        "containers": [idle("main", json!({
            "resources": { "limits": { "memory": "128Mi", "cpu": "500m" } },
            "env": [
                field("POD_NAME", "metadata.name"),
                field("POD_NAMESPACE", "metadata.namespace"),
                field("POD_UID", "metadata.uid"),
                field("POD_IP", "status.podIP"),
                field("NODE", "spec.nodeName"),
                memory,
                { "name": "EXPANDED", "value": "in $(POD_NAMESPACE)" },
            ],
            "volumeMounts": [mount("pod", "/pod")],
        }))],
    });
    Ok(vec![
        pod("limits", json!({ "containers": [idle("limited", limits)] })),
        pod("names", names),
        pod("plain", plain),
    ])
}
