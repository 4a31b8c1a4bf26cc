//! The two daemons of a run: Kelson and containerd, each with directories, a bridge and a cgroup for itself;
//! containerd also with a mount namespace in which its fixed places are its own.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kelson_cgroup::{Cgroup, Hierarchy};
use rustix::process::{Pid, Signal};

/// How long a daemon may take to come up, and to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where containerd's shims have their sockets, and CNI its results.
const FIXED: [&str; 2] = ["/run/containerd", "/var/lib/cni"];

/// A daemon that was started by its script, maybe several times.
pub(crate) struct Node {
    kind: Kind,
    /// Kelson's program, as a client.
    client: PathBuf,
    /// Name of its bridge, its network and its cgroup.
    name: String,
    dir: PathBuf,
    cgroup: Cgroup,
    /// Holds the mount namespace of containerd.
    anchor: Option<Child>,
}

/// What there is to start.
pub(crate) enum Kind {
    Kelson {
        program: PathBuf,
    },
    Containerd {
        /// Where containerd, its shim and runc are.
        tools: PathBuf,
        /// The image that its sandboxes run.
        pause: String,
    },
}

impl Node {
    /// Starts it below `dir`, with pods in `subnet`.
    pub(crate) fn start(kind: Kind, client: &Path, dir: &Path, subnet: &str) -> Result<Self> {
        let short = match &kind {
            Kind::Kelson { .. } => "k",
            Kind::Containerd { .. } => "c",
        };
        let name = format!("kb{short}{}", std::process::id() % 1_000_000);
        let dir = dir.join(short);
        fs::create_dir_all(dir.join("net.d")).context("make the directory of a daemon")?;
        let conflist = conflist(&name, subnet, &dir);
        fs::write(dir.join("net.d/10-bench.conflist"), conflist).context("write the conflist")?;
        let cgroup = Cgroup::new(&Hierarchy::detect()?, &format!("/{name}-daemon"))?;
        cgroup.create_group()?;
        let anchor = match &kind {
            Kind::Kelson { .. } => None,
            Kind::Containerd { .. } => Some(anchor()?),
        };
        let node = Self {
            kind,
            client: client.to_owned(),
            name,
            dir,
            cgroup,
            anchor,
        };
        node.write_script()?;
        let mut shell = Command::new("sh")
            .args(["-c", &node.start_command()])
            .stdin(Stdio::null())
            .spawn()
            .context("run sh")?;
        shell.wait().context("wait for sh")?;
        let begin = Instant::now();
        while UnixStream::connect(node.socket()).is_err() {
            if begin.elapsed() > PATIENCE {
                bail!("the daemon does not answer:\n{}", node.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(node)
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("run/cri.sock")
    }

    /// Starts the daemon in the background, for `sh -c`.
    pub(crate) fn start_command(&self) -> String {
        format!("setsid sh {} &", self.dir.join("start.sh").display())
    }

    /// The end of the daemon's log.
    pub(crate) fn log(&self) -> String {
        let text = fs::read_to_string(self.dir.join("daemon.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn write_script(&self) -> Result<()> {
        let dir = self.dir.display();
        let (config, text, command) = match &self.kind {
            Kind::Kelson { program } => (
                "config.toml",
                kelson_configuration(&self.dir, &self.name),
                format!(
                    "exec {} serve --config {dir}/config.toml",
                    program.display()
                ),
            ),
            Kind::Containerd { tools, pause } => (
                "containerd.toml",
                containerd_configuration(&self.dir, tools, pause),
                format!(
                    "export PATH={tools}:$PATH\n\
                     exec nsenter --mount --target {} {tools}/containerd --config {dir}/containerd.toml",
                    self.anchor.as_ref().map_or(0, Child::id),
                    tools = tools.display()
                ),
            ),
        };
        fs::write(self.dir.join(config), text).context("write the configuration")?;
        let mut script = String::new();
        for (_, directory) in self.cgroup.directories() {
            // Only what counts processor time: the rest would be one more difference from a real node.
            if counts_processor_time(&directory) {
                script.push_str(&format!("echo $$ > {}/cgroup.procs\n", directory.display()));
            }
        }
        script.push_str(&format!(
            "echo $$ > {dir}/pid\nexec >> {dir}/daemon.log 2>&1 < /dev/null\n"
        ));
        script.push_str(&command);
        script.push('\n');
        fs::write(self.dir.join("start.sh"), script).context("write the start script")
    }

    /// Removes the pods that a failed run has left.
    fn remove_pods(&self) -> Result<()> {
        let client = |arguments: &[&str]| {
            let mut command = Command::new(&self.client);
            command.arg("--runtime-endpoint").arg(self.socket());
            command.args(arguments).stdin(Stdio::null()).output()
        };
        let listed = client(&["pods", "--quiet"]).context("list the pods")?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let pods: Vec<&str> = listed.split_whitespace().collect();
        if !pods.is_empty() {
            client(&[&["rm", "--force"], pods.as_slice()].concat()).context("remove the pods")?;
        }
        Ok(())
    }

    /// Kills the daemon's shims: those in its cgroup; how many there were.
    fn kill_shims(&self) -> usize {
        let mut found = 0;
        for (_, directory) in self.cgroup.directories() {
            let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            for pid in text
                .lines()
                .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
            {
                found += 1;
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        found
    }

    fn end_daemon(&self) -> Result<()> {
        let text =
            fs::read_to_string(self.dir.join("pid")).context("read the pid of the daemon")?;
        let pid = text.trim().parse().ok().and_then(Pid::from_raw);
        let pid = pid.context("the daemon has no pid")?;
        // It may have ended by itself.
        let _ = rustix::process::kill_process(pid, Signal::TERM);
        let begin = Instant::now();
        let line =
            || fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        while !line().is_empty() {
            if begin.elapsed() > PATIENCE {
                bail!("the daemon does not end:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Node {
    /// Takes away all that the daemon and its pods may have left; each may be gone already, which is fine.
    fn drop(&mut self) {
        let _ = self.remove_pods();
        let _ = self.end_daemon();
        let mine = self.dir.display().to_string();
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.kill_shims() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.cgroup.remove();
        let pods = Cgroup::new(self.cgroup.hierarchy(), &self.name);
        let _ = pods.and_then(|pods| pods.remove());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for target in mounts
            .lines()
            .rev()
            .filter_map(|line| line.split(' ').nth(1))
        {
            if target.starts_with(&mine) {
                let _ = rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH);
            }
        }
        if let Some(mut anchor) = self.anchor.take() {
            let _ = anchor.kill();
            let _ = anchor.wait();
            // Only if nobody else has something in them.
            let _ = FIXED.map(fs::remove_dir);
        }
        let quiet = |program: &str, arguments: &[&str]| {
            let _ = Command::new(program).args(arguments).output();
        };
        quiet("ip", &["link", "del", &self.name]);
        quiet("nft", &["delete", "table", "inet", &self.name]);
    }
}

/// A process in a mount namespace of its own, where containerd's fixed places are empty; daemons that start
/// one after another find there what the earlier ones have left.
fn anchor() -> Result<Child> {
    for place in FIXED {
        fs::create_dir_all(place).with_context(|| format!("make {place}"))?;
    }
    let mounts = FIXED.map(|place| format!("mount -t tmpfs none {place} && "));
    let script = format!("{}exec sleep infinity", mounts.concat());
    let child = Command::new("unshare")
        .args(["--mount", "--propagation", "slave", "sh", "-c", &script])
        .stdin(Stdio::null())
        .spawn()
        .context("cannot run unshare; install util-linux")?;
    let comm = format!("/proc/{}/comm", child.id());
    let begin = Instant::now();
    while fs::read_to_string(&comm).is_ok_and(|name| name.trim() != "sleep") {
        if begin.elapsed() > PATIENCE {
            bail!("the mount namespace of containerd is not made");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(child)
}

fn counts_processor_time(directory: &Path) -> bool {
    directory.join("cpuacct.usage").exists()
        || (directory.join("cpu.stat").exists() && !directory.join("cpu.shares").exists())
}

/// The same network for both: what a node of the field has.
fn conflist(name: &str, subnet: &str, dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"{{"cniVersion": "1.0.0", "name": "{name}", "plugins": [
  {{"type": "bridge", "bridge": "{name}", "isGateway": true, "ipMasq": true, "ipam": {{
    "type": "host-local", "dataDir": "{dir}/ipam", "ranges": [[{{"subnet": "{subnet}"}}]],
    "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
  {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}
"#
    )
}

fn kelson_configuration(dir: &Path, name: &str) -> String {
    let dir = dir.display();
    format!(
        "[daemon]\nroot = \"{dir}/root\"\nstate = \"{dir}/run\"\n\
         [cri]\nsocket = \"{dir}/run/cri.sock\"\n\
         [cgroup]\nprefix = \"/{name}\"\n\
         [network]\nconf_dir = \"{dir}/net.d\"\nipam_dir = \"{dir}/ipam\"\nnft_table = \"{name}\"\n\
         [image]\ncerts_dir = \"{dir}/certs.d\"\n"
    )
}

fn containerd_configuration(dir: &Path, tools: &Path, pause: &str) -> String {
    let (dir, tools) = (dir.display(), tools.display());
    format!(
        r#"version = 3
root = "{dir}/root"
state = "{dir}/run/state"
[grpc]
  address = "{dir}/run/cri.sock"
[ttrpc]
  address = "{dir}/run/ttrpc.sock"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{pause}"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "{dir}/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  # A machine may not let anybody lower the score.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "{dir}/net.d"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "{tools}/runc"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
"#
    )
}

/// Writes the image that sandboxes run into `target/tools`, from its source.
pub(crate) fn pause(root: &Path, tools: &Path) -> Result<PathBuf> {
    let wanted = tools.join("pause");
    let status = Command::new("cc")
        .args(["-static", "-Os", "-s", "-o"])
        .arg(&wanted)
        .arg(root.join("tests/bench/pause.c"))
        .status()
        .context("cannot run cc; install gcc")?;
    if !status.success() {
        bail!("tests/bench/pause.c does not compile");
    }
    Ok(wanted)
}
