//! OCI runtimes alone, by runc's command line: create, start, exit and delete of a container that runs `true`.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};
use serde_json::{Value, json};

use super::report::{Better, Contender, Report};
use super::samples::{Step, Steps};
use super::{Bench, images};

/// How long a container may run.
const PATIENCE: Timespec = Timespec {
    tv_sec: 30,
    tv_nsec: 0,
};
/// Rounds that are not counted: they load programs.
const WARM_UP: u32 = 2;

/// An OCI runtime and where it keeps its things in this run.
#[derive(Debug, Clone)]
struct Runtime {
    name: String,
    program: Vec<String>,
    /// Holds its state, and its bundles by round.
    directory: PathBuf,
    rootfs: PathBuf,
    cgroup: String,
}

pub(super) async fn run(bench: &Arc<Bench>) -> Result<Report> {
    // Else the containers' processes would have to be waited for by somebody else.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .context("adopt the processes of containers")?;
    let rootfs = bench.directory.join("rootfs");
    let made = {
        let rootfs = rootfs.clone();
        tokio::task::spawn_blocking(move || make_rootfs(&rootfs))
    };
    made.await.context("making the root was cut off")??;
    let mut runtimes = Vec::new();
    for (number, program) in bench.args.runtimes.iter().enumerate() {
        runtimes.push(Runtime::new(bench, number, program, &rootfs)?);
    }
    let contenders = runtimes.iter().map(Runtime::contender);
    let mut report = Report::new(&bench.directory, contenders.collect());
    report.section("OCI runtimes alone");
    let mut steps = Steps::new(runtimes.len());
    let mut failed = vec![false; runtimes.len()];
    let rounds = bench.args.rounds + WARM_UP;
    for round in 0..rounds {
        bench.progress(&format!("runtimes: round {} of {rounds}", round + 1));
        for turn in 0..runtimes.len() {
            let index = (turn + round as usize) % runtimes.len();
            if failed[index] {
                continue;
            }
            let (runtime, busy) = (runtimes[index].clone(), Arc::clone(&bench.busy));
            let lived = tokio::task::spawn_blocking(move || {
                let _busy = busy.lock().unwrap_or_else(PoisonError::into_inner);
                runtime.one_life(round)
            });
            match lived.await.context("a round was cut off")? {
                Ok(times) if round >= WARM_UP => steps.add(index, times),
                Ok(_) => {}
                Err(error) => {
                    failed[index] = true;
                    report.remark(&runtimes[index].name, "runtime", &error);
                }
            }
        }
    }
    for (step, values) in steps.summaries() {
        report.row(format!("runtime: {step}"), "ms", Better::Lower, values);
    }
    Ok(report)
}

fn make_rootfs(rootfs: &Path) -> Result<()> {
    std::fs::create_dir_all(rootfs).with_context(|| format!("make {}", rootfs.display()))?;
    let mut tar = Command::new("tar")
        .args(["-x", "-C"])
        .arg(rootfs)
        .stdin(Stdio::piped())
        .spawn()
        .context("run tar")?;
    let mut input = tar.stdin.take().context("tar has no input")?;
    let written = input.write_all(&images::programs()?.into_tar());
    drop(input);
    let status = tar.wait().context("wait for tar")?;
    if !status.success() {
        bail!("tar failed ({status})");
    }
    written.context("write to tar")
}

impl Runtime {
    fn new(bench: &Bench, number: usize, text: &str, rootfs: &Path) -> Result<Self> {
        let program: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        let first = program.first().context("--runtime names no program")?;
        let base = Path::new(first).file_name().unwrap_or_default();
        let mut name = base.to_string_lossy().into_owned();
        for word in &program[1..] {
            name.push(' ');
            name.push_str(word);
        }
        let directory = bench.directory.join(format!("runtime-{number}"));
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("make {}", directory.display()))?;
        Ok(Self {
            name,
            program,
            directory,
            rootfs: rootfs.to_owned(),
            cgroup: format!("/kelson-bench-{}/runtime-{number}", bench.id),
        })
    }

    fn contender(&self) -> Contender {
        let output = Command::new(&self.program[0])
            .args(&self.program[1..])
            .arg("--version")
            .stdin(Stdio::null())
            .output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let version = text.unwrap_or_default();
        Contender {
            name: self.name.clone(),
            version: version.lines().next().unwrap_or_default().to_owned(),
            place: self.program.join(" "),
        }
    }

    /// One container from beginning to end.
    fn one_life(&self, round: u32) -> Result<Vec<Step>> {
        let id = format!("bench-{}-{round}", std::process::id());
        let bundle = self.directory.join(format!("bundle-{round}"));
        std::fs::create_dir_all(&bundle).with_context(|| format!("make {}", bundle.display()))?;
        let cgroup = format!("{}-{round}", self.cgroup);
        let config = configuration(&self.rootfs, &cgroup).to_string();
        std::fs::write(bundle.join("config.json"), config).context("write config.json")?;
        let times = self.steps(&id, &bundle);
        if times.is_err() {
            // The first failure says more than one of the cleaning.
            let _ = self.call(&["delete", "--force", &id]);
        }
        times
    }

    fn steps(&self, id: &str, bundle: &Path) -> Result<Vec<Step>> {
        let pid_file = bundle.join("pid");
        let (bundle, pid_path) = (bundle.display().to_string(), pid_file.display().to_string());
        let begin = Instant::now();
        let mut steps = Vec::new();
        let mut last = begin;
        let mut lap = |name| {
            let now = Instant::now();
            steps.push((name, now - last));
            last = now;
        };
        self.call(&["create", "--bundle", &bundle, "--pid-file", &pid_path, id])?;
        lap("create");
        let pid = std::fs::read_to_string(&pid_file).context("read the pid file")?;
        let pid = pid.trim().parse().ok().and_then(Pid::from_raw);
        let pid = pid.context("the pid file holds no pid")?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .context("find the container's process")?;
        self.call(&["start", id])?;
        let mut poll = [PollFd::new(&pidfd, PollFlags::IN)];
        if rustix::event::poll(&mut poll, Some(&PATIENCE)).context("wait for the container")? == 0 {
            bail!("the container does not end");
        }
        lap("start, exit");
        let options = WaitIdOptions::EXITED;
        let ended = rustix::process::waitid(WaitId::Pid(pid), options).context("wait for it")?;
        let code = ended.and_then(|ended| ended.exit_status());
        self.call(&["delete", id])?;
        lap("delete");
        steps.push(("create, start, exit, delete", last - begin));
        if code != Some(0) {
            bail!("`true` ended with {code:?}");
        }
        Ok(steps)
    }

    fn call(&self, arguments: &[&str]) -> Result<()> {
        // The container inherits them, so they must be files: a pipe would be open until it ends.
        let path = self.directory.join("output");
        let log = File::create(&path).with_context(|| format!("make {}", path.display()))?;
        let status = Command::new(&self.program[0])
            .args(&self.program[1..])
            .arg("--root")
            .arg(self.directory.join("state"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            .status()
            .with_context(|| format!("run {}", self.program[0]))?;
        if !status.success() {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            bail!("{} failed ({status}): {}", arguments[0], text.trim());
        }
        Ok(())
    }
}

/// As `runc spec` makes it, but for the arguments, the root and the cgroup.
fn configuration(rootfs: &Path, cgroup: &str) -> Value {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let mount = |to: &str, kind: &str, from: &str, options: &[&str]| json!({ "destination": to, "type": kind, "source": from, "options": options });
    let plain = ["nosuid", "noexec", "nodev"];
    let pts = [
        "nosuid",
        "noexec",
        "newinstance",
        "ptmxmode=0666",
        "mode=0620",
        "gid=5",
    ];
    let shm = ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"];
    let namespaces = ["pid", "network", "ipc", "uts", "mount"].map(|kind| json!({ "type": kind }));
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["true"],
            "env": ["PATH=/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities
            },
            "noNewPrivileges": true,
        },
        "root": { "path": rootfs, "readonly": true },
        "hostname": "bench",
        "mounts": [
            mount("/proc", "proc", "proc", &[]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts", &pts),
            mount("/dev/shm", "tmpfs", "shm", &shm),
            mount("/dev/mqueue", "mqueue", "mqueue", &plain),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": namespaces,
            "maskedPaths": kelson_pod::config::DEFAULT_MASKED_PATHS,
            "readonlyPaths": kelson_pod::config::DEFAULT_READONLY_PATHS,
        },
    })
}
