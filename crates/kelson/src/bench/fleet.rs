//! Many pods: starting and stopping several at a time, calls among them, memory and idle processor time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use super::cpu::Clock;
use super::peer::Peer;
use super::pod::{self, Network, Plan, Up, Work};
use super::processes::{Processes, Role};
use super::report::{Better, Report};
use super::samples::Summary;
use super::{Bench, calls, counted, restart};

/// Fleets are started several times if that does not make more pods than this.
const PODS: u32 = 150;
/// Times that a fleet is started at most.
const ROUNDS: u32 = 3;

/// The pods of one peer: what shall be, and what is.
#[derive(Debug, Default)]
struct Fleet {
    plans: Vec<Plan>,
    ups: Vec<Up>,
}

/// What one peer has shown over the rounds; empty where it failed.
#[derive(Debug, Clone, Default)]
struct Speeds {
    up: Vec<f64>,
    down: Vec<f64>,
    processor_up: Vec<f64>,
    processor_down: Vec<f64>,
}

pub(super) async fn run(bench: &Arc<Bench>, report: &mut Report) {
    let clocks: Vec<Clock> = bench.peers.iter().map(|peer| Clock::of(peer)).collect();
    for (peer, clock) in bench.peers.iter().zip(&clocks) {
        report.note(format!(
            "{}: processor time of pods is {}",
            peer.name,
            clock.describe()
        ));
    }
    for &pods in &bench.args.pods {
        report.section(&counted(pods));
        one_size(bench, &clocks, pods, report).await;
    }
}

async fn one_size(bench: &Arc<Bench>, clocks: &[Clock], pods: u32, report: &mut Report) {
    let peers = bench.peers.iter();
    let empty = peers.map(|peer| Processes::of(peer.daemon(), &[]));
    let empty: Vec<f64> = empty.map(|processes| mebibytes(&processes, None)).collect();
    let these = counted(pods);
    let rounds = (PODS / pods).clamp(1, ROUNDS);
    let mut speeds = vec![Speeds::default(); bench.peers.len()];
    let mut fleets: Vec<Vec<Up>> = Vec::new();
    for round in 1..=rounds {
        let mut all: Vec<Fleet> = Vec::new();
        for (index, peer) in bench.peers.iter().enumerate() {
            let what = format!("{these} up, round {round} of {rounds}");
            bench.progress(&format!("{}: {what}", peer.name));
            let fleet = up(bench, peer, &clocks[index], pods, &mut speeds[index]).await;
            all.push(fleet.unwrap_or_else(|error| {
                report.remark(&peer.name, &what, &error);
                Fleet::default()
            }));
        }
        if round == rounds {
            fleets = all.iter().map(|fleet| fleet.ups.clone()).collect();
            while_up(bench, pods, &empty, &fleets, report).await;
        }
        for (index, fleet) in all.into_iter().enumerate() {
            let peer = &bench.peers[index];
            let what = format!("{these} down, round {round} of {rounds}");
            bench.progress(&format!("{}: {what}", peer.name));
            if let Err(error) = down(bench, peer, &clocks[index], fleet, &mut speeds[index]).await {
                report.remark(&peer.name, &what, &error);
            }
        }
    }
    drop(fleets);
    rates(bench, pods, &speeds, report);
}

/// What is measured while the pods of all peers are up.
async fn while_up(
    bench: &Bench,
    pods: u32,
    empty: &[f64],
    fleets: &[Vec<Up>],
    report: &mut Report,
) {
    // What a peer without its pods uses would be no measurement.
    let monitors = bench.peers.iter().zip(fleets);
    let monitors: Vec<Option<Processes>> = monitors
        .map(|(peer, fleet)| (!fleet.is_empty()).then(|| Processes::of(peer.daemon(), fleet)))
        .collect();
    memory(pods, empty, &monitors, report);
    idle(bench, pods, &monitors, report).await;
    calls::run(bench, pods, fleets, report).await;
    if bench.peers.iter().any(|peer| peer.start_command.is_some()) {
        restart::run(bench, pods, fleets, report).await;
    } else {
        report.note("not measured: daemon start; it needs --restart SOCKET=COMMAND".to_owned());
    }
}

fn rates(bench: &Bench, pods: u32, speeds: &[Speeds], report: &mut Report) {
    let (these, at_a_time) = (counted(pods), bench.args.parallel);
    let mut row = |work: &str, unit, better, values: fn(&Speeds) -> &[f64]| {
        let values = speeds.iter().map(|speeds| Summary::of(values(speeds)));
        report.row(work.to_owned(), unit, better, values.collect());
    };
    if pods >= at_a_time {
        let work = |what| format!("{these}, {at_a_time} at a time: {what}");
        row(&work("up"), "pods/s", Better::Higher, |speeds| &speeds.up);
        row(&work("down"), "pods/s", Better::Higher, |speeds| {
            &speeds.down
        });
    }
    let work = |what| format!("processor time to {what} a pod, {these}");
    row(&work("start"), "ms", Better::Lower, |speeds| {
        &speeds.processor_up
    });
    row(&work("stop"), "ms", Better::Lower, |speeds| {
        &speeds.processor_down
    });
}

fn memory(pods: u32, empty: &[f64], full: &[Option<Processes>], report: &mut Report) {
    let these = counted(pods);
    let mut row = |work: String, value: &dyn Fn(usize, &Processes) -> f64| {
        let values = full.iter().enumerate();
        let values = values.map(|(peer, processes)| single(value(peer, processes.as_ref()?)));
        report.row(work, "MiB", Better::Lower, values.collect());
    };
    let roles = [
        ("all", None),
        ("daemon", Some(Role::Daemon)),
        ("shims and monitors", Some(Role::Shim)),
        ("pause processes", Some(Role::Pause)),
    ];
    for (name, role) in roles {
        row(format!("memory (PSS), {these}: {name}"), &|_, processes| {
            mebibytes(processes, role)
        });
    }
    if pods == 1 {
        // A daemon's own memory changes by more than that.
        return;
    }
    row(
        format!("memory (PSS) that a pod adds, {these}"),
        &|peer, processes| (mebibytes(processes, None) - empty[peer]).max(0.0) / f64::from(pods),
    );
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds of some seconds")]
async fn idle(bench: &Bench, pods: u32, monitors: &[Option<Processes>], report: &mut Report) {
    let (these, seconds) = (counted(pods), bench.args.idle);
    bench.progress(&format!("idle for {seconds} s with {these}"));
    for peer in &bench.peers {
        // Work that is left over from the start is not idleness.
        if let Err(error) = bench.settle(peer, &[]).await {
            report.remark(&peer.name, "idle processor time", &error);
        }
    }
    let time = |m: &Option<Processes>| m.as_ref().map(Processes::processor_nanoseconds);
    let before: Vec<Option<u64>> = monitors.iter().map(time).collect();
    tokio::time::sleep(Duration::from_secs(seconds.into())).await;
    let used = monitors.iter().zip(before).map(|(monitor, before)| {
        let used = time(monitor)?.saturating_sub(before?);
        single(used as f64 / 1e6 / f64::from(seconds))
    });
    let work = format!("processor time while idle, {these}");
    report.row(work, "ms/s", Better::Lower, used.collect());
}

#[expect(clippy::cast_precision_loss, reason = "memory of a few processes")]
fn mebibytes(processes: &Processes, role: Option<Role>) -> f64 {
    processes.proportional_bytes(role) as f64 / f64::from(1 << 20)
}

fn single(value: f64) -> Option<Summary> {
    Summary::of(&[value])
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds of some seconds")]
fn milliseconds_each(nanoseconds: u64, pods: usize) -> f64 {
    nanoseconds as f64 / 1e6 / pods.max(1) as f64
}

#[expect(clippy::cast_precision_loss, reason = "hundreds of pods")]
fn rate(pods: usize, time: Duration) -> f64 {
    pods as f64 / time.as_secs_f64()
}

async fn up(
    bench: &Arc<Bench>,
    peer: &Arc<Peer>,
    clock: &Clock,
    pods: u32,
    speeds: &mut Speeds,
) -> Result<Fleet> {
    let plan = |index| {
        let name = format!("fleet-{index}");
        Plan::new(bench, peer, Network::Pod, &name, Work::sleep())
    };
    let plans: Vec<Plan> = (0..pods).map(plan).collect::<Result<_>>()?;
    bench.settle(peer, &[]).await?;
    let before = clock.read(peer, &[]);
    let begin = Instant::now();
    let made = several(bench, plans, |plan| {
        let peer = Arc::clone(peer);
        async move {
            let (up, _) = plan.up(&peer).await?;
            Ok((plan, up))
        }
    })
    .await?;
    let time = begin.elapsed();
    let (plans, ups): (Vec<Plan>, Vec<Up>) = made.into_iter().unzip();
    bench.settle(peer, &ups).await?;
    let used = clock.read(peer, &ups).saturating_sub(before);
    speeds.up.push(rate(ups.len(), time));
    speeds.processor_up.push(milliseconds_each(used, ups.len()));
    Ok(Fleet { plans, ups })
}

async fn down(
    bench: &Arc<Bench>,
    peer: &Arc<Peer>,
    clock: &Clock,
    fleet: Fleet,
    speeds: &mut Speeds,
) -> Result<()> {
    let Fleet { plans, ups } = fleet;
    let count = ups.len();
    if count == 0 {
        return Ok(());
    }
    let before = clock.read(peer, &ups);
    let begin = Instant::now();
    several(bench, ups, |up| {
        let peer = Arc::clone(peer);
        async move { pod::down(&peer, &up).await }
    })
    .await?;
    let time = begin.elapsed();
    bench.settle(peer, &[]).await?;
    // Shims that are gone take what they have used with them, unless a cgroup has counted it.
    if let Clock::Cgroup(..) = clock {
        let used = clock.read(peer, &[]).saturating_sub(before);
        speeds.processor_down.push(milliseconds_each(used, count));
    }
    speeds.down.push(rate(count, time));
    plans.iter().try_for_each(Plan::clean_up)
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
