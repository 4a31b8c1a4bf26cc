//! `kelson exec`: runs a command in a running container, with this program's input, output and terminal,
//! and exits with its code.
//!
//! The command loses its input and its terminal when this program goes away, as with any streaming exec.

use anyhow::Result;
use kelson_client::Client;

use super::stream::{self, End, Flags};
use super::target::Inventory;
use crate::ui::Io;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    flags: Flags,
    /// Container, or a pod of one container: id, beginning of an id, or name
    container: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(crate) async fn run(args: Args, client: &Client, io: &mut Io<'_>) -> Result<u8> {
    let streams = args.flags.streams()?;
    let container = Inventory::take(client).await?.container(&args.container)?;
    let process = stream::exec(client, &container.id, &args.command, streams).await?;
    let end = stream::attend(process, &args.flags.detach_keys, io).await?;
    if end == End::Detached {
        writeln!(io.err, "left; the command has lost its terminal")?;
    }
    Ok(end.code())
}
