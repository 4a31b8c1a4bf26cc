//! Starting a container.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use kelson_cgroup::Cgroup;
use kelson_runtime::{
    Event as Told, HookContext, Kind, Launch, LaunchError, Launched, Options, Restore, launch,
};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::event::epoll::EventFlags;
use rustix::process::WaitStatus;

use super::{Container, Oom, Phase, Restoring};
use crate::ids::ContainerId;
use crate::log::{Log, Stream};
use crate::proto::{
    Event, Refusal, RefusalKind, Reply, Rootfs, SeccompFilter, StartRequest, Started, StdinPolicy,
};
use crate::shim::poll::Token;
use crate::shim::streams::{Outputs, Streams};
use crate::shim::{KILL_AGAIN, Shim, exit_code, internal, now_ns, refusal};

/// The file of a bundle that has the specification.
pub(in crate::shim) const CONFIG: &str = "config.json";

/// A container whose process exists, and what it is made of.
#[derive(Debug)]
struct Begun {
    launched: Launched,
    cgroup: Cgroup,
    log: Log,
    stdin: Option<OwnedFd>,
    policy: StdinPolicy,
    terminal: bool,
    outputs: Outputs,
    restoring: Option<Box<Restoring>>,
}

/// The refusal for a process that did not come up.
pub(in crate::shim) fn launch_refusal(error: &LaunchError) -> Refusal {
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
pub(in crate::shim) fn silent_end(status: WaitStatus) -> Refusal {
    let message = match exit_code(status) {
        (_, Some(signal)) => format!("the process was killed by signal {signal} before it started"),
        (code, None) => format!("the process ended with code {code} before it started"),
    };
    Refusal {
        kind: RefusalKind::Setup,
        message,
    }
}

pub(in crate::shim) fn seccomp_program(
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
    /// Begins to start a container; the connection is answered when that is decided.
    pub(in crate::shim) fn start(
        &mut self,
        connection: u64,
        request: StartRequest,
    ) -> Result<(), Refusal> {
        let id = request.id;
        let known = self.containers.values().any(|container| container.id == id)
            || self.ended.iter().any(|ended| ended.id == id);
        if known {
            let message = format!("container {id} has been started already");
            return Err(Refusal {
                kind: RefusalKind::Exists,
                message,
            });
        }
        self.make_container_dir(id)?;
        let timeout = Duration::from_millis(request.timeout_ms);
        let begun = self
            .begin_start(request)
            .inspect_err(|_| self.remove_container_dir(id))?;
        let Begun {
            launched,
            cgroup,
            log,
            stdin,
            policy,
            terminal,
            outputs,
            restoring,
        } = begun;
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
        let container = Container {
            id,
            pid: launched.pid,
            pidfd: launched.pidfd,
            cgroup,
            spare: Vec::new(),
            log,
            stdin,
            policy,
            terminal,
            outputs,
            attached: Vec::new(),
            oom: Oom::default(),
            phase: Phase::Starting {
                connection,
                progress: launched.progress,
                deadline: Instant::now() + timeout,
                failure: None,
                restoring,
            },
        };
        self.containers.insert(serial, container);
        if let Err(refusal) = Self::watched(watched) {
            self.start_failed(serial, refusal);
        }
        Ok(())
    }

    /// Makes what a container needs, and its process.
    fn begin_start(&self, request: StartRequest) -> Result<Begun, Refusal> {
        let StartRequest {
            id,
            mut spec,
            rootfs,
            cgroup,
            log: path,
            seccomp,
            stdin: policy,
            pid_target,
            restore,
            ..
        } = request;
        if let Some(target) = pid_target {
            self.join_target(&mut spec, target)?;
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
        let log = Log::open(path.clone()).map_err(|error| Refusal {
            kind: RefusalKind::Setup,
            message: format!(
                "cannot open the log {}: {error}",
                path.unwrap_or_default().display()
            ),
        })?;
        let Streams {
            theirs,
            stdin,
            outputs,
        } = Streams::new(terminal, policy != StdinPolicy::None)
            .map_err(|error| internal("make pipes", error))?;
        let rootfs = match rootfs {
            Rootfs::Path(path) => kelson_runtime::Rootfs::Path(path),
            Rootfs::Overlay { lower, upper, work } => {
                kelson_runtime::Rootfs::Overlay { lower, upper, work }
            }
        };
        let hooks = match spec.hooks() {
            Some(_) => Some(self.bundle(id, &spec, &rootfs)?),
            None => None,
        };
        let what = Launch {
            spec: &spec,
            user_namespace: self.pod.user.as_ref().map(AsFd::as_fd),
            rootfs: &rootfs,
            cgroup: &cgroup,
            stdio: theirs,
            seccomp: seccomp.as_ref(),
            options: Options {
                hooks,
                ..Options::default()
            },
        };
        let launched = match &restore {
            None => launch(what),
            Some(from) => kelson_runtime::restore(
                what,
                &Restore {
                    criu: &from.criu,
                    images: &from.images,
                    streams: &from.streams,
                },
            ),
        };
        let launched = launched.map_err(|error| launch_refusal(&error))?;
        let restoring = restore.map(|from| Restoring {
            images: from.images,
            filtered: seccomp.is_some(),
            spec,
        });
        Ok(Begun {
            launched,
            cgroup,
            log,
            stdin,
            policy,
            terminal,
            outputs,
            restoring: restoring.map(Box::new),
        })
    }

    /// What hooks are told: they look into a bundle for the specification, and there for the root.
    fn bundle(
        &self,
        id: ContainerId,
        spec: &Spec,
        rootfs: &kelson_runtime::Rootfs,
    ) -> Result<HookContext, Refusal> {
        let make = |error: std::io::Error| internal("make the bundle that hooks look into", error);
        // In the container's mount namespace an overlay is on its upper directory.
        let (kelson_runtime::Rootfs::Path(path)
        | kelson_runtime::Rootfs::Overlay { upper: path, .. }) = rootfs;
        let mut spec = spec.clone();
        if let Some(root) = spec.root_mut() {
            root.set_path(path.clone());
        }
        let text = serde_json::to_vec(&spec).map_err(|error| make(error.into()))?;
        let link = format!("/proc/self/fd/{}", self.pod.dir.as_raw_fd());
        let bundle = std::fs::read_link(link)
            .map_err(make)?
            .join(format!("containers/{id}"));
        let file = bundle.join(CONFIG);
        std::fs::write(file, text).map_err(make)?;
        Ok(HookContext {
            id: id.to_string(),
            bundle,
            annotations: spec.annotations().clone().unwrap_or_default(),
        })
    }

    /// Points the PID namespace of a new container at that of a running one. As the shim itself reaps
    /// the running one, its number stays its own while this goes on.
    fn join_target(&self, spec: &mut Spec, target: ContainerId) -> Result<(), Refusal> {
        let running = self
            .containers
            .values()
            .find(|one| one.id == target && matches!(one.phase, Phase::Running(_)));
        let running = running.ok_or_else(|| Refusal {
            kind: RefusalKind::NotRunning,
            message: format!("container {target}, whose processes are to be joined, does not run"),
        })?;
        let namespaces = spec.linux_mut().as_mut();
        let namespaces = namespaces.and_then(|linux| linux.namespaces_mut().as_mut());
        let entry = namespaces.and_then(|all| {
            all.iter_mut()
                .find(|one| one.typ() == LinuxNamespaceType::Pid)
        });
        let entry = entry.ok_or_else(|| Refusal {
            kind: RefusalKind::Invalid,
            message: "the specification has no PID namespace".to_owned(),
        })?;
        entry.set_path(Some(format!("/proc/{}/ns/pid", running.pid).into()));
        Ok(())
    }

    /// Kills a container that is being started; the rest follows when it is reaped.
    pub(super) fn start_failed(&mut self, serial: u64, refusal: Refusal) {
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
    pub(in crate::shim) fn container_progress(&mut self, serial: u64) {
        loop {
            let Some(container) = self.containers.get_mut(&serial) else {
                return;
            };
            let Phase::Starting {
                progress,
                restoring,
                ..
            } = &mut container.phase
            else {
                return;
            };
            match progress.try_next() {
                Ok(None) => return,
                Ok(Some(Told::Note(message))) => {
                    let container = container.id;
                    self.broadcast(&Event::Note { container, message });
                }
                Ok(Some(Told::Process { pid, pidfd })) => {
                    (container.pid, container.pidfd) = (pid, pidfd);
                    // What was killed meanwhile was the one before.
                    if matches!(
                        container.phase,
                        Phase::Starting {
                            failure: Some(_),
                            ..
                        }
                    ) {
                        container.kill_all();
                    }
                }
                Ok(Some(Told::Terminal(master))) => {
                    let watched = rustix::io::ioctl_fionbio(&master, true).and_then(|()| {
                        if container.policy != StdinPolicy::None {
                            let copy = rustix::io::fcntl_dupfd_cloexec(&master, 0)?;
                            container.stdin = Some(copy);
                        }
                        let token = Token::ContainerOutput(serial, Stream::Stdout);
                        self.poll.add(&master, token, EventFlags::IN)
                    });
                    container.outputs.set_terminal(master);
                    if let Err(refusal) = Self::watched(watched) {
                        return self.start_failed(serial, refusal);
                    }
                }
                Ok(Some(Told::HooksDue | Told::Waiting)) => {}
                Ok(Some(Told::Executed)) if restoring.is_some() => {
                    // CRIU was executed, and tells the rest by its end.
                    self.poll.remove(progress.as_fd());
                    return;
                }
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

    pub(super) fn container_runs(&mut self, serial: u64) {
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
}
