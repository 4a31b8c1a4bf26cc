//! `state`, `list` and `ps`.

use std::fmt::Write;

use serde_json::{Value, json};

use super::args::{Format, Global, ListArgs, PsArgs};
use super::error::CliError;
use super::print;
use super::record::{Container, Status};

/// Prints the state of a container.
pub(super) fn state(global: &Global, id: &str) -> Result<u8, CliError> {
    let state = Container::open(global, id)?.state()?;
    print(&format!("{state:#}"))
}

/// Prints all containers.
pub(super) fn list(global: &Global, args: &ListArgs) -> Result<u8, CliError> {
    let ids = Container::ids(global)?;
    if args.quiet {
        return if ids.is_empty() {
            Ok(0)
        } else {
            print(&ids.join("\n"))
        };
    }
    let mut states = Vec::new();
    for id in &ids {
        // One that is deleted meanwhile is not there.
        match Container::open(global, id).and_then(|container| container.state()) {
            Err(CliError::NotFound { .. }) => {}
            state => states.push(state?),
        }
    }
    if args.format == Format::Json {
        return print(&Value::Array(states).to_string());
    }
    let width = ids.iter().map(String::len).max().unwrap_or(0).max(2);
    let mut table = format!(
        "{:width$}  {:>7}  {:8}  {:30}  BUNDLE",
        "ID", "PID", "STATUS", "CREATED"
    );
    for state in states {
        let text = |key: &str| state[key].as_str().unwrap_or_default().to_owned();
        // Writing to a string cannot fail.
        let _ = write!(
            table,
            "\n{:width$}  {:>7}  {:8}  {:30}  {}",
            text("id"),
            state["pid"].to_string(),
            text("status"),
            text("created"),
            text("bundle")
        );
    }
    print(&table)
}

/// Prints the processes of a container.
pub(super) fn ps(global: &Global, args: &PsArgs) -> Result<u8, CliError> {
    let container = Container::open(global, &args.id)?;
    let status = container.status()?;
    if matches!(status, Status::Creating | Status::Stopped) {
        let needed = "it has no processes";
        return Err(CliError::State {
            id: args.id.clone(),
            status,
            needed,
        });
    }
    let mut pids = container.cgroup()?.pids()?;
    pids.sort_unstable();
    if args.format == Format::Json {
        return print(&json!(pids).to_string());
    }
    let mut table = format!("{:>7}  {:>7}  {:>7}  COMMAND", "UID", "PID", "PPID");
    for pid in pids {
        // One that ends meanwhile is not there.
        let Some((uid, parent, command)) = process(pid) else {
            continue;
        };
        let _ = write!(table, "\n{uid:>7}  {pid:>7}  {parent:>7}  {command}");
    }
    print(&table)
}

/// User, parent and command line of a process.
fn process(pid: u32) -> Option<(String, String, String)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next().map(str::to_owned)
    };
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = command
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty());
    let words: Vec<_> = words.map(String::from_utf8_lossy).collect();
    let command = match words.is_empty() {
        true => format!("[{}]", field("Name:")?),
        // What a container calls itself must not steer the terminal.
        false => words.join(" ").escape_debug().to_string(),
    };
    Some((field("Uid:")?, field("PPid:")?, command))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_process_is_described() {
        let (uid, parent, command) = process(std::process::id()).unwrap();
        assert_eq!(uid, rustix::process::getuid().as_raw().to_string());
        assert_ne!(parent, "0");
        assert!(!command.is_empty());
        assert!(process(u32::MAX).is_none());
    }
}
