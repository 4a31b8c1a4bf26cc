//! The messages between the daemon, the zygote and a shim.
//!
//! One connection to `shim.sock` is one call: the client sends one [`Request`], the shim answers
//! with one or more [`Reply`] messages, all as frames ([`frame`]). An exec or attach call carries
//! input, output and the sizes of a terminal as frames on the same connection, and
//! [`ExecRequest::detach`] says what closing it does to the process. A connection that asked for
//! [`Call::Events`], and the socket that is handed to the zygote with a [`PodSetup`], carry
//! [`Event`]s until either side closes. A descriptor is passed beside the first byte of a reply.
//!
//! Every request names the version that brought what it asks for ([`Call::version`]), so that a
//! daemon can talk to the shims that an older one has left. A shim refuses versions that it does
//! not speak with [`RefusalKind::Version`]; unknown fields are ignored, so fields may be added
//! within a version. Version 2 brought attach, sockets, resize frames and detached execs.

pub mod frame;

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_spec::runtime::{Process, Spec};
use serde::{Deserialize, Serialize};

use crate::ids::{ContainerId, PodId};

/// The protocol version of this program.
pub const VERSION: u32 = 2;

/// The oldest protocol version that this program still speaks.
pub const OLDEST_VERSION: u32 = 1;

/// The name of a shim's socket in its pod's directory.
pub const SOCKET_NAME: &str = "shim.sock";

/// The name of the pod's shared memory directory in the pod's directory.
pub const SHM_NAME: &str = "shm";

/// What the zygote needs to know to fork a shim for a pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PodSetup {
    /// The protocol version of the daemon.
    pub version: u32,
    /// The pod.
    pub id: PodId,
    /// The pod's directory, `<state>/pods/<id>`; made with mode 0700 when it is missing.
    pub dir: PathBuf,
    /// Which namespaces the pod has of its own.
    pub namespaces: PodNamespaces,
    /// The host name; set only in a UTS namespace of the pod's own.
    pub hostname: Option<String>,
    /// Kernel parameters, in dots or slashes as sysctl(8) reads them, with their values.
    pub sysctls: BTreeMap<String, String>,
    /// The size in bytes of the tmpfs that is mounted on `<dir>/shm`; none: not mounted.
    pub shm_size: Option<u64>,
    /// The pod's user namespace: its other namespaces belong to it, and its containers are in it;
    /// none: the daemon's.
    #[serde(default)]
    pub user: Option<UserNamespace>,
}

/// The mappings of a user namespace, each line as first id in the namespace, first id on the host,
/// and number of ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    /// User ids.
    pub uids: Vec<(u32, u32, u32)>,
    /// Group ids.
    pub gids: Vec<(u32, u32, u32)>,
}

/// Which namespaces a pod has of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodNamespaces {
    /// Network.
    pub network: Namespace,
    /// System V IPC and POSIX message queues.
    pub ipc: Namespace,
    /// Host name.
    pub uts: Namespace,
    /// `New`: one PID namespace for all containers, held by an init whose pid is in [`Ready`];
    /// a container joins it by a namespace entry with the path `/proc/<init pid>/ns/pid`.
    /// `Host`: the pod has none; the container's runtime spec says whether it gets its own.
    pub pid: Namespace,
}

/// Whether a namespace is the pod's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Namespace {
    /// The pod's own.
    New,
    /// The one the daemon runs in.
    Host,
}

/// A shim is up: the first message on the socket handed to the zygote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The protocol version that the shim speaks.
    pub version: u32,
    /// The pod.
    pub pod: PodId,
    /// The shim's process; `/proc/<pid>/ns/{net,ipc,uts}` are the pod's namespaces.
    pub pid: u32,
    /// The init of a shared PID namespace; `/proc/<init pid>/ns/pid` is that namespace.
    pub init_pid: Option<u32>,
}

/// A request, as it is sent: the version and the call.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// The protocol version of the sender.
    pub version: u32,
    /// What is asked.
    pub call: Call,
}

/// What may be asked of a shim.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// What the shim holds: answered with [`Reply::State`].
    State,
    /// Answered with [`Reply::State`], then [`Event`]s for ever; no exit falls between the two.
    Events,
    /// Start a container: answered with [`Reply::Started`].
    Start(Box<StartRequest>),
    /// Run a process in a container: answered with [`Reply::Started`], output frames, and
    /// [`Reply::Exited`].
    Exec(Box<ExecRequest>),
    /// See what a container writes from now on, and write to it: answered with
    /// [`Reply::Started`], output frames, and [`Reply::Exited`] when the container has exited.
    Attach(AttachRequest),
    /// Make a TCP socket in the pod's network namespace, not connected: answered with
    /// [`Reply::Done`] and the socket beside it.
    Socket(Family),
    /// Send a signal: answered with [`Reply::Done`].
    Signal(SignalRequest),
    /// Close the container's log and open it again by its path: answered with [`Reply::Done`].
    Reopen(ContainerId),
    /// Drop what is kept about an exited container: answered with [`Reply::Done`], also when the
    /// shim does not know the container.
    Forget(ContainerId),
    /// Kill everything in the pod, unmount its shared memory and exit: answered with
    /// [`Reply::Done`] when all that is done.
    Shutdown,
}

impl Call {
    /// The oldest version of the protocol that has all of this call.
    pub fn version(&self) -> u32 {
        match self {
            Self::Attach(_) | Self::Socket(_) => 2,
            Self::Exec(request) if request.detach || request.process.terminal() == Some(true) => 2,
            _ => 1,
        }
    }
}

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// IPv4.
    Inet,
    /// IPv6.
    Inet6,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Lines; not zero.
    pub rows: u16,
    /// Characters in a line; not zero.
    pub cols: u16,
}

impl TerminalSize {
    /// A size; a zero in it means that it is not known.
    pub fn new(rows: u16, cols: u16) -> Option<Self> {
        (rows > 0 && cols > 0).then_some(Self { rows, cols })
    }
}

/// A container to start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StartRequest {
    /// The container.
    pub id: ContainerId,
    /// The OCI runtime specification. Namespace types that it does not name are the pod's.
    pub spec: Spec,
    /// What becomes its root.
    pub rootfs: Rootfs,
    /// Its cgroup, as an absolute path in the hierarchy; made by the shim, limits from the spec.
    pub cgroup: String,
    /// The file for its output in CRI format, made with mode 0640 when missing; none: discarded.
    /// The caller has checked that it lies where it may.
    pub log: Option<PathBuf>,
    /// The seccomp filter; the specification's own `linux.seccomp` is not read, as compiling it
    /// takes milliseconds: the caller compiles each profile once.
    pub seccomp: Option<SeccompFilter>,
    /// What the container reads from its standard input.
    pub stdin: StdinPolicy,
    /// How long the start may take, in milliseconds; then the process is killed.
    pub timeout_ms: u64,
    /// The container whose PID namespace it joins; it must be running. The specification has a
    /// namespace entry for it too, whose path the shim does not trust: the number in it may be
    /// another process's by now.
    #[serde(default)]
    pub pid_target: Option<ContainerId>,
    /// What its processes are restored from; none: its program is executed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<RestoreRequest>,
}

/// Images of processes that CRIU has written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreRequest {
    /// The program CRIU, an absolute path.
    pub criu: PathBuf,
    /// The directory of the images; CRIU's log comes there too.
    pub images: PathBuf,
    /// What standard input, output and error were, in CRIU's words; none: CRIU makes it again.
    pub streams: [Option<String>; 3],
}

/// A compiled seccomp filter: the bytes of `kelson_runtime::seccomp::Program`, in hexadecimal on
/// the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeccompFilter(pub Vec<u8>);

impl Serialize for SeccompFilter {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let digit = |nibble: u8| char::from(b"0123456789abcdef"[usize::from(nibble)]);
        let text: String = self
            .0
            .iter()
            .flat_map(|b| [digit(b >> 4), digit(b & 15)])
            .collect();
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for SeccompFilter {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let nibble = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let bytes = pairs
            .iter()
            .map(|&[high, low]| Some((nibble(high)? << 4) | nibble(low)?));
        match bytes.collect::<Option<Vec<u8>>>() {
            Some(bytes) if rest.is_empty() => Ok(Self(bytes)),
            _ => Err(serde::de::Error::custom(
                "a seccomp filter that is not in hexadecimal",
            )),
        }
    }
}

/// What becomes a container's root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rootfs {
    /// A directory.
    Path(PathBuf),
    /// An overlay, mounted in the container's own mount namespace.
    Overlay {
        /// The lower directories, the topmost first.
        lower: Vec<PathBuf>,
        /// The upper directory.
        upper: PathBuf,
        /// The work directory, on the file system of the upper one.
        work: PathBuf,
    },
}

/// What a container reads from its standard input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StdinPolicy {
    /// `/dev/null`.
    #[default]
    None,
    /// A pipe or the terminal, open for all who attach, one after the other or at once.
    Open,
    /// The same, closed when the first who has attached with input leaves or ends it.
    Once,
}

/// A process to run in a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The container; it must be running.
    pub container: ContainerId,
    /// The process; its `terminal` says whether it gets a terminal.
    pub process: Process,
    /// The seccomp filter, as in [`StartRequest`].
    pub seccomp: Option<SeccompFilter>,
    /// Whether input frames follow; an empty input frame is the end of input.
    pub stdin: bool,
    /// When the whole process tree is killed, in milliseconds after its start; none: never.
    pub timeout_ms: Option<u64>,
    /// What closing the connection does to the process once it runs. False: it and all it has
    /// started are killed. True: its input ends, its terminal hangs up, what it writes is
    /// discarded, and it goes on.
    #[serde(default)]
    pub detach: bool,
}

/// A container to attach to.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct AttachRequest {
    /// The container; it must be running.
    pub container: ContainerId,
    /// Whether input frames follow; an empty input frame is the end of this client's input.
    pub stdin: bool,
}

/// A signal to send to a container.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct SignalRequest {
    /// The container.
    pub container: ContainerId,
    /// The number of the signal.
    pub signal: i32,
    /// To all of its processes instead of only the first one.
    pub all: bool,
}

/// What a shim answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The call is done.
    Done,
    /// What the shim holds.
    State(PodState),
    /// A container or process runs.
    Started(Started),
    /// The exec'd process or the attached container is gone, and no more output follows.
    Exited(ExecExit),
    /// The call is refused or has failed.
    Refused(Refusal),
}

/// What a shim tells without being asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The shim is up.
    Ready(Ready),
    /// The shim could not be set up; it is gone.
    Failed(Refusal),
    /// A container is gone, its log is complete and its exit record is on disk.
    Exited {
        /// The container.
        container: ContainerId,
        /// How it went.
        exit: Exit,
    },
    /// The kernel killed a process of a running container for lack of memory.
    OomKilled {
        /// The container.
        container: ContainerId,
    },
    /// A new process got less than its specification asks for; for the daemon's log.
    Note {
        /// The container.
        container: ContainerId,
        /// What was reduced, and to what.
        message: String,
    },
}

/// A process has been started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its number in the host's PID namespace.
    pub pid: u32,
    /// When, in nanoseconds since 1970.
    pub started_at: i64,
}

/// How a container ended; also the content of `containers/<id>/exit.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code; 128 plus the number of the signal that ended it.
    pub exit_code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the kernel killed a process of it for lack of memory.
    pub oom_killed: bool,
    /// When, in nanoseconds since 1970.
    pub finished_at: i64,
}

/// How an exec'd process or an attached container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecExit {
    /// The exit code; 128 plus the number of the signal that ended it.
    pub exit_code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether it was killed because its time was over.
    pub timed_out: bool,
}

/// What a shim holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodState {
    /// The shim itself.
    pub shim: Ready,
    /// The containers that were started and not forgotten.
    pub containers: Vec<ContainerState>,
}

/// A container as its shim sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// The container.
    pub id: ContainerId,
    /// Its first process.
    pub started: Started,
    /// How it ended, when it has.
    pub exit: Option<Exit>,
    /// How many bytes of output could not be written to the log.
    pub log_bytes_lost: u64,
}

/// Why a call was refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What decisions are taken on.
    pub kind: RefusalKind,
    /// What people read; names the thing that failed and its causes.
    pub message: String,
}

/// The kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// The shim does not speak this version.
    Version,
    /// The request makes no sense or breaks a limit.
    Invalid,
    /// A kernel parameter is not one that the pod owns, or the kernel refused its value.
    Sysctl,
    /// The shim knows no such container.
    NotFound,
    /// The container exists already.
    Exists,
    /// The container does not run.
    NotRunning,
    /// The program to execute does not exist.
    CommandNotFound,
    /// The program to execute may not be executed.
    CommandNotExecutable,
    /// The process could not be set up: a mount, a namespace, a limit, a privilege.
    Setup,
    /// It took too long, and was undone.
    Timeout,
    /// Too many calls are under way.
    Busy,
    /// The client did not read the output that it asked for, and was dropped.
    Slow,
    /// An operation of the shim itself failed.
    Internal,
    /// A kind that this program does not know yet.
    #[serde(other)]
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_survives_the_way() {
        let filter = SeccompFilter((0..=255).collect());
        let json = serde_json::to_string(&filter).unwrap();
        assert_eq!(json.len(), 514);
        assert_eq!(
            serde_json::from_str::<SeccompFilter>(&json).unwrap(),
            filter
        );
        for bad in ["\"0\"", "\"0g\"", "\"AA\"", "1"] {
            assert!(serde_json::from_str::<SeccompFilter>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn messages_of_a_later_version_are_read_as_far_as_they_are_known() {
        let refusal = r#"{"refused":{"kind":"not_invented_yet","message":"m","more":1}}"#;
        let Reply::Refused(refusal) = serde_json::from_str(refusal).unwrap() else {
            panic!("not a refusal");
        };
        assert_eq!(refusal.kind, RefusalKind::Other);
        let request: Request = serde_json::from_str(r#"{"version":9,"call":"state"}"#).unwrap();
        assert_eq!(request.version, 9);
    }
}
