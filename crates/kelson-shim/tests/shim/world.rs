//! What a test needs around it: a directory, a zygote, pods, and the proof that nothing is left.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use kelson_cgroup::{Cgroup, Hierarchy};
use kelson_shim::client::{ExecResult, Forked, Shim, ShimError, ShimEvent, ShimEvents, Zygote};
use kelson_shim::ids::{ContainerId, PodId};
use kelson_shim::proto::{
    ExecRequest, Exit, Namespace, PodNamespaces, PodSetup, Rootfs, StartRequest, Started,
    StdinPolicy, VERSION,
};
use libtest_mimic::Trial;

pub(crate) const SOON: Duration = Duration::from_secs(60);

/// A test with a world of its own.
pub(crate) fn trial<F, Fut>(name: &str, test: F) -> Trial
where
    F: FnOnce(World) -> Fut + Send + 'static,
    Fut: Future<Output = World>,
{
    Trial::test(name, move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let world = test(World::new()).await;
            world.assert_nothing_left().await;
        });
        Ok(())
    })
}

/// Directories, a zygote and the pods of one test.
pub(crate) struct World {
    dir: tempfile::TempDir,
    pub(crate) zygote: Option<Zygote>,
    cgroup: String,
    shims: Mutex<Vec<u32>>,
}

/// A pod of a test.
pub(crate) struct Pod {
    pub(crate) dir: PathBuf,
    pub(crate) shim: Shim,
    pub(crate) ready: kelson_shim::proto::Ready,
    pub(crate) events: ShimEvents,
    pub(crate) cgroup: String,
    pub(crate) logs: PathBuf,
}

impl World {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = tempfile::Builder::new()
            .prefix("kelson-shim-test")
            .tempdir()
            .unwrap();
        std::fs::create_dir(dir.path().join("pods")).unwrap();
        Self {
            dir,
            zygote: Some(
                Zygote::start(Path::new("/proc/self/exe"), Path::new("/run/kelson-test")).unwrap(),
            ),
            cgroup: format!("/kelson-shim-test-{}-{number}", std::process::id()),
            shims: Mutex::new(Vec::new()),
        }
    }

    pub(crate) fn setup(&self) -> PodSetup {
        let id = PodId::random().unwrap();
        PodSetup {
            version: VERSION,
            id,
            dir: self.dir.path().join("pods").join(id.as_str()),
            namespaces: PodNamespaces {
                network: Namespace::New,
                ipc: Namespace::New,
                uts: Namespace::New,
                pid: Namespace::Host,
            },
            hostname: Some("the-pod".to_owned()),
            sysctls: BTreeMap::new(),
            shm_size: Some(1 << 20),
            user: None,
        }
    }

    pub(crate) async fn try_pod(&self, setup: &PodSetup) -> Result<Pod, ShimError> {
        let Forked {
            shim,
            ready,
            events,
        } = self.zygote.as_ref().unwrap().fork_shim(setup, SOON).await?;
        self.shims.lock().unwrap().push(ready.pid);
        self.shims.lock().unwrap().extend(ready.init_pid);
        let logs = self
            .dir
            .path()
            .join(format!("logs-{}", &setup.id.as_str()[..8]));
        std::fs::create_dir(&logs).unwrap();
        Ok(Pod {
            dir: setup.dir.clone(),
            shim,
            ready,
            events,
            cgroup: format!("{}/{}", self.cgroup, &setup.id.as_str()[..8]),
            logs,
        })
    }

    pub(crate) async fn pod(&self) -> Pod {
        self.try_pod(&self.setup()).await.unwrap()
    }

    async fn assert_nothing_left(mut self) {
        self.zygote = None;
        let shims = std::mem::take(&mut *self.shims.lock().unwrap());
        for pid in &shims {
            wait_until(&format!("process {pid} is gone"), || !is_alive(*pid)).await;
        }
        let dir = self.dir.path().to_str().unwrap().to_owned();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&dir), "mounts are left");
        let hierarchy = Hierarchy::detect().unwrap();
        let cgroup = Cgroup::new(&hierarchy, &self.cgroup).unwrap();
        assert_eq!(
            cgroup.pids().unwrap(),
            Vec::<u32>::new(),
            "processes are left"
        );
        if let Ok(root) = std::fs::read_dir("/sys/fs/cgroup/freezer".to_owned() + &self.cgroup) {
            for pod in root.flatten().filter(|entry| entry.path().is_dir()) {
                let children = std::fs::read_dir(pod.path()).unwrap().flatten();
                let left: Vec<_> = children.filter(|c| c.path().is_dir()).collect();
                assert!(left.is_empty(), "cgroups are left: {left:?}");
            }
        }
        cgroup.remove().unwrap();
    }
}

impl Drop for World {
    /// After a failure, kills and unmounts what the test has left.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for pid in self.shims.lock().unwrap().iter() {
            let pid = rustix::process::Pid::from_raw((*pid).cast_signed()).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        if let Ok(cgroup) = Cgroup::new(&Hierarchy::detect().unwrap(), &self.cgroup) {
            let _ = cgroup.kill(Duration::from_secs(2));
            let _ = cgroup.remove();
        }
        for pod in std::fs::read_dir(self.dir.path().join("pods"))
            .unwrap()
            .flatten()
        {
            let shm = pod.path().join("shm");
            let _ = rustix::mount::unmount(shm, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

pub(crate) fn is_alive(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !status.is_empty() && !status.contains(") Z ")
}

pub(crate) async fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

impl Pod {
    /// A container that runs a shell script, or any program.
    pub(crate) fn request(&self, args: &[&str]) -> StartRequest {
        let id = ContainerId::random().unwrap();
        StartRequest {
            id,
            spec: spec(args),
            rootfs: Rootfs::Path(rootfs()),
            cgroup: format!("{}/{id}", self.cgroup),
            log: Some(self.logs.join(format!("{id}.log"))),
            seccomp: None,
            stdin: StdinPolicy::None,
            restore: None,
            timeout_ms: 10_000,
            pid_target: None,
        }
    }

    pub(crate) async fn start(&self, request: &StartRequest) -> Result<Started, ShimError> {
        self.shim.start(request.clone(), SOON).await
    }

    /// Starts a shell script.
    pub(crate) async fn sh(&self, script: &str) -> StartRequest {
        let request = self.request(&["sh", "-c", script]);
        self.start(&request).await.unwrap();
        request
    }

    /// Waits for a container's end.
    pub(crate) async fn exit(&mut self, id: ContainerId) -> Exit {
        let wait = async {
            loop {
                match self.events.next().await {
                    ShimEvent::Exited { container, exit } if container == id => return exit,
                    ShimEvent::Closed => panic!("the shim is gone"),
                    _ => {}
                }
            }
        };
        tokio::time::timeout(SOON, wait).await.unwrap()
    }

    pub(crate) fn exec_request(&self, id: ContainerId, args: &[&str]) -> ExecRequest {
        ExecRequest {
            container: id,
            process: spec(args).process().clone().unwrap(),
            seccomp: None,
            stdin: false,
            timeout_ms: None,
            detach: false,
        }
    }

    /// Runs a shell script in a container.
    pub(crate) async fn exec(&self, id: ContainerId, script: &str) -> ExecResult {
        let request = self.exec_request(id, &["sh", "-c", script]);
        self.shim
            .exec(request, SOON)
            .await
            .unwrap()
            .collect(1 << 20, SOON)
            .await
            .unwrap()
    }

    pub(crate) async fn shutdown(self) {
        self.shim.shutdown(SOON).await.unwrap();
    }
}

/// A runtime specification with the least that a shell needs.
pub(crate) fn spec(args: &[&str]) -> oci_spec::runtime::Spec {
    serde_json::from_value(serde_json::json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": ["PATH=/bin"],
            "cwd": "/",
        },
        "root": { "path": "rootfs" },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
            { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" },
        ],
        "linux": {
            "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "cgroup" }],
        },
    }))
    .unwrap()
}

static ROOTFS: OnceLock<tempfile::TempDir> = OnceLock::new();

/// Removes what all tests have shared.
pub(crate) fn remove_rootfs() {
    if let Some(dir) = ROOTFS.get() {
        std::fs::remove_dir_all(dir.path()).unwrap();
    }
}

/// The root of all containers: busybox and its names.
pub(crate) fn rootfs() -> PathBuf {
    let dir = ROOTFS.get_or_init(|| {
        let dir = tempfile::Builder::new()
            .prefix("kelson-shim-rootfs")
            .tempdir()
            .unwrap();
        for name in ["bin", "proc", "dev", "sys", "tmp"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let bin = dir.path().join("bin");
        std::fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
        for name in [
            "sh", "sleep", "cat", "true", "yes", "seq", "head", "dd", "setsid", "tty", "hostname",
            "mkdir", "tail", "kill", "echo", "df", "mount", "ps", "stty",
        ] {
            std::os::unix::fs::symlink("busybox", bin.join(name)).unwrap();
        }
        std::fs::write(bin.join("data"), "no program").unwrap();
        dir
    });
    dir.path().to_owned()
}
