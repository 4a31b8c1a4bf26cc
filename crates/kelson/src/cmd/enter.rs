//! `kelson enter <pid> <program> [arguments…]`: executes a program in the network, IPC and UTS namespaces
//! of a process. The daemon runs CRIU by it; it is no command for people.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use kelson_sys::process::{ns, setns};

/// Executes the program; returns only when that fails.
pub(crate) fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let text = match enter(arguments) {
        Ok(mut command) => format!(
            "cannot execute {:?}: {}",
            command.get_program().to_owned(),
            command.exec()
        ),
        Err(text) => text,
    };
    // Whoever runs this reads its standard error.
    let _ = std::io::Write::write_all(
        &mut std::io::stderr(),
        format!("kelson: {text}\n").as_bytes(),
    );
    ExitCode::FAILURE
}

fn enter(mut arguments: impl Iterator<Item = OsString>) -> Result<Command, String> {
    let pid = arguments.next();
    let pid: Option<u32> = pid
        .as_deref()
        .and_then(OsStr::to_str)
        .and_then(|pid| pid.parse().ok());
    let (Some(pid), Some(program)) = (pid, arguments.next()) else {
        return Err("usage: kelson enter <pid> <program> [arguments...]".to_owned());
    };
    for (name, flag) in [("net", ns::NETWORK), ("ipc", ns::IPC), ("uts", ns::UTS)] {
        let path = format!("/proc/{pid}/ns/{name}");
        let file = File::open(&path).map_err(|error| format!("cannot open {path}: {error}"))?;
        setns(file.as_fd(), flag).map_err(|error| format!("cannot join {path}: {error}"))?;
    }
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(command)
}
