//! The program `kelson`: reads the command line and hands over to one subcommand.

mod bench;
mod cmd;
mod config;
mod demo;
mod linked;
mod log;
mod trace;
mod ui;

use std::process::ExitCode;

use clap::Parser;

/// A container runtime for Kubernetes nodes.
#[derive(Debug, Parser)]
#[command(name = "kelson", version, about, after_help = cmd::client::EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    connection: cmd::client::Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Serve the CRI: the daemon
    Serve(cmd::serve::Serve),
    /// Show what Kelson does: a pod from image to nothing left
    Demo(demo::Demo),
    /// Show or check the daemon's configuration
    Config(cmd::config::ConfigArgs),
    #[command(flatten)]
    Client(cmd::client::Command),
    /// Measure runtimes over their CRI sockets, side by side
    Bench(bench::Args),
    /// The OCI runtime alone, with runc's command line: kelson oci --help
    #[command(disable_help_flag = true)]
    Oci {
        /// Arguments of the OCI runtime
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
}

fn main() -> ExitCode {
    // These come before anything else is set up: the zygote must stay as small as it can, as must what
    // keeps a cgroup for a container to come, the OCI runtime and who changes namespaces must not have
    // threads, and the demo's guest lives in a container.
    let mut arguments = std::env::args_os().skip(1);
    match arguments
        .next()
        .as_deref()
        .and_then(std::ffi::OsStr::to_str)
    {
        Some("zygote") => return kelson_shim::zygote::main(),
        Some("hold") => return hold(arguments),
        Some("oci") => return kelson_runtime::cli::main(oci_arguments(arguments)),
        Some("enter") => return cmd::enter::main(arguments),
        Some("demo-guest") => {
            let arguments: Vec<String> = arguments
                .map(|word| word.to_string_lossy().into_owned())
                .collect();
            return demo::guest::main(&arguments);
        }
        _ => {}
    }
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Client(command) => return cmd::client::main(&cli.connection, command),
        Command::Bench(arguments) => return bench::main(arguments),
        Command::Oci { arguments } => return kelson_runtime::cli::main(oci_arguments(arguments)),
        Command::Serve(arguments) => cmd::serve::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Config(arguments) => cmd::config::run(&arguments),
    };
    outcome.unwrap_or_else(|error| {
        complain(&error);
        ExitCode::FAILURE
    })
}

/// Does nothing until its input ends, which it does with the daemon. A file and a text may be given: then
/// the text is written, the limit that this process was counted in on top.
fn hold(mut arguments: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    let ended = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
    let limited = match (arguments.next(), arguments.next()) {
        (Some(file), Some(limit)) => std::fs::write(file, limit.as_encoded_bytes()),
        _ => Ok(()),
    };
    match ended.and(limited) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The OCI runtime's own command line: its program name, then its arguments.
fn oci_arguments(
    arguments: impl IntoIterator<Item = std::ffi::OsString>,
) -> impl Iterator<Item = std::ffi::OsString> {
    std::iter::once("kelson oci".into()).chain(arguments)
}

/// Tells an error with its causes, once.
#[expect(clippy::print_stderr, reason = "the edge where an error becomes text")]
fn complain(error: &anyhow::Error) {
    eprintln!("kelson: {error:#}");
}
