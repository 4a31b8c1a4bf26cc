//! A container: its start, its output, its end.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use kelson_cgroup::Cgroup;
use kelson_runtime::{Event as Told, Kind, Launch, LaunchError, Options, Progress, launch};
use rustix::event::epoll::EventFlags;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Signal, WaitStatus};

use super::poll::Token;
use super::streams::{self, Outputs, Read, Streams};
use super::{KILL_AGAIN, KILL_WAIT, Shim, exit_code, internal, now_ns, refusal};
use crate::ids::ContainerId;
use crate::log::{Log, Stream};
use crate::proto::{
    ContainerState, Event, Exit, Refusal, RefusalKind, Reply, Rootfs, SeccompFilter, SignalRequest,
    StartRequest, Started, StdinPolicy,
};

/// How long output is waited for after every process of the container is gone: somebody outside
/// may hold its pipes.
const DRAIN: Duration = Duration::from_millis(500);

/// When the count of OOM kills is read after a notice, and until when: a notice may come a moment
/// before its kill is counted.
const OOM_STEP: Duration = Duration::from_millis(20);
const OOM_LIMIT: Duration = Duration::from_secs(1);

const BOTH: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

/// A container that is not over.
#[derive(Debug)]
pub(super) struct Container {
    id: ContainerId,
    pid: u32,
    pub(super) pidfd: OwnedFd,
    pub(super) cgroup: Cgroup,
    log: Log,
    /// Kept open, so that the container does not read an end.
    _stdin: Option<OwnedFd>,
    outputs: Outputs,
    oom: Oom,
    phase: Phase,
}

/// What is known of its memory running out.
#[derive(Debug, Default)]
struct Oom {
    watch: Option<OwnedFd>,
    /// The kills that have been told of.
    kills: u64,
    /// When the count is read again, and for the last time, after a notice.
    again: Option<(Instant, Instant)>,
}

#[derive(Debug)]
enum Phase {
    Starting {
        connection: u64,
        progress: Progress,
        deadline: Instant,
        failure: Option<Refusal>,
    },
    Running(Started),
    /// Its first process is gone.
    Ending {
        outcome: Result<Started, Fault>,
        status: WaitStatus,
        finished_at: i64,
        /// Whether nothing of it is alive any more.
        empty: bool,
        /// When it is looked after again.
        again: Instant,
    },
}

/// Why a container never ran, and who wants to know.
#[derive(Debug)]
struct Fault {
    connection: u64,
    refusal: Refusal,
}

impl Container {
    pub(super) fn is_process(&self, pid: u32) -> bool {
        self.pid == pid && !matches!(self.phase, Phase::Ending { .. })
    }

    fn started(&self) -> Option<Started> {
        match &self.phase {
            Phase::Running(started)
            | Phase::Ending {
                outcome: Ok(started),
                ..
            } => Some(*started),
            _ => None,
        }
    }

    pub(super) fn state(&self) -> Option<ContainerState> {
        let log_bytes_lost = self.log.bytes_lost();
        self.started().map(|started| ContainerState {
            id: self.id,
            started,
            exit: None,
            log_bytes_lost,
        })
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Starting { deadline, .. } => Some(*deadline),
            Phase::Running(_) => self.oom.again.map(|(again, _)| again),
            Phase::Ending { again, .. } => Some(*again),
        }
    }

    /// Kills all of its processes, as far as that goes quickly.
    pub(super) fn kill_all(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = self.cgroup.kill(KILL_WAIT);
    }
}

/// The refusal for a process that did not come up.
pub(super) fn launch_refusal(error: &LaunchError) -> Refusal {
    let kind = match error {
        LaunchError::Spec { .. } => RefusalKind::Invalid,
        LaunchError::TimedOut => RefusalKind::Timeout,
        LaunchError::Step(step) => match step.kind {
            Kind::CommandNotFound => RefusalKind::CommandNotFound,
            Kind::CommandNotExecutable => RefusalKind::CommandNotExecutable,
            Kind::Other => RefusalKind::Setup,
        },
        _ => RefusalKind::Setup,
    };
    refusal(kind, error)
}

/// The refusal for a process that ended before it executed its program, without a reason.
pub(super) fn silent_end(status: WaitStatus) -> Refusal {
    let message = match exit_code(status) {
        (_, Some(signal)) => format!("the process was killed by signal {signal} before it started"),
        (code, None) => format!("the process ended with code {code} before it started"),
    };
    Refusal {
        kind: RefusalKind::Setup,
        message,
    }
}

pub(super) fn seccomp_program(
    filter: Option<&SeccompFilter>,
) -> Result<Option<kelson_runtime::seccomp::Program>, Refusal> {
    let Some(SeccompFilter(bytes)) = filter else {
        return Ok(None);
    };
    match kelson_runtime::seccomp::Program::from_bytes(bytes) {
        Some(program) => Ok(Some(program)),
        None => Err(Refusal {
            kind: RefusalKind::Invalid,
            message: "the seccomp filter is not a compiled program".to_owned(),
        }),
    }
}

impl Shim {
    fn container(&self, id: ContainerId) -> Result<(u64, &Container), Refusal> {
        if let Some((serial, container)) = self.containers.iter().find(|(_, c)| c.id == id) {
            return Ok((*serial, container));
        }
        let (kind, what) = match self.ended.iter().any(|ended| ended.id == id) {
            true => (RefusalKind::NotRunning, "has exited"),
            false => (RefusalKind::NotFound, "is not known to the shim of its pod"),
        };
        Err(Refusal {
            kind,
            message: format!("container {id} {what}"),
        })
    }

    /// A container that runs.
    pub(super) fn running(&self, id: ContainerId) -> Result<(u64, &Container), Refusal> {
        let (serial, container) = self.container(id)?;
        match container.phase {
            Phase::Running(_) => Ok((serial, container)),
            _ => Err(Refusal {
                kind: RefusalKind::NotRunning,
                message: format!("container {id} is not running"),
            }),
        }
    }

    pub(super) fn start(&mut self, connection: u64, request: StartRequest) -> Result<(), Refusal> {
        let StartRequest {
            id,
            mut spec,
            rootfs,
            cgroup,
            log,
            seccomp,
            stdin,
            timeout_ms,
        } = request;
        let known = self.containers.values().any(|container| container.id == id)
            || self.ended.iter().any(|ended| ended.id == id);
        if known {
            let message = format!("container {id} has been started already");
            return Err(Refusal {
                kind: RefusalKind::Exists,
                message,
            });
        }
        let cgroup = Cgroup::new(&self.hierarchy, &cgroup)
            .map_err(|error| refusal(RefusalKind::Invalid, &error))?;
        let seccomp = seccomp_program(seccomp.as_ref())?;
        let mut terminal = false;
        if let Some(process) = spec.process_mut() {
            terminal = process.terminal().unwrap_or(false);
            if process.oom_score_adj().is_none() {
                // The shim's own is not for its containers.
                process.set_oom_score_adj(Some(0));
            }
        }
        self.make_container_dir(id)?;
        let path = log
            .as_ref()
            .map(|path| path.display().to_string())
            .unwrap_or_default();
        let log = Log::open(log).map_err(|error| Refusal {
            kind: RefusalKind::Setup,
            message: format!("cannot open the log {path}: {error}"),
        })?;
        let Streams {
            theirs,
            stdin,
            outputs,
        } = Streams::new(terminal, stdin != StdinPolicy::None)
            .map_err(|error| internal("make pipes", error))?;
        let rootfs = match rootfs {
            Rootfs::Path(path) => kelson_runtime::Rootfs::Path(path),
            Rootfs::Overlay { lower, upper, work } => {
                kelson_runtime::Rootfs::Overlay { lower, upper, work }
            }
        };
        let launched = launch(Launch {
            spec: &spec,
            rootfs: &rootfs,
            cgroup: &cgroup,
            stdio: theirs,
            seccomp: seccomp.as_ref(),
            options: Options::default(),
        });
        let launched = match launched {
            Ok(launched) => launched,
            Err(error) => {
                self.remove_container_dir(id);
                return Err(launch_refusal(&error));
            }
        };
        let serial = self.serial();
        let watched = self
            .poll
            .add(
                launched.progress.as_fd(),
                Token::ContainerProgress(serial),
                EventFlags::IN,
            )
            .and_then(|()| {
                outputs.watch(&self.poll, |stream| Token::ContainerOutput(serial, stream))
            });
        let failure = Self::watched(watched).err();
        let container = Container {
            id,
            pid: launched.pid,
            pidfd: launched.pidfd,
            cgroup,
            log,
            _stdin: stdin,
            outputs,
            oom: Oom::default(),
            phase: Phase::Starting {
                connection,
                progress: launched.progress,
                deadline: Instant::now() + Duration::from_millis(timeout_ms),
                failure: None,
            },
        };
        self.containers.insert(serial, container);
        if let Some(refusal) = failure {
            self.start_failed(serial, refusal);
        }
        Ok(())
    }

    /// Kills a container that is being started; the rest follows when it is reaped.
    fn start_failed(&mut self, serial: u64, refusal: Refusal) {
        let Some(container) = self.containers.get_mut(&serial) else {
            return;
        };
        if let Phase::Starting {
            failure, deadline, ..
        } = &mut container.phase
        {
            failure.get_or_insert(refusal);
            *deadline = Instant::now() + KILL_AGAIN;
        }
        container.kill_all();
    }

    /// Hears what a starting container tells.
    pub(super) fn container_progress(&mut self, serial: u64) {
        loop {
            let Some(container) = self.containers.get_mut(&serial) else {
                return;
            };
            let Phase::Starting { progress, .. } = &mut container.phase else {
                return;
            };
            match progress.try_next() {
                Ok(None) => return,
                Ok(Some(Told::Note(message))) => {
                    let container = container.id;
                    self.broadcast(&Event::Note { container, message });
                }
                Ok(Some(Told::Terminal(master))) => {
                    let watched = rustix::io::ioctl_fionbio(&master, true).and_then(|()| {
                        let token = Token::ContainerOutput(serial, Stream::Stdout);
                        self.poll.add(&master, token, EventFlags::IN)
                    });
                    container.outputs.set_terminal(master);
                    if let Err(refusal) = Self::watched(watched) {
                        return self.start_failed(serial, refusal);
                    }
                }
                Ok(Some(Told::HooksDue | Told::Waiting)) => {}
                Ok(Some(Told::Executed)) => return self.container_runs(serial),
                Ok(Some(Told::Failed(error))) => {
                    self.poll.remove(progress.as_fd());
                    let refusal = launch_refusal(&LaunchError::Step(error));
                    return self.start_failed(serial, refusal);
                }
                Err(error) => {
                    self.poll.remove(progress.as_fd());
                    return self.start_failed(serial, launch_refusal(&error));
                }
            }
        }
    }

    fn container_runs(&mut self, serial: u64) {
        let Some(container) = self.containers.get_mut(&serial) else {
            return;
        };
        let Phase::Starting { connection, .. } = container.phase else {
            return;
        };
        let started = Started {
            pid: container.pid,
            started_at: now_ns(),
        };
        container.phase = Phase::Running(started);
        // Without notices, the count is read at the end all the same.
        if let Ok(Some(oom)) = container.cgroup.oom_watch() {
            let flags = EventFlags::IN | EventFlags::PRI;
            if self
                .poll
                .add(&oom, Token::ContainerOom(serial), flags)
                .is_ok()
            {
                container.oom.watch = Some(oom);
            }
        }
        self.reply(connection, &Reply::Started(started));
    }

    /// Reads output once, into the log.
    pub(super) fn container_output(&mut self, serial: u64, stream: Stream) {
        let Some(container) = self.containers.get_mut(&serial) else {
            return;
        };
        let Some(fd) = container.outputs.get(stream) else {
            return;
        };
        let buffer = self.input.buffer();
        match streams::read(fd, buffer) {
            Read::Bytes(count) => {
                container
                    .log
                    .write(stream, &buffer[..count], &mut self.formatter);
            }
            Read::Nothing => {}
            Read::End => {
                container.outputs.close(stream);
                if matches!(container.phase, Phase::Ending { .. }) {
                    self.container_ends(serial);
                }
            }
        }
    }

    /// Memory has run out, or the cgroup has been removed.
    pub(super) fn container_oom(&mut self, serial: u64) {
        let Some(container) = self.containers.get_mut(&serial) else {
            return;
        };
        let Some(watch) = &container.oom.watch else {
            return;
        };
        let mut buffer = [0; 4096];
        // Reading takes the notice away; a notice that cannot be taken away is not waited for.
        if !matches!(streams::read(watch, &mut buffer), Read::Bytes(_)) {
            self.poll.remove(watch);
        }
        container.oom.again = Some((Instant::now(), Instant::now() + OOM_LIMIT));
        self.container_oom_count(serial);
    }

    /// Reads the count of OOM kills after a notice, now and again.
    fn container_oom_count(&mut self, serial: u64) {
        let Some(container) = self.containers.get_mut(&serial) else {
            return;
        };
        let kills = container.cgroup.oom_kills().unwrap_or(container.oom.kills);
        if kills > container.oom.kills {
            container.oom.kills = kills;
            container.oom.again = None;
            if matches!(container.phase, Phase::Running(_)) {
                let container = container.id;
                self.broadcast(&Event::OomKilled { container });
            }
        } else if let Some((again, last)) = &mut container.oom.again {
            *again = Instant::now() + OOM_STEP;
            if *again > *last {
                container.oom.again = None;
            }
        }
    }

    /// Its first process has been reaped.
    pub(super) fn container_gone(&mut self, serial: u64, status: WaitStatus) {
        // What it has told before its end is still to be heard.
        self.container_progress(serial);
        let Some(container) = self.containers.get_mut(&serial) else {
            return;
        };
        let outcome = match &mut container.phase {
            Phase::Running(started) => Ok(*started),
            Phase::Starting {
                connection,
                failure,
                ..
            } => Err(Fault {
                connection: *connection,
                refusal: failure.take().unwrap_or_else(|| silent_end(status)),
            }),
            Phase::Ending { .. } => return,
        };
        let again = Instant::now();
        let finished_at = now_ns();
        container.phase = Phase::Ending {
            outcome,
            status,
            finished_at,
            empty: false,
            again,
        };
        self.container_ends(serial);
    }

    /// Goes through the end of a container as far as possible: kill what is left, read what was
    /// written, take leave.
    fn container_ends(&mut self, serial: u64) {
        let Some(container) = self.containers.get_mut(&serial) else {
            return;
        };
        let Phase::Ending { empty, again, .. } = &mut container.phase else {
            return;
        };
        if !*empty {
            match container.cgroup.kill(KILL_WAIT) {
                Err(kelson_cgroup::Error::NotEmpty { .. }) => {
                    *again = Instant::now() + KILL_AGAIN;
                    return;
                }
                // A cgroup that cannot be asked cannot be waited for either.
                Ok(()) | Err(_) => {
                    *empty = true;
                    *again = Instant::now() + DRAIN;
                }
            }
        }
        let late = *again <= Instant::now();
        for stream in BOTH {
            while let Some(fd) = container.outputs.get(stream) {
                let buffer = self.input.buffer();
                match streams::read(fd, buffer) {
                    Read::Bytes(count) => {
                        container
                            .log
                            .write(stream, &buffer[..count], &mut self.formatter);
                        if late {
                            container.outputs.close(stream);
                        }
                    }
                    Read::Nothing if !late => break,
                    Read::Nothing | Read::End => container.outputs.close(stream),
                }
            }
            if container.outputs.get(stream).is_none() {
                container.log.finish(stream, &mut self.formatter);
            }
        }
        if container.outputs.all_ended()
            && let Some(container) = self.containers.remove(&serial)
        {
            self.container_over(container);
        }
    }

    fn container_over(&mut self, container: Container) {
        let Phase::Ending {
            outcome,
            status,
            finished_at,
            ..
        } = container.phase
        else {
            return;
        };
        let kills = container.cgroup.oom_kills().unwrap_or(0);
        let oom_killed = kills.max(container.oom.kills) > 0;
        let id = container.id;
        match outcome {
            Ok(started) => {
                let (exit_code, signal) = exit_code(status);
                let exit = Exit {
                    exit_code,
                    signal,
                    oom_killed,
                    finished_at,
                };
                // The daemon gets it as an event or by asking, too.
                let _ = self.write_exit_record(id, &exit);
                self.remove_cgroup(&container.cgroup);
                let log_bytes_lost = container.log.bytes_lost();
                self.ended.push(ContainerState {
                    id,
                    started,
                    exit: Some(exit),
                    log_bytes_lost,
                });
                self.broadcast(&Event::Exited {
                    container: id,
                    exit,
                });
            }
            Err(Fault {
                connection,
                mut refusal,
            }) => {
                if oom_killed {
                    refusal.message.push_str(
                        "; the kernel killed a process of it for lack of memory: raise the \
                         container's memory limit",
                    );
                }
                self.remove_cgroup(&container.cgroup);
                self.remove_container_dir(id);
                self.refuse(connection, refusal);
            }
        }
    }

    /// Removes a container's cgroup. What is left is found by the daemon, which owns the pod's.
    fn remove_cgroup(&self, cgroup: &Cgroup) {
        let _ = cgroup.remove();
    }

    /// Its deadline has passed.
    pub(super) fn container_due(&mut self, serial: u64) {
        match self
            .containers
            .get(&serial)
            .map(|container| &container.phase)
        {
            Some(Phase::Starting { .. }) => {
                let message = "the container did not start in time and was killed".to_owned();
                self.start_failed(
                    serial,
                    Refusal {
                        kind: RefusalKind::Timeout,
                        message,
                    },
                );
            }
            Some(Phase::Ending { .. }) => self.container_ends(serial),
            Some(Phase::Running(_)) => self.container_oom_count(serial),
            None => {}
        }
    }

    pub(super) fn signal(&mut self, request: SignalRequest) -> Result<(), Refusal> {
        let SignalRequest {
            container: id,
            signal,
            all,
        } = request;
        if !(1..=64).contains(&signal) {
            let message = format!("{signal} is not the number of a signal");
            return Err(Refusal {
                kind: RefusalKind::Invalid,
                message,
            });
        }
        let (_, container) = self.running(id)?;
        if !all {
            let sent = kelson_sys::process::pidfd_send_signal(container.pidfd.as_fd(), signal);
            return match sent {
                // It has just ended; the event follows.
                Ok(()) | Err(Errno::SRCH) => Ok(()),
                Err(error) => Err(internal("signal the container", error)),
            };
        }
        let sent = match Signal::from_named_raw(signal) {
            Some(Signal::KILL) => container.cgroup.kill(KILL_WAIT),
            Some(signal) => container.cgroup.signal(signal),
            None => {
                let message = format!("signal {signal} can only be sent to a first process");
                return Err(Refusal {
                    kind: RefusalKind::Invalid,
                    message,
                });
            }
        };
        match sent {
            // All were killed, and take their time.
            Ok(()) | Err(kelson_cgroup::Error::NotEmpty { .. }) => Ok(()),
            Err(error) => Err(refusal(RefusalKind::Internal, &error)),
        }
    }

    pub(super) fn reopen(&mut self, id: ContainerId) -> Result<(), Refusal> {
        let (serial, _) = self.running(id)?;
        let Some(container) = self.containers.get_mut(&serial) else {
            return Ok(());
        };
        container
            .log
            .reopen()
            .map_err(|error| internal("open the log again", error))
    }

    pub(super) fn forget(&mut self, id: ContainerId) -> Result<(), Refusal> {
        if self.containers.values().any(|container| container.id == id) {
            let message = format!("container {id} is still running; stop it first");
            return Err(Refusal {
                kind: RefusalKind::Invalid,
                message,
            });
        }
        self.ended.retain(|ended| ended.id != id);
        self.remove_container_dir(id);
        Ok(())
    }

    fn make_container_dir(&self, id: ContainerId) -> Result<(), Refusal> {
        let path = format!("containers/{id}");
        match rustix::fs::mkdirat(&self.pod.dir, &path, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(internal(&format!("make the directory {path}"), error)),
        }
    }

    /// Removes what the shim has made for a container.
    fn remove_container_dir(&self, id: ContainerId) {
        let path = format!("containers/{id}");
        let record = format!("{path}/exit.json");
        let _ = rustix::fs::unlinkat(&self.pod.dir, &record, AtFlags::empty());
        let _ = rustix::fs::unlinkat(&self.pod.dir, &path, AtFlags::REMOVEDIR);
    }

    /// Writes `exit.json`, whole or not at all.
    fn write_exit_record(&self, id: ContainerId, exit: &Exit) -> std::io::Result<()> {
        let text = serde_json::to_vec(exit)?;
        let path = format!("containers/{id}/exit.json");
        let new = format!("{path}.new");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.pod.dir, &new, flags, Mode::from_raw_mode(0o600))?;
        let mut rest = &text[..];
        while !rest.is_empty() {
            rest = &rest[rustix::io::write(&file, rest)?..];
        }
        rustix::fs::renameat(&self.pod.dir, &new, &self.pod.dir, &path)?;
        Ok(())
    }
}
