//! Three kinds of probes, each in its three uses.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Check, passed};
use crate::kubelet::manifests::{container, pod, probe};
use crate::kubelet::report::Verdict;
use crate::kubelet::world::World;

/// The pod whose probes succeed until they are made to fail; a container for each kind.
pub(super) const POD: &str = "probes";
/// The pod whose startup probes never succeed.
const SLOW: &str = "never-up";

pub(super) const CHECKS: &[Check] = &[
    (
        "exec, HTTP and TCP probes succeed in all their uses",
        |world| {
            let pod = world.wait_until_ready(POD)?;
            for kind in ["exec", "http", "tcp"] {
                let status = pod.container(kind);
                ensure!(
                    status["started"] == true && status["ready"] == true,
                    "{status}"
                );
                ensure!(pod.restarts(kind) == 0, "{kind} was restarted");
            }
            passed()
        },
    ),
    (
        "a failing exec probe of readiness takes it away, and gives it back",
        |world| {
            unready(
                world,
                "exec",
                &["rm", "/tmp/ready"],
                &["touch", "/tmp/ready"],
            )
        },
    ),
    (
        "a failing HTTP probe of readiness takes it away, and gives it back",
        |world| {
            unready(
                world,
                "http",
                &["rm", "/tmp/ready"],
                &["touch", "/tmp/ready"],
            )
        },
    ),
    ("a failing TCP probe of readiness takes it away", |world| {
        let server = pid(world, "ready")?;
        ready(world, "tcp", &["kill", &server], false)
    }),
    (
        "a failing exec probe of liveness restarts the container",
        |world| restarted(world, "exec", &["rm", "/tmp/alive"]),
    ),
    (
        "a failing HTTP probe of liveness restarts the container",
        |world| restarted(world, "http", &["rm", "/tmp/alive"]),
    ),
    (
        "a failing TCP probe of liveness restarts the container",
        |world| {
            let server = pid(world, "alive")?;
            restarted(world, "tcp", &["kill", &server])
        },
    ),
    (
        "a startup probe that fails restarts the container, for all kinds",
        |world| {
            for kind in ["exec", "http", "tcp"] {
                world.wait_for(SLOW, |pod| {
                    ensure!(pod.restarts(kind) > 0, "{kind} is not restarted");
                    ensure!(
                        pod.container(kind)["started"] != true,
                        "{kind} counts as started"
                    );
                    Ok(())
                })?;
            }
            world.take(SLOW)?;
            passed()
        },
    ),
];

/// The process id, in its container, of a server of the TCP probes.
fn pid(world: &World, server: &str) -> Result<String> {
    let pid = world.run(POD, "tcp", &["cat", &format!("/tmp/{server}")])?;
    Ok(pid.trim().to_owned())
}

/// Runs a command and waits until the container's readiness is as `wanted`.
fn ready(world: &World, kind: &str, command: &[&str], wanted: bool) -> Result<Verdict> {
    world.run(POD, kind, command)?;
    world.wait_for(POD, |pod| {
        ensure!(pod.restarts(kind) == 0, "the container was restarted");
        let is = &pod.container(kind)["ready"];
        ensure!(*is == wanted, "ready is {is}");
        Ok(())
    })?;
    passed()
}

fn unready(world: &World, kind: &str, bad: &[&str], good: &[&str]) -> Result<Verdict> {
    ready(world, kind, bad, false)?;
    ready(world, kind, good, true)
}

/// Runs a command and waits until the container was restarted once and is ready again.
fn restarted(world: &World, kind: &str, command: &[&str]) -> Result<Verdict> {
    let before = world.pod(POD)?.context("the pod is gone")?.id(kind)?;
    world.run(POD, kind, command)?;
    world.wait_for(POD, |pod| {
        ensure!(
            pod.restarts(kind) == 1,
            "restarted {} times",
            pod.restarts(kind)
        );
        ensure!(
            pod.container(kind)["ready"] == true,
            "it is not ready again"
        );
        ensure!(pod.id(kind)? != before, "it has the same id");
        Ok(())
    })?;
    passed()
}

pub(super) fn pods(_: &World) -> Result<Vec<Value>> {
    let exec =
        |file: &str| json!({ "exec": { "command": ["test", "-e", format!("/tmp/{file}")] } });
    let http =
        |path: &str, port: u16| json!({ "httpGet": { "path": format!("/{path}"), "port": port } });
    let tcp = |port: u16| json!({ "tcpSocket": { "port": port } });
    let probes = |ready: &Value, alive: &Value, up: &Value| {
        json!({ "readinessProbe": probe(ready, 1), "livenessProbe": probe(alive, 2),
            "startupProbe": probe(up, 30) })
    };
    let files = "touch /tmp/ready /tmp/alive /tmp/up;";
    let slow = |probed: &Value| json!({ "startupProbe": probe(probed, 2) });
    let wait = "trap 'exit 0' TERM; sleep 86400 & wait $!";
    let healthy = json!({
        "terminationGracePeriodSeconds": 2,
        "containers": [
            container("exec", &format!("{files} {wait}"),
                probes(&exec("ready"), &exec("alive"), &exec("up"))),
            container("http", &format!("{files} httpd -p 8080 -h /tmp; {wait}"),
                probes(&http("ready", 8080), &http("alive", 8080), &http("up", 8080))),
            container("tcp", &format!("nc -ll -p 7001 -e true & echo $! > /tmp/ready; \
                nc -ll -p 7002 -e true & echo $! > /tmp/alive; nc -ll -p 7003 -e true & {wait}"),
                probes(&tcp(7001), &tcp(7002), &tcp(7003))),
        ],
    });
    let sick = json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [
            container("exec", wait, slow(&exec("up"))),
            container("http", &format!("httpd -p 8081 -h /tmp; {wait}"), slow(&http("up", 8081))),
            container("tcp", wait, slow(&tcp(7004))),
        ],
    });
    Ok(vec![pod(POD, healthy), pod(SLOW, sick)])
}
