//! `delete`.

use std::os::fd::AsFd;
use std::time::Duration;

use kelson_sys::process::pidfd_send_signal;
use oci_spec::runtime::Spec;
use rustix::event::{PollFd, PollFlags};

use super::args::Global;
use super::error::CliError;
use super::record::{Container, Status};
use crate::hook;

/// How long killed processes may take to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Deletes a container that has ended; with `force` one that has not is killed first.
pub(super) fn delete(global: &Global, id: &str, force: bool) -> Result<u8, CliError> {
    let container = match Container::open(global, id) {
        Err(CliError::NotFound { .. }) if force => return Ok(0),
        other => other?,
    };
    let status = container.status()?;
    if status != Status::Stopped {
        if !force {
            let needed = "and only a stopped one can be deleted; kill it or use --force";
            return Err(CliError::State {
                id: id.to_owned(),
                status,
                needed,
            });
        }
        kill(&container)?;
    }
    clean(&container, &container.spec()?)?;
    Ok(0)
}

/// Kills the first process and waits for its end.
fn kill(container: &Container) -> Result<(), CliError> {
    let Some(pidfd) = container.pidfd()? else {
        return Ok(());
    };
    let failed = |e: rustix::io::Errno| CliError::io("kill", &container.record.id, e);
    match pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(e) => return Err(failed(e)),
    }
    // A frozen process dies when it is thawed.
    container.cgroup()?.thaw()?;
    let limit = rustix::time::Timespec {
        tv_sec: i64::try_from(KILL_TIMEOUT.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: 0,
    };
    let mut poll = [PollFd::new(&pidfd, PollFlags::IN)];
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut poll, Some(&limit)))
        .map_err(failed)
        .map(drop)
}

/// Removes everything of a container whose first process has ended.
pub(super) fn clean(container: &Container, spec: &Spec) -> Result<(), CliError> {
    let cgroup = container.cgroup()?;
    if cgroup.exists() {
        cgroup.kill(KILL_TIMEOUT)?;
    }
    cgroup.remove()?;
    container.forget()?;
    let hooks = spec
        .hooks()
        .as_ref()
        .and_then(|hooks| hooks.poststop().clone());
    let state = container.hook_context(spec).state("stopped", 0);
    // Each is run, whatever the ones before did; the first failure is told.
    let results: Vec<_> = hooks
        .iter()
        .flatten()
        .map(|hook| hook::run("poststop", hook, &state))
        .collect();
    results.into_iter().collect::<Result<(), _>>()?;
    Ok(())
}
