//! `kelson logs`: prints what a container has written, from the log file that the runtime names.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use jiff::{SignedDuration, Timestamp};
use kelson_client::Client;
use kelson_cri::v1::{ContainerState, ContainerStatusRequest};

use super::log::{self, LogFile, Printer};
use super::target::Inventory;
use crate::ui::Io;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Go on until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Only so many lines from the end
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<usize>,
    /// Only what was written since a time, or in a time until now
    #[arg(long, value_name = "TIME", value_parser = Since::parse, help = "Only lines since then: \
        2026-11-20T10:00:00Z, or ago: 10m, 2h30m")]
    since: Option<Since>,
    /// Put the time before each line
    #[arg(short, long)]
    timestamps: bool,
    /// Container, or a pod of one container: id, beginning of an id, or name
    container: String,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Since {
    Time(Timestamp),
    Ago(SignedDuration),
}

impl Since {
    fn parse(text: &str) -> Result<Self, String> {
        if let Ok(ago) = text.parse() {
            return Ok(Self::Ago(ago));
        }
        let hint = "write a time as 2026-11-20T10:00:00Z, or how long ago as 10m, 2h30m";
        text.parse().map(Self::Time).map_err(|_| hint.into())
    }

    fn time(self, now: i64) -> Result<Timestamp> {
        match self {
            Self::Time(time) => Ok(time),
            Self::Ago(ago) => {
                let now = Timestamp::from_nanosecond(now.into())?;
                now.checked_sub(ago).context("--since lies too far back")
            }
        }
    }
}

pub(crate) async fn run(args: Args, client: &Client, io: &mut Io<'_>) -> Result<u8> {
    let since = args.since.map(|since| since.time((io.now)())).transpose()?;
    let container = Inventory::take(client).await?.container(&args.container)?;
    let path = log_path(client, &container.id).await?;
    ensure!(
        args.follow || path.exists(),
        "there is no log file {}: the runtime runs on another machine, or has removed it",
        path.display()
    );
    let mut log = LogFile::open(&path)?;
    if let Some(count) = args.tail {
        log.seek_to_last(count)?;
    }
    let mut printer = Printer::new(args.timestamps, since);
    if args.follow {
        log::follow(&path, log, &mut printer, io, async || {
            Ok(!may_still_write(client, &container.id).await?)
        })
        .await?;
    } else {
        while log.read_new(&mut |line| printer.print(line, io))? {}
    }
    Ok(0)
}

/// Where the runtime writes the log of a container.
pub(crate) async fn log_path(client: &Client, container: &str) -> Result<PathBuf> {
    let request = ContainerStatusRequest {
        container_id: container.to_owned(),
        verbose: false,
    };
    let status = client
        .container_status(request)
        .await?
        .status
        .unwrap_or_default();
    match Path::new(&status.log_path) {
        path if path.is_absolute() => Ok(path.to_owned()),
        _ => bail!("the runtime keeps no log for this container: it was made without a log path"),
    }
}

/// Whether the container has not ended yet; one that was removed has.
async fn may_still_write(client: &Client, container: &str) -> Result<bool> {
    let request = ContainerStatusRequest {
        container_id: container.to_owned(),
        verbose: false,
    };
    match client.container_status(request).await {
        Err(error) if error.is_not_found() => Ok(false),
        answer => {
            let state = answer?.status.unwrap_or_default().state();
            Ok(matches!(
                state,
                ContainerState::ContainerCreated | ContainerState::ContainerRunning
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_time_or_a_duration() {
        let now = "2026-11-20T10:00:00Z".parse::<Timestamp>().unwrap();
        let nanoseconds = i64::try_from(now.as_nanosecond()).unwrap();
        let time = |text: &str| {
            Since::parse(text)
                .unwrap()
                .time(nanoseconds)
                .unwrap()
                .to_string()
        };
        assert_eq!(time("10m"), "2026-11-20T09:50:00Z");
        assert_eq!(time("2h30m"), "2026-11-20T07:30:00Z");
        assert_eq!(time("2026-11-20T11:00:00+02:00"), "2026-11-20T09:00:00Z");
        assert!(Since::parse("yesterday").unwrap_err().contains("10m"));
    }
}
