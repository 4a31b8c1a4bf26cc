//! `kelson exec`: runs a command in a running container and passes on its output and exit code.
//!
//! The command has no input and no terminal, and its output is printed when it ends.

use anyhow::Result;
use kelson_client::Client;
use kelson_cri::v1::ExecSyncRequest;

use super::target::Inventory;
use crate::ui::Io;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Kill the command after so many seconds (0: never)
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    timeout: u32,
    /// Container, or a pod of one container: id, beginning of an id, or name
    container: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(crate) async fn run(args: Args, client: &Client, io: &mut Io<'_>) -> Result<u8> {
    let container = Inventory::take(client).await?.container(&args.container)?;
    let request = ExecSyncRequest {
        container_id: container.id,
        cmd: args.command,
        timeout: args.timeout.into(),
    };
    let answer = client.exec_sync(request).await?;
    io.out.write_all(&answer.stdout)?;
    io.err.write_all(&answer.stderr)?;
    Ok(exit_code(answer.exit_code))
}

/// The exit code of this program for that of a process; what does not fit into a byte is 255.
pub(crate) fn exit_code(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(u8::MAX)
}
