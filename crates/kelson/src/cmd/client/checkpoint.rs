//! `kelson checkpoint`: an archive of a running container, which goes on running.

use std::path::PathBuf;

use anyhow::{Context, Result};
use kelson_client::Client;
use kelson_cri::v1::CheckpointContainerRequest;

use super::target::Inventory;
use crate::ui::Io;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The archive, a tar file that is made with mode 0600 on the runtime's machine; one that is there is
    /// replaced
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Seconds that it may take [default: the runtime's own]
    #[arg(
        short,
        long,
        value_name = "SECONDS",
        default_value_t = 0,
        hide_default_value = true
    )]
    timeout: u32,
    /// Container, or a pod with one: its id, the beginning of its id, or its name
    #[arg(value_name = "CONTAINER")]
    target: String,
}

pub(crate) async fn run(args: Args, client: &Client, io: &mut Io<'_>) -> Result<u8> {
    let inventory = Inventory::take(client).await?;
    let container = inventory.container(&args.target)?;
    let location = std::path::absolute(&args.output)
        .with_context(|| format!("cannot tell where {} is", args.output.display()))?;
    client
        .checkpoint_container(CheckpointContainerRequest {
            container_id: container.id,
            location: location.display().to_string(),
            timeout: args.timeout.into(),
        })
        .await?;
    writeln!(io.out, "{}", location.display())?;
    Ok(0)
}
