//! The OCI runtime command line, with runc's commands, flags and state files' meaning, so that
//! engines that drive runc or crun can drive Kelson.
//!
//! The only part of the crate that keeps state: a directory for each container beneath `--root`.

mod args;
mod bundle;
mod console;
mod create;
mod delete;
mod error;
mod exec;
mod features;
mod foreground;
mod inspect;
mod record;
mod sealed;
mod signal;
mod start;
mod time;
mod update;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use crate::error::chain;
use args::{Cli, Command, Global, LogFormat};
use error::CliError;

/// Runs the command line `args`, whose first element is the name of the program, and returns its
/// exit code. Commands that start processes first execute the program again from a sealed copy in
/// memory, with the arguments of the process itself: so call it from `main`, with one thread.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Where even this cannot be printed there is nobody to tell.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 1 } else { 0 });
        }
    };
    match run(&cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            report(&cli.global, &error);
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(cli: &Cli) -> Result<u8, CliError> {
    let global = &cli.global;
    if global.systemd_cgroup {
        return Err(CliError::SystemdCgroup);
    }
    match &cli.command {
        Command::Create(args) => sealed::ensure().and_then(|()| create::create(global, args)),
        Command::Run(args) => sealed::ensure().and_then(|()| create::run(global, args)),
        Command::Exec(args) => sealed::ensure().and_then(|()| exec::exec(global, args)),
        Command::Start { id } => start::start(global, id),
        Command::State { id } => inspect::state(global, id),
        Command::List(args) => inspect::list(global, args),
        Command::Ps(args) => inspect::ps(global, args),
        Command::Kill(args) => signal::kill(global, args),
        Command::Delete { force, id } => delete::delete(global, id, *force),
        Command::Pause { id } => update::pause(global, id),
        Command::Resume { id } => update::resume(global, id),
        Command::Update(args) => update::update(global, args),
        Command::Features => features::features(),
    }
}

/// Tells an error on standard error, and in the log file as engines read it.
fn report(global: &Global, error: &CliError) {
    let text = chain(error);
    // There is nobody to tell that telling failed.
    let _ = writeln!(std::io::stderr(), "kelson: {text}");
    let Some(path) = &global.log else { return };
    let time = time::rfc3339(std::time::SystemTime::now());
    let line = match global.log_format {
        LogFormat::Json => {
            serde_json::json!({"level": "error", "msg": text, "time": time}).to_string()
        }
        LogFormat::Text => format!("time={time:?} level=error msg={text:?}"),
    };
    let file = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(path);
    let _ = file.and_then(|mut file| writeln!(file, "{line}"));
}

/// Prints an answer on standard output.
fn print(text: &str) -> Result<u8, CliError> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").map_err(|e| CliError::io("write", "standard output", e))?;
    Ok(0)
}
