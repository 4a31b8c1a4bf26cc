//! `kelson config`: the documented defaults, and the check of a node's files.
#![expect(clippy::print_stdout, reason = "the output of a command")]

use std::path::PathBuf;
use std::process::ExitCode;

use crate::config;

/// Shows or checks the daemon's configuration.
#[derive(Debug, clap::Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Print every key with its documentation and default
    Default,
    /// Report every mistake in the configuration with its file and line
    Check {
        /// Configuration file; its drop-ins are in conf.d beside it
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

/// Runs the command.
pub(crate) fn run(arguments: &ConfigArgs) -> anyhow::Result<ExitCode> {
    match &arguments.action {
        Action::Default => print!("{}", config::default_text()),
        Action::Check { config: path } => {
            config::load_or_default(path.as_deref())?;
            println!("the configuration is right");
        }
    }
    Ok(ExitCode::SUCCESS)
}
