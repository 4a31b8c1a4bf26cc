//! A process that runs in a container, with its input and output on a connection.
//!
//! Every exec has a cgroup of its own beneath the container's, so that all it has started can be
//! killed with it: when its time is over, and when its connection closes. What it leaves behind
//! after it has ended by itself stays alive, as with any shell.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use kelson_cgroup::Cgroup;
use kelson_runtime::{Event as Told, LaunchError, Options, Progress};
use rustix::event::epoll::EventFlags;
use rustix::process::{Signal, WaitStatus};

use super::conn::Role;
use super::container::{launch_refusal, seccomp_program, silent_end};
use super::poll::Token;
use super::streams::{self, Outputs, Read, Streams};
use super::{KILL_AGAIN, KILL_WAIT, Shim, exit_code, internal, now_ns, refusal};
use crate::log::Stream;
use crate::proto::frame::{self, HEADER, Kind, MAX_DATA};
use crate::proto::{ExecExit, ExecRequest, Refusal, RefusalKind, Reply, Started};

/// How long output is waited for after the process has ended, when something that it has started
/// still holds it; then it is cut.
const DRAIN: Duration = Duration::from_millis(250);

/// An exec that is not over.
#[derive(Debug)]
pub(super) struct Exec {
    connection: u64,
    pid: u32,
    pidfd: OwnedFd,
    cgroup: Cgroup,
    stdin: Option<OwnedFd>,
    /// How much of the next input frame has been written.
    written: usize,
    outputs: Outputs,
    /// Whether output waits until the connection takes more.
    held: bool,
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
    pub(super) fn is_process(&self, pid: u32) -> bool {
        self.pid == pid && !matches!(self.phase, Phase::Ending { .. })
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let until = match self.phase {
            // A slow reader is given all the time that it needs.
            Phase::Ending { until, .. } if !self.held => Some(until),
            _ => None,
        };
        [self.timeout, self.kill, until].into_iter().flatten().min()
    }
}

impl Shim {
    pub(super) fn exec(&mut self, connection: u64, request: ExecRequest) -> Result<(), Refusal> {
        let ExecRequest {
            container,
            process,
            seccomp,
            stdin,
            timeout_ms,
        } = request;
        let seccomp = seccomp_program(seccomp.as_ref())?;
        let serial = self.serial();
        let (_, container) = self.running(container)?;
        let setup = |error: kelson_cgroup::Error| refusal(RefusalKind::Setup, &error);
        let cgroup = container
            .cgroup
            .child(&format!("exec-{serial}"))
            .map_err(setup)?;
        cgroup.create().map_err(setup)?;
        let terminal = process.terminal().unwrap_or(false);
        let launched = Streams::new(terminal, stdin)
            .map_err(|error| internal("make pipes", error))
            .and_then(
                |Streams {
                     theirs,
                     stdin,
                     outputs,
                 }| {
                    kelson_runtime::exec(kelson_runtime::Exec {
                        init: container.pidfd.as_fd(),
                        process: &process,
                        cgroup: &cgroup,
                        stdio: theirs,
                        seccomp: seccomp.as_ref(),
                        options: Options::default(),
                    })
                    .map(|launched| (launched, stdin, outputs))
                    .map_err(|error| launch_refusal(&error))
                },
            );
        let (launched, stdin, outputs) = match launched {
            Ok(launched) => launched,
            Err(refusal) => {
                let _ = cgroup.remove();
                return Err(refusal);
            }
        };
        let watched = self.poll.add(
            launched.progress.as_fd(),
            Token::ExecProgress(serial),
            EventFlags::IN,
        );
        let exec = Exec {
            connection,
            pid: launched.pid,
            pidfd: launched.pidfd,
            cgroup,
            stdin,
            written: 0,
            outputs,
            held: false,
            timeout: timeout_ms.map(|ms| Instant::now() + Duration::from_millis(ms)),
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
    pub(super) fn exec_cancelled(&mut self, serial: u64) {
        let Some(exec) = self.execs.get_mut(&serial) else {
            return;
        };
        exec.outputs = Outputs::default();
        exec.stdin = None;
        exec.held = false;
        self.exec_kill(serial);
        self.exec_ends(serial);
    }

    /// Hears what a starting exec tells.
    pub(super) fn exec_progress(&mut self, serial: u64) {
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
                        Ok(copy) => exec.stdin = Some(copy),
                        Err(error) => {
                            return self.exec_failed(serial, internal("keep a terminal", error));
                        }
                    }
                    exec.outputs.set_terminal(master);
                }
                Ok(Some(Told::Note(_) | Told::HooksDue | Told::Waiting)) => {}
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

    /// Sends output on, once; stops reading while the connection is slow. Returns whether there
    /// may be more right now.
    fn exec_forward(&mut self, serial: u64, stream: Stream) -> bool {
        let Some(exec) = self.execs.get_mut(&serial) else {
            return false;
        };
        let Some(conn) = self.connections.get_mut(&exec.connection) else {
            return false;
        };
        let Some(fd) = exec.outputs.get(stream) else {
            return false;
        };
        if conn.is_blocked() {
            if !exec.held {
                exec.held = true;
                exec.outputs.unwatch(&self.poll);
            }
            return false;
        }
        let buffer = &mut self.input.buffer()[..HEADER + MAX_DATA];
        match streams::read(fd, &mut buffer[HEADER..]) {
            Read::Bytes(count) => {
                let kind = match stream {
                    Stream::Stdout => Kind::Stdout,
                    Stream::Stderr => Kind::Stderr,
                };
                buffer[..HEADER].copy_from_slice(&frame::header(kind, count));
                let sent = conn.send(&buffer[..HEADER + count], &self.poll);
                if sent.is_err() {
                    let connection = exec.connection;
                    self.close(connection);
                    return false;
                }
                true
            }
            Read::Nothing => false,
            Read::End => {
                exec.outputs.close(stream);
                false
            }
        }
    }

    pub(super) fn exec_output(&mut self, serial: u64, stream: Stream) {
        self.exec_forward(serial, stream);
        self.exec_ends(serial);
    }

    /// The connection takes output again.
    pub(super) fn exec_resume(&mut self, serial: u64) {
        let Some(exec) = self.execs.get_mut(&serial) else {
            return;
        };
        if std::mem::take(&mut exec.held) {
            let watched = exec
                .outputs
                .watch(&self.poll, |stream| Token::ExecOutput(serial, stream));
            if let Phase::Ending { until, .. } = &mut exec.phase {
                *until = Instant::now() + DRAIN;
            }
            let connection = exec.connection;
            if watched.is_err() {
                self.close(connection);
            }
        }
        self.exec_ends(serial);
    }

    /// Writes received input; while the process does not read, no more is received.
    pub(super) fn exec_input(&mut self, serial: u64) {
        let Some(exec) = self.execs.get_mut(&serial) else {
            return;
        };
        let connection = exec.connection;
        let Some(conn) = self.connections.get_mut(&connection) else {
            return;
        };
        if matches!(exec.phase, Phase::Starting { .. }) {
            // One frame may wait in the connection's buffer until the process runs.
            return conn.set_reading(false, &self.poll);
        }
        loop {
            let frame = match conn.frame() {
                Ok(None) => break,
                Ok(Some(frame)) if frame.kind == Kind::Stdin => frame,
                Ok(Some(_)) | Err(_) => return self.close(connection),
            };
            let payload = &conn.payload(&frame)[exec.written..];
            let Some(stdin) = &exec.stdin else {
                conn.consume(&frame);
                continue;
            };
            if conn.payload(&frame).is_empty() {
                exec.stdin = None;
            } else if !payload.is_empty() {
                match rustix::io::retry_on_intr(|| rustix::io::write(stdin, payload)) {
                    Ok(count) => exec.written += count,
                    Err(rustix::io::Errno::AGAIN) => {
                        let token = Token::ExecInput(serial);
                        match self.poll.add(stdin, token, EventFlags::OUT) {
                            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                            Err(_) => return self.close(connection),
                        }
                        return conn.set_reading(false, &self.poll);
                    }
                    // It does not read any more.
                    Err(_) => exec.stdin = None,
                }
                if exec.stdin.is_some() && exec.written < conn.payload(&frame).len() {
                    continue;
                }
            }
            exec.written = 0;
            conn.consume(&frame);
        }
        if let Some(stdin) = &exec.stdin {
            self.poll.remove(stdin);
        }
        conn.set_reading(true, &self.poll);
    }

    /// Its process has been reaped.
    pub(super) fn exec_gone(&mut self, serial: u64, status: WaitStatus) {
        // What it has told before its end is still to be heard.
        self.exec_progress(serial);
        let Some(exec) = self.execs.get_mut(&serial) else {
            return;
        };
        let until = Instant::now() + DRAIN;
        if let Phase::Starting { failure, .. } = &mut exec.phase {
            let refusal = failure.take().unwrap_or_else(|| silent_end(status));
            let connection = exec.connection;
            self.exec_over(serial);
            return self.refuse(connection, refusal);
        }
        exec.timeout = None;
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
            // Not for ever: something may go on writing as fast as this reads.
            while self.exec_forward(serial, stream) && Instant::now() < until {}
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
        let connection = exec.connection;
        self.exec_over(serial);
        self.reply(connection, &Reply::Exited(exit));
    }

    /// Drops an exec. Its cgroup stays for what it has left behind, until the container is over.
    fn exec_over(&mut self, serial: u64) {
        let Some(exec) = self.execs.remove(&serial) else {
            return;
        };
        if matches!(exec.cgroup.populated(), Ok(false)) {
            let _ = exec.cgroup.remove();
        }
        if let Some(conn) = self.connections.get_mut(&exec.connection) {
            conn.role = Role::Waiting;
        }
    }

    /// One of its deadlines has passed.
    pub(super) fn exec_due(&mut self, serial: u64) {
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
