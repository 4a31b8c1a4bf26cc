//! Events instead of polling, and metrics from the runtime: the kubelet with other feature gates.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Check, http, passed, survive};
use crate::kubelet::agent::Gates;
use crate::kubelet::manifests::{container, pod};
use crate::kubelet::world::{World, full_name, wait};

/// The pod whose container ends when it is told to.
const POD: &str = "leaver";
/// With events the kubelet polls every five minutes only; what it knows sooner, an event told.
const SOON: Duration = Duration::from_secs(10);

pub(super) const CHECKS: &[Check] = &[
    (
        "a kubelet with other feature gates restarts no container",
        |world| survive::survives(world, |world| world.agent.restart(Gates::FromRuntime)),
    ),
    (
        "the kubelet is connected to the runtime's events",
        |world| {
            wait(|| {
                let count = counter(world, "kubelet_evented_pleg_connection_success_count")?;
                ensure!(count >= 1.0, "it has connected {count} times");
                Ok(())
            })?;
            let errors =
                counter(world, "kubelet_evented_pleg_connection_error_count").unwrap_or(0.0);
            ensure!(errors == 0.0, "the connection failed {errors} times");
            passed()
        },
    ),
    ("the end of a container is seen by an event", |world| {
        world.wait_until_ready(POD)?;
        let seen = counter(
            world,
            "kubelet_evented_pleg_connection_latency_seconds_count",
        )?;
        let begin = Instant::now();
        world.run(POD, "main", &["touch", "/tmp/leave"])?;
        world.wait_for(POD, |pod| {
            ensure!(
                pod.restarts("main") == 1,
                "restarted {} times",
                pod.restarts("main")
            );
            let end = &pod.container("main")["lastState"]["terminated"];
            ensure!(end["exitCode"] == 7, "it ended with {end}");
            Ok(())
        })?;
        ensure!(begin.elapsed() < SOON, "it took {:?}", begin.elapsed());
        let now = counter(
            world,
            "kubelet_evented_pleg_connection_latency_seconds_count",
        )?;
        ensure!(
            now > seen,
            "there was no event: {now} so far, {seen} before"
        );
        passed()
    }),
    ("a new pod gets ready with events", |world| {
        let begin = Instant::now();
        let late = container("main", crate::kubelet::manifests::STAY, json!({}));
        world.apply(&pod("late", json!({ "containers": [late] })))?;
        world.wait_until_ready("late")?;
        ensure!(begin.elapsed() < SOON, "it took {:?}", begin.elapsed());
        passed()
    }),
    (
        "/stats/summary from the runtime has the same, and the network",
        |world| {
            wait(|| {
                let pod = http::summary(world)?;
                for (part, key) in [("network", "rxBytes"), ("process_stats", "process_count")] {
                    let number = &pod[part][key];
                    ensure!(
                        number.as_u64().is_some_and(|n| n > 0),
                        "{key} is {number} in {pod}"
                    );
                }
                Ok(())
            })?;
            passed()
        },
    ),
    (
        "/metrics/cadvisor from the runtime has its containers",
        |world| {
            let pod = full_name(http::POD);
            wait(|| {
                let text = world.agent.get("/metrics/cadvisor")?;
                // The CRI tells whole seconds only: the first one may not be over.
                http::sample(&text, "container_cpu_usage_seconds_total", &pod)?;
                for family in [
                    "container_memory_working_set_bytes",
                    "container_memory_usage_bytes",
                    "container_network_receive_bytes_total",
                    "container_fs_usage_bytes",
                    "container_processes",
                    "container_start_time_seconds",
                ] {
                    let value = http::sample(&text, family, &pod)?;
                    ensure!(value > 0.0, "{family} of {pod} is {value}");
                }
                Ok(())
            })?;
            passed()
        },
    ),
];

/// The value of one of the kubelet's own counters.
fn counter(world: &World, name: &str) -> Result<f64> {
    let text = world.agent.get("/metrics")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = line.with_context(|| format!("the kubelet has no {name}"))?;
    value
        .trim()
        .parse()
        .with_context(|| format!("{name} is {value}"))
}

pub(super) fn pods(_: &World) -> Result<Vec<Value>> {
    let script = "trap 'exit 0' TERM; until test -e /tmp/leave; do sleep 0.2; done; exit 7";
    Ok(vec![pod(
        POD,
        json!({ "containers": [container("main", script, json!({}))] }),
    )])
}
