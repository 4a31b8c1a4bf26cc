//! The zygote as the daemon sees it: started from a sealed copy of a program, restarted when it
//! is found dead, asked for shims.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::ShimError;
use super::shim::{Shim, ShimEvents};
use super::wire::Connection;
use crate::proto::{Event, PodSetup, Ready, SOCKET_NAME};

/// The zygote. Shims that it has forked outlive it, and this handle.
#[derive(Debug)]
pub struct Zygote {
    program: OwnedFd,
    state: PathBuf,
    running: Mutex<Running>,
}

#[derive(Debug)]
struct Running {
    socket: Arc<UnixStream>,
    /// Kept so that tokio reaps it.
    process: Child,
}

/// A shim that has just been forked.
#[derive(Debug)]
pub struct Forked {
    /// The shim.
    pub shim: Shim,
    /// What it says of itself.
    pub ready: Ready,
    /// Its events from the first one on.
    pub events: ShimEvents,
}

impl Zygote {
    /// Starts a zygote from a sealed copy of a program, whose `main` must hand over to
    /// [`crate::zygote::main`] when its first argument is `zygote`. `state`, the daemon's directory,
    /// is its second argument: it and its shims only show it, so that people can tell which daemon
    /// a process belongs to. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// When the program cannot be copied or executed.
    pub fn start(program: &Path, state: &Path) -> Result<Self, ShimError> {
        let program = kelson_sys::memfd::sealed_copy_of(program, "kelson").map_err(|error| {
            ShimError::Zygote {
                action: "copied",
                source: error.into(),
            }
        })?;
        let running = spawn(&program, state)?;
        Ok(Self {
            program,
            state: state.to_owned(),
            running: Mutex::new(running),
        })
    }

    /// The zygote's process number; none when it is known to be dead.
    pub fn pid(&self) -> Option<u32> {
        self.lock().process.id()
    }

    /// Forks a shim for a pod and waits until it is ready. Starts a new zygote if the old one is
    /// dead.
    ///
    /// # Errors
    /// [`ShimError::Refused`] with the kind of what failed in the set-up; the shim is gone then.
    /// After [`ShimError::Timeout`] it may still come up: use [`Shim::shutdown`] on its directory.
    pub async fn fork_shim(
        &self,
        setup: &PodSetup,
        deadline: Duration,
    ) -> Result<Forked, ShimError> {
        let socket = setup.dir.join(SOCKET_NAME);
        tokio::time::timeout(deadline, self.fork(setup))
            .await
            .unwrap_or(Err(ShimError::Timeout {
                socket,
                call: "set-up",
                after: deadline,
            }))
    }

    async fn fork(&self, setup: &PodSetup) -> Result<Forked, ShimError> {
        let zygote_error = |source| ShimError::Zygote {
            action: "asked for a shim",
            source,
        };
        let request =
            serde_json::to_vec(setup).map_err(|error| ShimError::Protocol(error.to_string()))?;
        let (ours, theirs) = UnixStream::pair().map_err(zygote_error)?;
        match self.send(&request, &theirs).await {
            Ok(()) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::ConnectionRefused
                        | io::ErrorKind::NotConnected
                ) =>
            {
                tracing::warn!(%error, "the zygote is gone; starting a new one");
                let fresh = spawn(&self.program, &self.state)?;
                *self.lock() = fresh;
                self.send(&request, &theirs).await.map_err(zygote_error)?;
            }
            Err(error) => return Err(zygote_error(error)),
        }
        drop(theirs);
        let mut connection = Connection::new(ours, setup.dir.join(SOCKET_NAME));
        match connection.next_message().await? {
            None => Err(connection.gone(None)),
            Some(Event::Ready(ready)) => Ok(Forked {
                shim: Shim::new(setup.dir.clone()),
                ready,
                events: ShimEvents::new(connection),
            }),
            Some(Event::Failed(refusal)) => Err(refusal.into()),
            Some(other) => Err(ShimError::Protocol(format!(
                "a new shim began with {other:?}"
            ))),
        }
    }

    /// One packet: the request, and the shim's end of the socket beside it.
    async fn send(&self, request: &[u8], passed: &UnixStream) -> io::Result<()> {
        let socket = Arc::clone(&self.lock().socket);
        socket
            .async_io(Interest::WRITABLE, || {
                let fds = [passed.as_fd()];
                let mut space =
                    [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut beside = SendAncillaryBuffer::new(&mut space);
                beside.push(SendAncillaryMessage::ScmRights(&fds));
                let data = [io::IoSlice::new(request)];
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                rustix::net::sendmsg(&socket, &data, &mut beside, flags)?;
                Ok(())
            })
            .await
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Running> {
        self.running
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn spawn(program: &OwnedFd, state: &Path) -> Result<Running, ShimError> {
    let failed = |source| ShimError::Zygote {
        action: "started",
        source,
    };
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|error| failed(error.into()))?;
    rustix::io::ioctl_fionbio(&ours, true).map_err(|error| failed(error.into()))?;
    let process = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .arg0("kelson")
        .arg("zygote")
        .arg(state)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .map_err(failed)?;
    // A sequenced-packet socket; tokio only waits for it, the packets are sent by rustix.
    let socket = UnixStream::from_std(ours.into()).map_err(failed)?;
    Ok(Running {
        socket: Arc::new(socket),
        process,
    })
}
