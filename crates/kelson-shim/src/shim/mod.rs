//! The shim of one pod: a single thread around epoll.
//!
//! It waits for requests, for output of containers and exec'd processes, for what new processes
//! tell of their way, for exits and for out-of-memory notices. Nothing here waits for a peer, and
//! for a killed process only a fraction of a second at a time.
//!
//! A container's life in its shim:
//!
//! ```text
//!  start ─▶ Starting ─▶ Running ─▶ Ending ─▶ (ended, kept until it is forgotten)
//!               │                     ▲
//!               └── failed ───────────┘  then nothing is kept and the caller is told
//! ```

mod attach;
mod calls;
mod conn;
mod container;
mod exec;
mod input;
mod poll;
mod setup;
mod signals;
mod streams;
mod sysctl;
mod user;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use kelson_cgroup::Hierarchy;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus};

use crate::log::Formatter;
use crate::memory;
use crate::proto::{ContainerState, Event, PodSetup, Refusal, RefusalKind, Reply};
use conn::{Conn, Role};
use container::Container;
use exec::Exec;
use poll::{Happened, Poll, Token};
use setup::Pod;
use streams::Input;

/// How long the shim must have nothing to do before it gives its buffers back.
const IDLE: Duration = Duration::from_millis(500);

/// How long a killed process is waited for before the shim turns to others.
const KILL_WAIT: Duration = Duration::from_millis(50);

/// How long after that it is killed again.
const KILL_AGAIN: Duration = Duration::from_millis(200);

/// The state of a shim.
#[derive(Debug)]
struct Shim {
    poll: Poll,
    signals: OwnedFd,
    pod: Pod,
    hierarchy: Hierarchy,
    last_serial: u64,
    connections: BTreeMap<u64, Conn>,
    containers: BTreeMap<u64, Container>,
    execs: BTreeMap<u64, Exec>,
    ended: Vec<ContainerState>,
    formatter: Formatter,
    input: Input,
    ending: Option<Shutdown>,
    /// When something happened last, unless the buffers have been given back since.
    used: Option<Instant>,
}

/// The shim has been asked to end.
#[derive(Debug)]
struct Shutdown {
    /// The connections that wait for it.
    waiting: Vec<u64>,
    /// When what is still alive is killed again.
    again: Instant,
}

/// Runs the shim of a pod in a process that was forked for it, until the pod is shut down. The
/// socket is the first stream of events; when its other end is gone, there is to be no shim.
pub(crate) fn run(setup: &PodSetup, socket: OwnedFd, hierarchy: Result<Hierarchy, Refusal>) {
    match Shim::new(setup, hierarchy) {
        Err(refusal) => fail(socket, refusal),
        Ok(mut shim) => {
            shim.begin(socket);
            shim.work();
            shim.pod.tear_down();
            shim.farewell();
        }
    }
}

/// Reports that there will be no shim.
pub(crate) fn fail(socket: OwnedFd, refusal: Refusal) {
    if let Ok(bytes) = crate::proto::frame::message(&Event::Failed(refusal)) {
        use std::io::Write as _;
        // Nobody is left to tell of a failure to tell.
        let _ = std::os::unix::net::UnixStream::from(socket).write_all(&bytes);
    }
}

/// A refusal with a message of an error and its causes.
pub(crate) fn refusal(kind: RefusalKind, error: &dyn std::error::Error) -> Refusal {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        message.push_str(": ");
        message.push_str(&cause.to_string());
        source = cause.source();
    }
    Refusal { kind, message }
}

/// A refusal for a system call of the shim itself.
fn internal(operation: &str, error: impl Into<std::io::Error>) -> Refusal {
    let message = format!("cannot {operation}: {}", error.into());
    Refusal {
        kind: RefusalKind::Internal,
        message,
    }
}

/// Nanoseconds since 1970.
fn now_ns() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    now.tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(now.tv_nsec)
}

/// The exit code of a process, and the signal that ended it.
fn exit_code(status: WaitStatus) -> (i32, Option<i32>) {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => (code, None),
        (None, Some(signal)) => (128 + signal, Some(signal)),
        (None, None) => (255, None),
    }
}

impl Shim {
    fn new(setup: &PodSetup, hierarchy: Result<Hierarchy, Refusal>) -> Result<Self, Refusal> {
        let hierarchy = hierarchy?;
        let signals = signals::install().map_err(|error| internal("set up signals", error))?;
        let poll = Poll::new().map_err(|error| internal("make an epoll instance", error))?;
        let watch = |error| internal("wait for signals", error);
        poll.add(&signals, Token::Signals, EventFlags::IN)
            .map_err(watch)?;
        Ok(Self {
            poll,
            signals,
            pod: setup::set_up(setup)?,
            hierarchy,
            last_serial: 0,
            connections: BTreeMap::new(),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            ended: Vec::new(),
            formatter: Formatter::new(),
            input: Input::new(),
            ending: None,
            used: Some(Instant::now()),
        })
    }

    fn serial(&mut self) -> u64 {
        self.last_serial += 1;
        self.last_serial
    }

    /// Reports that the shim is up. If that cannot be said, it ends at once.
    fn begin(&mut self, socket: OwnedFd) {
        let serial = self.serial();
        let ready = Event::Ready(self.pod.ready.clone());
        let listening = self
            .poll
            .add(&self.pod.listener, Token::Listener, EventFlags::IN);
        let told = listening
            .and_then(|()| Conn::new(socket, serial, Role::Events, &self.poll))
            .is_ok_and(|mut conn| {
                let told = conn.message(&ready, &self.poll).is_ok();
                self.connections.insert(serial, conn);
                told
            });
        if !told {
            self.shut_down(None);
        }
    }

    fn work(&mut self) {
        while self.ending.is_none() || !(self.containers.is_empty() && self.execs.is_empty()) {
            let Ok(happened) = self.poll.wait(self.next_timeout()) else {
                // Only a bug can make waiting fail; the pod cannot be looked after any more.
                self.shut_down(None);
                std::thread::sleep(KILL_AGAIN);
                continue;
            };
            let mut any = false;
            for event in happened {
                any = true;
                self.dispatch(event);
            }
            self.run_timers();
            if any {
                self.used = Some(Instant::now());
            } else if self.used.is_some_and(|last| last.elapsed() >= IDLE) {
                self.release();
            }
        }
    }

    /// Gives back all memory that is not needed while nothing happens.
    fn release(&mut self) {
        self.used = None;
        self.input.release();
        self.formatter.release();
        memory::release();
    }

    fn dispatch(&mut self, Happened { token, flags }: Happened) {
        match token {
            Token::Listener => self.accept(),
            Token::Signals => {
                let received = signals::receive(&self.signals);
                if received.child {
                    self.reap();
                }
                if received.terminate {
                    self.shut_down(None);
                }
            }
            Token::Connection(serial) => self.connection_ready(serial, flags),
            Token::ContainerProgress(serial) => self.container_progress(serial),
            Token::ContainerOutput(serial, stream) => self.container_output(serial, stream),
            Token::ContainerInput(serial) => self.container_input(serial),
            Token::ContainerOom(serial) => self.container_oom(serial),
            Token::ExecProgress(serial) => self.exec_progress(serial),
            Token::ExecOutput(serial, stream) => self.exec_output(serial, stream),
            Token::ExecInput(serial) => self.exec_input(serial),
        }
    }

    /// Takes note of every child that has ended, adopted orphans included.
    fn reap(&mut self) {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let pid = pid.as_raw_nonzero().get().cast_unsigned();
                    let container = self.containers.iter().find(|(_, c)| c.is_process(pid));
                    let exec = self.execs.iter().find(|(_, e)| e.is_process(pid));
                    match (container, exec) {
                        (Some((&serial, _)), _) => self.container_gone(serial, pid, status),
                        (_, Some((&serial, _))) => self.exec_gone(serial, status),
                        (None, None) => {}
                    }
                }
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let containers = self.containers.values().filter_map(Container::deadline);
        let execs = self.execs.values().filter_map(Exec::deadline);
        containers
            .chain(execs)
            .chain(self.ending.as_ref().map(|ending| ending.again))
            .min()
    }

    fn next_timeout(&self) -> Option<Duration> {
        let idle = self.used.map(|last| last + IDLE);
        let next = [self.next_deadline(), idle].into_iter().flatten().min();
        next.map(|next| next.saturating_duration_since(Instant::now()))
    }

    fn run_timers(&mut self) {
        let now = Instant::now();
        let due = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        let containers: Vec<u64> = self
            .containers
            .iter()
            .filter(|(_, c)| due(c.deadline()))
            .map(|(s, _)| *s)
            .collect();
        for serial in containers {
            self.container_due(serial);
        }
        let execs: Vec<u64> = self
            .execs
            .iter()
            .filter(|(_, e)| due(e.deadline()))
            .map(|(s, _)| *s)
            .collect();
        for serial in execs {
            self.exec_due(serial);
        }
        if due(self.ending.as_ref().map(|ending| ending.again)) {
            self.kill_all();
        }
    }

    /// Begins to end the pod. The connection, if any, is answered when it is done.
    fn shut_down(&mut self, connection: Option<u64>) {
        let ending = self.ending.get_or_insert(Shutdown {
            waiting: Vec::new(),
            again: Instant::now(),
        });
        ending.waiting.extend(connection);
        self.kill_all();
    }

    fn kill_all(&mut self) {
        for container in self.containers.values() {
            container.kill_all();
        }
        if let Some(ending) = &mut self.ending {
            ending.again = Instant::now() + KILL_AGAIN;
        }
    }

    /// Answers those who have asked for the end.
    fn farewell(&mut self) {
        for serial in self
            .ending
            .take()
            .map(|ending| ending.waiting)
            .unwrap_or_default()
        {
            self.reply(serial, &Reply::Done);
        }
        for conn in self.connections.values_mut() {
            conn.flush_last(&self.poll);
        }
    }
}
