//! The end of a container, and what is kept of it.

use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::WaitStatus;

use super::{Container, Fault, Phase, silent_end};
use crate::ids::ContainerId;
use crate::log::Stream;
use crate::proto::{ContainerState, Event, ExecExit, Exit, Refusal, Reply};
use crate::shim::streams::Read;
use crate::shim::{KILL_AGAIN, KILL_WAIT, Shim, exit_code, internal, now_ns};

/// How long output is waited for after every process of the container is gone: somebody outside
/// may hold its pipes.
const DRAIN: Duration = Duration::from_millis(500);

impl Shim {
    /// Its first process has been reaped.
    pub(in crate::shim) fn container_gone(&mut self, serial: u64, pid: u32, status: WaitStatus) {
        // What it has told before its end is still to be heard.
        self.container_progress(serial);
        let Some(container) = self.containers.get_mut(&serial) else {
            return;
        };
        if !container.is_process(pid) {
            // It has only prepared the one that goes on.
            return;
        }
        if let Phase::Starting {
            restoring,
            failure: None,
            ..
        } = &mut container.phase
            && let Some(restoring) = restoring.take()
        {
            match restoring.finish(container, status) {
                Ok(()) => return self.container_runs(serial),
                Err(refusal) => {
                    if let Phase::Starting { failure, .. } = &mut container.phase {
                        *failure = Some(refusal);
                    }
                }
            }
        }
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
        self.attach_ends(serial);
        self.container_ends(serial);
    }

    /// Goes through the end of a container as far as possible: kill what is left, read what was
    /// written, take leave.
    pub(super) fn container_ends(&mut self, serial: u64) {
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
        for stream in [Stream::Stdout, Stream::Stderr] {
            while self.container_has(serial, stream) {
                let ended = match self.container_read(serial, stream) {
                    Read::Bytes(_) => late,
                    Read::Nothing if !late => break,
                    Read::Nothing | Read::End => true,
                };
                if ended && let Some(container) = self.containers.get_mut(&serial) {
                    container.outputs.close(stream);
                }
            }
            if let Some(container) = self.containers.get_mut(&serial)
                && container.outputs.get(stream).is_none()
            {
                container.log.finish(stream, &mut self.formatter);
            }
        }
        if self
            .containers
            .get(&serial)
            .is_some_and(|container| container.outputs.all_ended())
            && let Some(container) = self.containers.remove(&serial)
        {
            self.container_over(container);
        }
    }

    fn container_has(&self, serial: u64, stream: Stream) -> bool {
        let container = self.containers.get(&serial);
        container.is_some_and(|container| container.outputs.get(stream).is_some())
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
                let last = Reply::Exited(ExecExit {
                    exit_code,
                    signal,
                    timed_out: false,
                });
                for attached in &container.attached {
                    self.reply(attached.connection, &last);
                }
                // The daemon gets it as an event or by asking, too.
                let _ = self.write_exit_record(id, &exit);
                // What is left is found by the daemon, which owns the pod's cgroup.
                let _ = container.cgroup.remove();
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
                let _ = container.cgroup.remove();
                self.remove_container_dir(id);
                self.refuse(connection, refusal);
            }
        }
    }

    pub(super) fn make_container_dir(&self, id: ContainerId) -> Result<(), Refusal> {
        let path = format!("containers/{id}");
        match rustix::fs::mkdirat(&self.pod.dir, &path, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(internal(&format!("make the directory {path}"), error)),
        }
    }

    /// Removes what the shim has made for a container.
    pub(super) fn remove_container_dir(&self, id: ContainerId) {
        let path = format!("containers/{id}");
        for file in ["exit.json", super::start::CONFIG] {
            let file = format!("{path}/{file}");
            let _ = rustix::fs::unlinkat(&self.pod.dir, &file, AtFlags::empty());
        }
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
