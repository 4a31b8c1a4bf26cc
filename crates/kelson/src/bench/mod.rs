//! `kelson bench`: measures runtimes over their CRI sockets, side by side in one run.
//!
//! The endpoints take turns in every round, so that noise of the machine meets all of them. Only calls that
//! every runtime has are used. All pods carry a label of the run and are removed at its end, after a failure
//! and after an interrupt, too.

mod fleet;
mod log;
mod machine;
mod peer;
mod pod;
mod processes;
mod pull;
mod report;
mod samples;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::cmd;
use crate::ui::{self, Format, Output};
use peer::Peer;
use report::Report;
use samples::{Step, Steps};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Socket of a runtime; repeat it to compare. The first is what others are compared with
    #[arg(long = "endpoint", value_name = "SOCKET", required = true)]
    endpoints: Vec<String>,
    /// Image with `sleep`, `true` and `dd`, which all runtimes can pull
    #[arg(long)]
    image: String,
    /// Image for measuring pulls [default: the one of --image]
    #[arg(long, value_name = "IMAGE")]
    pull_image: Option<String>,
    /// What to measure [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Section>,
    /// Pods up and down, one after another, on each network
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Pods at the same time
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pods: u32,
    /// Pods being started or stopped at the same time
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    parallel: u32,
    /// Rounds of calls that read or execute
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    calls: u32,
    /// Seconds over which idle processor time is measured
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    idle: u32,
    /// Output of a container to its log, in MiB
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    log_size: u32,
    /// Pulls of the image
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pulls: u32,
    /// Directory for logs and for the input of the log measurement
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/tmp")]
    directory: PathBuf,
    #[command(flatten)]
    output: Output,
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
}

/// A run of the benchmark.
#[derive(Debug)]
struct Bench {
    args: Args,
    peers: Vec<Arc<Peer>>,
    /// Value of the label that marks the pods of this run.
    id: String,
    /// Exists during the run and is removed with all that is in it.
    directory: PathBuf,
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
    let format = args.output.format;
    let bench = Arc::new(Bench::new(args).await?);
    let mut interrupt = signal(SignalKind::interrupt()).context("install a signal handler")?;
    let mut terminate = signal(SignalKind::terminate()).context("install a signal handler")?;
    let result = tokio::select! {
        result = bench.run() => result,
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
    };
    let cleaned = bench.clean_up().await;
    let report = result?;
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
            peers.push(Arc::new(peer));
        }
        let pid = std::process::id();
        let id = format!("{pid}-{}", jiff::Timestamp::now().as_second());
        let directory = args.directory.join(format!("kelson-bench-{id}"));
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("make the directory {}", directory.display()))?;
        Ok(Self {
            args,
            peers,
            id,
            directory,
        })
    }

    async fn run(self: &Arc<Self>) -> Result<Report> {
        let mut report = Report::new(&self.directory, &self.peers);
        for peer in &self.peers {
            self.progress(&format!("{}: pull {}", peer.name, self.args.image));
            peer.pull(&self.args.image)
                .await
                .with_context(|| peer.name.clone())?;
            // The first pod pays for caches and loaded programs.
            pod::up_and_down(self, peer, pod::Network::Pod, "warm-up").await?;
        }
        for section in [
            Section::Pull,
            Section::Pod,
            Section::Host,
            Section::Fleet,
            Section::Log,
        ] {
            if !self.args.only.is_empty() && !self.args.only.contains(&section) {
                continue;
            }
            match section {
                Section::Pull => pull::run(self, &mut report).await,
                Section::Pod => pod::run(self, pod::Network::Pod, &mut report).await,
                Section::Host => pod::run(self, pod::Network::Host, &mut report).await,
                Section::Fleet => fleet::run(self, &mut report).await,
                Section::Log => log::run(self, &mut report).await?,
            }
        }
        Ok(report)
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
            for (index, peer) in self.peers.iter().enumerate() {
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
        std::fs::remove_dir_all(&self.directory)
            .with_context(|| format!("remove {}", self.directory.display()))?;
        if !left.is_empty() {
            bail!("some pods could not be removed: {}", left.join("; "));
        }
        Ok(())
    }
}
