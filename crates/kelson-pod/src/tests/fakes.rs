//! A machine that exists only in memory: shims, cgroups, a network and images. What exists of them can be
//! looked at, any step can be made to fail or to wait, and shims can die.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use kelson_cgroup::Stats;
use kelson_shim::client::{ExecResult, Session, ShimError, ShimEvent};
use kelson_shim::ids::ContainerId;
use kelson_shim::proto::frame::{self, Kind};
use kelson_shim::proto::{
    AttachRequest, ContainerState, ExecExit, ExecRequest, Exit, Family, PodSetup, PodState, Ready,
    Refusal, RefusalKind, Reply, StartRequest, Started, VERSION,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc};

use crate::outside::{
    Cgroups, Forked, Found, ImageFacts, ImageSource, PodNetwork, Prepared, Promise, Shim,
    ShimEvents, Shims,
};
use crate::spec::process::ImageProcess;

/// The machine; all clones are one.
#[derive(Clone, Default)]
pub(super) struct Machine(Arc<Inner>);

#[derive(Default)]
struct Inner {
    things: Mutex<Things>,
    /// Steps that wait until they are let go.
    held: Mutex<HashMap<&'static str, Arc<Semaphore>>>,
}

/// What exists.
#[derive(Default)]
pub(super) struct Things {
    pub(super) shims: BTreeMap<PathBuf, FakeShim>,
    pub(super) networks: BTreeSet<String>,
    pub(super) cgroups: BTreeSet<String>,
    /// Limits in the order in which they were set.
    pub(super) driver: crate::CgroupDriver,
    pub(super) limits: Vec<(String, kelson_cgroup::Resources)>,
    /// Steps that fail.
    pub(super) failing: HashSet<&'static str>,
    /// Every step that was taken, in order.
    pub(super) steps: Vec<String>,
    /// Containers that only SIGKILL ends.
    pub(super) stubborn: bool,
    next_pid: u32,
}

pub(super) struct FakeShim {
    ready: Ready,
    pub(super) containers: BTreeMap<ContainerId, FakeContainer>,
    listeners: Vec<mpsc::UnboundedSender<ShimEvent>>,
}

#[derive(Clone)]
pub(super) struct FakeContainer {
    cgroup: String,
    started: Started,
    exit: Option<Exit>,
}

impl Machine {
    pub(super) fn things(&self) -> MutexGuard<'_, Things> {
        self.0.things.lock().unwrap()
    }

    /// Makes a step fail from now on.
    pub(super) fn fail(&self, step: &'static str) {
        self.things().failing.insert(step);
    }

    pub(super) fn heal(&self) {
        self.things().failing.clear();
    }

    /// Makes a step wait; each permit that is added lets one through.
    pub(super) fn hold(&self, step: &'static str) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        self.0.held.lock().unwrap().insert(step, Arc::clone(&gate));
        gate
    }

    pub(super) fn count(&self, step: &str) -> usize {
        self.things()
            .steps
            .iter()
            .filter(|taken| *taken == step)
            .count()
    }

    /// Whether nothing exists.
    pub(super) fn is_empty(&self) -> bool {
        let things = self.things();
        things.shims.is_empty() && things.networks.is_empty() && things.cgroups.is_empty()
    }

    /// A container's first process ends by itself.
    pub(super) fn exit(&self, id: ContainerId, exit_code: i32, oom_killed: bool) {
        self.things().exit(
            id,
            Exit {
                exit_code,
                signal: None,
                oom_killed,
                finished_at: 5,
            },
        );
    }

    /// All shims die at once; what they watched over lives on.
    pub(super) fn kill_shims(&self) {
        self.things().shims.clear();
    }

    /// A process that says something, echoes what it reads and the sizes of its terminal, and ends at the
    /// end of its input. Its end, or that of its session, is a step.
    fn session(&self, stdin: bool, says: String) -> Session {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let machine = self.clone();
        tokio::spawn(async move {
            let write = [
                &frame::header(Kind::Stdout, says.len())[..],
                says.as_bytes(),
            ]
            .concat();
            // Who asked may have gone.
            let _ = theirs.write_all(&write).await;
            let mut header = [0; frame::HEADER];
            while theirs.read_exact(&mut header).await.is_ok() {
                let (kind, len) = frame::parse_header(header).unwrap();
                let mut payload = vec![0; len];
                theirs.read_exact(&mut payload).await.unwrap();
                let answer = match (kind, len) {
                    (Kind::Stdin, 0) => frame::message(&Reply::Exited(ExecExit {
                        exit_code: 7,
                        signal: None,
                        timed_out: false,
                    }))
                    .unwrap(),
                    (Kind::Stdin, _) => [&frame::header(Kind::Stderr, len)[..], &payload].concat(),
                    (Kind::Resize, _) => [&frame::header(Kind::Stdout, len)[..], &payload].concat(),
                    other => panic!("{other:?}"),
                };
                let _ = theirs.write_all(&answer).await;
            }
            machine.things().steps.push("session closed".to_owned());
        });
        let started = Started {
            pid: 1,
            started_at: 1,
        };
        Session::over(ours, started, stdin)
    }

    async fn step(&self, step: &'static str) -> Result<(), ()> {
        let gate = self.0.held.lock().unwrap().get(step).cloned();
        if let Some(gate) = gate {
            gate.acquire().await.unwrap().forget();
        }
        self.step_now(step)
    }

    fn step_now(&self, step: &'static str) -> Result<(), ()> {
        let mut things = self.things();
        things.steps.push(step.to_owned());
        if things.failing.contains(step) {
            Err(())
        } else {
            Ok(())
        }
    }
}

impl Things {
    fn exit(&mut self, id: ContainerId, exit: Exit) {
        for shim in self.shims.values_mut() {
            let Some(container) = shim.containers.get_mut(&id) else {
                continue;
            };
            if container.exit.is_none() {
                container.exit = Some(exit);
                for listener in &shim.listeners {
                    let _ = listener.send(ShimEvent::Exited {
                        container: id,
                        exit,
                    });
                }
            }
        }
    }
}

fn broken(step: &'static str) -> ShimError {
    ShimError::Refused(Refusal {
        kind: RefusalKind::Setup,
        message: format!("{step} is broken"),
    })
}

fn gone() -> ShimError {
    ShimError::Gone {
        socket: "shim.sock".into(),
        source: None,
    }
}

fn cgroup_error(step: &str) -> kelson_cgroup::Error {
    kelson_cgroup::Error::Io {
        operation: step.to_owned(),
        path: "cgroup".into(),
        source: std::io::Error::other("broken"),
    }
}

impl Shims for Machine {
    fn fork(&self, setup: PodSetup, _: Duration) -> Promise<'_, Result<Forked, ShimError>> {
        Box::pin(async move {
            self.step("fork").await.map_err(|()| broken("fork"))?;
            std::fs::create_dir_all(setup.dir.join("shm")).unwrap();
            let mut things = self.things();
            things.next_pid += 1;
            let pid = 1000 + things.next_pid;
            let ready = Ready {
                version: VERSION,
                pod: setup.id,
                pid,
                init_pid: None,
            };
            let (listener, events) = mpsc::unbounded_channel();
            let shim = FakeShim {
                ready: ready.clone(),
                containers: BTreeMap::new(),
                listeners: vec![listener],
            };
            things.shims.insert(setup.dir, shim);
            Ok(Forked {
                ready,
                events: Box::new(FakeEvents(events)),
            })
        })
    }

    fn connect(&self, dir: PathBuf, _: Duration) -> Promise<'_, Result<Found, ShimError>> {
        Box::pin(async move {
            let mut things = self.things();
            let shim = things.shims.get_mut(&dir).ok_or_else(gone)?;
            let (listener, events) = mpsc::unbounded_channel();
            shim.listeners.push(listener);
            Ok(Found {
                state: shim.state(),
                events: Box::new(FakeEvents(events)),
            })
        })
    }

    fn at(&self, dir: PathBuf) -> Arc<dyn Shim> {
        Arc::new(FakeCalls {
            machine: self.clone(),
            dir,
        })
    }
}

impl FakeShim {
    fn state(&self) -> PodState {
        let container = |(id, one): (&ContainerId, &FakeContainer)| ContainerState {
            id: *id,
            started: one.started,
            exit: one.exit,
            log_bytes_lost: 0,
        };
        PodState {
            shim: self.ready.clone(),
            containers: self.containers.iter().map(container).collect(),
        }
    }
}

struct FakeEvents(mpsc::UnboundedReceiver<ShimEvent>);

impl ShimEvents for FakeEvents {
    fn next(&mut self) -> Promise<'_, ShimEvent> {
        Box::pin(async move { self.0.recv().await.unwrap_or(ShimEvent::Closed) })
    }
}

struct FakeCalls {
    machine: Machine,
    dir: PathBuf,
}

impl Shim for FakeCalls {
    fn state(&self, _: Duration) -> Promise<'_, Result<PodState, ShimError>> {
        Box::pin(async move {
            let things = self.machine.things();
            things
                .shims
                .get(&self.dir)
                .map(FakeShim::state)
                .ok_or_else(gone)
        })
    }

    fn start(&self, request: StartRequest, _: Duration) -> Promise<'_, Result<Started, ShimError>> {
        Box::pin(async move {
            self.machine
                .step("start")
                .await
                .map_err(|()| broken("start"))?;
            let mut things = self.machine.things();
            things.next_pid += 1;
            let started = Started {
                pid: 1000 + things.next_pid,
                started_at: 3,
            };
            things.cgroups.insert(request.cgroup.clone());
            let shim = things.shims.get_mut(&self.dir).ok_or_else(gone)?;
            if shim.containers.contains_key(&request.id) {
                let message = "it is there already".to_owned();
                return Err(Refusal {
                    kind: RefusalKind::Exists,
                    message,
                }
                .into());
            }
            let container = FakeContainer {
                cgroup: request.cgroup,
                started,
                exit: None,
            };
            shim.containers.insert(request.id, container);
            Ok(started)
        })
    }

    fn signal(
        &self,
        container: ContainerId,
        signal: i32,
        _: Duration,
    ) -> Promise<'_, Result<(), ShimError>> {
        Box::pin(async move {
            self.machine.step("signal").await.map_err(|()| gone())?;
            let mut things = self.machine.things();
            if !things.stubborn {
                let exit_code = 128 + signal;
                let exit = Exit {
                    exit_code,
                    signal: Some(signal),
                    oom_killed: false,
                    finished_at: 5,
                };
                things.exit(container, exit);
            }
            Ok(())
        })
    }

    fn reopen(&self, _: ContainerId, _: Duration) -> Promise<'_, Result<(), ShimError>> {
        Box::pin(async {
            self.machine
                .step("reopen")
                .await
                .map_err(|()| broken("reopen"))
        })
    }

    fn forget(&self, container: ContainerId, _: Duration) -> Promise<'_, Result<(), ShimError>> {
        Box::pin(async move {
            let mut things = self.machine.things();
            if let Some(shim) = things.shims.get_mut(&self.dir) {
                shim.containers.remove(&container);
            }
            Ok(())
        })
    }

    fn shutdown(&self, _: Duration) -> Promise<'_, Result<(), ShimError>> {
        Box::pin(async {
            self.machine
                .step("shutdown")
                .await
                .map_err(|()| broken("shutdown"))?;
            self.machine.things().shims.remove(&self.dir);
            Ok(())
        })
    }

    fn session(
        &self,
        request: ExecRequest,
        _: Duration,
    ) -> Promise<'_, Result<Session, ShimError>> {
        Box::pin(async move {
            let step = self.machine.step("session").await;
            step.map_err(|()| broken("session"))?;
            assert!(request.detach);
            let size = request.process.console_size();
            let size = size.map_or_else(String::new, |size| {
                format!("{}x{}", size.height(), size.width())
            });
            Ok(self.machine.session(request.stdin, size))
        })
    }

    fn attach(
        &self,
        request: AttachRequest,
        _: Duration,
    ) -> Promise<'_, Result<Session, ShimError>> {
        Box::pin(async move {
            let step = self.machine.step("attach").await;
            step.map_err(|()| broken("attach"))?;
            Ok(self.machine.session(request.stdin, "attached".to_owned()))
        })
    }

    fn socket(&self, family: Family, _: Duration) -> Promise<'_, Result<OwnedFd, ShimError>> {
        Box::pin(async move {
            self.machine.step("socket").await.map_err(|()| gone())?;
            let family = match family {
                Family::Inet => AddressFamily::INET,
                Family::Inet6 => AddressFamily::INET6,
            };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None).unwrap())
        })
    }

    fn exec(
        &self,
        request: ExecRequest,
        _: usize,
        _: Duration,
        _: Duration,
    ) -> Promise<'_, Result<ExecResult, ShimError>> {
        Box::pin(async move {
            self.machine
                .step("exec")
                .await
                .map_err(|()| broken("exec"))?;
            let args = request.process.args().clone().unwrap_or_default();
            let timed_out = request.timeout_ms.is_some() && args[0] == "sleep";
            let exit = ExecExit {
                exit_code: 0,
                signal: None,
                timed_out,
            };
            Ok(ExecResult {
                stdout: args.join(" ").into_bytes(),
                stderr: Vec::new(),
                exit,
            })
        })
    }
}

impl PodNetwork for Machine {
    fn add(
        &self,
        pod: kelson_network::Pod,
    ) -> Promise<'_, Result<kelson_network::Attachment, kelson_network::Error>> {
        Box::pin(async move {
            // The record is there before the world is changed, and stays when that fails.
            self.things().networks.insert(pod.id);
            self.step("network add")
                .await
                .map_err(|()| network_error())?;
            Ok(kelson_network::Attachment {
                ips: vec!["fd00::2".parse().unwrap(), "10.0.0.2".parse().unwrap()],
                ..kelson_network::Attachment::default()
            })
        })
    }

    fn del(&self, pod: String, _: Option<u32>) -> Promise<'_, Result<(), kelson_network::Error>> {
        Box::pin(async move {
            self.step("network del")
                .await
                .map_err(|()| network_error())?;
            self.things().networks.remove(&pod);
            Ok(())
        })
    }

    fn recorded(&self) -> Vec<String> {
        self.things().networks.iter().cloned().collect()
    }
}

fn network_error() -> kelson_network::Error {
    kelson_network::NotReady {
        reason: "NetworkPluginNotReady",
        message: "broken".into(),
    }
    .into()
}

impl Cgroups for Machine {
    fn create(&self, path: &str) -> kelson_cgroup::Result<()> {
        self.step_now("cgroup create")
            .map_err(|()| cgroup_error("create"))?;
        self.things().cgroups.insert(path.to_owned());
        Ok(())
    }

    fn prepare(
        &self,
        path: &str,
        limits: &kelson_cgroup::Resources,
    ) -> kelson_cgroup::Result<Option<Prepared>> {
        if !path.ends_with(".scope") {
            return Ok(None);
        }
        self.step_now("scope")
            .map_err(|()| cgroup_error("prepare"))?;
        self.things().limits.push((path.to_owned(), limits.clone()));
        Ok(Some(Box::new(())))
    }

    fn kill(&self, path: &str, _: Duration) -> kelson_cgroup::Result<()> {
        self.step_now("cgroup kill")
            .map_err(|()| cgroup_error("kill"))?;
        let mut things = self.things();
        let beneath = |cgroup: &str| cgroup == path || cgroup.starts_with(&format!("{path}/"));
        let shims = things.shims.values();
        let victims: Vec<ContainerId> = shims
            .flat_map(|shim| &shim.containers)
            .filter(|(_, one)| beneath(&one.cgroup))
            .map(|(id, _)| *id)
            .collect();
        for id in victims {
            let exit = Exit {
                exit_code: 137,
                signal: Some(9),
                oom_killed: false,
                finished_at: 5,
            };
            things.exit(id, exit);
        }
        Ok(())
    }

    fn populated(&self, path: &str) -> kelson_cgroup::Result<bool> {
        Ok(self.things().cgroups.contains(path))
    }

    fn remove(&self, path: &str) -> kelson_cgroup::Result<()> {
        self.step_now("cgroup remove")
            .map_err(|()| cgroup_error("remove"))?;
        let beneath = format!("{path}/");
        self.things()
            .cgroups
            .retain(|one| one != path && !one.starts_with(&beneath));
        Ok(())
    }

    fn stats(&self, path: &str) -> kelson_cgroup::Result<Option<Stats>> {
        Ok(self.things().cgroups.contains(path).then(Stats::default))
    }

    fn usage(&self, path: &str) -> kelson_cgroup::Result<Option<Stats>> {
        self.stats(path)
    }

    fn apply(&self, path: &str, limits: &kelson_cgroup::Resources) -> kelson_cgroup::Result<()> {
        self.step_now("cgroup apply")
            .map_err(|()| cgroup_error("apply"))?;
        let limits = (path.to_owned(), limits.clone());
        self.things().limits.push(limits);
        Ok(())
    }

    fn pids(&self, _: &str) -> kelson_cgroup::Result<Vec<u32>> {
        Ok(Vec::new())
    }

    fn oom_kills(&self, _: &str) -> kelson_cgroup::Result<u64> {
        Ok(0)
    }

    fn signal(&self, _: &str, _: u32, _: i32) -> kelson_cgroup::Result<()> {
        self.step_now("direct signal")
            .map_err(|()| cgroup_error("signal"))
    }
}

impl ImageSource for Machine {
    fn find(&self, name: &str) -> Option<ImageFacts> {
        (name == "busybox").then(|| ImageFacts {
            id: "sha256:1".into(),
            reference: "busybox@sha256:2".into(),
            chain: Vec::new(),
            user: String::new(),
            process: ImageProcess {
                cmd: vec!["sh".into()],
                ..ImageProcess::default()
            },
            stop_signal: String::new(),
            volumes: Vec::new(),
            _hold: Box::new(()),
        })
    }
}
