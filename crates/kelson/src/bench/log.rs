//! How fast the output of a container gets into its log, beside a plain copy to the same file system.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kelson_cri::v1::{ContainerState, ContainerStatusRequest, Mount};

use super::Bench;
use super::peer::Peer;
use super::pod::{self, Network, Plan, Work};
use super::report::{Better, Report};
use super::samples::Summary;
use crate::cmd::client::{LogFile, Record};

/// Where the input appears in the container.
const INPUT: &str = "/bench-input";
/// Length of a line of output, its newline included.
const LINE: usize = 128;
/// Times that each peer does it; the best counts least noise, the summary shows all.
const ROUNDS: u32 = 3;
/// How often the end of the container is looked for.
const POLL: Duration = Duration::from_millis(2);

pub(super) async fn run(bench: &Arc<Bench>, report: &mut Report) -> Result<()> {
    let bytes = u64::from(bench.args.log_size) << 20;
    let input = bench.directory.join("input");
    write_input(&input, bytes).with_context(|| format!("write {}", input.display()))?;
    // On a virtual machine the first use of a page can cost more than all that is measured here.
    plain_copy(&input, &bench.directory.join("copy"))?;
    let mut rates = vec![Vec::new(); bench.peers.len()];
    let mut plain = Vec::new();
    for round in 0..ROUNDS {
        bench.progress(&format!("log: round {} of {ROUNDS}", round + 1));
        plain.push(rate(
            bytes,
            plain_copy(&input, &bench.directory.join("copy"))?,
        ));
        for (peer, rates) in bench.peers.iter().zip(&mut rates) {
            match write_log(bench, peer, round, &input, bytes).await {
                Ok(time) => rates.push(rate(bytes, time)),
                Err(error) => report.remark(&peer.name, "log", &error),
            }
        }
    }
    let log = rates.iter().map(|rates| Summary::of(rates)).collect();
    report.row(
        "container output to log".into(),
        "MiB/s",
        Better::Higher,
        log,
    );
    let plain = Summary::of(&plain);
    let plain = bench.peers.iter().map(|_| plain).collect();
    report.row(
        "plain copy to the same file system".into(),
        "MiB/s",
        Better::Higher,
        plain,
    );
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "megabytes")]
pub(super) fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / f64::from(1 << 20) / time.as_secs_f64()
}

/// Lines of text; writing it also brings it into the page cache.
fn write_input(path: &Path, bytes: u64) -> std::io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    for line in 0..bytes / LINE as u64 {
        writeln!(file, "{line:0width$}", width = LINE - 1)?;
    }
    file.flush()
}

fn plain_copy(from: &Path, to: &Path) -> Result<Duration> {
    let mut input = File::open(from).with_context(|| format!("open {}", from.display()))?;
    let begin = Instant::now();
    let mut output = File::create(to).with_context(|| format!("make {}", to.display()))?;
    let mut block = vec![0; 1 << 20];
    loop {
        let count = input
            .read(&mut block)
            .with_context(|| format!("read {}", from.display()))?;
        if count == 0 {
            break;
        }
        output
            .write_all(&block[..count])
            .with_context(|| format!("write {}", to.display()))?;
    }
    let time = begin.elapsed();
    fs::remove_file(to).with_context(|| format!("remove {}", to.display()))?;
    Ok(time)
}

/// Time from the start of a container that copies the input to its output until its end; the log has to hold
/// all of it then.
async fn write_log(
    bench: &Bench,
    peer: &Peer,
    round: u32,
    input: &Path,
    bytes: u64,
) -> Result<Duration> {
    let mount = Mount {
        container_path: INPUT.into(),
        host_path: input.display().to_string(),
        readonly: true,
        ..Default::default()
    };
    let work = Work {
        command: vec!["dd".into(), format!("if={INPUT}"), "bs=1M".into()],
        mounts: vec![mount],
    };
    let name = format!("log-{round}");
    let plan = Plan::new(bench, peer, Network::Host, &name, work)?;
    let (up, steps) = plan.up(peer).await?;
    let starting = steps.iter().find(|(step, _)| *step == "StartContainer");
    let mut time = starting.map_or(Duration::ZERO, |(_, time)| *time);
    let begin = Instant::now();
    let log_path = loop {
        let container_id = up.container.clone();
        let request = ContainerStatusRequest {
            container_id,
            verbose: false,
        };
        let status = peer
            .client
            .container_status(request)
            .await?
            .status
            .unwrap_or_default();
        if status.state() == ContainerState::ContainerExited {
            ensure!(status.exit_code == 0, "dd exited with {}", status.exit_code);
            break status.log_path;
        }
        tokio::time::sleep(POLL).await;
    };
    time += begin.elapsed();
    let logged = logged_bytes(Path::new(&log_path))?;
    pod::down(peer, &up).await?;
    plan.clean_up()?;
    if logged != bytes {
        bail!("the log holds {logged} bytes of the {bytes} that were written");
    }
    Ok(time)
}

/// Bytes of standard output in a log.
fn logged_bytes(path: &Path) -> Result<u64> {
    let mut log = LogFile::open(path)?;
    let mut total = 0;
    while log.read_new(&mut |line| {
        if let Some(record) = Record::parse(line).filter(Record::is_stdout) {
            total += record.text.len() as u64 + u64::from(!record.partial);
        }
        Ok(())
    })? {}
    Ok(total)
}
