//! Runs one plugin program for one verb of the CNI specification.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::error::Error;

/// More of a plugin's output than this is refused.
const MAX_OUTPUT: usize = 4 * 1024 * 1024;
/// As much of a plugin's standard error is shown.
const MAX_STDERR: usize = 4 * 1024;

/// What the plugin is told in its environment.
#[derive(Debug, Clone)]
pub(crate) struct Environment {
    pub(crate) container_id: String,
    pub(crate) netns: PathBuf,
    pub(crate) interface: &'static str,
    pub(crate) args: String,
    pub(crate) bin_dirs: Vec<PathBuf>,
}

/// One call.
pub(crate) struct Call<'a> {
    pub(crate) program: &'a Path,
    pub(crate) plugin: &'a str,
    pub(crate) verb: &'static str,
    pub(crate) limit: Duration,
}

/// The error object of the specification.
#[derive(Deserialize)]
struct Reported {
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

/// The first executable file of this name.
pub(crate) fn find(bin_dirs: &[PathBuf], plugin: &str) -> Option<PathBuf> {
    bin_dirs.iter().map(|dir| dir.join(plugin)).find(|path| {
        path.metadata()
            .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    })
}

impl Call<'_> {
    /// Runs the plugin and returns its answer: `Null` when it printed nothing.
    pub(crate) async fn run(
        &self,
        environment: &Environment,
        input: &Value,
    ) -> Result<Value, Error> {
        let output = tokio::time::timeout(self.limit, self.execute(environment, input)).await;
        let (success, stdout, stderr) = match output {
            Ok(Ok(output)) => output,
            Ok(Err(source)) if source.kind() == io::ErrorKind::FileTooLarge => {
                return Err(self.bad_output(format!("more than {MAX_OUTPUT} bytes")));
            }
            Ok(Err(source)) => return Err(self.not_run(source)),
            Err(_) => {
                let (plugin, verb, limit) = (self.plugin.to_owned(), self.verb, self.limit);
                return Err(Error::PluginTimeout {
                    plugin,
                    verb,
                    limit,
                });
            }
        };
        if !success {
            return Err(self.failure(&stdout, &stderr));
        }
        if stdout.iter().all(u8::is_ascii_whitespace) {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&stdout).map_err(|e| self.bad_output(format!("invalid JSON: {e}")))
    }

    async fn execute(
        &self,
        environment: &Environment,
        input: &Value,
    ) -> io::Result<(bool, Vec<u8>, Vec<u8>)> {
        let mut command = Command::new(self.program);
        command
            .env("CNI_COMMAND", self.verb)
            .env("CNI_CONTAINERID", &environment.container_id)
            .env("CNI_NETNS", &environment.netns)
            .env("CNI_IFNAME", environment.interface)
            .env("CNI_ARGS", &environment.args)
            .env(
                "CNI_PATH",
                std::env::join_paths(&environment.bin_dirs).unwrap_or_default(),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn()?;
        let group = Group(child.id());
        let mut stdin = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let stderr = child.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let bytes = serde_json::to_vec(input)?;
        let write = async move {
            // A plugin may answer without having read everything.
            let _ = stdin.write_all(&bytes).await;
            Ok(())
        };
        // One that says too much is killed at once, by the end of `group`.
        let (_, stdout, stderr) = tokio::try_join!(
            write,
            read_limited(stdout, MAX_OUTPUT),
            read_capped(stderr, MAX_STDERR)
        )?;
        let status = child.wait().await?;
        group.done();
        Ok((status.success(), stdout, stderr))
    }

    fn failure(&self, stdout: &[u8], stderr: &[u8]) -> Error {
        let (code, message) = match serde_json::from_slice::<Reported>(stdout) {
            Ok(Reported { code, msg, details }) if details.is_empty() => (code, msg),
            Ok(Reported { code, msg, details }) => (code, format!("{msg}; {details}")),
            Err(_) => {
                let said = if stderr.is_empty() { stdout } else { stderr };
                let said = &said[..said.len().min(MAX_STDERR)];
                let said = String::from_utf8_lossy(said).trim().to_owned();
                (
                    0,
                    if said.is_empty() {
                        "it said nothing".into()
                    } else {
                        said
                    },
                )
            }
        };
        Error::Plugin {
            plugin: self.plugin.to_owned(),
            verb: self.verb,
            code,
            message,
        }
    }

    fn not_run(&self, source: io::Error) -> Error {
        Error::PluginRun {
            plugin: self.plugin.to_owned(),
            verb: self.verb,
            source,
        }
    }

    pub(crate) fn bad_output(&self, problem: String) -> Error {
        Error::PluginOutput {
            plugin: self.plugin.to_owned(),
            verb: self.verb,
            problem,
        }
    }
}

/// Reads to the end; more than `limit` bytes are an error of the kind `FileTooLarge`.
async fn read_limited(from: impl AsyncRead + Unpin, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(limit as u64 + 1).read_to_end(&mut bytes).await?;
    if bytes.len() > limit {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

/// Reads to the end and keeps the first `cap` bytes, so that the writer never blocks.
async fn read_capped(mut from: impl AsyncRead + Unpin, cap: usize) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    (&mut from).take(cap as u64).read_to_end(&mut kept).await?;
    tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    Ok(kept)
}

/// Kills the plugin and what it started when the call is given up.
struct Group(Option<u32>);

impl Group {
    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self
            .0
            .and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed()));
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}
