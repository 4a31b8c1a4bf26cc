//! A process that runs in a container, with its input and output on a connection.
//!
//! Every exec has a cgroup of its own beneath the container's, so that all it has started can be
//! killed with it: when its time is over, and when its connection closes. A detached one lives on
//! without its connection: its input ends, its terminal hangs up, and what it writes is discarded.
//! What an exec leaves behind after it has ended by itself stays alive, as with any shell; all of it
//! ends with the container.

mod io;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use kelson_cgroup::Cgroup;
use kelson_runtime::{Event as Told, LaunchError, Launched, Options, Progress, Stdio};
use rustix::event::epoll::EventFlags;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Signal, WaitStatus};

use super::conn::Role;
use super::container::{launch_refusal, seccomp_program, silent_end};
use super::input::Inlet;
use super::poll::Token;
use super::streams::{Outputs, PIPE_SIZE, Streams};
use super::{KILL_AGAIN, KILL_WAIT, Shim, exit_code, internal, now_ns, refusal};
use crate::log::Stream;
use crate::proto::frame::MAX_DATA;
use crate::proto::{ExecExit, ExecRequest, Refusal, RefusalKind, Reply, Started};

/// How long output is waited for after the process has ended, when something that it has started
/// still holds it; then it is cut.
const DRAIN: Duration = Duration::from_millis(250);

/// An exec that is not over.
#[derive(Debug)]
pub(in crate::shim) struct Exec {
    connection: u64,
    /// The serial of its container.
    container: u64,
    pid: u32,
    pidfd: OwnedFd,
    cgroup: Cgroup,
    stdin: Option<OwnedFd>,
    inlet: Inlet,
    outputs: Outputs,
    /// Whether output waits until the connection takes more.
    held: bool,
    /// Whether its output is a terminal.
    terminal: bool,
    /// Whether input may come.
    has_input: bool,
    /// Whether it lives on when its connection closes.
    detach: bool,
    timeout: Option<Instant>,
    timed_out: bool,
    /// When everything of it is to be killed again.
    kill: Option<Instant>,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Starting {
        progress: Progress,
        failure: Option<Refusal>,
    },
    Running,
    /// The process is gone, output may follow.
    Ending {
        status: WaitStatus,
        until: Instant,
    },
}

impl Exec {
    pub(in crate::shim) fn is_process(&self, pid: u32) -> bool {
        self.pid == pid && !matches!(self.phase, Phase::Ending { .. })
    }

    pub(in crate::shim) fn deadline(&self) -> Option<Instant> {
        let until = match self.phase {
            // A slow reader is given all the time that it needs.
            Phase::Ending { until, .. } if !self.held => Some(until),
            _ => None,
        };
        [self.timeout, self.kill, until].into_iter().flatten().min()
    }
}

impl Shim {
    /// Begins to run a process in a container; the connection carries its input and output from
    /// now on.
    pub(in crate::shim) fn exec(
        &mut self,
        connection: u64,
        request: ExecRequest,
    ) -> Result<(), Refusal> {
        let (container, _) = self.running(request.container)?;
        self.room_for_stream()?;
        let (has_input, detach) = (request.stdin, request.detach);
        let terminal = request.process.terminal().unwrap_or(false);
        let timeout = request
            .timeout_ms
            .map(|ms| Instant::now() + Duration::from_millis(ms));
        let Streams {
            theirs,
            stdin,
            outputs,
        } = Streams::new(terminal, has_input).map_err(|error| internal("make pipes", error))?;
        let serial = self.serial();
        let (launched, cgroup) = self.begin_exec(serial, container, request, theirs)?;
        let progress = launched.progress.as_fd();
        let watched = self
            .poll
            .add(progress, Token::ExecProgress(serial), EventFlags::IN);
        let exec = Exec {
            connection,
            container,
            pid: launched.pid,
            pidfd: launched.pidfd,
            cgroup,
            stdin,
            inlet: Inlet::default(),
            outputs,
            held: false,
            terminal,
            has_input,
            detach,
            timeout,
            timed_out: false,
            kill: None,
            phase: Phase::Starting {
                progress: launched.progress,
                failure: None,
            },
        };
        self.execs.insert(serial, exec);
        if let Some(conn) = self.connections.get_mut(&connection) {
            conn.role = Role::Exec(serial);
        }
        if let Err(refusal) = Self::watched(watched) {
            self.exec_failed(serial, refusal);
        }
        Ok(())
    }

    /// Makes the process, in a cgroup of its own.
    fn begin_exec(
        &mut self,
        serial: u64,
        container: u64,
        request: ExecRequest,
        stdio: Stdio,
    ) -> Result<(Launched, Cgroup), Refusal> {
        let ExecRequest {
            container: id,
            mut process,
            seccomp,
            ..
        } = request;
        let seccomp = seccomp_program(seccomp.as_ref())?;
        let not_running = || Refusal {
            kind: RefusalKind::NotRunning,
            message: format!("container {id} is not running"),
        };
        let Some(container) = self.containers.get_mut(&container) else {
            return Err(not_running());
        };
        if process.oom_score_adj().is_none() {
            process.set_oom_score_adj(container.oom_score_adj());
        }
        let cgroup = container
            .take_group(serial)
            .map_err(|error| refusal(RefusalKind::Setup, &error))?;
        let launched = kelson_runtime::exec(kelson_runtime::Exec {
            init: container.pidfd.as_fd(),
            process: &process,
            cgroup: &cgroup,
            stdio,
            seccomp: seccomp.as_ref(),
            options: Options::default(),
        });
        match launched {
            Ok(launched) => Ok((launched, cgroup)),
            Err(error) => {
                container.return_group(cgroup);
                // Its first process may be dead already, and the end of it still waiting to be handled.
                let ended = has_ended(container.pidfd.as_fd());
                Err(if ended {
                    not_running()
                } else {
                    launch_refusal(&error)
                })
            }
        }
    }

    /// Kills an exec that is being started; the rest follows when it is reaped.
    fn exec_failed(&mut self, serial: u64, refusal: Refusal) {
        let Some(exec) = self.execs.get_mut(&serial) else {
            return;
        };
        if let Phase::Starting { failure, .. } = &mut exec.phase {
            failure.get_or_insert(refusal);
        }
        self.exec_kill(serial);
    }

    /// Kills everything of an exec, again and again until it is gone.
    fn exec_kill(&mut self, serial: u64) {
        let Some(exec) = self.execs.get_mut(&serial) else {
            return;
        };
        let _ = rustix::process::pidfd_send_signal(&exec.pidfd, Signal::KILL);
        exec.kill = match exec.cgroup.kill(KILL_WAIT) {
            Err(kelson_cgroup::Error::NotEmpty { .. }) => Some(Instant::now() + KILL_AGAIN),
            Ok(()) | Err(_) => None,
        };
    }

    /// Its connection is gone.
    pub(in crate::shim) fn exec_cancelled(&mut self, serial: u64) {
        let Some(exec) = self.execs.get_mut(&serial) else {
            return;
        };
        exec.stdin = None;
        let held = std::mem::take(&mut exec.held);
        if exec.detach && !matches!(exec.phase, Phase::Starting { .. }) {
            if exec.terminal || matches!(exec.phase, Phase::Ending { .. }) {
                exec.outputs = Outputs::default();
            } else if held {
                let token = |stream| Token::ExecOutput(serial, stream);
                if exec.outputs.watch(&self.poll, token).is_err() {
                    // Unread pipes would stop it: without them it is told what has happened.
                    exec.outputs = Outputs::default();
                }
            }
            return self.exec_ends(serial);
        }
        exec.outputs = Outputs::default();
        self.exec_kill(serial);
        self.exec_ends(serial);
    }

    /// Hears what a starting exec tells.
    pub(in crate::shim) fn exec_progress(&mut self, serial: u64) {
        loop {
            let Some(exec) = self.execs.get_mut(&serial) else {
                return;
            };
            let Phase::Starting { progress, .. } = &mut exec.phase else {
                return;
            };
            match progress.try_next() {
                Ok(None) => return,
                Ok(Some(Told::Terminal(master))) => {
                    let copied = rustix::io::ioctl_fionbio(&master, true)
                        .and_then(|()| rustix::io::fcntl_dupfd_cloexec(&master, 0));
                    match copied {
                        Ok(copy) => exec.stdin = exec.has_input.then_some(copy),
                        Err(error) => {
                            return self.exec_failed(serial, internal("keep a terminal", error));
                        }
                    }
                    exec.outputs.set_terminal(master);
                }
                Ok(Some(Told::Note(_) | Told::Process { .. } | Told::HooksDue | Told::Waiting)) => {
                }
                Ok(Some(Told::Executed)) => return self.exec_runs(serial),
                Ok(Some(Told::Failed(error))) => {
                    self.poll.remove(progress.as_fd());
                    let refusal = launch_refusal(&LaunchError::Step(error));
                    return self.exec_failed(serial, refusal);
                }
                Err(error) => {
                    self.poll.remove(progress.as_fd());
                    return self.exec_failed(serial, launch_refusal(&error));
                }
            }
        }
    }

    fn exec_runs(&mut self, serial: u64) {
        let Some(exec) = self.execs.get_mut(&serial) else {
            return;
        };
        exec.phase = Phase::Running;
        let watched = exec
            .outputs
            .watch(&self.poll, |stream| Token::ExecOutput(serial, stream));
        let connection = exec.connection;
        let started = Reply::Started(Started {
            pid: exec.pid,
            started_at: now_ns(),
        });
        let told = match self.connections.get_mut(&connection) {
            Some(conn) if watched.is_ok() => conn.message(&started, &self.poll),
            _ => Err(super::conn::Gone),
        };
        match told {
            Ok(()) => self.exec_input(serial),
            Err(_) => self.close(connection),
        }
    }

    /// Its process has been reaped.
    pub(in crate::shim) fn exec_gone(&mut self, serial: u64, status: WaitStatus) {
        // What it has told before its end is still to be heard.
        self.exec_progress(serial);
        let Some(exec) = self.execs.get_mut(&serial) else {
            return;
        };
        let until = Instant::now() + DRAIN;
        if let Phase::Starting { failure, .. } = &mut exec.phase {
            let refusal = failure.take().unwrap_or_else(|| silent_end(status));
            return self.exec_over(serial, &Reply::Refused(refusal));
        }
        exec.timeout = None;
        if !self.connections.contains_key(&exec.connection) {
            exec.outputs = Outputs::default();
        }
        exec.phase = Phase::Ending { status, until };
        self.exec_ends(serial);
    }

    /// Goes through the end of an exec as far as possible.
    fn exec_ends(&mut self, serial: u64) {
        let Some(Phase::Ending { status, until }) = self.execs.get(&serial).map(|exec| &exec.phase)
        else {
            return;
        };
        let (status, until) = (*status, *until);
        for stream in [Stream::Stdout, Stream::Stderr] {
            // All that comes while there is time, and then as much as a pipe holds: that may be older than the
            // end, however late this is. Not for ever: something may go on writing as fast as this reads.
            let mut rest = PIPE_SIZE.div_ceil(MAX_DATA);
            while rest > 0 && self.exec_forward(serial, stream) {
                rest -= usize::from(Instant::now() >= until);
            }
        }
        let Some(exec) = self.execs.get(&serial) else {
            return;
        };
        let cut = !exec.held && Instant::now() >= until;
        if exec.kill.is_some() || !(exec.outputs.all_ended() || cut) {
            return;
        }
        let (exit_code, signal) = exit_code(status);
        let exit = ExecExit {
            exit_code,
            signal,
            timed_out: exec.timed_out,
        };
        self.exec_over(serial, &Reply::Exited(exit));
    }

    /// Tells the end of an exec and drops it. Its cgroup comes last, as that takes a while.
    fn exec_over(&mut self, serial: u64, reply: &Reply) {
        let Some(exec) = self.execs.remove(&serial) else {
            return;
        };
        self.reply(exec.connection, reply);
        if let Some(container) = self.containers.get_mut(&exec.container) {
            container.return_group(exec.cgroup);
        }
    }

    /// One of its deadlines has passed.
    pub(in crate::shim) fn exec_due(&mut self, serial: u64) {
        let Some(exec) = self.execs.get_mut(&serial) else {
            return;
        };
        let now = Instant::now();
        if exec.timeout.is_some_and(|timeout| timeout <= now) {
            exec.timeout = None;
            exec.timed_out = true;
            let message = "the process did not start in time and was killed".to_owned();
            self.exec_failed(
                serial,
                Refusal {
                    kind: RefusalKind::Timeout,
                    message,
                },
            );
        } else if exec.kill.is_some_and(|again| again <= now) {
            self.exec_kill(serial);
        }
        self.exec_ends(serial);
    }
}

/// Whether the process of a pidfd has ended, reaped or not.
fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut ready = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    matches!(
        rustix::event::poll(&mut ready, Some(&Timespec::default())),
        Ok(1)
    )
}
