//! `kelson run`: an image and a command as a pod of one container.
//!
//! In the foreground it prints what the container writes, passes on input with `-i`, and exits with the
//! container's code; the pod is then stopped, and removed with `--rm` or after an interrupt. With `-t` the
//! container has this program's terminal, and goes on when the user leaves it by `--detach-keys`. The log lies in `<log dir>/<pod>_<uid>/<container>.log`.

mod config;
mod flags;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use kelson_client::Client;
use kelson_cri::v1::{
    ContainerState, ContainerStatus, ContainerStatusRequest, CreateContainerRequest, ImageSpec,
    ImageStatusRequest, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest,
    StopContainerRequest, StopPodSandboxRequest,
};
use kelson_streaming::Streams;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::log::{self, LogFile, Printer};
use super::stream::{self, End};
use super::{attach, logs, pull, rm};
use crate::ui::Io;
use flags::Pull;

pub(crate) use config::{LABEL, log_directory};
pub(crate) use flags::Args;

/// Seconds between the stop signal and killing after an interrupt.
const GRACE: i64 = 10;

pub(crate) async fn run(args: Args, client: &Client, io: &mut Io<'_>) -> Result<u8> {
    let streams = match args.detach {
        true => Streams::default(),
        false => args.streams.streams()?,
    };
    let plan = config::Plan::new(&args)?;
    let mut interrupts = Interrupts::new()?;
    tokio::select! {
        pulled = provide_image(&args, client, io) => pulled?,
        () = interrupts.next() => bail!("interrupted before the image was there"),
    }
    let logs = PathBuf::from(&plan.pod.log_directory);
    std::fs::create_dir_all(&logs)
        .with_context(|| format!("make the log directory {}", logs.display()))?;
    let (pod, container) = match start(client, &plan, &args).await {
        Ok(ids) => ids,
        Err(error) => {
            rm::remove_logs(Some(&logs))?;
            return Err(error);
        }
    };
    if args.detach {
        writeln!(io.out, "{pod}")?;
        return Ok(0);
    }
    let (result, interrupted) = match streams.tty {
        true => match interact(client, &container, streams, &args, &mut interrupts, io).await {
            (Ok(None), _) => {
                writeln!(io.err, "left; pod {pod} goes on")?;
                return Ok(0);
            }
            (Ok(Some(status)), interrupted) => (Ok(status), interrupted),
            (Err(error), _) => (Err(error), false),
        },
        false => attend(client, &container, streams.stdin, &mut interrupts, io).await,
    };
    let cleaned = if args.rm || interrupted {
        remove_pod(client, &pod)
            .await
            .and_then(|()| rm::remove_logs(Some(&logs)))
    } else {
        stop_pod(client, &pod).await
    };
    let status = result?;
    cleaned?;
    // Why it ended is worth a word where the exit code alone does not say it.
    if status.exit_code != 0 && !matches!(status.reason.as_str(), "" | "Error") {
        let colon = if status.message.is_empty() { "" } else { ": " };
        writeln!(io.err, "{}{colon}{}", status.reason, status.message)?;
    }
    Ok(stream::exit_code(status.exit_code))
}

async fn provide_image(args: &Args, client: &Client, io: &mut Io<'_>) -> Result<()> {
    let spec = ImageSpec {
        image: args.image.clone(),
        ..Default::default()
    };
    let status = ImageStatusRequest {
        image: Some(spec),
        verbose: false,
    };
    let present = client.image_status(status).await?.image.is_some();
    match (args.pull, present) {
        (Pull::Never, false) => {
            bail!(
                "the image {} is not there, and --pull never forbids to pull it",
                args.image
            )
        }
        (Pull::Never | Pull::Missing, true) => {}
        (Pull::Missing, false) | (Pull::Always, _) => {
            let note = pull::pull(client, &args.image, None, io.watched).await?;
            writeln!(io.err, "{note}")?;
        }
    }
    Ok(())
}

/// Makes the pod and starts the container; returns both ids. After an error nothing of the pod stays.
async fn start(client: &Client, plan: &config::Plan, args: &Args) -> Result<(String, String)> {
    let request = RunPodSandboxRequest {
        config: Some(plan.pod.clone()),
        runtime_handler: args.runtime_handler.clone(),
    };
    let pod = client.run_pod_sandbox(request).await?.pod_sandbox_id;
    match start_container(client, plan, &pod).await {
        Ok(container) => Ok((pod, container)),
        Err(error) => match remove_pod(client, &pod).await {
            Ok(()) => Err(error),
            Err(second) => Err(error.context(format!("the pod {pod} is left: {second:#}"))),
        },
    }
}

async fn start_container(client: &Client, plan: &config::Plan, pod: &str) -> Result<String> {
    let request = CreateContainerRequest {
        pod_sandbox_id: pod.to_owned(),
        config: Some(plan.container.clone()),
        sandbox_config: Some(plan.pod.clone()),
    };
    let container = client.create_container(request).await?.container_id;
    client
        .start_container(StartContainerRequest {
            container_id: container.clone(),
        })
        .await?;
    Ok(container)
}

/// Joins the terminal to the container until either ends: the container's last status, or none when the
/// user has left it, and whether this program was interrupted.
async fn interact(
    client: &Client,
    container: &str,
    streams: Streams,
    args: &Args,
    interrupts: &mut Interrupts,
    io: &mut Io<'_>,
) -> (Result<Option<ContainerStatus>>, bool) {
    let process = match stream::attach(client, container, streams).await {
        Ok(process) => process,
        // It may have ended before; then all that it wrote is in its log.
        Err(error) => match attach::exit_of(client, container).await {
            Ok(Some(_)) => {
                return (
                    print_until_end(client, container, io).await.map(Some),
                    false,
                );
            }
            _ => return (Err(error), false),
        },
    };
    let attended = async {
        if streams.stdin {
            writeln!(io.err, "press enter if there is no prompt")?;
        }
        stream::attend(process, &args.streams.detach_keys, io).await
    };
    let end = tokio::select! {
        end = attended => end,
        () = interrupts.next() => Ok(End::Signal(SignalKind::interrupt().as_raw_value())),
    };
    match end {
        Ok(End::Detached) => (Ok(None), false),
        Ok(End::Exited(_)) => (
            attach::last_status(client, container).await.map(Some),
            false,
        ),
        Ok(End::Signal(_)) => {
            let request = StopContainerRequest {
                container_id: container.to_owned(),
                timeout: GRACE,
            };
            if let Err(error) = client.stop_container(request).await {
                return (Err(error.into()), true);
            }
            (attach::last_status(client, container).await.map(Some), true)
        }
        Err(error) => (Err(error), false),
    }
}

/// Prints the log until the container ends, and passes on input if that is wanted. An interrupt stops the container, a second one kills it.
/// Returns its last status, and whether it was interrupted.
async fn attend(
    client: &Client,
    container: &str,
    stdin: bool,
    interrupts: &mut Interrupts,
    io: &mut Io<'_>,
) -> (Result<ContainerStatus>, bool) {
    let printing = async {
        tokio::select! {
            status = print_until_end(client, container, io) => status,
            error = pass_input(client, container, stdin) => Err(error),
        }
    };
    tokio::pin!(printing);
    tokio::select! {
        status = &mut printing => return (status, false),
        () = interrupts.next() => {}
    }
    let stop = |timeout| {
        client.stop_container(StopContainerRequest {
            container_id: container.to_owned(),
            timeout,
        })
    };
    let stopping = async {
        tokio::select! {
            stopped = stop(GRACE) => stopped,
            () = interrupts.next() => stop(0).await,
        }
    };
    // The end of the log is printed while and after the container stops.
    let (stopped, status) = tokio::join!(stopping, printing);
    (stopped.map_err(Into::into).and(status), true)
}

/// Passes on input as far as it is wanted and taken. Returns only with an error.
async fn pass_input(client: &Client, container: &str, stdin: bool) -> anyhow::Error {
    if !stdin {
        return std::future::pending().await;
    }
    let streams = Streams {
        stdin: true,
        ..Streams::default()
    };
    match stream::attach(client, container, streams).await {
        Ok(process) => stream::pass_input(process).await,
        Err(error) => match attach::exit_of(client, container).await {
            // It has not waited for input.
            Ok(Some(_)) => std::future::pending().await,
            _ => error,
        },
    }
}

async fn print_until_end(
    client: &Client,
    container: &str,
    io: &mut Io<'_>,
) -> Result<ContainerStatus> {
    let path = logs::log_path(client, container).await?;
    let request = || ContainerStatusRequest {
        container_id: container.to_owned(),
        verbose: false,
    };
    let mut last = ContainerStatus::default();
    let log = LogFile::open(&path)?;
    log::follow(&path, log, &mut Printer::default(), io, async || {
        last = client
            .container_status(request())
            .await?
            .status
            .unwrap_or_default();
        Ok(last.state() == ContainerState::ContainerExited)
    })
    .await?;
    Ok(last)
}

async fn stop_pod(client: &Client, pod: &str) -> Result<()> {
    let request = StopPodSandboxRequest {
        pod_sandbox_id: pod.to_owned(),
    };
    client.stop_pod_sandbox(request).await?;
    Ok(())
}

async fn remove_pod(client: &Client, pod: &str) -> Result<()> {
    stop_pod(client, pod).await?;
    let request = RemovePodSandboxRequest {
        pod_sandbox_id: pod.to_owned(),
    };
    client.remove_pod_sandbox(request).await?;
    Ok(())
}

/// SIGINT and SIGTERM.
struct Interrupts {
    int: Signal,
    term: Signal,
}

impl Interrupts {
    fn new() -> Result<Self> {
        let install = |kind| signal(kind).context("install a signal handler");
        Ok(Self {
            int: install(SignalKind::interrupt())?,
            term: install(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
        }
    }
}
