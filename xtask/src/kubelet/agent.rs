//! The kubelet: its configuration, its process, and what its HTTPS server answers.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::node::Node;

/// How long the kubelet may take to come up, and to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the node is called.
pub(crate) const HOSTNAME: &str = "beam";
/// What pods get as name server, by the kubelet's configuration; nobody asks it.
pub(crate) const NAME_SERVER: &str = "198.18.255.53";
/// What pods get as domain of the cluster.
pub(crate) const DOMAIN: &str = "kelson.test";
/// Prepares the mount namespace of the kubelet.
const SCRIPT: &str = include_str!("agent.sh");

/// Which feature gates are changed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Gates {
    Default,
    /// Container events instead of polling, and all statistics and metrics from the runtime.
    FromRuntime,
}

/// A kubelet without a cluster.
pub(crate) struct Agent {
    program: PathBuf,
    dir: PathBuf,
    name: String,
    endpoint: String,
    port: u16,
    process: Child,
}

impl Agent {
    /// Starts `program` below `dir` on `node`'s runtime.
    pub(crate) fn start(program: &Path, dir: &Path, node: &Node, gates: Gates) -> Result<Self> {
        let name = node.name().to_owned();
        for folder in ["kubelet", "manifests", "pod-logs", "plugins"] {
            // Containers of any user pass through it.
            std::fs::DirBuilder::new()
                .mode(0o755)
                .create(dir.join(folder))
                .with_context(|| format!("cannot make {folder}"))?;
        }
        std::fs::write(dir.join("resolv.conf"), "nameserver 198.18.255.54\n")
            .context("cannot write resolv.conf")?;
        share(&dir.join("kubelet"))?;
        certificate(dir)?;
        for hierarchy in hierarchies()? {
            let path = hierarchy.join(format!("{name}-pods"));
            std::fs::create_dir(&path)
                .with_context(|| format!("cannot make {}", path.display()))?;
        }
        let port = free_port()?;
        let endpoint = node.endpoint();
        configure(dir, &name, &endpoint, port, gates)?;
        let mut agent = Self {
            process: spawn(program, dir, &name)?,
            program: program.to_owned(),
            dir: dir.to_owned(),
            name,
            endpoint,
            port,
        };
        agent.wait_until_ready()?;
        Ok(agent)
    }

    /// Ends the kubelet and starts it again; pods stay.
    pub(crate) fn restart(&mut self, gates: Gates) -> Result<()> {
        self.end()?;
        configure(&self.dir, &self.name, &self.endpoint, self.port, gates)?;
        self.process = spawn(&self.program, &self.dir, &self.name)?;
        self.wait_until_ready()
    }

    /// Ends the kubelet; pods stay.
    pub(crate) fn end(&mut self) -> Result<()> {
        let pid = i32::try_from(self.process.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("the kubelet has no pid")?;
        kill_process(pid, Signal::TERM).context("cannot end the kubelet")?;
        let begin = Instant::now();
        while self
            .process
            .try_wait()
            .context("cannot watch the kubelet")?
            .is_none()
        {
            ensure!(begin.elapsed() < PATIENCE, "the kubelet does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let begin = Instant::now();
        while self.get("/pods").is_err() {
            if let Some(status) = self
                .process
                .try_wait()
                .context("cannot watch the kubelet")?
            {
                bail!("the kubelet ended ({status}):\n{}", self.last_lines());
            }
            if begin.elapsed() > PATIENCE {
                bail!("the kubelet does not answer:\n{}", self.last_lines());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The end of its log.
    pub(crate) fn last_lines(&self) -> String {
        let text = std::fs::read_to_string(self.dir.join("kubelet.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Where it serves HTTPS.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The certificate that it serves with.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.dir.join("kubelet.crt")
    }

    /// What it answers to GET `path`; an error if the answer is one.
    pub(crate) fn get(&self, path: &str) -> Result<String> {
        self.ask("GET", path)
    }

    /// As [`Self::get`], as JSON.
    pub(crate) fn json(&self, path: &str) -> Result<Value> {
        let text = self.get(path)?;
        serde_json::from_str(&text).with_context(|| format!("{path} gives no JSON: {text}"))
    }

    /// As [`Self::get`], with POST.
    pub(crate) fn post(&self, path: &str) -> Result<String> {
        self.ask("POST", path)
    }

    fn ask(&self, method: &str, path: &str) -> Result<String> {
        let output = Command::new("curl")
            .args([
                "--silent",
                "--show-error",
                "--max-time",
                "30",
                "--request",
                method,
            ])
            .args(["--write-out", "\n%{http_code}", "--cacert"])
            .arg(self.certificate())
            .arg(format!("https://127.0.0.1:{}{path}", self.port))
            .output()
            .context("cannot run curl")?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            bail!("{method} {path} failed: {}", text.trim());
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let (body, code) = text.rsplit_once('\n').unwrap_or_default();
        ensure!(
            code == "200",
            "{method} {path} answers {code}: {}",
            body.trim()
        );
        Ok(body.to_owned())
    }
}

impl Drop for Agent {
    /// What may be left; each may be gone already, which is fine.
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        for hierarchy in hierarchies().unwrap_or_default() {
            remove_cgroups(&hierarchy.join(format!("{}-pods", self.name)));
        }
        let root = self.dir.join("kubelet");
        let _ = Command::new("umount")
            .args(["--recursive"])
            .arg(root)
            .output();
    }
}

/// The directory as a mount of its own whose mounts are seen in other mount namespaces.
fn share(folder: &Path) -> Result<()> {
    for options in [&["--bind"][..], &["--make-private"], &["--make-shared"]] {
        let mut command = Command::new("mount");
        command.args(options).arg(folder);
        if options == ["--bind"] {
            command.arg(folder);
        }
        let output = command.output().context("cannot run mount")?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "cannot share a mount: {}",
            text.trim()
        );
    }
    Ok(())
}

/// A certificate for loopback, which is its own authority.
fn certificate(dir: &Path) -> Result<()> {
    let output = Command::new("openssl")
        .current_dir(dir)
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
        ])
        .args([
            "-nodes",
            "-keyout",
            "kubelet.key",
            "-out",
            "kubelet.crt",
            "-days",
            "2",
        ])
        .args([
            "-subj",
            "/CN=kubelet",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .output()
        .context("cannot run openssl; install it")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "no certificate: {}", text.trim());
    Ok(())
}

fn configure(dir: &Path, name: &str, endpoint: &str, port: u16, gates: Gates) -> Result<()> {
    let from_runtime = gates == Gates::FromRuntime;
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "127.0.0.1",
        "port": port,
        "readOnlyPort": 0,
        "healthzPort": 0,
        "tlsCertFile": dir.join("kubelet.crt"),
        "tlsPrivateKeyFile": dir.join("kubelet.key"),
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        "containerRuntimeEndpoint": endpoint,
        "staticPodPath": dir.join("manifests"),
        "podLogsDir": dir.join("pod-logs"),
        "volumePluginDir": dir.join("plugins"),
        "resolvConf": dir.join("resolv.conf"),
        "clusterDNS": [NAME_SERVER],
        "clusterDomain": DOMAIN,
        "cgroupRoot": format!("/{name}-pods"),
        "failCgroupV1": false,
        "enforceNodeAllocatable": [],
        "oomScoreAdj": 0,
        "podPidsLimit": 200,
        "seccompDefault": true,
        "makeIPTablesUtilChains": false,
        "serializeImagePulls": false,
        "fileCheckFrequency": "1s",
        "syncFrequency": "5s",
        "crashLoopBackOff": { "maxContainerRestartPeriod": "3s" },
        // The machine's disk is not this run's business.
        "evictionHard": { "memory.available": "0%", "nodefs.available": "0%",
            "nodefs.inodesFree": "0%", "imagefs.available": "0%", "imagefs.inodesFree": "0%" },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "featureGates": {
            "EventedPLEG": from_runtime,
            "PodAndContainerStatsFromCRI": from_runtime,
        },
    });
    std::fs::write(dir.join("kubelet.json"), config.to_string())
        .context("cannot configure the kubelet")
}

/// Starts the kubelet; its log goes on where an earlier one's ended.
fn spawn(program: &Path, dir: &Path, name: &str) -> Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.join("kubelet.log"))
        .context("cannot make the kubelet's log")?;
    Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "unchanged",
            "sh",
            "-c",
            SCRIPT,
            name,
        ])
        .arg(program)
        .arg(format!("--config={}", dir.join("kubelet.json").display()))
        .arg(format!("--root-dir={}", dir.join("kubelet").display()))
        .arg(format!("--cert-dir={}", dir.join("kubelet/pki").display()))
        .arg(format!("--hostname-override={HOSTNAME}"))
        .arg("--v=4")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        // A signal to this command's group is not for it: it is needed to clean up.
        .process_group(0)
        .spawn()
        .context("cannot run unshare; install util-linux")
}

/// The roots of the cgroup hierarchies: one on version 2, several on version 1.
pub(crate) fn hierarchies() -> Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/mounts").context("cannot read the mounts")?;
    let mounts = table
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    Ok(mounts
        .filter(|fields| fields.len() > 2 && fields[2].starts_with("cgroup"))
        .map(|fields| PathBuf::from(fields[1]))
        .filter(|path| path.starts_with("/sys/fs/cgroup"))
        .collect())
}

/// Removes a cgroup and those in it, as far as they are empty.
fn remove_cgroups(path: &Path) {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(path);
}

/// A port of loopback that nobody uses now.
pub(crate) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no free port")?;
    Ok(listener.local_addr().context("no free port")?.port())
}
