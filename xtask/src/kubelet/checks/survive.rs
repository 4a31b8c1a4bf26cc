//! Restarts of the runtime and of the kubelet, which pods do not notice.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{Check, http, namespaces, order, passed, probes, security, settings, stream};
use crate::kubelet::agent::Gates;
use crate::kubelet::manifests::{idle, pod};
use crate::kubelet::report::Verdict;
use crate::kubelet::world::{World, wait};

/// The pod whose container ends while nobody looks.
const POD: &str = "unwatched";

pub(super) const CHECKS: &[Check] = &[
    ("a restart of the runtime restarts no container", |world| {
        survives(world, |world| world.node.restart(Signal::TERM))
    }),
    ("a kill -9 of the runtime restarts no container", |world| {
        survives(world, |world| world.node.restart(Signal::KILL))
    }),
    ("a restart of the kubelet restarts no container", |world| {
        survives(world, |world| world.agent.restart(Gates::Default))
    }),
    (
        "a container that ends while the runtime is down is seen and restarted",
        |world| {
            let pod = world.wait_until_ready(POD)?;
            let id = pod.id("main")?;
            let pid = process(world, &id)?;
            world.node.end_daemon(Signal::KILL)?;
            let pid = i32::try_from(pid)
                .ok()
                .and_then(Pid::from_raw)
                .context("no pid")?;
            kill_process(pid, Signal::KILL).context("cannot kill the container")?;
            world.node.start_daemon()?;
            world.wait_for(POD, |pod| {
                ensure!(
                    pod.restarts("main") == 1,
                    "restarted {} times",
                    pod.restarts("main")
                );
                let end = &pod.container("main")["lastState"]["terminated"];
                ensure!(end["exitCode"] == 137, "it ended with {end}");
                Ok(())
            })?;
            passed()
        },
    ),
];

/// What must not change: of each running container its id, its number of restarts, when it began,
/// and its process.
type Picture = BTreeMap<String, String>;

/// Takes the picture before and after `restart`.
pub(super) fn survives(
    world: &mut World,
    restart: impl FnOnce(&mut World) -> Result<()>,
) -> Result<Verdict> {
    let before = picture(world)?;
    ensure!(before.len() >= 15, "only {} containers run", before.len());
    restart(world)?;
    // Everybody has looked at everything once more when probes and commands work again.
    wait(|| world.run(probes::POD, "exec", &["true"]))?;
    for pod in steady() {
        world.wait_until_ready(pod)?;
    }
    std::thread::sleep(std::time::Duration::from_secs(6));
    let after = picture(world)?;
    let changed: Vec<String> = before
        .iter()
        .filter(|(name, was)| after.get(*name) != Some(was))
        .map(|(name, was)| format!("{name} was {was}, is {:?}", after.get(name)))
        .collect();
    ensure!(changed.is_empty(), "{}", changed.join("\n"));
    passed()
}

/// The pods that run until they are told to end.
fn steady() -> impl Iterator<Item = &'static str> {
    let own = [
        order::POD,
        probes::POD,
        http::POD,
        stream::POD,
        "post-start",
    ];
    let lists = [settings::PODS, security::PODS, namespaces::PODS];
    own.into_iter().chain(lists.into_iter().flatten().copied())
}

fn picture(world: &World) -> Result<Picture> {
    let mut picture = Picture::new();
    for name in steady() {
        // One probe is left failing on purpose; its container runs.
        let pod = world
            .pod(name)?
            .with_context(|| format!("{name} is gone"))?;
        for status in pod.containers() {
            let running = &status["state"]["running"];
            if running.is_object() {
                let container = status["name"].as_str().unwrap_or_default();
                let id = pod.id(container)?;
                let text = format!(
                    "{id}, restarted {} times, since {}, process {}",
                    status["restartCount"],
                    running["startedAt"],
                    process(world, &id)?
                );
                picture.insert(format!("{name}/{container}"), text);
            }
        }
    }
    Ok(picture)
}

/// The process id of a container.
fn process(world: &World, id: &str) -> Result<u64> {
    let container = world.inspect(id)?;
    container["info"]["pid"]
        .as_u64()
        .with_context(|| format!("no pid in {container}"))
}

pub(super) fn pods(_: &World) -> Result<Vec<Value>> {
    Ok(vec![pod(
        POD,
        json!({ "containers": [idle("main", json!({}))] }),
    )])
}
