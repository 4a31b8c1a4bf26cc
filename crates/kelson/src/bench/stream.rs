//! How fast streams are: what a command prints, and what comes through a forwarded port.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kelson_cri::v1::{ExecRequest, PortForwardRequest};
use kelson_streaming::client::{Forwarder, Options, Process, Protocols, Trust};
use kelson_streaming::{Outcome, Streams};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::Bench;
use super::log::rate;
use super::peer::Peer;
use super::pod::{self, Network, Plan, Up, Work};
use super::report::{Better, Report};
use super::samples::Summary;

/// Times that each peer does it.
const ROUNDS: u32 = 3;
/// Bytes that are read and written at once.
const BLOCK: usize = 256 * 1024;
/// What streams, and over which protocol.
const WORKS: &[(Kind, Protocols, &str)] = &[
    (Kind::Exec, Protocols::WebSocket, "exec output, WebSocket"),
    (Kind::Exec, Protocols::Spdy, "exec output, SPDY"),
    (
        Kind::Forward,
        Protocols::WebSocket,
        "port-forward, WebSocket",
    ),
    (Kind::Forward, Protocols::Spdy, "port-forward, SPDY"),
];

#[derive(Debug, Clone, Copy)]
enum Kind {
    Exec,
    Forward,
}

pub(super) async fn run(bench: &Arc<Bench>, report: &mut Report) -> Result<()> {
    let mut plans = Vec::new();
    let mut ups = Vec::new();
    for peer in &bench.peers {
        // On the host's network, where the other end of a forwarded port can be here.
        let plan = Plan::new(bench, peer, Network::Host, "stream", Work::sleep())?;
        let (up, _) = plan.up(peer).await.with_context(|| peer.name.clone())?;
        plans.push(plan);
        ups.push(up);
    }
    for (kind, protocols, what) in WORKS {
        let mut rates = vec![Vec::new(); bench.peers.len()];
        let mut failed = vec![false; bench.peers.len()];
        for round in 0..ROUNDS {
            bench.progress(&format!("{what}: round {} of {ROUNDS}", round + 1));
            for (index, peer) in bench.peers.iter().enumerate() {
                if failed[index] {
                    continue;
                }
                let bytes = u64::from(bench.args.stream_size) << 20;
                let took = match kind {
                    Kind::Exec => exec(peer, &ups[index], *protocols, bytes).await,
                    Kind::Forward => forward(peer, &ups[index], *protocols, bytes).await,
                };
                match took {
                    Ok(time) => rates[index].push(rate(bytes, time)),
                    Err(error) => {
                        report.remark(&peer.name, what, &error);
                        failed[index] = true;
                    }
                }
            }
        }
        let rates = rates.iter().map(|rates| Summary::of(rates)).collect();
        report.row((*what).into(), "MiB/s", Better::Higher, rates);
    }
    for ((peer, plan), up) in bench.peers.iter().zip(plans).zip(ups) {
        pod::down(peer, &up).await?;
        plan.clean_up()?;
    }
    Ok(())
}

fn options(protocols: Protocols) -> Options {
    Options {
        protocols,
        trust: Trust::Anybody,
    }
}

/// Time that a command takes to print so much, its start included.
async fn exec(peer: &Peer, up: &Up, protocols: Protocols, bytes: u64) -> Result<Duration> {
    let streams = Streams {
        stdin: false,
        stdout: true,
        stderr: false,
        tty: false,
    };
    let urls = async || {
        let count = format!("count={}", bytes >> 20);
        let request = ExecRequest {
            container_id: up.container.clone(),
            cmd: vec!["dd".into(), "if=/dev/zero".into(), "bs=1M".into(), count],
            stdout: true,
            ..Default::default()
        };
        Ok(peer.client.exec(request).await?.url)
    };
    let begin = Instant::now();
    let mut process = Process::connect(urls, streams, &options(protocols)).await?;
    let stdout = process
        .stdout
        .as_mut()
        .context("a command without output")?;
    let read = count(stdout).await?;
    let outcome = process.waiting.outcome().await?;
    ensure!(
        read == bytes && outcome == Outcome::Exited(0),
        "{read} of {bytes} bytes came, then {outcome:?}"
    );
    Ok(begin.elapsed())
}

/// Time that a forwarded connection takes for so much from a server, its beginning included.
async fn forward(peer: &Peer, up: &Up, protocols: Protocols, bytes: u64) -> Result<Duration> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let serve = async {
        let (mut stream, _) = listener.accept().await?;
        let block = vec![0; BLOCK];
        let mut left = bytes;
        while left > 0 {
            let next = block.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            stream.write_all(&block[..next]).await?;
            left -= next as u64;
        }
        stream.shutdown().await?;
        anyhow::Ok(())
    };
    let urls = async || {
        let request = PortForwardRequest {
            pod_sandbox_id: up.pod.clone(),
            port: vec![i32::from(port)],
        };
        Ok(peer.client.port_forward(request).await?.url)
    };
    let begin = Instant::now();
    let forwarder = Forwarder::connect(urls, &options(protocols)).await?;
    let (near, mut far) = tokio::io::duplex(BLOCK);
    let relay = async { anyhow::Ok(forwarder.relay(port, near).await?) };
    let read = async {
        far.shutdown().await?;
        count(&mut far).await
    };
    let ((), (), read) = tokio::try_join!(relay, serve, read)?;
    ensure!(read == bytes, "{read} of {bytes} bytes came");
    Ok(begin.elapsed())
}

/// Reads to the end; how much there was.
async fn count(from: &mut (impl AsyncRead + Unpin)) -> Result<u64> {
    let mut block = vec![0; BLOCK];
    let mut total = 0;
    loop {
        match from.read(&mut block).await? {
            0 => return Ok(total),
            read => total += read as u64,
        }
    }
}
