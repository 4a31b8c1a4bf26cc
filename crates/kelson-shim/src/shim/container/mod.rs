//! A container: its start, its output, its end.

mod control;
mod end;
mod restore;
mod start;

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use kelson_cgroup::Cgroup;
use kelson_runtime::Progress;
use rustix::process::{Signal, WaitStatus};

use super::attach::Attached;
use super::streams::{self, Outputs, Read};
use super::{KILL_WAIT, Shim};
use crate::ids::ContainerId;
use crate::log::{Log, Stream};
use crate::proto::frame::{HEADER, MAX_DATA};
use crate::proto::{ContainerState, Event, Refusal, RefusalKind, Started, StdinPolicy};
use restore::Restoring;
pub(in crate::shim) use start::{launch_refusal, seccomp_program, silent_end};

/// When the count of OOM kills is read after a notice, and until when: a notice may come a moment
/// before its kill is counted.
const OOM_STEP: Duration = Duration::from_millis(20);
const OOM_LIMIT: Duration = Duration::from_secs(1);

/// The most cgroups of ended execs that are kept for the next ones: making and removing them takes
/// longer than many a probe.
const MAX_SPARE: usize = 2;

/// A container that is not over.
#[derive(Debug)]
pub(in crate::shim) struct Container {
    id: ContainerId,
    pid: u32,
    pub(in crate::shim) pidfd: OwnedFd,
    cgroup: Cgroup,
    /// Empty cgroups beneath it, for execs.
    spare: Vec<Cgroup>,
    log: Log,
    /// Where its input is written; open while input may come, so that it does not read an end.
    pub(in crate::shim) stdin: Option<OwnedFd>,
    pub(in crate::shim) policy: StdinPolicy,
    pub(in crate::shim) terminal: bool,
    pub(in crate::shim) outputs: Outputs,
    /// Those who see its output.
    pub(in crate::shim) attached: Vec<Attached>,
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
        /// CRIU is at work: the process is CRIU's.
        restoring: Option<Box<Restoring>>,
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
    pub(in crate::shim) fn is_process(&self, pid: u32) -> bool {
        self.pid == pid && !matches!(self.phase, Phase::Ending { .. })
    }

    /// Whether its first process is gone.
    pub(in crate::shim) fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Ending { .. })
    }

    pub(in crate::shim) fn started(&self) -> Option<Started> {
        match &self.phase {
            Phase::Running(started)
            | Phase::Ending {
                outcome: Ok(started),
                ..
            } => Some(*started),
            _ => None,
        }
    }

    pub(in crate::shim) fn state(&self) -> Option<ContainerState> {
        let log_bytes_lost = self.log.bytes_lost();
        self.started().map(|started| ContainerState {
            id: self.id,
            started,
            exit: None,
            log_bytes_lost,
        })
    }

    pub(in crate::shim) fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Starting { deadline, .. } => Some(*deadline),
            Phase::Running(_) => {
                let waits = self.attached.iter().filter_map(Attached::deadline).min();
                let oom = self.oom.again.map(|(again, _)| again);
                [waits, oom].into_iter().flatten().min()
            }
            Phase::Ending { again, .. } => Some(*again),
        }
    }

    /// What its first process has, as far as it can be read: the shim's own is not for processes of
    /// containers.
    pub(in crate::shim) fn oom_score_adj(&self) -> Option<i32> {
        let path = format!("/proc/{}/oom_score_adj", self.pid);
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    }

    /// A cgroup beneath the container's, for the exec of this serial.
    pub(in crate::shim) fn take_group(&mut self, serial: u64) -> kelson_cgroup::Result<Cgroup> {
        match self.spare.pop() {
            Some(cgroup) => Ok(cgroup),
            None => {
                let cgroup = self.cgroup.child(&format!("exec-{serial}"))?;
                cgroup.create_group()?;
                Ok(cgroup)
            }
        }
    }

    /// Takes the cgroup of an exec back. With processes in it, it stays until the container is over.
    pub(in crate::shim) fn return_group(&mut self, cgroup: Cgroup) {
        if !matches!(cgroup.populated(), Ok(false)) {
            return;
        }
        if self.spare.len() < MAX_SPARE {
            self.spare.push(cgroup);
        } else {
            // What cannot be removed now goes with the container.
            let _ = cgroup.remove();
        }
    }

    /// Kills all of its processes, as far as that goes quickly.
    pub(in crate::shim) fn kill_all(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = self.cgroup.kill(KILL_WAIT);
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
    pub(in crate::shim) fn running(&self, id: ContainerId) -> Result<(u64, &Container), Refusal> {
        let (serial, container) = self.container(id)?;
        match container.phase {
            Phase::Running(_) => Ok((serial, container)),
            _ => Err(Refusal {
                kind: RefusalKind::NotRunning,
                message: format!("container {id} is not running"),
            }),
        }
    }

    /// Reads output once, into the log.
    pub(in crate::shim) fn container_output(&mut self, serial: u64, stream: Stream) {
        if self.container_read(serial, stream) != Read::End {
            return;
        }
        let Some(container) = self.containers.get_mut(&serial) else {
            return;
        };
        container.outputs.close(stream);
        if matches!(container.phase, Phase::Ending { .. }) {
            self.container_ends(serial);
        }
    }

    /// Reads output once, into the log and to all who see it.
    fn container_read(&mut self, serial: u64, stream: Stream) -> Read {
        let Some(container) = self.containers.get_mut(&serial) else {
            return Read::Nothing;
        };
        let Some(fd) = container.outputs.get(stream) else {
            return Read::Nothing;
        };
        let buffer = self.input.buffer();
        let end = match container.attached.is_empty() {
            true => buffer.len(),
            false => HEADER + MAX_DATA,
        };
        let read = streams::read(fd, &mut buffer[HEADER..end]);
        if let Read::Bytes(count) = read {
            let block = &buffer[HEADER..HEADER + count];
            container.log.write(stream, block, &mut self.formatter);
            if !container.attached.is_empty() {
                self.show(serial, stream, count);
            }
        }
        read
    }

    /// Memory has run out, or the cgroup has been removed.
    pub(in crate::shim) fn container_oom(&mut self, serial: u64) {
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

    /// Its deadline has passed.
    pub(in crate::shim) fn container_due(&mut self, serial: u64) {
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
            Some(Phase::Running(_)) => {
                self.attach_due(serial);
                self.container_oom_count(serial);
            }
            None => {}
        }
    }
}
