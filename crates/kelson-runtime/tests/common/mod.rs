//! A small world for tests that launch real containers: a root with busybox, a runtime
//! specification to change, a cgroup, and their removal.
//!
//! Launching is for single-threaded callers, and a test runner has threads: every test runs in a
//! process of its own in which nothing else happens, see [`alone`].

#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "these are tests")]

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kelson_cgroup::{Cgroup, Hierarchy};
use kelson_runtime::{
    Event, Exec, Launch, LaunchError, Launched, Options, Rootfs, Stdio, StepError, exec, launch,
    seccomp,
};
use rustix::process::{WaitId, WaitIdOptions, WaitOptions, waitpid};
use serde_json::{Value, json};

const BUSYBOX: &str = "/bin/busybox";

/// Set in the process of its own that [`alone`] makes.
const ALONE: &str = "KELSON_TEST_ALONE";

/// Runs a test in a process in which no other thread does anything: this test program again, with
/// this test only. Skips it where it cannot run.
pub(crate) fn alone(test: impl FnOnce()) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    if !Path::new(BUSYBOX).exists() {
        eprintln!("skipped: needs {BUSYBOX} (Debian package busybox-static)");
        return;
    }
    let name = std::thread::current().name().unwrap_or("main").to_owned();
    if name == "main" || std::env::var_os(ALONE).is_some() {
        return test();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([&name, "--exact", "--nocapture", "--test-threads=1"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

/// A container to be.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) spec: Value,
    pub(crate) rootfs: Rootfs,
    pub(crate) cgroup: Cgroup,
    pub(crate) seccomp: Option<seccomp::Program>,
}

/// How a process ended, and what it wrote.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) notes: Vec<String>,
}

/// A process that runs.
pub(crate) struct Running {
    pub(crate) launched: Launched,
    pub(crate) notes: Vec<String>,
    pub(crate) terminal: Option<OwnedFd>,
    out: Option<(File, File)>,
}

impl World {
    /// A world whose container runs `script` in busybox's shell.
    pub(crate) fn new(script: &str) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fill(&root);
        let name = format!(
            "/kelson-runtime-test-{}-{}",
            std::process::id(),
            COUNTER.fetch_add(1, Ordering::Relaxed)
        );
        let hierarchy = Hierarchy::detect().unwrap();
        Self {
            spec: spec(script),
            rootfs: Rootfs::Path(root),
            cgroup: Cgroup::new(&hierarchy, &name).unwrap(),
            seccomp: None,
            dir,
        }
    }

    /// The directory that is the container's root.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Runs to the end.
    pub(crate) fn run(&self) -> Finished {
        self.start().unwrap().finish()
    }

    /// Runs and expects a failure before the program.
    pub(crate) fn fail(&self) -> StepError {
        match self.start() {
            Err(LaunchError::Step(error)) => error,
            Err(error) => panic!("another error: {error:?}"),
            Ok(running) => panic!("it started: {:?}", running.finish()),
        }
    }

    /// Starts with pipes.
    pub(crate) fn start(&self) -> Result<Running, LaunchError> {
        let (stdio, out) = pipes();
        self.start_with(stdio, Some(out), Options::default())
    }

    /// Starts with a terminal.
    pub(crate) fn start_with_terminal(&self) -> Result<Running, LaunchError> {
        self.start_with(Stdio::Terminal, None, Options::default())
    }

    pub(crate) fn start_with(
        &self,
        stdio: Stdio,
        out: Option<(File, File)>,
        options: Options,
    ) -> Result<Running, LaunchError> {
        let spec = serde_json::from_value(self.spec.clone()).unwrap();
        let launched = launch(Launch {
            spec: &spec,
            user_namespace: None,
            rootfs: &self.rootfs,
            cgroup: &self.cgroup,
            stdio,
            seccomp: self.seccomp.as_ref(),
            options,
        })?;
        Running::until_executed(launched, out)
    }

    /// Starts a further process that runs `script`.
    pub(crate) fn exec(&self, init: &Running, changes: Value) -> Result<Running, LaunchError> {
        let (stdio, out) = pipes();
        self.exec_with(init, changes, stdio, Some(out))
    }

    pub(crate) fn exec_with(
        &self,
        init: &Running,
        changes: Value,
        stdio: Stdio,
        out: Option<(File, File)>,
    ) -> Result<Running, LaunchError> {
        let mut process = self.spec["process"].clone();
        merge(&mut process, &changes);
        let process = serde_json::from_value(process).unwrap();
        let launched = exec(Exec {
            init: init.launched.pidfd.as_fd(),
            process: &process,
            cgroup: &self.cgroup,
            stdio,
            seccomp: self.seccomp.as_ref(),
            options: Options::default(),
        })?;
        Running::until_executed(launched, out)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.cgroup.kill(Duration::from_secs(10));
        while let Ok(Some(_)) = waitpid(None, WaitOptions::NOHANG) {}
        if self.cgroup.exists() {
            let removed = self.cgroup.remove();
            if !std::thread::panicking() {
                removed.unwrap();
            }
        }
    }
}

impl Running {
    fn until_executed(launched: Launched, out: Option<(File, File)>) -> Result<Self, LaunchError> {
        let mut running = Self {
            launched,
            notes: Vec::new(),
            terminal: None,
            out,
        };
        let deadline = Some(Instant::now() + Duration::from_secs(20));
        loop {
            match running.launched.progress.wait(deadline)? {
                Event::Note(text) => running.notes.push(text),
                Event::Terminal(master) => running.terminal = Some(master),
                Event::Process { pid, pidfd } => {
                    assert_eq!(running.wait(), 0);
                    (running.launched.pid, running.launched.pidfd) = (pid, pidfd);
                }
                Event::HooksDue => running.launched.progress.resume()?,
                Event::Waiting | Event::Executed => return Ok(running),
                Event::Failed(error) => {
                    running.wait();
                    return Err(error.into());
                }
            }
        }
    }

    /// Waits for the end; a signal's number is added to 128.
    pub(crate) fn wait(&self) -> i32 {
        let id = WaitId::PidFd(self.launched.pidfd.as_fd());
        let status = rustix::process::waitid(id, WaitIdOptions::EXITED)
            .unwrap()
            .unwrap();
        status
            .exit_status()
            .unwrap_or_else(|| 128 + status.terminating_signal().unwrap())
    }

    /// The next line of its output.
    pub(crate) fn line(&mut self) -> String {
        let mut line = Vec::new();
        let (out, _) = self.out.as_mut().unwrap();
        let mut byte = [0];
        while out.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    pub(crate) fn finish(mut self) -> Finished {
        let (mut out, mut err) = (String::new(), String::new());
        if let Some((mut stdout, mut stderr)) = self.out.take() {
            stdout.read_to_string(&mut out).unwrap();
            stderr.read_to_string(&mut err).unwrap();
        }
        Finished {
            code: self.wait(),
            out,
            err,
            notes: std::mem::take(&mut self.notes),
        }
    }
}

/// Changes `value` by the members of `changes`.
pub(crate) fn merge(value: &mut Value, changes: &Value) {
    match (value, changes) {
        (Value::Object(value), Value::Object(changes)) => {
            for (key, change) in changes {
                merge(value.entry(key.clone()).or_insert(Value::Null), change);
            }
        }
        (value, change) => *value = change.clone(),
    }
}

/// `process.args` for a shell script.
pub(crate) fn sh(script: &str) -> Value {
    json!(["/bin/sh", "-c", script])
}

pub(crate) fn pipes() -> (Stdio, (File, File)) {
    let flags = rustix::pipe::PipeFlags::CLOEXEC;
    let (out_read, stdout) = rustix::pipe::pipe_with(flags).unwrap();
    let (err_read, stderr) = rustix::pipe::pipe_with(flags).unwrap();
    let stdin = File::open("/dev/null").unwrap().into();
    (
        Stdio::Files {
            stdin,
            stdout,
            stderr,
        },
        (out_read.into(), err_read.into()),
    )
}

/// Puts busybox and links to it into `root`.
pub(crate) fn fill(root: &Path) {
    std::fs::create_dir_all(root.join("bin")).unwrap();
    std::fs::create_dir_all(root.join("etc")).unwrap();
    std::fs::create_dir_all(root.join("tmp")).unwrap();
    std::fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
    for applet in [
        "sh", "cat", "ls", "id", "true", "false", "sleep", "mount", "hostname", "stat", "readlink",
        "grep", "head", "dd", "mknod", "touch", "tty", "stty", "echo", "mkdir", "ps", "kill",
        "pwd", "umask", "find", "wc", "chmod", "ln", "rm",
    ] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
}

/// A specification as engines make it, with namespaces of its own.
fn spec(script: &str) -> Value {
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_NET_BIND_SERVICE",
        "CAP_SETGID",
        "CAP_SETUID"
    ]);
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "root"},
        "hostname": "box",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": sh(script),
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        ],
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"},
                {"type": "network"}, {"type": "cgroup"},
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware", "/proc/acpi",
                "/proc/nothing"],
            "readonlyPaths": ["/proc/sys", "/proc/irq", "/proc/bus"],
            "resources": {},
        },
    })
}
