//! What the kubelet's server tells of pods: logs, statistics and metrics.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Check, passed};
use crate::kubelet::manifests::{STAY, container, pod};
use crate::kubelet::report::Verdict;
use crate::kubelet::world::{World, full_name, wait};

/// The pod that logs.
pub(super) const POD: &str = "talker";

pub(super) const CHECKS: &[Check] = &[
    ("/pods and /runningpods tell of every pod", |world| {
        let listed = world.agent.json("/pods")?;
        let listed = listed["items"].as_array().map_or(0, Vec::len);
        ensure!(listed >= 8, "there are {listed} pods");
        let running = world.agent.json("/runningpods/")?;
        let running = running["items"].as_array().cloned().unwrap_or_default();
        let full = full_name(POD);
        let found = running
            .iter()
            .any(|pod| pod["metadata"]["name"] == full.as_str());
        ensure!(found, "{full} is not among {} running pods", running.len());
        passed()
    }),
    (
        "containerLogs gives all, the last lines, and with time stamps",
        |world| {
            world.wait_until_ready(POD)?;
            let all = world.logs(POD, "main", "")?;
            ensure!(all == "one\ntwo\nto stderr\nthree\n", "the log is {all:?}");
            let last = world.logs(POD, "main", "tailLines=1")?;
            ensure!(last == "three\n", "the last line is {last:?}");
            let stamped = world.logs(POD, "main", "timestamps=true&tailLines=1")?;
            let (stamp, line) = stamped.split_once(' ').context("no time stamp")?;
            ensure!(
                line == "three\n" && stamp.contains('T'),
                "with time: {stamped:?}"
            );
            let part = world.logs(POD, "main", "limitBytes=5")?;
            ensure!(part == "one\nt", "the first bytes are {part:?}");
            passed()
        },
    ),
    (
        "containerLogs gives what an earlier container wrote",
        |world| {
            world.wait_for(POD, |pod| {
                ensure!(
                    pod.restarts("again") == 1,
                    "restarted {} times",
                    pod.restarts("again")
                );
                Ok(())
            })?;
            wait(|| {
                let now = world.logs(POD, "again", "")?;
                ensure!(now == "second life\n", "the log is {now:?}");
                let before = world.logs(POD, "again", "previous=true")?;
                ensure!(before == "first life\n", "the earlier log is {before:?}");
                Ok(())
            })?;
            passed()
        },
    ),
    ("/run executes a command and tells when it fails", |world| {
        let text = world.run(POD, "main", &["echo", "hello"])?;
        ensure!(text == "hello\n", "it says {text:?}");
        let failed = world.run(POD, "main", &["false"]);
        ensure!(failed.is_err(), "it says {failed:?}");
        passed()
    }),
    (
        "/stats/summary has the pod's CPU, memory and storage",
        |world| {
            // Without the feature gate the kubelet asks only cAdvisor about networks, and that only
            // knows those of containerd and CRI-O.
            summary(world).map(|_| Verdict::Passed)
        },
    ),
    ("/metrics/resource has containers and pods", |world| {
        wait(|| {
            let text = world.agent.get("/metrics/resource")?;
            for family in [
                "container_cpu_usage_seconds_total",
                "container_memory_working_set_bytes",
                "container_start_time_seconds",
                "pod_cpu_usage_seconds_total",
                "pod_memory_working_set_bytes",
            ] {
                sample(&text, family, &full_name(POD))?;
            }
            ensure!(
                text.contains("resource_scrape_error 0"),
                "the scrape failed"
            );
            Ok(())
        })?;
        passed()
    }),
    ("/metrics/cadvisor tells of the pods' cgroups", |world| {
        let pod = world.wait_until_ready(POD)?;
        wait(|| {
            let text = world.agent.get("/metrics/cadvisor")?;
            let uid = pod.uid();
            let line = text.lines().find(|line| {
                line.starts_with("container_memory_working_set_bytes{") && line.contains(uid)
            });
            ensure!(line.is_some(), "nothing of the pod's cgroup is there");
            Ok(())
        })?;
        passed()
    }),
    (
        "the kubelet's own metrics know the runtime's operations",
        |world| {
            let text = world.agent.get("/metrics")?;
            for operation in [
                "run_podsandbox",
                "create_container",
                "exec_sync",
                "container_status",
            ] {
                let label = format!("operation_type=\"{operation}\"");
                let line = text.lines().find(|line| {
                    line.starts_with("kubelet_runtime_operations_total{") && line.contains(&label)
                });
                ensure!(line.is_some(), "no operation {operation} is counted");
            }
            passed()
        },
    ),
];

/// The value of the first sample of `family` that is about `pod`.
pub(super) fn sample(text: &str, family: &str, pod: &str) -> Result<f64> {
    let label = format!("pod=\"{pod}\"");
    let line = text
        .lines()
        .find(|line| line.starts_with(&format!("{family}{{")) && line.contains(&label))
        .with_context(|| format!("{family} says nothing about {pod}"))?;
    let (_, rest) = line.rsplit_once('}').context("no sample")?;
    let value = rest.split_whitespace().next().context("no value")?;
    value
        .parse()
        .with_context(|| format!("{value} is no number"))
}

/// Statistics of pods, whoever the kubelet has them from.
pub(super) fn summary(world: &World) -> Result<Value> {
    let full = full_name(POD);
    wait(|| {
        let summary = world.agent.json("/stats/summary")?;
        let pods = summary["pods"].as_array().cloned().unwrap_or_default();
        let pod = pods
            .into_iter()
            .find(|pod| pod["podRef"]["name"] == full.as_str());
        let pod = pod.context("the pod is not there")?;
        let positive = |what: &str, value: &Value| {
            ensure!(
                value.as_u64().is_some_and(|n| n > 0),
                "{what} is {value} in {pod}"
            );
            Ok(())
        };
        positive("CPU time", &pod["cpu"]["usageCoreNanoSeconds"])?;
        positive("working set", &pod["memory"]["workingSetBytes"])?;
        positive("ephemeral storage", &pod["ephemeral-storage"]["usedBytes"])?;
        let containers = pod["containers"].as_array().cloned().unwrap_or_default();
        let main = containers
            .iter()
            .find(|container| container["name"] == "main");
        let main = main.context("the container is not there")?;
        positive(
            "the container's CPU time",
            &main["cpu"]["usageCoreNanoSeconds"],
        )?;
        positive(
            "the container's working set",
            &main["memory"]["workingSetBytes"],
        )?;
        positive("the container's layer", &main["rootfs"]["usedBytes"])?;
        positive("the container's log", &main["logs"]["usedBytes"])?;
        Ok(pod)
    })
}

pub(super) fn pods(_: &World) -> Result<Vec<Value>> {
    let talk = format!(
        "echo one; echo two; sleep 0.5; echo to stderr >&2; sleep 0.5; echo three; \
        head -c 100000 /dev/zero > /tmp/layer; {STAY}"
    );
    let again = format!(
        "test -e /kept/life && {{ echo second life; {STAY}; }}; \
        touch /kept/life; echo first life; exit 1"
    );
    let kept = json!({ "volumeMounts": [{ "name": "kept", "mountPath": "/kept" }] });
    Ok(vec![pod(
        POD,
        json!({
            "volumes": [{ "name": "kept", "emptyDir": {} }],
            "containers": [container("main", &talk, json!({})), container("again", &again, kept)],
        }),
    )])
}
