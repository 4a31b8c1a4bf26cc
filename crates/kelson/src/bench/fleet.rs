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

pub(super) async fn run(bench: &Arc<Bench>, report: &mut Report) {
    let monitors = bench
        .peers
        .iter()
        .map(|peer| Processes::of(peer.daemon, &[]));
    let empty: Vec<f64> = monitors.map(|processes| mebibytes(&processes)).collect();
    let fleets = up(bench, report).await;
    calls(bench, &fleets, report).await;
    // What a peer without its pods uses would be no measurement.
    let monitors = bench.peers.iter().zip(&fleets);
    let monitors: Vec<Option<Processes>> = monitors
        .map(|(peer, fleet)| (!fleet.is_empty()).then(|| Processes::of(peer.daemon, fleet)))
        .collect();
    memory(bench, &empty, &monitors, report);
    idle(bench, &monitors, report).await;
    down(bench, fleets, report).await;
}

async fn up(bench: &Arc<Bench>, report: &mut Report) -> Vec<Vec<Up>> {
    let count = bench.args.pods;
    let mut fleets: Vec<Vec<Up>> = Vec::new();
    let mut rates = Vec::new();
    for peer in &bench.peers {
        bench.progress(&format!("{}: {count} pods up", peer.name));
        let begin = Instant::now();
        let (fleet, speed) = match all_up(bench, peer).await {
            Ok(fleet) => (fleet, rate(count, begin.elapsed())),
            Err(error) => {
                report.remark(&peer.name, "many pods up", &error);
                (Vec::new(), None)
            }
        };
        fleets.push(fleet);
        rates.push(speed);
    }
    let work = format!("{count} pods, {} at a time: up", bench.args.parallel);
    report.row(work, "pods/s", Better::Higher, rates);
    fleets
}

async fn down(bench: &Arc<Bench>, fleets: Vec<Vec<Up>>, report: &mut Report) {
    let count = bench.args.pods;
    let mut rates = Vec::new();
    for (peer, fleet) in bench.peers.iter().zip(fleets) {
        bench.progress(&format!("{}: {count} pods down", peer.name));
        let begin = Instant::now();
        rates.push(match all_down(bench, peer, fleet).await {
            Ok(0) => None,
            Ok(stopped) => rate(stopped, begin.elapsed()),
            Err(error) => {
                report.remark(&peer.name, "many pods down", &error);
                None
            }
        });
    }
    let work = format!("{count} pods, {} at a time: down", bench.args.parallel);
    report.row(work, "pods/s", Better::Higher, rates);
}

fn memory(bench: &Bench, empty: &[f64], full: &[Option<Processes>], report: &mut Report) {
    let count = bench.args.pods;
    let full: Vec<Option<f64>> = full.iter().map(|f| f.as_ref().map(mebibytes)).collect();
    let total = full.iter().map(|full| single((*full)?)).collect();
    report.row(
        format!("memory with {count} pods (PSS)"),
        "MiB",
        Better::Lower,
        total,
    );
    let growth = empty.iter().zip(&full);
    let growth = growth.map(|(empty, full)| single(((*full)? - empty).max(0.0) / f64::from(count)));
    report.row(
        "memory that a pod adds (PSS)".into(),
        "MiB",
        Better::Lower,
        growth.collect(),
    );
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds of some seconds")]
async fn idle(bench: &Bench, monitors: &[Option<Processes>], report: &mut Report) {
    let seconds = bench.args.idle;
    bench.progress(&format!("idle for {seconds} s"));
    let time = |m: &Option<Processes>| m.as_ref().map(Processes::processor_nanoseconds);
    let before: Vec<Option<u64>> = monitors.iter().map(time).collect();
    tokio::time::sleep(Duration::from_secs(seconds.into())).await;
    let used = monitors.iter().zip(before).map(|(monitor, before)| {
        let used = time(monitor)?.saturating_sub(before?);
        single(used as f64 / 1e6 / f64::from(seconds))
    });
    let work = format!("processor time, {} idle pods", bench.args.pods);
    report.row(work, "ms/s", Better::Lower, used.collect());
}

#[expect(clippy::cast_precision_loss, reason = "memory of a few processes")]
fn mebibytes(processes: &Processes) -> f64 {
    processes.proportional_bytes() as f64 / f64::from(1 << 20)
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
