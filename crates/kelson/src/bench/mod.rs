//! `kelson bench`: measures runtimes side by side in one run, over their CRI sockets or as OCI runtimes.
//!
//! They take turns in every round, so that noise of the machine meets all of them. Only calls that every
//! runtime has are used, and images are made here and served on loopback. All pods carry a label of the run
//! and are removed at its end, after a failure and after an interrupt, too.

mod calls;
mod content;
mod cpu;
mod fleet;
mod html;
mod images;
mod log;
mod machine;
mod peer;
mod pod;
mod processes;
mod pull;
mod report;
mod restart;
mod run;
mod runtime;
mod samples;
mod stream;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kelson_cgroup::Hierarchy;
use tokio::signal::unix::{SignalKind, signal};

use crate::cmd;
use crate::ui::{self, Format, Output};
use images::Images;
use peer::Peer;
use report::Report;
use samples::{Step, Steps};

#[derive(Debug, clap::Args)]
#[group(id = "contenders", required = true, multiple = false, args = ["endpoints", "runtimes"])]
pub(crate) struct Args {
    /// Socket of a runtime; repeat it to compare. The first is what others are compared with
    #[arg(long = "endpoint", value_name = "SOCKET")]
    endpoints: Vec<String>,
    /// An OCI runtime to measure alone, such as "kelson oci", runc or crun; repeat it to compare
    #[arg(long = "runtime", value_name = "PROGRAM")]
    runtimes: Vec<String>,
    /// How to start the daemon of an endpoint, for measuring that with pods; run by sh, once the daemon
    /// has been ended with SIGTERM
    #[arg(long = "restart", value_name = "SOCKET=COMMAND", value_parser = socket_and_command)]
    restarts: Vec<(String, String)>,
    /// Image with `sleep`, `true` and `dd` which all runtimes can pull [default: made here]
    #[arg(long)]
    image: Option<String>,
    /// Image for measuring pulls [default: some with four layers, made here]
    #[arg(long, value_name = "IMAGE")]
    pull_image: Option<String>,
    /// Unpacked size of the image for measuring pulls that is made here, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=16384))]
    pull_size: u32,
    /// Memory to touch first, so that none is used for the first time while time is measured, in MiB
    /// [default: what the images and logs need, at most half of what is free]
    #[arg(long, value_name = "MIB")]
    warm: Option<u32>,
    /// What to measure [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Section>,
    /// Pods up and down, one after another, on each network
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Numbers of pods at the same time
    #[arg(long, value_delimiter = ',', default_value = "1,50,250", value_parser = clap::value_parser!(u32).range(1..=10000))]
    pods: Vec<u32>,
    /// Pods being started or stopped at the same time
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    parallel: u32,
    /// Rounds of each call that reads or executes
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    calls: u32,
    /// Seconds over which idle processor time is measured
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    idle: u32,
    /// Output of a container to its log, in MiB
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    log_size: u32,
    /// Bytes through each exec and each forwarded port, in MiB
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    stream_size: u32,
    /// Pulls of each image
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pulls: u32,
    /// Directory for logs, for the input of the log measurement, and for bundles
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/tmp")]
    directory: PathBuf,
    /// Write a report with plots as well
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

fn socket_and_command(text: &str) -> Result<(String, String), String> {
    let (socket, command) = text.split_once('=').ok_or("expected SOCKET=COMMAND")?;
    Ok((socket.to_owned(), command.to_owned()))
}

/// A part of the measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Section {
    /// Pull and unpack
    Pull,
    /// Pods on the pod network, one after another
    Pod,
    /// Pods on the host's network, one after another
    Host,
    /// Many pods: starting and stopping in parallel, calls, memory, idle processor time
    Fleet,
    /// Output of a container to its log
    Log,
    /// Exec and port-forward
    Stream,
}

/// A run of the benchmark.
#[derive(Debug)]
struct Bench {
    args: Args,
    peers: Vec<Arc<Peer>>,
    /// Those made here, unless others are named.
    images: OnceLock<Images>,
    /// Where pods get their cgroups; nowhere if cgroups cannot be used.
    cgroups: Option<Hierarchy>,
    /// Value of the label that marks the pods of this run.
    id: String,
    /// Exists during the run and is removed with all that is in it.
    directory: PathBuf,
    /// Held while an OCI runtime works, which no interrupt cuts off.
    busy: Arc<Mutex<()>>,
}

/// Measures, cleans up, prints.
pub(crate) fn main(args: Args) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = runtime
        .context("start the event loop")
        .and_then(|rt| rt.block_on(measure(args)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cmd::client::report(&error, &mut io::stderr());
            ExitCode::FAILURE
        }
    }
}

async fn measure(args: Args) -> Result<()> {
    let (format, html) = (args.output.format, args.html.clone());
    let mut interrupt = signal(SignalKind::interrupt()).context("install a signal handler")?;
    let mut terminate = signal(SignalKind::terminate()).context("install a signal handler")?;
    let bench = Arc::new(Bench::new(args).await?);
    let result = tokio::select! {
        result = bench.run() => result,
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
    };
    let cleaned = bench.clean_up().await;
    let report = result?;
    if let Some(path) = html {
        std::fs::write(&path, report.html())
            .with_context(|| format!("write {}", path.display()))?;
    }
    let mut out = io::stdout().lock();
    match format {
        Format::Table => report.write_tables(&mut out)?,
        Format::Json | Format::Yaml => ui::structured(&mut out, format, &report)?,
    }
    cleaned
}

impl Bench {
    async fn new(args: Args) -> Result<Self> {
        let mut peers: Vec<Arc<Peer>> = Vec::new();
        for endpoint in &args.endpoints {
            let mut peer = Peer::connect(endpoint).await?;
            let same = peers.iter().filter(|other| other.kind == peer.kind).count();
            if same > 0 {
                peer.name = format!("{}-{}", peer.kind, same + 1);
            }
            let mut commands = args.restarts.iter();
            let command = commands.find(|(socket, _)| socket == endpoint);
            peer.start_command = command.map(|(_, command)| command.clone());
            peers.push(Arc::new(peer));
        }
        if let Some((socket, _)) = args
            .restarts
            .iter()
            .find(|(socket, _)| !args.endpoints.contains(socket))
        {
            bail!("--restart names {socket}, which is no --endpoint");
        }
        let pid = std::process::id();
        let id = format!("{pid}-{}", jiff::Timestamp::now().as_second());
        let directory = args.directory.join(format!("kelson-bench-{id}"));
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("make the directory {}", directory.display()))?;
        Ok(Self {
            args,
            peers,
            images: OnceLock::new(),
            busy: Arc::default(),
            cgroups: Hierarchy::detect().ok(),
            id,
            directory,
        })
    }
    /// Runs `measure` so many times, the peers taking turns. A peer that fails is left out from then on, with
    /// a remark in the report.
    async fn rounds<'p>(
        &'p self,
        what: &str,
        count: u32,
        report: &mut Report,
        mut measure: impl AsyncFnMut(&'p Peer, u32) -> Result<Vec<Step>>,
    ) -> Steps {
        let mut steps = Steps::new(self.peers.len());
        let mut failed = vec![false; self.peers.len()];
        for round in 0..count {
            self.progress(&format!("{what}: round {} of {count}", round + 1));
            for turn in 0..self.peers.len() {
                // Nobody always comes first.
                let index = (turn + round as usize) % self.peers.len();
                let peer = &self.peers[index];
                if failed[index] {
                    continue;
                }
                match measure(peer, round).await {
                    Ok(times) => steps.add(index, times),
                    Err(error) => {
                        failed[index] = true;
                        report.remark(&peer.name, what, &error);
                    }
                }
            }
        }
        steps
    }

    /// A line on standard error that the next one replaces where a person watches.
    fn progress(&self, text: &str) {
        let mut err = io::stderr().lock();
        let line = match io::IsTerminal::is_terminal(&err) {
            true => write!(err, "\r\x1b[K{text}").and_then(|()| err.flush()),
            false if text.contains(": round ") => Ok(()),
            false => writeln!(err, "{text}"),
        };
        // Where nobody reads, nobody misses it.
        drop(line);
    }

    /// Removes all pods of this run. A call that was interrupted may still make one, so it looks again.
    async fn clean_up(&self) -> Result<()> {
        self.progress("clean up\n");
        drop(self.busy.lock().unwrap_or_else(PoisonError::into_inner));
        let mut left = Vec::new();
        for attempt in 0..4 {
            if attempt > 0 {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            left.clear();
            let mut found = 0;
            for peer in &self.peers {
                let pods = peer.pods_of(&self.id).await?;
                found += pods.len();
                for pod in pods {
                    if let Err(error) = peer.remove_pod(&pod).await {
                        left.push(format!("{}: pod {pod}: {error:#}", peer.name));
                    }
                }
            }
            if found == 0 {
                break;
            }
        }
        if let Some(cgroup) = self.cgroup()? {
            cgroup.remove().context("remove the cgroups of the pods")?;
            // Some runtimes use hierarchies that Kelson does not; what is not there needs no removal.
            for hierarchy in std::fs::read_dir("/sys/fs/cgroup")
                .into_iter()
                .flatten()
                .flatten()
            {
                let path = cgroup.path().trim_start_matches('/');
                remove_cgroups(&hierarchy.path().join(path));
            }
        }
        std::fs::remove_dir_all(&self.directory)
            .with_context(|| format!("remove {}", self.directory.display()))?;
        if !left.is_empty() {
            bail!("some pods could not be removed: {}", left.join("; "));
        }
        Ok(())
    }
}

/// Removes a directory of empty cgroups as far as that goes.
fn remove_cgroups(directory: &Path) {
    for child in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&child.path());
        }
    }
    let _ = std::fs::remove_dir(directory);
}

/// A number of pods in words.
fn counted(pods: u32) -> String {
    format!("{pods} pod{}", if pods == 1 { "" } else { "s" })
}
