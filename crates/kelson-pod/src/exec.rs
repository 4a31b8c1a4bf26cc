//! Running a command in a container, attaching to it, and reaching the pod's ports. All of it goes straight
//! to the pod's shim: the pod's task has no part in it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use kelson_shim::client::{Session, ShimError};
use kelson_shim::ids::{ContainerId, PodId};
use kelson_shim::proto::{AttachRequest, ExecRequest, Family, RefusalKind, TerminalSize};
use oci_spec::runtime::{BoxBuilder, Process};
use tokio::net::{TcpSocket, TcpStream};

use crate::effects::start::{StartError, filter};
use crate::error::{DialError, ExecError};
use crate::outside::Shim;
use crate::pods::{ExecOutput, MAX_EXEC_OUTPUT};
use crate::record::SpecRecord;
use crate::view::{ContainerState, InPod, Snapshot};
use crate::world::{SHIM_CALL, World};

/// How long the shim may take to start the command.
const START: Duration = Duration::from_secs(30);
/// How long a connection to a pod's port may take, for each family of addresses.
const CONNECT: Duration = Duration::from_secs(10);
/// What the daemon waits longer than the shim, which kills the command in time.
const GRACE: Duration = Duration::from_secs(5);
/// The longest a command without a timeout is waited for.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// What is run, and how.
#[derive(Clone, Debug, Default)]
pub(crate) struct Command {
    pub(crate) cmd: Vec<String>,
    pub(crate) tty: bool,
    pub(crate) stdin: bool,
    pub(crate) size: Option<TerminalSize>,
    pub(crate) timeout: Option<Duration>,
    /// Whether it lives on when nobody listens any more.
    pub(crate) detach: bool,
}

/// Runs a command to its end.
pub(crate) async fn run(
    world: &Arc<World>,
    id: ContainerId,
    command: Command,
) -> Result<ExecOutput, ExecError> {
    let timeout = command.timeout;
    let (shim, program, request) = prepare(world, id, command).await?;
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

/// Runs a command with its input and output in a session.
pub(crate) async fn stream(
    world: &Arc<World>,
    id: ContainerId,
    command: Command,
) -> Result<Session, ExecError> {
    let (shim, program, request) = prepare(world, id, command).await?;
    let session = shim.session(request, START).await;
    session.map_err(|error| translate(id, program, None, error))
}

async fn prepare(
    world: &Arc<World>,
    id: ContainerId,
    command: Command,
) -> Result<(Arc<dyn Shim>, String, ExecRequest), ExecError> {
    let snapshot = world.board.load();
    let (pod, _) = running(&snapshot, id)?;
    let program = command.cmd.first().filter(|program| !program.is_empty());
    let program = program.ok_or(ExecError::NoCommand)?.clone();
    let request = world
        .blocking(move |world| request(world, id, command))
        .await
        .map_err(|error| ExecError::Failed {
            container: id,
            source: Arc::new(error),
        })?;
    let shim = world.shims.at(world.pod_dir(&pod.id));
    Ok((shim, program, request))
}

/// A container that runs, if only until its grace is over.
fn running(snapshot: &Snapshot, id: ContainerId) -> Result<InPod<'_>, ExecError> {
    let Some((pod, container)) = snapshot.container(&id) else {
        return Err(ExecError::NoSuchContainer(id));
    };
    match container.state {
        ContainerState::Running { .. } if pod.is_ready() => Ok((pod, container)),
        _ => Err(ExecError::NotRunning(id)),
    }
}

/// Attaches a session to a running container.
pub(crate) async fn attach(
    world: &Arc<World>,
    id: ContainerId,
    stdin: bool,
) -> Result<Session, ExecError> {
    let snapshot = world.board.load();
    let (pod, container) = running(&snapshot, id)?;
    if stdin && !container.config.stdin {
        return Err(ExecError::NoStdin(id));
    }
    let shim = world.shims.at(world.pod_dir(&pod.id));
    let request = AttachRequest {
        container: id,
        stdin,
    };
    let session = shim.attach(request, SHIM_CALL).await;
    session.map_err(|error| match error.refusal() {
        Some(RefusalKind::NotRunning | RefusalKind::NotFound) => ExecError::NotRunning(id),
        Some(RefusalKind::Busy) => ExecError::Busy(Arc::new(error)),
        Some(RefusalKind::Invalid) => ExecError::StdinClosed(id),
        _ => ExecError::Attach {
            container: id,
            source: Arc::new(error),
        },
    })
}

/// Makes a TCP connection to the pod itself: in its network namespace, to 127.0.0.1, else to ::1.
pub(crate) async fn dial(world: &Arc<World>, id: PodId, port: u16) -> Result<TcpStream, DialError> {
    let snapshot = world.board.load();
    match snapshot.pod(&id) {
        None => return Err(DialError::NoSuchPod(id)),
        Some(pod) if !pod.is_ready() => return Err(DialError::NotReady(id)),
        Some(_) if port == 0 => return Err(DialError::Port),
        Some(_) => {}
    }
    let shim = world.shims.at(world.pod_dir(&id));
    let first = match connect(&*shim, Family::Inet, Ipv4Addr::LOCALHOST.into(), port).await {
        Ok(stream) => return Ok(stream),
        Err(Missed::Shim(error)) => return Err(DialError::shim(id, error)),
        Err(Missed::Connect(error)) => error,
    };
    match connect(&*shim, Family::Inet6, Ipv6Addr::LOCALHOST.into(), port).await {
        Ok(stream) => Ok(stream),
        // What IPv6 says does not count where there is none.
        Err(_) if first.kind() == io::ErrorKind::ConnectionRefused => {
            Err(DialError::Refused { pod: id, port })
        }
        Err(_) => Err(DialError::Failed {
            pod: id,
            port,
            source: Arc::new(first),
        }),
    }
}

/// Why there is no connection by one family.
enum Missed {
    Shim(ShimError),
    Connect(io::Error),
}

async fn connect(
    shim: &dyn Shim,
    family: Family,
    address: IpAddr,
    port: u16,
) -> Result<TcpStream, Missed> {
    let socket = shim.socket(family, SHIM_CALL).await.map_err(Missed::Shim)?;
    let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
    tokio::time::timeout(CONNECT, socket.connect((address, port).into()))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(Missed::Connect)
}

fn request(world: &World, id: ContainerId, command: Command) -> Result<ExecRequest, StartError> {
    let Command {
        cmd,
        tty,
        stdin,
        size,
        timeout,
        detach,
    } = command;
    let record: SpecRecord = world.store.get(id.as_str())?.ok_or(StartError::NoSpec)?;
    let seccomp = filter(world, &record)?;
    let mut process: Process = record.spec.process().clone().ok_or(StartError::NoSpec)?;
    process.set_args(Some(cmd)).set_terminal(Some(tty));
    let console = size.filter(|_| tty).and_then(|size| {
        let console = BoxBuilder::default().height(size.rows).width(size.cols);
        console.build().ok()
    });
    process.set_console_size(console);
    Ok(ExecRequest {
        container: id,
        process,
        seccomp,
        stdin,
        timeout_ms: timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
        detach,
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
        (Some(RefusalKind::Busy), ..) => ExecError::Busy(Arc::new(error)),
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
