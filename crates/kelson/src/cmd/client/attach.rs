//! `kelson attach`: shows what a running container writes from now on, and passes on input to it.
//!
//! Exits with the container's code when it ends, and with 0 when the user leaves it. The CRI can send no
//! signal to a container, so that without a terminal an interrupt only ends this program.

use std::time::Duration;

use anyhow::{Result, bail};
use kelson_client::Client;
use kelson_cri::v1::{ContainerState, ContainerStatus, ContainerStatusRequest};

use super::stream::{self, End, Flags};
use super::target::Inventory;
use crate::ui::Io;

/// How long after the end of its session a container may seem to run, and how often that is looked at.
const SEEN: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    flags: Flags,
    /// Container, or a pod of one container: id, beginning of an id, or name
    container: String,
}

pub(crate) async fn run(args: Args, client: &Client, io: &mut Io<'_>) -> Result<u8> {
    let streams = args.flags.streams()?;
    let container = Inventory::take(client).await?.container(&args.container)?;
    let process = stream::attach(client, &container.id, streams).await?;
    match stream::attend(process, &args.flags.detach_keys, io).await? {
        // Attach itself tells no exit code.
        End::Exited(0) => {
            let status = last_status(client, &container.id).await?;
            Ok(stream::exit_code(status.exit_code))
        }
        end => Ok(end.code()),
    }
}

/// The exit code of a container; none when it has not exited.
pub(super) async fn exit_of(client: &Client, container: &str) -> Result<Option<i32>> {
    let request = ContainerStatusRequest {
        container_id: container.to_owned(),
        verbose: false,
    };
    let status = client.container_status(request).await?.status;
    let status = status.unwrap_or_default();
    Ok((status.state() == ContainerState::ContainerExited).then_some(status.exit_code))
}

/// The status of a container that has ended or is about to be seen so.
pub(super) async fn last_status(client: &Client, container: &str) -> Result<ContainerStatus> {
    let until = tokio::time::Instant::now() + SEEN;
    loop {
        let request = ContainerStatusRequest {
            container_id: container.to_owned(),
            verbose: false,
        };
        let status = client.container_status(request).await?.status;
        let status = status.unwrap_or_default();
        if status.state() == ContainerState::ContainerExited {
            return Ok(status);
        }
        if tokio::time::Instant::now() > until {
            bail!("the runtime has ended the session, but container {container} still runs");
        }
        tokio::time::sleep(LOOK).await;
    }
}
