//! Hooks that run inside the new process, and the stop for those that its maker runs.

use oci_spec::runtime::Hook;

use super::{Container, Failure, NewProcess, OrFail};
use crate::hook;
use crate::progress::Message;

/// Stops for the hooks that the maker runs in its own namespaces.
pub(super) fn pause_for_maker(container: &mut Container<'_>) -> Result<(), Failure> {
    let process = &container.process;
    if process.options.hooks.is_none() || !hook::any_for_maker(container.spec) {
        return Ok(());
    }
    process.channel.tell(&Message::HooksDue);
    if process.channel.wait_for_word() {
        return Ok(());
    }
    Err(Failure::new("the process that runs the hooks is gone"))
}

/// The hooks whose program is the host's, in the container's namespaces.
pub(super) fn create_container(container: &mut Container<'_>) -> Result<(), Failure> {
    let hooks = container
        .spec
        .hooks()
        .as_ref()
        .and_then(|h| h.create_container().clone());
    run(
        &container.process,
        "createContainer",
        "creating",
        &hooks.unwrap_or_default(),
    )
}

/// The hooks whose program is the container's.
pub(super) fn start_container(process: &mut NewProcess<'_>) -> Result<(), Failure> {
    let hooks = process.start_hooks.clone();
    run(process, "startContainer", "created", &hooks)
}

fn run(
    process: &NewProcess<'_>,
    kind: &'static str,
    status: &str,
    hooks: &[Hook],
) -> Result<(), Failure> {
    let Some(context) = process.options.hooks.as_ref().filter(|_| !hooks.is_empty()) else {
        return Ok(());
    };
    let pid = rustix::fs::readlinkat(&process.proc, c"self", Vec::new())
        .or_fail(|| "cannot read /proc/self".into())?;
    let pid = pid
        .to_str()
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let state = context.state(status, pid);
    for hook in hooks {
        hook::run(kind, hook, &state).map_err(|e| Failure::new(crate::error::chain(&e)))?;
    }
    Ok(())
}
