//! What can go wrong with pods and containers, in types: callers decide by [`PodError::kind`],
//! [`ExecError::kind`] and [`DialError::kind`], never by text.
//!
//! Errors are cloned to every caller that joined the failed operation, so causes are shared.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use kelson_shim::ids::{ContainerId, PodId};

/// A shared cause of an error.
pub type Cause = Arc<dyn Error + Send + Sync + 'static>;

/// What kind of trouble an error is; each has its gRPC code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request is wrong in itself (`INVALID_ARGUMENT`).
    Invalid,
    /// The request asks for something that Kelson does not do (`UNIMPLEMENTED`).
    Unsupported,
    /// The pod, container or image is not there (`NOT_FOUND`).
    NotFound,
    /// Something else has that name (`ALREADY_EXISTS`).
    AlreadyExists,
    /// Not in this state (`FAILED_PRECONDITION`).
    State,
    /// It took too long (`DEADLINE_EXCEEDED`).
    Timeout,
    /// Not now: the daemon is ending, or the network is not ready (`UNAVAILABLE`).
    Unavailable,
    /// Nothing is left of what it needs, such as addresses (`RESOURCE_EXHAUSTED`).
    Exhausted,
    /// Something that should work did not (`INTERNAL`, `UNKNOWN`).
    Internal,
}

/// One thing that is wrong in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The field, in the words of the CRI: `linux.security_context.run_as_group`, `mounts[2].host_path`.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
    /// Whether it is right but not supported.
    pub unsupported: bool,
}

/// All that is wrong in a request; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (
            n,
            Mistake {
                field,
                problem,
                unsupported,
            },
        ) in self.0.iter().enumerate()
        {
            let comma = if n == 0 { "" } else { "; " };
            let not = if *unsupported { "not supported: " } else { "" };
            write!(f, "{comma}{field}: {not}{problem}")?;
        }
        Ok(())
    }
}

/// Why an operation on a pod or a container failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PodError {
    /// The request is wrong; says everything that is.
    #[error("{0}")]
    Invalid(Mistakes),
    /// There is no such pod.
    #[error("there is no pod {0}")]
    NoSuchPod(PodId),
    /// There is no such container.
    #[error("there is no container {0}")]
    NoSuchContainer(ContainerId),
    /// There is no such image.
    #[error("image {0:?} is not here; pull it first")]
    NoSuchImage(String),
    /// Another pod or container has the name, with another configuration or in another state.
    #[error("{what} has the same name; remove it, or use another attempt number")]
    Exists {
        /// Which.
        what: String,
    },
    /// The pod does not run.
    #[error("pod {pod} is not ready: {reason}")]
    PodNotReady {
        /// The pod.
        pod: PodId,
        /// Why it is not.
        reason: String,
    },
    /// The container is in another state than the operation needs.
    #[error("container {container} is {state}; it must be {wanted}")]
    ContainerState {
        /// The container.
        container: ContainerId,
        /// Its state.
        state: &'static str,
        /// The state it must be in.
        wanted: &'static str,
    },
    /// The container whose PID namespace is to be joined does not run.
    #[error(
        "linux.security_context.namespace_options.target_id: container {target} is {state}; it must be running"
    )]
    Target {
        /// The container.
        target: ContainerId,
        /// Its state.
        state: &'static str,
    },
    /// An image cannot be mounted. The kubelet knows this by the text's first word.
    #[error("ImageVolumeMountFailed: {field}: {problem}")]
    ImageVolume {
        /// The field of the request.
        field: String,
        /// What is wrong.
        problem: String,
        /// What kind of trouble it is: the image is not there, or it has no such path.
        kind: ErrorKind,
        /// Why.
        #[source]
        source: Option<Cause>,
    },
    /// What the image and the request together say makes no sense: no command, no such user.
    #[error("{0}")]
    Image(String, #[source] Option<Cause>),
    /// The pod's network could not be made.
    #[error("cannot attach pod {pod} to the network")]
    Network {
        /// The pod.
        pod: PodId,
        /// What kind of trouble it is: there is no usable network, no address is left, or another.
        kind: ErrorKind,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The container's process could not be started. The container is exited with code 128.
    #[error("cannot start container {container}")]
    Start {
        /// The container.
        container: ContainerId,
        /// Why.
        #[source]
        source: Cause,
    },
    /// Processes do not die, whatever is done to them: usually they wait for a device or a file system that
    /// does not answer. Kelson goes on trying.
    #[error(
        "processes of container {container} are still there {} s after SIGKILL; look at their state with ps, \
         usually a device or a network file system does not answer",
        after.as_secs()
    )]
    Stuck {
        /// The container.
        container: ContainerId,
        /// How long it has been.
        after: Duration,
    },
    /// The operation was overtaken: the pod or container was removed meanwhile.
    #[error("{what} was removed meanwhile")]
    Removed {
        /// What.
        what: String,
    },
    /// Checkpoints are off on this node.
    #[error(
        "checkpoints are off on this node; set checkpoint.enabled to true in kelson's configuration"
    )]
    CheckpointsOff,
    /// The container is being checkpointed already.
    #[error("container {0} is being checkpointed already; try again when that is done")]
    Checkpointing(ContainerId),
    /// The container could not be checkpointed; it goes on.
    #[error("cannot checkpoint container {container}")]
    Checkpoint {
        /// The container.
        container: ContainerId,
        /// What kind of trouble it is.
        kind: ErrorKind,
        /// Why.
        #[source]
        source: Cause,
    },
    /// A step failed.
    #[error("cannot {step}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: Cause,
    },
    /// The daemon is ending.
    #[error("kelson is shutting down; try again when it is back")]
    Closing,
}

impl PodError {
    /// What kind of trouble it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid(Mistakes(all)) if all.iter().all(|one| one.unsupported) => {
                ErrorKind::Unsupported
            }
            Self::Invalid(_) | Self::Image(..) => ErrorKind::Invalid,
            Self::NoSuchPod(_) | Self::NoSuchContainer(_) | Self::NoSuchImage(_) => {
                ErrorKind::NotFound
            }
            Self::Exists { .. } => ErrorKind::AlreadyExists,
            Self::PodNotReady { .. }
            | Self::ContainerState { .. }
            | Self::Target { .. }
            | Self::Removed { .. } => ErrorKind::State,
            Self::CheckpointsOff => ErrorKind::Unsupported,
            Self::Checkpointing(_) => ErrorKind::State,
            Self::Network { kind, .. }
            | Self::ImageVolume { kind, .. }
            | Self::Checkpoint { kind, .. } => *kind,
            Self::Closing => ErrorKind::Unavailable,
            Self::Stuck { .. } => ErrorKind::Timeout,
            Self::Start { .. } | Self::Step { .. } => ErrorKind::Internal,
        }
    }

    /// One field of the request is wrong.
    pub(crate) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid(Mistakes(vec![Mistake {
            field: field.into(),
            problem: problem.into(),
            unsupported: false,
        }]))
    }

    /// The failure of a step.
    pub(crate) fn step(step: &'static str, source: impl Error + Send + Sync + 'static) -> Self {
        Self::Step {
            step,
            source: Arc::new(source),
        }
    }
}

/// Why a command could not be run in a container.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ExecError {
    /// There is no such container.
    #[error("there is no container {0}")]
    NoSuchContainer(ContainerId),
    /// The container does not run.
    #[error("container {0} is not running")]
    NotRunning(ContainerId),
    /// No command was given.
    #[error("cmd: must name a program")]
    NoCommand,
    /// The time was over; the command and all its children were killed.
    #[error("the command was killed after {} s, its timeout", after.as_secs())]
    TimedOut {
        /// The timeout.
        after: Duration,
    },
    /// The program does not exist in the container or cannot be executed.
    #[error("cannot run {program:?} in the container")]
    Command {
        /// The program.
        program: String,
        /// Why not.
        #[source]
        source: Cause,
    },
    /// The container was created without standard input.
    #[error("stdin: container {0} was created without it; attach without stdin")]
    NoStdin(ContainerId),
    /// The container's standard input has ended, as it was to be open only once.
    #[error("stdin: that of container {0} is closed for good; attach without stdin")]
    StdinClosed(ContainerId),
    /// There are too many sessions.
    #[error("no room for another session")]
    Busy(#[source] Cause),
    /// The shim could not attach.
    #[error("cannot attach to container {container}")]
    Attach {
        /// The container.
        container: ContainerId,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The shim could not do it.
    #[error("cannot run a command in container {container}")]
    Failed {
        /// The container.
        container: ContainerId,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The daemon is ending.
    #[error("kelson is shutting down; try again when it is back")]
    Closing,
}

impl ExecError {
    /// What kind of trouble it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSuchContainer(_) => ErrorKind::NotFound,
            Self::NotRunning(_) | Self::NoStdin(_) | Self::StdinClosed(_) => ErrorKind::State,
            Self::Busy(_) => ErrorKind::Exhausted,
            Self::NoCommand | Self::Command { .. } => ErrorKind::Invalid,
            Self::TimedOut { .. } => ErrorKind::Timeout,
            Self::Failed { .. } | Self::Attach { .. } => ErrorKind::Internal,
            Self::Closing => ErrorKind::Unavailable,
        }
    }
}

/// Why a port of a pod could not be reached.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DialError {
    /// There is no such pod.
    #[error("there is no pod {0}")]
    NoSuchPod(PodId),
    /// The pod does not run.
    #[error("pod {0} is not ready")]
    NotReady(PodId),
    /// The port is zero.
    #[error("port: 0 is no port; use one from 1 to 65535")]
    Port,
    /// Nothing listens on the port.
    #[error("connection refused: nothing listens on 127.0.0.1:{port} or [::1]:{port} in pod {pod}")]
    Refused {
        /// The pod.
        pod: PodId,
        /// The port.
        port: u16,
    },
    /// The connection could not be made.
    #[error("cannot connect to port {port} of pod {pod}")]
    Failed {
        /// The pod.
        pod: PodId,
        /// The port.
        port: u16,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The shim gives no socket.
    #[error("cannot enter the network of pod {pod}")]
    Shim {
        /// The pod.
        pod: PodId,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The daemon is ending.
    #[error("kelson is shutting down; try again when it is back")]
    Closing,
}

impl DialError {
    pub(crate) fn shim(pod: PodId, error: kelson_shim::client::ShimError) -> Self {
        let source = Arc::new(error);
        Self::Shim { pod, source }
    }

    /// What kind of trouble it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSuchPod(_) => ErrorKind::NotFound,
            Self::NotReady(_) => ErrorKind::State,
            Self::Port => ErrorKind::Invalid,
            Self::Refused { .. } | Self::Closing => ErrorKind::Unavailable,
            Self::Failed { .. } | Self::Shim { .. } => ErrorKind::Internal,
        }
    }
}

/// Why the state of the node could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file operation failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: std::path::PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The store of pods cannot be opened.
    #[error("cannot open the state of pods")]
    Store(#[from] kelson_store::OpenError),
    /// The store of pods cannot be read.
    #[error("cannot read the state of pods")]
    Read(#[from] kelson_store::StoreError),
    /// The zygote does not start.
    #[error("cannot start the process that makes pods")]
    Zygote(#[source] kelson_shim::client::ShimError),
    /// SELinux is on and has no labels for containers.
    #[error("security.selinux = true cannot be used")]
    Selinux(#[from] crate::SelinuxError),
    /// systemd does not make cgroups here.
    #[error("cgroup.driver = \"systemd\" cannot be used")]
    Systemd(#[source] kelson_cgroup::Error),
    /// The cgroup prefix is not a path of a hierarchy.
    #[error("cgroup prefix {prefix:?} cannot be used")]
    Cgroup {
        /// The prefix.
        prefix: String,
        /// Why.
        #[source]
        source: kelson_cgroup::Error,
    },
}

/// A short id that is the start of more than one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("id {prefix:?} is the start of more than one; give more of it")]
pub struct Ambiguous {
    /// What was looked up.
    pub prefix: String,
}

/// An error with all its causes in one line, for logs and for the message of a container.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
