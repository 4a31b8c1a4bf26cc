//! A private node: directories, a registry with a busybox image, and a daemon.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use kelson_client::{Client, Endpoint};
use kelson_cri::v1;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::image::Registry;

/// How long the daemon may take to come up, to end, and containers to do something.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// By how much this machine is slower than others: it may be emulated (`KELSON_TEST_SLOW`).
pub(crate) fn slowness() -> usize {
    let times = std::env::var("KELSON_TEST_SLOW").ok();
    times.and_then(|times| times.parse().ok()).unwrap_or(1)
}

/// A daemon with everything around it.
pub(crate) struct Node {
    dir: TempDir,
    daemon: Option<Child>,
    /// The registry that has `busybox`.
    pub(crate) registry: Registry,
    /// The connection to the daemon; made anew by [`Node::restart`].
    pub(crate) client: Client,
    name: String,
}

/// The program under test; `KELSON_TEST_PROGRAM` names another build of it.
pub(crate) fn program() -> PathBuf {
    std::env::var_os("KELSON_TEST_PROGRAM").map_or_else(
        || PathBuf::from(env!("CARGO_BIN_EXE_kelson")),
        PathBuf::from,
    )
}

impl Node {
    /// Starts the registry and the daemon.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let name = format!("kt{}-{number}", pid % 100_000);
        let dir = tempfile::Builder::new()
            .prefix(&format!("{name}-"))
            .tempdir()?;
        std::fs::write(
            dir.path().join("config.toml"),
            configuration(dir.path(), &name, &free_subnet(pid + number)?),
        )?;
        let registry = Registry::start().await?;
        let daemon = spawn(dir.path())?;
        let client = connect(dir.path()).await?;
        Ok(Self {
            dir,
            daemon: Some(daemon),
            registry,
            client,
            name,
        })
    }

    /// The node's directory.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where pods log.
    pub(crate) fn logs(&self) -> PathBuf {
        self.dir().join("logs")
    }

    /// The socket, as an endpoint.
    pub(crate) fn endpoint(&self) -> String {
        format!("unix://{}", socket(self.dir()).display())
    }

    /// A string that only this node's cgroup, bridge and directories have.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The daemon's process.
    pub(crate) fn daemon_pid(&self) -> anyhow::Result<u32> {
        self.daemon
            .as_ref()
            .and_then(Child::id)
            .context("the daemon does not run")
    }

    /// The slice of this node's pods when systemd makes cgroups, without `.slice`. A dash would mean
    /// a slice above it.
    pub(crate) fn slice(&self) -> String {
        self.name.replace('-', "_")
    }

    /// Starts the daemon again with systemd's cgroup driver; before any pod is made.
    pub(crate) async fn use_systemd(&mut self) -> anyhow::Result<()> {
        let path = self.dir().join("config.toml");
        let text = std::fs::read_to_string(&path)?;
        let old = format!("[cgroup]\nprefix = \"/{}\"\n", self.name);
        let new = format!(
            "[cgroup]\ndriver = \"systemd\"\nprefix = \"/{}\"\n",
            self.slice()
        );
        ensure!(text.contains(&old), "the configuration is another");
        std::fs::write(&path, text.replace(&old, &new))?;
        self.kill().await?;
        self.restart().await
    }

    /// Kills the daemon as a crash would.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        let mut daemon = self.daemon.take().context("the daemon does not run")?;
        daemon.kill().await.context("cannot kill the daemon")
    }

    /// Starts the daemon again.
    pub(crate) async fn restart(&mut self) -> anyhow::Result<()> {
        if let Some(mut killed) = self.daemon.take() {
            // Until it is gone its lock and its socket are there.
            killed
                .wait()
                .await
                .context("cannot wait for the killed daemon")?;
        }
        self.daemon = Some(spawn(self.dir())?);
        self.client = connect(self.dir()).await?;
        Ok(())
    }

    /// The last lines of the daemon's log.
    pub(crate) fn log(&self) -> String {
        let text = std::fs::read_to_string(self.dir().join("daemon.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Pulls the busybox image; its reference.
    pub(crate) async fn busybox(&self) -> anyhow::Result<String> {
        self.pull("busybox").await
    }

    /// Pulls an image of the registry by its name without a tag; its reference.
    pub(crate) async fn pull(&self, name: &str) -> anyhow::Result<String> {
        let image = self.registry.reference(&format!("{name}:latest"));
        let spec = v1::ImageSpec {
            image: image.clone(),
            ..Default::default()
        };
        let request = v1::PullImageRequest {
            image: Some(spec),
            ..Default::default()
        };
        self.client.pull_image(request).await?;
        Ok(image)
    }

    /// Makes a pod.
    pub(crate) async fn run_pod(&self, config: &v1::PodSandboxConfig) -> anyhow::Result<String> {
        let request = v1::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        };
        Ok(self.client.run_pod_sandbox(request).await?.pod_sandbox_id)
    }

    /// Makes a container without starting it.
    pub(crate) async fn create(
        &self,
        pod: &str,
        pod_config: &v1::PodSandboxConfig,
        config: v1::ContainerConfig,
    ) -> anyhow::Result<String> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: Some(pod_config.clone()),
        };
        Ok(self.client.create_container(request).await?.container_id)
    }

    /// Starts a container.
    pub(crate) async fn start_container(&self, id: &str) -> anyhow::Result<()> {
        self.client
            .start_container(v1::StartContainerRequest {
                container_id: id.to_owned(),
            })
            .await?;
        Ok(())
    }

    /// Makes a pod with one started container; both ids.
    pub(crate) async fn run(
        &self,
        pod_config: &v1::PodSandboxConfig,
        config: v1::ContainerConfig,
    ) -> anyhow::Result<(String, String)> {
        let pod = self.run_pod(pod_config).await?;
        let container = self.create(&pod, pod_config, config).await?;
        self.start_container(&container).await?;
        Ok((pod, container))
    }

    /// A container's status.
    pub(crate) async fn status(&self, container: &str) -> anyhow::Result<v1::ContainerStatus> {
        let request = v1::ContainerStatusRequest {
            container_id: container.to_owned(),
            verbose: false,
        };
        self.client
            .container_status(request)
            .await?
            .status
            .context("a status without a status")
    }

    /// A pod's status.
    pub(crate) async fn pod_status(&self, pod: &str) -> anyhow::Result<v1::PodSandboxStatus> {
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: pod.to_owned(),
            verbose: false,
        };
        self.client
            .pod_sandbox_status(request)
            .await?
            .status
            .context("a status without a status")
    }

    /// The process of a pod's shim.
    pub(crate) async fn shim_pid(&self, pod: &str) -> anyhow::Result<u32> {
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: pod.to_owned(),
            verbose: true,
        };
        let info = self.client.pod_sandbox_status(request).await?.info;
        let info: serde_json::Value = serde_json::from_str(&info["info"])?;
        let pid = info["pid"].as_u64().context("the shim has no pid")?;
        Ok(u32::try_from(pid)?)
    }

    /// Waits until a container has exited; its status.
    pub(crate) async fn exited(&self, container: &str) -> anyhow::Result<v1::ContainerStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status(container).await?;
            if status.state() == v1::ContainerState::ContainerExited {
                return Ok(status);
            }
            ensure!(
                Instant::now() < deadline,
                "container {container} does not exit: {status:?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Runs a shell command in a container.
    pub(crate) async fn exec(
        &self,
        container: &str,
        script: &str,
    ) -> anyhow::Result<v1::ExecSyncResponse> {
        let request = v1::ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: ["/bin/sh", "-c", script].map(str::to_owned).into(),
            timeout: 20,
        };
        Ok(self.client.exec_sync(request).await?)
    }

    /// As `exec`; the trimmed output of a command that must succeed.
    pub(crate) async fn output(&self, container: &str, script: &str) -> anyhow::Result<String> {
        let answer = self.exec(container, script).await?;
        let stdout = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
        if answer.exit_code != 0 {
            let stderr = String::from_utf8_lossy(&answer.stderr);
            bail!(
                "{script:?} ended with {}: {stdout} {stderr}",
                answer.exit_code
            );
        }
        Ok(stdout)
    }

    /// Runs a container to its end and returns its log without prefixes, with its status.
    pub(crate) async fn run_to_end(
        &self,
        config: v1::ContainerConfig,
    ) -> anyhow::Result<(String, v1::ContainerStatus)> {
        let (_, container) = self.run(&crate::pod::pod(&self.logs()), config).await?;
        let status = self.exited(&container).await?;
        let text = std::fs::read_to_string(&status.log_path)
            .with_context(|| format!("cannot read the log {:?}", status.log_path))?;
        let lines = text
            .lines()
            .map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default());
        Ok((lines.collect::<Vec<_>>().join("\n"), status))
    }

    /// Removes a pod.
    pub(crate) async fn remove_pod(&self, pod: &str) -> anyhow::Result<()> {
        let request = v1::RemovePodSandboxRequest {
            pod_sandbox_id: pod.to_owned(),
        };
        self.client.remove_pod_sandbox(request).await?;
        Ok(())
    }

    /// Removes every pod, ends the daemon and looks for what is left; an error if there is any.
    pub(crate) async fn end(&mut self) -> anyhow::Result<()> {
        if self.daemon.is_none() {
            self.restart().await?;
        }
        let list = self
            .client
            .list_pod_sandbox(v1::ListPodSandboxRequest::default())
            .await?;
        for pod in list.items {
            self.remove_pod(&pod.id).await?;
        }
        let mut daemon = self.daemon.take().context("the daemon does not run")?;
        let pid = daemon.id().and_then(|id| i32::try_from(id).ok());
        let pid = pid
            .and_then(rustix::process::Pid::from_raw)
            .context("the daemon has no pid")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = tokio::time::timeout(PATIENCE, daemon.wait())
            .await
            .context("the daemon does not end")??;
        ensure!(status.success(), "the daemon failed at its end ({status})");
        remove_bridge(&self.name).await;
        let left = self.left();
        ensure!(left.is_empty(), "left behind: {left:?}");
        Ok(())
    }

    /// What is left of this node's pods: processes, mounts, cgroups, interfaces, addresses.
    fn left(&self) -> BTreeSet<String> {
        let deadline = Instant::now() + Duration::from_secs(3);
        loop {
            let left = self.leftovers();
            if left.is_empty() || Instant::now() > deadline {
                return left;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether the cgroups of a process, as proc shows them, are this node's.
    fn is_ours(&self, cgroups: &str) -> bool {
        cgroups.contains(&format!("/{}/", self.name))
            || cgroups.contains(&format!("/{}.slice/", self.slice()))
    }

    fn leftovers(&self) -> BTreeSet<String> {
        let mut left = BTreeSet::new();
        let dir = self.dir().display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        left.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&dir))
                .map(str::to_owned),
        );
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let cgroup = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            let command = command(&entry.path());
            if self.is_ours(&cgroup) || command.contains(&dir) {
                left.insert(format!("process {} {command}", entry.path().display()));
            }
        }
        cgroups(Path::new("/sys/fs/cgroup"), &self.name, 0, &mut left);
        let slice = format!("{}.slice", self.slice());
        cgroups(Path::new("/sys/fs/cgroup"), &slice, 0, &mut left);
        for entry in std::fs::read_dir(self.dir().join("netns"))
            .into_iter()
            .flatten()
            .flatten()
        {
            left.insert(format!("namespace {}", entry.path().display()));
        }
        let ipam = self.dir().join("ipam");
        for network in std::fs::read_dir(ipam).into_iter().flatten().flatten() {
            for entry in std::fs::read_dir(network.path())
                .into_iter()
                .flatten()
                .flatten()
            {
                let name = entry.file_name().display().to_string();
                if name.parse::<std::net::IpAddr>().is_ok() {
                    left.insert(format!("address {name}"));
                }
            }
        }
        for folder in ["run/pods", "root/containers", "root/cni", "root/staging"] {
            for entry in std::fs::read_dir(self.dir().join(folder))
                .into_iter()
                .flatten()
                .flatten()
            {
                left.insert(format!("{}", entry.path().display()));
            }
        }
        left
    }
}

impl Drop for Node {
    /// A case that failed half-way still leaves nothing: everything of this node is killed by name.
    fn drop(&mut self) {
        if let Some(daemon) = self.daemon.as_mut() {
            // It may be gone already.
            let _ = daemon.start_kill();
        }
        let dir = self.dir().display().to_string();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let cgroup = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            let ours = self.is_ours(&cgroup) || command(&entry.path()).contains(&dir);
            let pid = entry.file_name().to_str().and_then(|pid| pid.parse().ok());
            if let (true, Some(pid)) = (ours, pid.and_then(rustix::process::Pid::from_raw)) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for target in mounts.lines().filter_map(|line| line.split(' ').nth(4)) {
            if Path::new(target).starts_with(self.dir()) {
                let _ = rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH);
            }
        }
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            remove_cgroups(&hierarchy.path().join(&self.name));
        }
        remove_cgroups(&Path::new("/sys/fs/cgroup").join(&self.name));
        let slice = format!("{}.slice", self.slice());
        if Path::new("/run/systemd/system").exists() {
            let _ = std::process::Command::new("systemctl")
                .args(["stop", &slice])
                .output();
        }
        let _ = std::process::Command::new("ip")
            .args(["link", "del", &self.name])
            .output();
        let table = ["delete", "table", "inet", &self.name];
        let _ = std::process::Command::new("nft").args(table).output();
    }
}

/// Removes a cgroup with those beneath it; what still has a process stays.
fn remove_cgroups(group: &Path) {
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(group);
}

/// The command line of a process; shims have their daemon's state directory in it.
fn command(process: &Path) -> String {
    let command = std::fs::read(process.join("cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&command).replace('\0', " ")
}

fn cgroups(folder: &Path, name: &str, depth: usize, left: &mut BTreeSet<String>) {
    if depth > 3 {
        return;
    }
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name().to_str() == Some(name) {
            // The node's own prefix may stay while the daemon lives; its content may not.
            for child in std::fs::read_dir(entry.path())
                .into_iter()
                .flatten()
                .flatten()
            {
                if child.file_type().is_ok_and(|kind| kind.is_dir()) {
                    left.insert(format!("cgroup {}", child.path().display()));
                }
            }
            let _ = std::fs::remove_dir(entry.path());
        } else {
            cgroups(&entry.path(), name, depth + 1, left);
        }
    }
}

async fn remove_bridge(name: &str) {
    for arguments in [["link", "del", name].as_slice()] {
        let _ = Command::new("ip").args(arguments).output().await;
    }
    for family in ["inet", "ip", "ip6"] {
        let _ = Command::new("nft")
            .args(["delete", "table", family, name])
            .output()
            .await;
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("run/kelson.sock")
}

fn spawn(dir: &Path) -> anyhow::Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.join("daemon.log"))?;
    Command::new(program())
        .args(["serve", "--config"])
        .arg(dir.join("config.toml"))
        .env(
            "KELSON_LOG",
            "debug,h2=info,hyper=info,tonic=info,tower=info",
        )
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", program().display()))
}

async fn connect(dir: &Path) -> anyhow::Result<Client> {
    let endpoint = Endpoint::parse(
        &format!("unix://{}", socket(dir).display()),
        "its own directory",
    )?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Client::connect(&endpoint).await {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() > deadline => {
                let log = std::fs::read_to_string(dir.join("daemon.log")).unwrap_or_default();
                return Err(anyhow::Error::from(error).context(log));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// A subnet out of a range for tests that no route of this machine leads to: another run may have
/// taken some.
fn free_subnet(first: u32) -> anyhow::Result<String> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let routes = std::fs::read_to_string("/proc/net/route")?;
    for _ in 0..254 {
        let third = (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 254 + 1;
        let wanted = u32::from_ne_bytes([198, 18, third as u8, 0]);
        let taken = routes.lines().skip(1).any(|line| {
            let to = line.split_whitespace().nth(1).unwrap_or_default();
            u32::from_str_radix(to, 16) == Ok(wanted)
        });
        if !taken {
            return Ok(format!("198.18.{third}.0/24"));
        }
    }
    bail!("every subnet of 198.18.0.0/16 is taken; remove unused bridges")
}

fn configuration(dir: &Path, name: &str, subnet: &str) -> String {
    let dir = dir.display();
    format!(
        "[daemon]\nroot = \"{dir}/root\"\nstate = \"{dir}/run\"\n\
         [cri]\nsocket = \"{dir}/run/kelson.sock\"\n\
         [cgroup]\nprefix = \"/{name}\"\n\
         [container]\ncdi_dirs = [\"{dir}/cdi\", \"{dir}/cdi-run\"]\n\
         [network]\nconf_dir = \"{dir}/net.d\"\nipam_dir = \"{dir}/ipam\"\nnetns_dir = \"{dir}/netns\"\nfallback = \"bridge\"\n\
         fallback_bridge = \"{name}\"\nfallback_subnet = \"{subnet}\"\nnft_table = \"{name}\"\n\
         [image]\ncerts_dir = \"{dir}/certs.d\"\nsync = false\n"
    )
}
