//! What pods need of the rest of the program, as narrow traits, so that the pod task can be tested with
//! fakes. [`real`](crate::real) holds the implementations.

use std::any::Any;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use kelson_cgroup::Stats;
use kelson_shim::client::{ExecResult, Session, ShimError, ShimEvent};
use kelson_shim::ids::ContainerId;
use kelson_shim::proto::{
    AttachRequest, ExecRequest, Family, PodSetup, PodState, Ready, StartRequest, Started,
};
use kelson_snapshot::ChainId;

use crate::spec::process::ImageProcess;

/// A future that a trait object can return.
pub(crate) type Promise<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Makes and finds shims.
pub(crate) trait Shims: Send + Sync {
    /// Forks a shim for a new pod.
    fn fork(&self, setup: PodSetup, deadline: Duration) -> Promise<'_, Result<Forked, ShimError>>;
    /// Finds the shim that lives in a pod's directory.
    fn connect(&self, dir: PathBuf, deadline: Duration) -> Promise<'_, Result<Found, ShimError>>;
    /// The shim of a pod's directory, without looking whether it lives.
    fn at(&self, dir: PathBuf) -> Arc<dyn Shim>;
}

/// A shim that was just forked.
pub(crate) struct Forked {
    pub(crate) ready: Ready,
    pub(crate) events: Box<dyn ShimEvents>,
}

/// A shim that was found again.
pub(crate) struct Found {
    pub(crate) state: PodState,
    pub(crate) events: Box<dyn ShimEvents>,
}

/// Calls to one shim; all have deadlines.
pub(crate) trait Shim: Send + Sync {
    fn state(&self, deadline: Duration) -> Promise<'_, Result<PodState, ShimError>>;
    fn start(
        &self,
        request: StartRequest,
        deadline: Duration,
    ) -> Promise<'_, Result<Started, ShimError>>;
    /// Sends a signal to a container's first process.
    fn signal(
        &self,
        container: ContainerId,
        signal: i32,
        deadline: Duration,
    ) -> Promise<'_, Result<(), ShimError>>;
    fn reopen(
        &self,
        container: ContainerId,
        deadline: Duration,
    ) -> Promise<'_, Result<(), ShimError>>;
    fn forget(
        &self,
        container: ContainerId,
        deadline: Duration,
    ) -> Promise<'_, Result<(), ShimError>>;
    fn shutdown(&self, deadline: Duration) -> Promise<'_, Result<(), ShimError>>;
    /// Runs a process with its input and output in a session.
    fn session(
        &self,
        request: ExecRequest,
        deadline: Duration,
    ) -> Promise<'_, Result<Session, ShimError>>;
    /// Attaches a session to a running container.
    fn attach(
        &self,
        request: AttachRequest,
        deadline: Duration,
    ) -> Promise<'_, Result<Session, ShimError>>;
    /// A TCP socket in the pod's network namespace, not connected and not blocking.
    fn socket(&self, family: Family, deadline: Duration)
    -> Promise<'_, Result<OwnedFd, ShimError>>;
    /// Runs a process to its end; keeps at most `limit` bytes of each output.
    fn exec(
        &self,
        request: ExecRequest,
        limit: usize,
        start: Duration,
        deadline: Duration,
    ) -> Promise<'_, Result<ExecResult, ShimError>>;
}

/// What a shim tells.
pub(crate) trait ShimEvents: Send {
    fn next(&mut self) -> Promise<'_, ShimEvent>;
}

/// The pod network.
pub(crate) trait PodNetwork: Send + Sync {
    fn add(
        &self,
        pod: kelson_network::Pod,
    ) -> Promise<'_, Result<kelson_network::Attachment, kelson_network::Error>>;
    /// Idempotent; `shim` is the process in the namespace when it lives.
    fn del(&self, pod: String, shim: Option<u32>)
    -> Promise<'_, Result<(), kelson_network::Error>>;
    /// The ids of all pods that have a record of an attachment, finished or not.
    fn recorded(&self) -> Vec<String>;
}

/// Keeps a cgroup that is empty yet; dropping it may block for a moment.
pub(crate) type Prepared = Box<dyn Send>;

/// cgroups by path. All methods block for a short time.
pub(crate) trait Cgroups: Send + Sync {
    fn create(&self, path: &str) -> kelson_cgroup::Result<()>;
    /// Makes a container's cgroup where that is not its shim's work; what is returned is held until
    /// the container's process is in it, and is one process there, which the limits do not count.
    fn prepare(
        &self,
        path: &str,
        limits: &kelson_cgroup::Resources,
    ) -> kelson_cgroup::Result<Option<Prepared>>;
    /// Kills everything and waits until nothing is left, or fails after `timeout`.
    fn kill(&self, path: &str, timeout: Duration) -> kelson_cgroup::Result<()>;
    fn populated(&self, path: &str) -> kelson_cgroup::Result<bool>;
    /// Removes it and those beneath; one that is not there is removed.
    fn remove(&self, path: &str) -> kelson_cgroup::Result<()>;
    /// `None`: there is no such cgroup.
    fn stats(&self, path: &str) -> kelson_cgroup::Result<Option<Stats>>;
    /// CPU time, memory and pressure alone, for less than half of the cost; `None` as above.
    fn usage(&self, path: &str) -> kelson_cgroup::Result<Option<Stats>>;
    /// Sets limits; those that are not given stay.
    fn apply(&self, path: &str, limits: &kelson_cgroup::Resources) -> kelson_cgroup::Result<()>;
    /// Its processes and those beneath; none when it is not there.
    fn pids(&self, path: &str) -> kelson_cgroup::Result<Vec<u32>>;
    /// How many of its processes were killed for lack of memory.
    fn oom_kills(&self, path: &str) -> kelson_cgroup::Result<u64>;
    /// Sends a signal to the process `pid` if it is in the cgroup.
    fn signal(&self, path: &str, pid: u32, signal: i32) -> kelson_cgroup::Result<()>;
}

/// Images that are here.
pub(crate) trait ImageSource: Send + Sync {
    /// Finds an image; may block for a commit.
    fn find(&self, name: &str) -> Option<ImageFacts>;
}

/// What a container needs of its image.
pub(crate) struct ImageFacts {
    pub(crate) id: String,
    /// With a digest when it has one, else the id.
    pub(crate) reference: String,
    pub(crate) chain: Vec<ChainId>,
    pub(crate) user: String,
    pub(crate) process: ImageProcess,
    pub(crate) stop_signal: String,
    /// Directories that it declares as volumes.
    pub(crate) volumes: Vec<String>,
    /// Keeps the layers while the container is made.
    pub(crate) _hold: Box<dyn Any + Send>,
}
