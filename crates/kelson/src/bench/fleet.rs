//! Many pods: starting and stopping several at a time, calls among them, memory and idle processor time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kelson_cri::v1::{
    ContainerStatusRequest, ExecSyncRequest, ListContainerStatsRequest, ListContainersRequest,
    ListPodSandboxRequest, PodSandboxStatusRequest,
};
use tokio::task::JoinSet;

use super::Bench;
use super::peer::Peer;
use super::pod::{self, Network, Up, Work};
use super::processes::Processes;
use super::report::{Better, Report};
use super::samples::{Step, Summary};

const MIB: f64 = (1 << 20) as f64;

#[expect(
    clippy::cast_precision_loss,
    reason = "bytes and nanoseconds of a few processes"
)]
pub(super) async fn run(bench: &Arc<Bench>, report: &mut Report) {
    let count = bench.args.pods;
    let peers = &bench.peers;
    let bytes = |processes: &Processes| processes.proportional_bytes() as f64;
    let empty: Vec<f64> = peers
        .iter()
        .map(|peer| bytes(&Processes::of(peer.daemon, &[])))
        .collect();
    let mut fleets: Vec<Vec<Up>> = Vec::new();
    let mut up_rates = Vec::new();
    for peer in peers {
        bench.progress(&format!("{}: {count} pods up", peer.name));
        let begin = Instant::now();
        match all_up(bench, peer).await {
            Ok(fleet) => {
                up_rates.push(rate(count, begin.elapsed()));
                fleets.push(fleet);
            }
            Err(error) => {
                report.remark(&peer.name, "many pods up", &error);
                up_rates.push(None);
                fleets.push(Vec::new());
            }
        }
    }
    let at_once = bench.args.parallel;
    let work = format!("{count} pods, {at_once} at a time: up");
    report.row(work, "pods/s", Better::Higher, up_rates);

    calls(bench, &fleets, report).await;

    let monitors: Vec<Processes> = peers
        .iter()
        .zip(&fleets)
        .map(|(peer, fleet)| Processes::of(peer.daemon, fleet))
        .collect();
    let full: Vec<f64> = monitors.iter().map(bytes).collect();
    let total = full.iter().map(|full| single(full / MIB)).collect();
    report.row(
        format!("memory with {count} pods (PSS)"),
        "MiB",
        Better::Lower,
        total,
    );
    let growth = empty
        .iter()
        .zip(&full)
        .map(|(empty, full)| (full - empty).max(0.0) / MIB);
    let growth = growth
        .map(|growth| single(growth / f64::from(count)))
        .collect();
    report.row(
        "memory that a pod adds (PSS)".into(),
        "MiB",
        Better::Lower,
        growth,
    );

    let seconds = bench.args.idle;
    bench.progress(&format!("idle for {seconds} s"));
    let before: Vec<u64> = monitors
        .iter()
        .map(Processes::processor_nanoseconds)
        .collect();
    tokio::time::sleep(Duration::from_secs(seconds.into())).await;
    let used = monitors.iter().zip(before).map(|(monitor, before)| {
        let used = monitor.processor_nanoseconds().saturating_sub(before);
        single(used as f64 / 1e6 / f64::from(seconds))
    });
    let used = used.collect();
    report.row(
        format!("processor time, {count} idle pods"),
        "ms/s",
        Better::Lower,
        used,
    );

    let mut down_rates = Vec::new();
    for (peer, fleet) in peers.iter().zip(fleets) {
        bench.progress(&format!("{}: {count} pods down", peer.name));
        let begin = Instant::now();
        match all_down(bench, peer, fleet).await {
            Ok(0) => down_rates.push(None),
            Ok(stopped) => down_rates.push(rate(stopped, begin.elapsed())),
            Err(error) => {
                report.remark(&peer.name, "many pods down", &error);
                down_rates.push(None);
            }
        }
    }
    let work = format!("{count} pods, {at_once} at a time: down");
    report.row(work, "pods/s", Better::Higher, down_rates);
}

fn rate(count: u32, time: Duration) -> Option<Summary> {
    single(f64::from(count) / time.as_secs_f64())
}

fn single(value: f64) -> Option<Summary> {
    Summary::of(&[value])
}

async fn all_up(bench: &Arc<Bench>, peer: &Arc<Peer>) -> Result<Vec<Up>> {
    several(bench, 0..bench.args.pods, |index| {
        let (bench, peer) = (Arc::clone(bench), Arc::clone(peer));
        async move {
            let name = format!("fleet-{index}");
            let (up, _) = pod::up(&bench, &peer, Network::Pod, &name, Work::sleep()).await?;
            Ok(up)
        }
    })
    .await
}

async fn all_down(bench: &Arc<Bench>, peer: &Arc<Peer>, fleet: Vec<Up>) -> Result<u32> {
    let done = several(bench, fleet, |up| {
        let peer = Arc::clone(peer);
        async move { pod::down(&peer, &up).await }
    })
    .await?;
    Ok(u32::try_from(done.len())?)
}

/// Runs a task for each item, so many at a time as the arguments say; the first error ends it.
async fn several<I, T, F>(
    bench: &Bench,
    items: impl IntoIterator<Item = I>,
    start: impl Fn(I) -> F,
) -> Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let mut items = items.into_iter();
    let mut running = JoinSet::new();
    let mut results = Vec::new();
    for item in items.by_ref().take(bench.args.parallel as usize) {
        running.spawn(start(item));
    }
    while let Some(result) = running.join_next().await {
        results.push(result.context("a task of the benchmark failed")??);
        if let Some(item) = items.next() {
            running.spawn(start(item));
        }
    }
    Ok(results)
}

/// Calls that read or execute, while all pods are up.
async fn calls(bench: &Bench, fleets: &[Vec<Up>], report: &mut Report) {
    let steps = bench
        .rounds("calls", bench.args.calls, report, async |peer, round| {
            let index = bench
                .peers
                .iter()
                .position(|other| std::ptr::eq(&**other, peer));
            let fleet = &fleets[index.context("a peer of this run")?];
            let up = fleet
                .get(round as usize % fleet.len().max(1))
                .context("no pod is up")?;
            call_each(peer, up).await
        })
        .await;
    for (step, peers) in steps.summaries() {
        let work = format!("{step}, {} pods", bench.args.pods);
        report.row(work, "ms", Better::Lower, peers);
    }
}

async fn call_each(peer: &Peer, up: &Up) -> Result<Vec<Step>> {
    let client = &peer.client;
    let mut times = Vec::new();
    let mut last = Instant::now();
    let mut lap = |name| {
        let now = Instant::now();
        times.push((name, now - last));
        last = now;
    };
    let container_id = up.container.clone();
    let exec = ExecSyncRequest {
        container_id,
        cmd: vec!["true".into()],
        timeout: 30,
    };
    let code = client.exec_sync(exec).await?.exit_code;
    lap("ExecSync of true");
    ensure!(code == 0, "`true` exited with {code}");
    let container_id = up.container.clone();
    client
        .container_status(ContainerStatusRequest {
            container_id,
            verbose: false,
        })
        .await?;
    lap("ContainerStatus");
    let pod_sandbox_id = up.pod.clone();
    client
        .pod_sandbox_status(PodSandboxStatusRequest {
            pod_sandbox_id,
            verbose: false,
        })
        .await?;
    lap("PodSandboxStatus");
    client
        .list_pod_sandbox(ListPodSandboxRequest::default())
        .await?;
    lap("ListPodSandbox");
    client
        .list_containers(ListContainersRequest::default())
        .await?;
    lap("ListContainers");
    client
        .list_container_stats(ListContainerStatsRequest::default())
        .await?;
    lap("ListContainerStats");
    Ok(times)
}
