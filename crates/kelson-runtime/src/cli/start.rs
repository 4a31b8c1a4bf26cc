//! `start`.

use oci_spec::runtime::Spec;
use rustix::io::Errno;

use super::args::Global;
use super::create::connect;
use super::error::CliError;
use super::record::{Container, Status};
use crate::{Event, LaunchError, Progress, hook};

/// Opens the gate of a created container and waits until its program runs.
pub(super) fn start(global: &Global, id: &str) -> Result<u8, CliError> {
    let container = Container::open(global, id)?;
    let status = container.status()?;
    if status != Status::Created {
        let needed = "and only a created one can be started";
        return Err(CliError::State {
            id: id.to_owned(),
            status,
            needed,
        });
    }
    let gate = container.gate();
    let socket = connect(&gate).map_err(|e| match e {
        Errno::CONNREFUSED => {
            let needed = "its process has ended";
            CliError::State {
                id: id.to_owned(),
                status: Status::Stopped,
                needed,
            }
        }
        e => CliError::io("connect to", &gate, e),
    })?;
    let mut progress = Progress::from_socket(socket);
    let outcome = loop {
        match progress.wait(None)? {
            Event::Executed => break Ok(()),
            Event::Failed(error) => break Err(LaunchError::from(error)),
            Event::Note(_)
            | Event::Process { .. }
            | Event::Terminal(_)
            | Event::HooksDue
            | Event::Waiting => {}
        }
    };
    std::fs::remove_file(&gate).map_err(|e| CliError::io("remove", &gate, e))?;
    outcome?;
    poststart(&container, &container.spec()?)?;
    Ok(0)
}

/// Runs the hooks for a program that runs.
pub(super) fn poststart(container: &Container, spec: &Spec) -> Result<(), CliError> {
    let Some(hooks) = spec
        .hooks()
        .as_ref()
        .and_then(|hooks| hooks.poststart().as_ref())
    else {
        return Ok(());
    };
    let pid = container.record.init.map_or(0, |init| init.pid);
    let state = container.hook_context(spec).state("running", pid);
    for hook in hooks {
        hook::run("poststart", hook, &state)?;
    }
    Ok(())
}
