//! Other programs as a person runs them: with a time limit, and with all that they print.

use std::ffi::OsStr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::process::Command;

use crate::node::{Node, program};

/// How long any of them may take.
const LIMIT: Duration = Duration::from_secs(60);

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ran {
    /// Its exit code; -1 when a signal ended it.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// The output of a program that must have succeeded.
    pub(crate) fn ok(self) -> anyhow::Result<String> {
        ensure!(
            self.code == 0,
            "ended with {}: {}{}",
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(self.stdout)
    }

    /// The error text of a program that must have ended with `code`.
    pub(crate) fn failed(self, code: i32) -> anyhow::Result<String> {
        ensure!(
            self.code == code,
            "ended with {}, not {code}: {self:?}",
            self.code
        );
        Ok(self.stderr)
    }
}

/// Runs a command to its end, without input unless the command says otherwise.
pub(crate) async fn run(command: &mut Command) -> anyhow::Result<Ran> {
    let shown = format!("{:?}", command.as_std());
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot run {shown}"))?;
    let output = tokio::time::timeout(LIMIT, child.wait_with_output())
        .await
        .with_context(|| format!("{shown} does not end"))??;
    Ok(Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs a program that must succeed; its output.
pub(crate) async fn output<A: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = A>,
) -> anyhow::Result<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    let shown = format!("{:?}", command.as_std());
    run(&mut command).await?.ok().context(shown)
}

/// The program under test as a client of a node.
pub(crate) fn client(node: &Node) -> Command {
    let mut command = Command::new(program());
    command
        .env_remove("KELSON_ENDPOINT")
        .env_remove("CONTAINER_RUNTIME_ENDPOINT");
    command.args(["--runtime-endpoint", &node.endpoint()]);
    command
}

/// Runs a client command to its end.
pub(crate) async fn kelson<A: AsRef<OsStr>>(
    node: &Node,
    arguments: impl IntoIterator<Item = A>,
) -> anyhow::Result<Ran> {
    run(client(node).args(arguments)).await
}
