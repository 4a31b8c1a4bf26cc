//! Calls to one shim, and its stream of events.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::ShimError;
use super::session::Session;
use super::wire::Connection;
use crate::ids::ContainerId;
use crate::proto::{
    AttachRequest, Call, Event, ExecRequest, Exit, Family, PodState, Reply, Request, SOCKET_NAME,
    SignalRequest, StartRequest, Started,
};

/// A shim, by its pod's directory. Cheap to clone; every call connects anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shim {
    dir: PathBuf,
}

impl Shim {
    /// The shim of the pod with this directory. Does no I/O.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The pod's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Finds the shim that an earlier daemon has left: what it holds, and its events from that
    /// moment on.
    ///
    /// # Errors
    /// [`ShimError::Gone`] when there is none, [`ShimError::Refused`] with
    /// [`RefusalKind::Version`](crate::proto::RefusalKind::Version) when it speaks another
    /// version.
    pub async fn connect(
        dir: impl Into<PathBuf>,
        deadline: Duration,
    ) -> Result<(Self, PodState, ShimEvents), ShimError> {
        let shim = Self::new(dir);
        let (state, connection) = shim
            .within(deadline, "events", async {
                let (reply, connection) = shim.ask(Call::Events).await?;
                Ok((expect_state(reply)?, connection))
            })
            .await?;
        Ok((shim, state, ShimEvents { connection }))
    }

    /// What the shim holds.
    ///
    /// # Errors
    /// See [`ShimError`].
    pub async fn state(&self, deadline: Duration) -> Result<PodState, ShimError> {
        self.within(deadline, "state", async {
            expect_state(self.ask(Call::State).await?.0)
        })
        .await
    }

    /// Starts a container. The shim keeps to the request's own time limit too.
    ///
    /// # Errors
    /// [`ShimError::Refused`] with the kind of the failure; nothing of the container is left then.
    /// After [`ShimError::Timeout`] the container may still come up: ask for the state.
    pub async fn start(
        &self,
        request: StartRequest,
        deadline: Duration,
    ) -> Result<Started, ShimError> {
        self.within(deadline, "start", async {
            match self.ask(Call::Start(Box::new(request))).await?.0 {
                Reply::Started(started) => Ok(started),
                other => Err(unexpected(&other)),
            }
        })
        .await
    }

    /// Runs a process in a container; the deadline is for its start.
    ///
    /// # Errors
    /// [`ShimError::Refused`] with the kind of the failure.
    pub async fn exec(
        &self,
        request: ExecRequest,
        deadline: Duration,
    ) -> Result<Session, ShimError> {
        let stdin = request.stdin;
        self.within(deadline, "exec", async {
            let (reply, connection) = self.ask(Call::Exec(Box::new(request))).await?;
            match reply {
                Reply::Started(started) => Ok(Session::new(connection, started, stdin)),
                other => Err(unexpected(&other)),
            }
        })
        .await
    }

    /// Sees what a running container writes from now on, and writes to it.
    ///
    /// # Errors
    /// [`ShimError::Refused`] with `NotRunning`, `Invalid` when the container takes no input, or
    /// `Busy`.
    pub async fn attach(
        &self,
        request: AttachRequest,
        deadline: Duration,
    ) -> Result<Session, ShimError> {
        self.within(deadline, "attach", async {
            let (reply, connection) = self.ask(Call::Attach(request)).await?;
            match reply {
                Reply::Started(started) => Ok(Session::new(connection, started, request.stdin)),
                other => Err(unexpected(&other)),
            }
        })
        .await
    }

    /// A TCP socket in the pod's network namespace, not connected and not blocking.
    ///
    /// # Errors
    /// [`ShimError::Refused`] with `Internal` when the kernel does not have the family.
    pub async fn socket(&self, family: Family, deadline: Duration) -> Result<OwnedFd, ShimError> {
        self.within(deadline, "socket", async {
            let mut connection = Connection::open(&self.dir).await?;
            connection.send(&request(Call::Socket(family))).await?;
            match connection.next_message_with_fd().await? {
                (Reply::Done, Some(socket)) => Ok(socket),
                (Reply::Refused(refusal), _) => Err(refusal.into()),
                (other, _) => Err(unexpected(&other)),
            }
        })
        .await
    }

    /// Sends a signal to a container's first process, or to all of its processes.
    ///
    /// # Errors
    /// [`ShimError::Refused`] with `NotFound` or `NotRunning` when there is nothing to signal.
    pub async fn signal(
        &self,
        container: ContainerId,
        signal: i32,
        all: bool,
        deadline: Duration,
    ) -> Result<(), ShimError> {
        let request = SignalRequest {
            container,
            signal,
            all,
        };
        self.done(Call::Signal(request), "signal", deadline).await
    }

    /// Makes the shim open a container's log anew, after it was renamed.
    ///
    /// # Errors
    /// See [`ShimError`].
    pub async fn reopen(
        &self,
        container: ContainerId,
        deadline: Duration,
    ) -> Result<(), ShimError> {
        self.done(Call::Reopen(container), "reopen", deadline).await
    }

    /// Drops what the shim keeps about an exited container. Idempotent.
    ///
    /// # Errors
    /// [`ShimError::Refused`] with `Invalid` when the container still runs.
    pub async fn forget(
        &self,
        container: ContainerId,
        deadline: Duration,
    ) -> Result<(), ShimError> {
        self.done(Call::Forget(container), "forget", deadline).await
    }

    /// Kills everything in the pod and ends the shim. Idempotent: a shim that is not there is
    /// what was asked for.
    ///
    /// # Errors
    /// See [`ShimError`]; never [`ShimError::Gone`].
    pub async fn shutdown(&self, deadline: Duration) -> Result<(), ShimError> {
        match self.done(Call::Shutdown, "shutdown", deadline).await {
            Err(ShimError::Gone { .. }) => Ok(()),
            other => other,
        }
    }

    async fn done(
        &self,
        call: Call,
        name: &'static str,
        deadline: Duration,
    ) -> Result<(), ShimError> {
        self.within(deadline, name, async {
            match self.ask(call).await?.0 {
                Reply::Done => Ok(()),
                other => Err(unexpected(&other)),
            }
        })
        .await
    }

    /// Sends a call and returns its first answer; a refusal is an error.
    async fn ask(&self, call: Call) -> Result<(Reply, Connection), ShimError> {
        let mut connection = Connection::open(&self.dir).await?;
        connection.send(&request(call)).await?;
        match connection.next_message().await? {
            None => Err(connection.gone(None)),
            Some(Reply::Refused(refusal)) => Err(refusal.into()),
            Some(reply) => Ok((reply, connection)),
        }
    }

    async fn within<T>(
        &self,
        deadline: Duration,
        call: &'static str,
        future: impl Future<Output = Result<T, ShimError>>,
    ) -> Result<T, ShimError> {
        tokio::time::timeout(deadline, future)
            .await
            .unwrap_or_else(|_| {
                Err(ShimError::Timeout {
                    socket: self.dir.join(SOCKET_NAME),
                    call,
                    after: deadline,
                })
            })
    }
}

fn request(call: Call) -> Request {
    Request {
        version: call.version(),
        call,
    }
}

fn expect_state(reply: Reply) -> Result<PodState, ShimError> {
    match reply {
        Reply::State(state) => Ok(state),
        other => Err(unexpected(&other)),
    }
}

pub(super) fn unexpected(reply: &Reply) -> ShimError {
    ShimError::Protocol(format!("the shim answered out of turn: {reply:?}"))
}

/// What a shim tells without being asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShimEvent {
    /// A container is gone; its log and its exit record are complete.
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
    /// The stream has ended: the shim is gone, or has dropped this stream because it was not
    /// read. [`Shim::connect`] tells which.
    Closed,
}

/// The events of a shim.
#[derive(Debug)]
pub struct ShimEvents {
    connection: Connection,
}

impl ShimEvents {
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection }
    }

    /// The next event; after [`ShimEvent::Closed`] always that again. May be dropped and called
    /// again without losing an event.
    pub async fn next(&mut self) -> ShimEvent {
        loop {
            match self.connection.next_message().await {
                Ok(Some(Event::Exited { container, exit })) => {
                    return ShimEvent::Exited { container, exit };
                }
                Ok(Some(Event::OomKilled { container })) => {
                    return ShimEvent::OomKilled { container };
                }
                Ok(Some(Event::Note { container, message })) => {
                    tracing::info!(%container, "{message}");
                }
                Ok(Some(Event::Ready(_) | Event::Failed(_))) => {}
                Ok(None) => return ShimEvent::Closed,
                Err(error) => {
                    tracing::warn!(%error, "the event stream of a shim broke");
                    return ShimEvent::Closed;
                }
            }
        }
    }
}
