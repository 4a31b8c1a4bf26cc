//! The run: the runtime, the kubelet, and ways to look at pods through both.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use super::agent::{Agent, HOSTNAME};
use crate::mirror::Mirror;
use crate::node::Node;

/// How long the kubelet may take for something: its slowest loops turn every ten seconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Everything of one run.
pub(crate) struct World {
    dir: PathBuf,
    pub(crate) agent: Agent,
    pub(crate) node: Node,
    pub(crate) mirror: Mirror,
    /// What pods get their addresses from.
    pub(crate) subnet: String,
}

impl World {
    pub(crate) fn new(
        dir: &Path,
        node: Node,
        agent: Agent,
        mirror: Mirror,
        subnet: String,
    ) -> Self {
        let dir = dir.to_owned();
        Self {
            dir,
            agent,
            node,
            mirror,
            subnet,
        }
    }

    /// A directory that the pod `name` has as `/out`; made if it is not there.
    pub(crate) fn out(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.join("out").join(name);
        std::fs::create_dir_all(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// What the pod `name` has written to `file` of its `/out`.
    pub(crate) fn written(&self, name: &str, file: &str) -> Result<String> {
        // Until it is written it is empty.
        Ok(std::fs::read_to_string(self.out(name)?.join(file)).unwrap_or_default())
    }

    /// Where the kubelet keeps what it makes.
    pub(crate) fn kubelet_root(&self) -> PathBuf {
        self.dir.join("kubelet")
    }

    /// The name of the cgroup that all pods of the kubelet are in.
    pub(crate) fn cgroup_root(&self) -> String {
        format!("{}-pods", self.node.name())
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.dir.join("manifests").join(format!("{name}.json"))
    }

    /// Gives the kubelet a pod, whole at once.
    pub(crate) fn apply(&self, pod: &Value) -> Result<()> {
        let name = pod["metadata"]["name"]
            .as_str()
            .context("a pod has no name")?;
        let hidden = self.dir.join("manifests").join(format!(".{name}"));
        std::fs::write(&hidden, pod.to_string()).context("cannot write a manifest")?;
        std::fs::rename(&hidden, self.manifest(name)).context("cannot write a manifest")
    }

    /// Takes a pod from the kubelet.
    pub(crate) fn take(&self, name: &str) -> Result<()> {
        std::fs::remove_file(self.manifest(name)).context("cannot remove a manifest")
    }

    /// The names of all pods that the kubelet was given.
    fn manifests(&self) -> Result<Vec<String>> {
        let entries =
            std::fs::read_dir(self.dir.join("manifests")).context("cannot list the manifests")?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names
            .filter_map(|name| name.strip_suffix(".json").map(str::to_owned))
            .collect())
    }

    /// A pod as the kubelet tells it.
    pub(crate) fn pod(&self, name: &str) -> Result<Option<Pod>> {
        let list = self.agent.json("/pods")?;
        let full = full_name(name);
        let items = list["items"].as_array().cloned().unwrap_or_default();
        Ok(items
            .into_iter()
            .find(|pod| pod["metadata"]["name"] == full.as_str())
            .map(Pod))
    }

    /// Waits until the kubelet has the pod in the state that `is` describes; the error is what `is`
    /// said last.
    pub(crate) fn wait_for<T>(
        &self,
        name: &str,
        mut is: impl FnMut(&Pod) -> Result<T>,
    ) -> Result<T> {
        wait(|| {
            let pod = self.pod(name)?;
            let pod = pod.with_context(|| format!("the kubelet does not know {name}"))?;
            is(&pod).with_context(|| format!("pod {name}: {}", pod.0["status"]))
        })
    }

    /// Waits until all containers of the pod are ready.
    pub(crate) fn wait_until_ready(&self, name: &str) -> Result<Pod> {
        self.wait_for(name, |pod| {
            ensure!(pod.is_ready(), "it does not get ready");
            Ok(pod.clone())
        })
    }

    /// Runs a command in a container by the kubelet's `/run`. The kubelet splits the command
    /// at spaces, so that no argument can have one.
    pub(crate) fn run(&self, name: &str, container: &str, command: &[&str]) -> Result<String> {
        let pod = full_name(name);
        let command = command
            .join("%20")
            .replace("%g", "%25g")
            .replace("%u", "%25u");
        self.agent
            .post(&format!("/run/default/{pod}/{container}?cmd={command}"))
    }

    /// What a container has written, by the kubelet's `/containerLogs`.
    pub(crate) fn logs(&self, name: &str, container: &str, query: &str) -> Result<String> {
        let pod = full_name(name);
        self.agent
            .get(&format!("/containerLogs/default/{pod}/{container}?{query}"))
    }

    /// What the runtime says about a container or a pod.
    pub(crate) fn inspect(&self, id: &str) -> Result<Value> {
        let text = self.node.client(&["inspect", id])?;
        let value: Value = serde_json::from_str(&text).context("inspect gives no JSON")?;
        // One object, or a list of one.
        Ok(value.get(0).cloned().unwrap_or(value))
    }

    /// The file that says that an address is in use, if it is.
    pub(crate) fn lease(&self, address: &str) -> Result<Option<PathBuf>> {
        let networks = std::fs::read_dir(self.dir.join("ipam")).context("no leases")?;
        let mut leases = networks
            .flatten()
            .map(|network| network.path().join(address));
        Ok(leases.find(|lease| lease.exists()))
    }

    /// The ends of the logs.
    pub(crate) fn last_lines(&self) -> String {
        format!(
            "\nthe kubelet's log:\n{}\n\nthe daemon's log:\n{}\n",
            self.agent.last_lines(),
            self.node
                .log()
                .lines()
                .rev()
                .take(40)
                .collect::<Vec<_>>()
                .join("\n")
        )
    }

    /// Takes all pods from the kubelet, waits until it has ended and forgotten them, and ends
    /// everything.
    pub(crate) fn end(mut self) -> Result<()> {
        let clean = self.end_pods();
        let ended = self.agent.end();
        // A check that failed may have left the daemon down, and its pods running.
        let removed = self.node.remove_pods().or_else(|_| {
            self.node.start_daemon()?;
            self.node.remove_pods()
        });
        let daemon = self.node.end_daemon(Signal::TERM);
        clean.and(ended).and(removed.map(|_| ())).and(daemon)
    }

    fn end_pods(&self) -> Result<()> {
        let interrupted = INTERRUPTED.swap(false, Ordering::Relaxed);
        let ended = self.end_all_pods();
        INTERRUPTED.store(interrupted, Ordering::Relaxed);
        ended
    }

    fn end_all_pods(&self) -> Result<()> {
        for name in self.manifests()? {
            self.take(&name)?;
        }
        wait(|| {
            let list = self.agent.json("/pods")?;
            let left = list["items"].as_array().map_or(0, Vec::len);
            ensure!(left == 0, "the kubelet does not end {left} of its pods");
            let ready = self.node.client(&["pods", "--quiet", "--state", "ready"])?;
            let running = self.node.client(&["ps", "--quiet"])?;
            let left = format!("{ready}{running}");
            ensure!(left.is_empty(), "still there: {}", left.replace('\n', " "));
            Ok(())
        })?;
        wait(|| {
            let table = std::fs::read_to_string("/proc/self/mountinfo").context("no mounts")?;
            let pods = self.kubelet_root().join("pods");
            let pods = pods.to_string_lossy();
            let left: Vec<&str> = table.lines().filter(|line| line.contains(&*pods)).collect();
            ensure!(left.is_empty(), "volumes are left: {}", left.join("\n"));
            let bridge = Path::new("/sys/class/net")
                .join(self.node.name())
                .join("brif");
            let left = std::fs::read_dir(bridge).map_or(0, Iterator::count);
            ensure!(left == 0, "{left} interfaces of pods are left");
            Ok(())
        })
    }
}

/// Tries until it succeeds; the last error when patience is over.
pub(crate) fn wait<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let begin = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if is_interrupted() => return Err(error.context("interrupted")),
            Err(error) if begin.elapsed() > PATIENCE => {
                bail!("not within {} s: {error:#}", PATIENCE.as_secs())
            }
            Err(_) => std::thread::sleep(Duration::from_millis(150)),
        }
    }
}

/// Whether somebody wants the run to end; it still cleans up.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether the rest of the checks is to be left out.
pub(crate) fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// From now on SIGINT and SIGTERM end the checks and not this program, which has to clean up.
pub(crate) fn watch_signals(runtime: &tokio::runtime::Runtime) -> Result<()> {
    let _context = runtime.enter();
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let mut signal = signal(kind).context("cannot watch for signals")?;
        runtime.spawn(async move {
            signal.recv().await;
            INTERRUPTED.store(true, Ordering::Relaxed);
        });
    }
    Ok(())
}

/// The kubelet appends the node's name to that of a static pod.
pub(crate) fn full_name(name: &str) -> String {
    format!("{name}-{HOSTNAME}")
}

/// A pod with its status.
#[derive(Debug, Clone)]
pub(crate) struct Pod(pub(crate) Value);

impl Pod {
    /// The phase, as `Running`.
    pub(crate) fn phase(&self) -> &str {
        self.0["status"]["phase"].as_str().unwrap_or_default()
    }

    /// The pod's UID.
    pub(crate) fn uid(&self) -> &str {
        self.0["metadata"]["uid"].as_str().unwrap_or_default()
    }

    /// The pod's address.
    pub(crate) fn address(&self) -> &str {
        self.0["status"]["podIP"].as_str().unwrap_or_default()
    }

    /// Whether the condition Ready is true.
    pub(crate) fn is_ready(&self) -> bool {
        let conditions = self.0["status"]["conditions"].as_array();
        conditions
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    }

    /// The statuses of all containers, init containers first.
    pub(crate) fn containers(&self) -> Vec<&Value> {
        ["initContainerStatuses", "containerStatuses"]
            .iter()
            .filter_map(|key| self.0["status"][key].as_array())
            .flatten()
            .collect()
    }

    /// The status of one container; null if there is none yet.
    pub(crate) fn container(&self, name: &str) -> &Value {
        let mut all = self.containers().into_iter();
        all.find(|status| status["name"] == name)
            .unwrap_or(&Value::Null)
    }

    /// How often a container was started anew.
    pub(crate) fn restarts(&self, name: &str) -> u64 {
        self.container(name)["restartCount"].as_u64().unwrap_or(0)
    }

    /// The runtime's id of a container.
    pub(crate) fn id(&self, name: &str) -> Result<String> {
        let id = self.container(name)["containerID"]
            .as_str()
            .unwrap_or_default();
        let (_, id) = id
            .split_once("://")
            .with_context(|| format!("{name} has no id yet"))?;
        Ok(id.to_owned())
    }
}
