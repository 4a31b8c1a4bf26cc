//! The commands that speak to a runtime over its CRI socket, Kelson's or another's.
//!
//! Nothing here uses anything that only Kelson has: each command works with `--runtime-endpoint` on any
//! socket that speaks CRI v1. A command writes results to standard output and all else to standard error.

mod attach;
mod checkpoint;
mod cp;
mod events;
mod exec;
mod images;
mod info;
mod inspect;
mod log;
mod logs;
mod pods;
mod port_forward;
mod ps;
mod pull;
mod rm;
mod rmi;
mod run;
mod stats;
mod stop;
mod stream;
mod target;
mod version;
mod view;

#[cfg(test)]
mod fake;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use kelson_client::{Client, Endpoint};

use crate::ui::{self, Io};

pub(crate) use log::{LogFile, Record};

/// What the exit codes of all client commands mean; a part of `kelson --help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes: 0 success, 1 failure, 2 wrong usage; `run`, `exec` and `attach` exit with the code of the
process (128 and the signal's number where a signal ended it).";

/// Which runtime to speak to.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Connection {
    /// Socket of the runtime [default: $KELSON_ENDPOINT, $CONTAINER_RUNTIME_ENDPOINT, else
    /// unix:///run/kelson/kelson.sock]
    #[arg(short = 'r', long, global = true, value_name = "SOCKET")]
    pub(crate) runtime_endpoint: Option<String>,
}

/// The commands; each is described in its file.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Pull an image
    Pull(pull::Args),
    /// List images
    Images(images::Args),
    /// Remove images
    Rmi(rmi::Args),
    /// Run a command in an image, as a pod of one container
    Run(Box<run::Args>),
    /// List pods
    Pods(pods::Args),
    /// List containers
    Ps(ps::Args),
    /// Print what a container has written
    Logs(logs::Args),
    /// Run a command in a running container
    Exec(exec::Args),
    /// Write the processes and files of a running container to an archive
    Checkpoint(checkpoint::Args),
    /// Show what a running container writes, and pass on input
    Attach(attach::Args),
    /// Connect local ports to ports of a pod
    PortForward(port_forward::Args),
    /// Copy files between this machine and a container
    Cp(cp::Args),
    /// Stop pods and containers
    Stop(stop::Args),
    /// Remove pods and containers
    Rm(rm::Args),
    /// Show what containers use
    Stats(stats::Args),
    /// Show all that is known about a pod, container or image
    Inspect(inspect::Args),
    /// Show what happens to containers, from now on
    Events(events::Args),
    /// Show the state of the runtime
    Info(info::Args),
    /// Show versions of this program and of the runtime
    Version(version::Args),
}

/// Runs a command against the runtime that `connection` or the environment names, and reports its error.
pub(crate) fn main(connection: &Connection, command: Command) -> ExitCode {
    let stderr = io::stderr();
    let watched = stderr.is_terminal();
    let (mut out, mut err) = (io::stdout().lock(), stderr);
    let mut io = Io {
        out: &mut out,
        err: &mut err,
        watched,
        now: ui::now,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = runtime
        .context("start the command's event loop")
        .and_then(|runtime| {
            runtime.block_on(async {
                let variable = |name: &str| std::env::var(name).ok();
                let endpoint = Endpoint::find(connection.runtime_endpoint.as_deref(), variable)?;
                connect_and_execute(&endpoint, command, &mut io).await
            })
        });
    let flushed = io.out.flush();
    match result {
        Ok(code) if flushed.is_ok() => ExitCode::from(code),
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            report(&error, io.err);
            ExitCode::FAILURE
        }
    }
}

async fn connect_and_execute(endpoint: &Endpoint, command: Command, io: &mut Io<'_>) -> Result<u8> {
    let client = match (Client::connect(endpoint).await, &command) {
        (Ok(client), _) => client,
        // The version of the program is of use without a runtime, too.
        (Err(error), Command::Version(_)) => {
            version::own(io)?;
            return Err(error.into());
        }
        (Err(error), _) => return Err(error.into()),
    };
    execute(&client, command, io).await
}

/// Runs a command on a connection; returns the exit code of the program.
pub(crate) async fn execute(client: &Client, command: Command, io: &mut Io<'_>) -> Result<u8> {
    match command {
        Command::Pull(args) => pull::run(args, client, io).await,
        Command::Images(args) => images::run(args, client, io).await,
        Command::Rmi(args) => rmi::run(args, client, io).await,
        Command::Run(args) => run::run(*args, client, io).await,
        Command::Pods(args) => pods::run(args, client, io).await,
        Command::Ps(args) => ps::run(args, client, io).await,
        Command::Logs(args) => logs::run(args, client, io).await,
        Command::Exec(args) => exec::run(args, client, io).await,
        Command::Checkpoint(args) => checkpoint::run(args, client, io).await,
        Command::Attach(args) => attach::run(args, client, io).await,
        Command::PortForward(args) => port_forward::run(args, client, io).await,
        Command::Cp(args) => cp::run(args, client, io).await,
        Command::Stop(args) => stop::run(args, client, io).await,
        Command::Rm(args) => rm::run(args, client, io).await,
        Command::Stats(args) => stats::run(args, client, io).await,
        Command::Inspect(args) => inspect::run(args, client, io).await,
        Command::Events(args) => events::run(args, client, io).await,
        Command::Info(args) => info::run(args, client, io).await,
        Command::Version(args) => version::run(args, client, io).await,
    }
}

/// Prints the chain of an error once, and what to do next. A reader that went away is no error.
pub(crate) fn report(error: &anyhow::Error, err: &mut dyn Write) {
    let gone = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(gone) {
        return;
    }
    // Where standard error is gone as well, there is nobody to tell.
    let _ = writeln!(err, "error: {error:#}");
    let next = error.chain().find_map(|cause| {
        cause
            .downcast_ref::<kelson_client::Error>()
            .and_then(kelson_client::Error::next_step)
    });
    if let Some(next) = next {
        let _ = writeln!(err, "  next: {next}");
    }
}

/// Runs `action` on each of `names`, goes on after an error, and reports all of them.
async fn each<'n>(
    names: &'n [String],
    io: &mut Io<'_>,
    mut action: impl AsyncFnMut(&'n str) -> Result<()>,
) -> Result<u8> {
    let mut code = 0;
    for name in names {
        match action(name).await {
            Ok(()) => writeln!(io.out, "{name}")?,
            Err(error) => {
                report(&error.context(name.clone()), io.err);
                code = 1;
            }
        }
    }
    Ok(code)
}
