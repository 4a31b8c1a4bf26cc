//! How long a daemon takes to come back while its pods run: from its start until it answers with all of them.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::peer::Peer;
use super::pod::Up;
use super::report::{Better, Report};
use super::samples::Step;
use super::{Bench, counted};

/// How long a daemon may take to end, and to start.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often it is asked whether it is there.
const POLL: Duration = Duration::from_millis(2);
/// Times that each daemon is started.
const ROUNDS: u32 = 3;

pub(super) async fn run(bench: &Bench, pods: u32, fleets: &[Vec<Up>], report: &mut Report) {
    let what = format!("daemon start, {}", counted(pods));
    let steps = bench
        .rounds(&what, ROUNDS, report, async |peer, _| {
            let index = bench.index(peer).context("a peer of this run")?;
            restart(bench, peer, fleets[index].len()).await
        })
        .await;
    for (_, peers) in steps.summaries() {
        report.row(what.clone(), "ms", Better::Lower, peers);
    }
}

async fn restart(bench: &Bench, peer: &Peer, pods: usize) -> Result<Vec<Step>> {
    let Some(start) = &peer.start_command else {
        bail!("nobody has told how to start it: --restart SOCKET=COMMAND");
    };
    end(peer.daemon()).await?;
    let begin = Instant::now();
    let mut shell = Command::new("sh")
        .args(["-c", start])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("run sh")?;
    loop {
        match peer.pods_of(&bench.id).await {
            Ok(found) if found.len() == pods => break,
            Ok(found) if begin.elapsed() > PATIENCE => {
                bail!("it has {} of {pods} pods", found.len())
            }
            Err(error) if begin.elapsed() > PATIENCE => {
                return Err(error)
                    .context(format!("it does not come back; was started by: {start}"));
            }
            _ => tokio::time::sleep(POLL).await,
        }
    }
    let time = begin.elapsed();
    peer.find_daemon()?;
    // The shell ends at once if it leaves the daemon to itself; else it waits for it and is left alone.
    let _ = shell.try_wait();
    bench.settle(peer, &[]).await?;
    Ok(vec![("daemon start", time)])
}

/// Ends a daemon and waits until it is gone.
async fn end(pid: u32) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.context("the daemon has no pid")?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).context("find the daemon")?;
    rustix::process::pidfd_send_signal(&pidfd, Signal::TERM).context("end the daemon")?;
    let patience = Timespec::try_from(PATIENCE).context("a time that the kernel knows")?;
    let ended = tokio::task::spawn_blocking(move || {
        rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&patience))
    });
    let ended = ended
        .await
        .context("waiting was cut off")?
        .context("wait for the daemon")?;
    ensure!(ended > 0, "the daemon does not end");
    Ok(())
}
