//! Running a command in a container. It goes straight to the pod's shim: the pod's task has no part in it.

use std::sync::Arc;
use std::time::Duration;

use kelson_shim::client::ShimError;
use kelson_shim::ids::ContainerId;
use kelson_shim::proto::{ExecRequest, RefusalKind};
use oci_spec::runtime::Process;

use crate::effects::start::{StartError, filter};
use crate::error::ExecError;
use crate::pods::{ExecOutput, MAX_EXEC_OUTPUT};
use crate::record::SpecRecord;
use crate::view::ContainerState;
use crate::world::World;

/// How long the shim may take to start the command.
const START: Duration = Duration::from_secs(30);
/// What the daemon waits longer than the shim, which kills the command in time.
const GRACE: Duration = Duration::from_secs(5);
/// The longest a command without a timeout is waited for.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Runs `cmd` to its end.
pub(crate) async fn run(
    world: &Arc<World>,
    id: ContainerId,
    cmd: Vec<String>,
    timeout: Option<Duration>,
) -> Result<ExecOutput, ExecError> {
    let snapshot = world.board.load();
    let Some((pod, container)) = snapshot.container(&id) else {
        return Err(ExecError::NoSuchContainer(id));
    };
    if !matches!(container.state, ContainerState::Running { .. }) || !pod.is_ready() {
        return Err(ExecError::NotRunning(id));
    }
    let Some(program) = cmd.first().filter(|program| !program.is_empty()).cloned() else {
        return Err(ExecError::NoCommand);
    };
    let failed = |error: StartError| ExecError::Failed {
        container: id,
        source: Arc::new(error),
    };
    let request = world
        .blocking(move |world| request(world, id, cmd, timeout))
        .await
        .map_err(failed)?;
    let shim = world.shims.at(world.pod_dir(&pod.id));
    let deadline = timeout.map_or(FOREVER, |timeout| timeout + GRACE);
    let result = match shim.exec(request, MAX_EXEC_OUTPUT, START, deadline).await {
        Ok(result) => result,
        Err(error) => return Err(translate(id, program, timeout, error)),
    };
    match timeout {
        Some(after) if result.exit.timed_out => Err(ExecError::TimedOut { after }),
        _ => Ok(ExecOutput {
            stdout: result.stdout,
            stderr: result.stderr,
            exit_code: result.exit.exit_code,
        }),
    }
}

fn request(
    world: &World,
    id: ContainerId,
    cmd: Vec<String>,
    timeout: Option<Duration>,
) -> Result<ExecRequest, StartError> {
    let record: SpecRecord = world.store.get(id.as_str())?.ok_or(StartError::NoSpec)?;
    let seccomp = filter(world, &record)?;
    let mut process: Process = record.spec.process().clone().ok_or(StartError::NoSpec)?;
    process.set_args(Some(cmd)).set_terminal(Some(false));
    Ok(ExecRequest {
        container: id,
        process,
        seccomp,
        stdin: false,
        timeout_ms: timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
    })
}

fn translate(
    id: ContainerId,
    program: String,
    timeout: Option<Duration>,
    error: ShimError,
) -> ExecError {
    match (error.refusal(), &error, timeout) {
        (Some(RefusalKind::NotRunning | RefusalKind::NotFound), ..) => ExecError::NotRunning(id),
        (Some(RefusalKind::CommandNotFound | RefusalKind::CommandNotExecutable), ..) => {
            ExecError::Command {
                program,
                source: Arc::new(error),
            }
        }
        (_, ShimError::Timeout { .. }, Some(after)) => ExecError::TimedOut { after },
        _ => ExecError::Failed {
            container: id,
            source: Arc::new(error),
        },
    }
}
