//! Running hooks of the runtime specification.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use oci_spec::runtime::{Hook, Spec};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags};
use serde_json::{Value, json};

use crate::HookContext;

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum HookError {
    /// It could not be run.
    #[error("cannot run the {kind} hook {}", path.display())]
    Run {
        /// When it runs.
        kind: &'static str,
        /// Its program.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It ended with an error.
    #[error("the {kind} hook {} ended with {status}", path.display())]
    Status {
        /// When it runs.
        kind: &'static str,
        /// Its program.
        path: PathBuf,
        /// How it ended.
        status: ExitStatus,
    },
    /// It took too long and was killed.
    #[error("the {kind} hook {} did not end within {} s", path.display(), limit.as_secs())]
    TimedOut {
        /// When it runs.
        kind: &'static str,
        /// Its program.
        path: PathBuf,
        /// How long it may take.
        limit: Duration,
    },
}

impl HookContext {
    /// The container's state, as a hook reads it from its standard input.
    pub(crate) fn state(&self, status: &str, pid: u32) -> Value {
        json!({
            "ociVersion": crate::OCI_VERSION,
            "id": self.id,
            "status": status,
            "pid": pid,
            "bundle": self.bundle,
            "annotations": self.annotations,
        })
    }
}

/// Whether there are hooks for [`for_maker`].
pub(crate) fn any_for_maker(spec: &Spec) -> bool {
    for_maker(spec).next().is_some()
}

/// The hooks that run in the runtime's namespaces before the root is entered, in their order.
pub(crate) fn for_maker(spec: &Spec) -> impl Iterator<Item = (&'static str, &Hook)> {
    let hooks = spec.hooks().as_ref();
    let prestart = hooks
        .and_then(|h| h.prestart().as_deref())
        .unwrap_or_default();
    let create = hooks
        .and_then(|h| h.create_runtime().as_deref())
        .unwrap_or_default();
    prestart
        .iter()
        .map(|hook| ("prestart", hook))
        .chain(create.iter().map(|hook| ("createRuntime", hook)))
}

/// Runs one hook to its end, with `state` on its standard input.
pub(crate) fn run(kind: &'static str, hook: &Hook, state: &Value) -> Result<(), HookError> {
    let path = hook.path();
    let failed = |source| HookError::Run {
        kind,
        path: path.clone(),
        source,
    };
    let mut command = Command::new(path);
    if let Some((name, rest)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        command.arg0(name).args(rest);
    }
    command.env_clear();
    for variable in hook.env().iter().flatten() {
        if let Some((name, value)) = variable.split_once('=') {
            command.env(name, value);
        }
    }
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit());
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook that does not read its input is no failure.
        let _ = stdin.write_all(state.to_string().as_bytes());
    }
    let limit = hook
        .timeout()
        .and_then(|seconds| u64::try_from(seconds).ok());
    if let Some(limit) = limit
        .filter(|seconds| *seconds > 0)
        .map(Duration::from_secs)
        && !ends_within(&child, limit).map_err(failed)?
    {
        let _ = child.kill();
        let _ = child.wait();
        return Err(HookError::TimedOut {
            kind,
            path: path.clone(),
            limit,
        });
    }
    let status = child.wait().map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    Err(HookError::Status {
        kind,
        path: path.clone(),
        status,
    })
}

fn ends_within(child: &Child, limit: Duration) -> std::io::Result<bool> {
    let Some(pid) = Pid::from_raw(child.id().cast_signed()) else {
        return Ok(true);
    };
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = rustix::time::Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Ok(n) => return Ok(n > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(json: Value) -> Hook {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_hook_reads_the_state() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let script = format!("cat > {}; test \"$A\" = b", out.display());
        let hook = hook(json!({"path": "/bin/sh", "args": ["sh", "-c", script],
            "env": ["A=b", "PATH=/bin"]}));
        run("poststart", &hook, &json!({"id": "x"})).unwrap();
        assert_eq!(std::fs::read_to_string(out).unwrap(), r#"{"id":"x"}"#);
    }

    #[test]
    fn a_failing_hook_and_a_missing_one_are_told_apart() {
        let error = run("poststop", &hook(json!({"path": "/bin/false"})), &json!({}));
        assert!(matches!(error, Err(HookError::Status { .. })));
        let error = run(
            "poststop",
            &hook(json!({"path": "/nonexistent"})),
            &json!({}),
        );
        assert!(matches!(error, Err(HookError::Run { .. })));
    }

    #[test]
    fn a_slow_hook_is_killed() {
        let slow = hook(json!({"path": "/bin/sleep", "args": ["sleep", "60"], "timeout": 1}));
        let error = run("prestart", &slow, &json!({}));
        assert!(matches!(error, Err(HookError::TimedOut { .. })));
    }
}
