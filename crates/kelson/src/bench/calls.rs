//! Calls that read or execute, while pods are up: one after another, each runtime in turn.

use anyhow::{Context, Result, ensure};
use kelson_cri::v1::{
    ContainerStatsRequest, ContainerStatusRequest, ExecSyncRequest, ListContainerStatsRequest,
    ListContainersRequest, ListPodSandboxRequest, ListPodSandboxStatsRequest,
    PodSandboxStatsRequest, PodSandboxStatusRequest,
};

use super::peer::Peer;
use super::pod::Up;
use super::report::{Better, Report};
use super::samples::timed;
use super::{Bench, counted};

/// The calls, as they are named in the CRI.
const CALLS: &[&str] = &[
    "ExecSync",
    "ContainerStatus",
    "PodSandboxStatus",
    "ContainerStats",
    "PodSandboxStats",
    "ListContainers",
    "ListPodSandbox",
    "ListContainerStats",
    "ListPodSandboxStats",
];

pub(super) async fn run(bench: &Bench, pods: u32, fleets: &[Vec<Up>], report: &mut Report) {
    let these = counted(pods);
    for name in CALLS {
        let what = format!("{name}, {these}");
        let steps = bench
            .rounds(&what, bench.args.calls, report, async |peer, round| {
                let index = bench.index(peer).context("a peer of this run")?;
                let fleet = &fleets[index];
                let up = fleet.get(round as usize % fleet.len().max(1));
                let up = up.context("no pod is up")?;
                let (time, ()) = timed(call(peer, name, up)).await?;
                Ok(vec![(*name, time)])
            })
            .await;
        for (_, peers) in steps.summaries() {
            report.row(what.clone(), "ms", Better::Lower, peers);
        }
    }
}

async fn call(peer: &Peer, name: &str, up: &Up) -> Result<()> {
    let client = &peer.client;
    let (container_id, pod_sandbox_id) = (up.container.clone(), up.pod.clone());
    let verbose = false;
    match name {
        "ExecSync" => {
            let exec = ExecSyncRequest {
                container_id,
                cmd: vec!["true".into()],
                timeout: 30,
            };
            let code = client.exec_sync(exec).await?.exit_code;
            ensure!(code == 0, "`true` exited with {code}");
        }
        "ContainerStatus" => {
            let request = ContainerStatusRequest {
                container_id,
                verbose,
            };
            client.container_status(request).await?;
        }
        "PodSandboxStatus" => {
            let request = PodSandboxStatusRequest {
                pod_sandbox_id,
                verbose,
            };
            client.pod_sandbox_status(request).await?;
        }
        "ContainerStats" => {
            let request = ContainerStatsRequest { container_id };
            client.container_stats(request).await?;
        }
        "PodSandboxStats" => {
            let request = PodSandboxStatsRequest { pod_sandbox_id };
            client.pod_sandbox_stats(request).await?;
        }
        "ListContainers" => {
            client
                .list_containers(ListContainersRequest::default())
                .await?;
        }
        "ListPodSandbox" => {
            client
                .list_pod_sandbox(ListPodSandboxRequest::default())
                .await?;
        }
        "ListContainerStats" => {
            client
                .list_container_stats(ListContainerStatsRequest::default())
                .await?;
        }
        _ => {
            client
                .list_pod_sandbox_stats(ListPodSandboxStatsRequest::default())
                .await?;
        }
    }
    Ok(())
}
