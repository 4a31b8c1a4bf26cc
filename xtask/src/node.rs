//! A private daemon for a run: its configuration, its process, and its end.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long the daemon may take to come up, and to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// A daemon with its own directories, cgroup and bridge, all of one name.
pub(crate) struct Node {
    name: String,
    dir: PathBuf,
    program: PathBuf,
    daemon: Child,
}

impl Node {
    /// Starts `program` below `dir`, where `certs.d` says which registries there are. `subnet` is what
    /// pods get; the ranges for tests (RFC 2544) are no real node's.
    pub(crate) fn start(program: &Path, dir: &Path, name: String, subnet: &str) -> Result<Self> {
        std::fs::write(dir.join("config.toml"), configuration(dir, &name, subnet))
            .context("cannot configure the daemon")?;
        let mut node = Self {
            daemon: spawn(program, dir)?,
            name,
            dir: dir.to_owned(),
            program: program.to_owned(),
        };
        node.wait_until_ready()?;
        Ok(node)
    }

    /// What its cgroup, its bridge and its nftables table are called.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Ends the daemon, by `signal`, and starts it again; pods stay.
    pub(crate) fn restart(&mut self, signal: Signal) -> Result<()> {
        self.end_daemon(signal)?;
        self.start_daemon()
    }

    /// Starts the daemon after [`Self::end_daemon`].
    pub(crate) fn start_daemon(&mut self) -> Result<()> {
        self.daemon = spawn(&self.program, &self.dir)?;
        self.wait_until_ready()
    }

    /// Where it serves the CRI.
    pub(crate) fn endpoint(&self) -> String {
        format!("unix://{}/run/kelson.sock", self.dir.display())
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let begin = Instant::now();
        while self.client(&["version"]).is_err() {
            if let Some(status) = self.daemon.try_wait().context("cannot watch the daemon")? {
                bail!("the daemon ended ({status}):\n{}", self.log());
            }
            if begin.elapsed() > PATIENCE {
                bail!("the daemon does not answer:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("daemon.log")).unwrap_or_default()
    }

    /// Runs a client command; its output.
    pub(crate) fn client(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.program)
            .args(["--runtime-endpoint", &self.endpoint()])
            .args(arguments)
            .output()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        if !output.status.success() {
            bail!(
                "{arguments:?} failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Removes the pods that are left, and ends the daemon; how many pods there were.
    pub(crate) fn end(mut self) -> Result<usize> {
        let pods = self.remove_pods()?;
        self.end_daemon(Signal::TERM)?;
        Ok(pods)
    }

    /// Removes all pods; how many there were.
    pub(crate) fn remove_pods(&self) -> Result<usize> {
        let listed = self.client(&["pods", "--quiet"])?;
        let pods: Vec<&str> = listed.split_whitespace().collect();
        if !pods.is_empty() {
            self.client(&[&["rm", "--force"], pods.as_slice()].concat())?;
        }
        Ok(pods.len())
    }

    /// Ends the daemon and waits for it.
    pub(crate) fn end_daemon(&mut self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.daemon.id()).ok().and_then(Pid::from_raw);
        let pid = pid.context("the daemon has no pid")?;
        kill_process(pid, signal).context("cannot end the daemon")?;
        let begin = Instant::now();
        while self
            .daemon
            .try_wait()
            .context("cannot watch the daemon")?
            .is_none()
        {
            if begin.elapsed() > PATIENCE {
                bail!("the daemon does not end:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Node {
    /// What the daemon does not take with it; each may be gone already, which is fine.
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            let _ = std::fs::remove_dir(hierarchy.path().join(&self.name));
        }
        let _ = std::fs::remove_dir(Path::new("/sys/fs/cgroup").join(&self.name));
        let _ = Command::new("ip")
            .args(["link", "del", &self.name])
            .output();
        let _ = Command::new("nft")
            .args(["delete", "table", "inet", &self.name])
            .output();
    }
}

/// Starts the daemon; its log goes on where an earlier one's ended.
fn spawn(program: &Path, dir: &Path) -> Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.join("daemon.log"))
        .context("cannot make the daemon's log")?;
    Command::new(program)
        .args(["serve", "--config"])
        .arg(dir.join("config.toml"))
        .env(
            "KELSON_LOG",
            "debug,h2=info,hyper=info,tonic=info,tower=info",
        )
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        // A signal to this command's group is not for it: it is needed to clean up.
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))
}

fn configuration(dir: &Path, name: &str, subnet: &str) -> String {
    let dir = dir.display();
    format!(
        "[daemon]\nroot = \"{dir}/root\"\nstate = \"{dir}/run\"\n\
         [cri]\nsocket = \"{dir}/run/kelson.sock\"\n\
         [cgroup]\nprefix = \"/{name}\"\n\
         [network]\nconf_dir = \"{dir}/net.d\"\nipam_dir = \"{dir}/ipam\"\nfallback = \"bridge\"\n\
         fallback_bridge = \"{name}\"\nfallback_subnet = \"{subnet}\"\nnft_table = \"{name}\"\n\
         [image]\ncerts_dir = \"{dir}/certs.d\"\nsync = false\n"
    )
}
