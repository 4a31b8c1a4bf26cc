//! The demo's private node: its directories, its registry and its daemon.

use std::collections::HashSet;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use kelson_cgroup::{Cgroup, Hierarchy};
use kelson_client::{Client, Endpoint};
use kelson_network::Network;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

use super::{image, steps};
use crate::cmd::serve::network_config;
use crate::config;

/// How long the daemon may take to come up, and to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon with everything around it. Dropping it removes its directories.
pub(super) struct Node {
    dir: TempDir,
    daemon: Child,
    registry: SocketAddr,
    /// The connection to the daemon.
    pub(super) client: Client,
    /// Cgroup below which all its pods are.
    cgroup: String,
}

impl Node {
    /// Makes the image, starts the registry and the daemon, and connects.
    /// Everything it makes bears `mark`.
    pub(super) async fn start(mark: &str) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix(&format!("{mark}-"))
            .tempdir()
            .context("cannot make a directory for the demo")?;
        let pid = std::process::id();
        let bridge = format!("kdemo{pid}");
        let cgroup = format!("/{mark}");

        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .context("cannot listen on loopback")?;
        let registry = listener
            .local_addr()
            .context("cannot tell the registry's address")?;
        steps::say(
            "registry",
            &format!("an image of this program, served on http://{registry}"),
        );
        let registry_content = image::registry()?;
        tokio::spawn(kelson_image::serve::serve(
            listener,
            Arc::new(registry_content),
        ));

        let config = dir.path().join("config.toml");
        std::fs::write(
            &config,
            configuration(dir.path(), &cgroup, &bridge, &free_subnet(pid)?),
        )
        .context("cannot write the demo's configuration")?;
        let log =
            File::create(dir.path().join("daemon.log")).context("cannot make the log file")?;
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut daemon = Command::new(&program)
            .args(["serve", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let begin = Instant::now();
        let socket = dir.path().join("run/kelson.sock");
        let endpoint =
            Endpoint::parse(&format!("unix://{}", socket.display()), "its own directory")?;
        let client = loop {
            if let Some(status) = daemon.try_wait().context("cannot watch the daemon")? {
                bail!("the daemon ended ({status}):\n{}", tail(dir.path()));
            }
            match Client::connect(&endpoint).await {
                Ok(client) => break client,
                Err(error) if begin.elapsed() > PATIENCE => return Err(error.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        steps::took(
            "daemon",
            &format!("serving CRI on {}", socket.display()),
            begin,
        );
        Ok(Self {
            dir,
            daemon,
            registry,
            client,
            cgroup,
        })
    }

    /// Where the image is pulled from.
    pub(super) fn registry(&self) -> SocketAddr {
        self.registry
    }

    /// Where the pod's logs are.
    pub(super) fn logs(&self) -> PathBuf {
        self.dir.path().join("logs")
    }

    /// The last lines of the daemon's log.
    pub(super) fn log(&self) -> String {
        tail(self.dir.path())
    }

    /// Keeps the directories after the end.
    pub(super) fn keep(&mut self) -> &Path {
        self.dir.disable_cleanup(true);
        self.dir.path()
    }

    /// Ends the daemon and removes its bridge and cgroup.
    pub(super) async fn end(&mut self) -> anyhow::Result<()> {
        let Some(pid) = self.daemon.id().and_then(|id| i32::try_from(id).ok()) else {
            return Ok(());
        };
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)
                .context("cannot signal the daemon")?;
        }
        let status = tokio::time::timeout(PATIENCE, self.daemon.wait())
            .await
            .context("the daemon does not end")?
            .context("cannot wait for the daemon")?;
        if !status.success() {
            bail!("the daemon failed at its end ({status})");
        }
        let config = config::load(&self.dir.path().join("config.toml"), true)?;
        let network = Network::open(network_config(&config))?;
        // The daemon may have ended while it still removed an interface in the background.
        network.gc(&HashSet::new()).await;
        network.settle().await;
        network.destroy_fallback().await?;
        Cgroup::new(&Hierarchy::detect()?, &self.cgroup)?.remove()?;
        Ok(())
    }
}

fn tail(dir: &Path) -> String {
    let text = std::fs::read_to_string(dir.join("daemon.log")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// A subnet that no route of this machine leads to, out of a range that is meant for tests.
fn free_subnet(first: u32) -> anyhow::Result<String> {
    let routes = std::fs::read_to_string("/proc/net/route").context("cannot read the routes")?;
    (0..254)
        .map(|step| (first + step) % 254 + 1)
        .find(|third| is_free(&routes, *third))
        .map(|third| format!("198.18.{third}.0/24"))
        .context("every subnet of 198.18.0.0/16 is taken; remove unused bridges")
}

/// Whether no route but the default one covers 198.18.`third`.0/24 or a part of it.
fn is_free(routes: &str, third: u32) -> bool {
    let network = (198 << 24) | (18 << 16) | (third << 8);
    routes.lines().skip(1).all(|line| {
        // The kernel prints addresses as hexadecimal numbers in its own byte order.
        let number = |column: usize| {
            let text = line.split_whitespace().nth(column).unwrap_or_default();
            u32::from_str_radix(text, 16).map(u32::from_be).unwrap_or(0)
        };
        let (to, mask) = (number(1), number(7));
        let common = mask & 0xffff_ff00;
        mask == 0 || to & common != network & common
    })
}

/// A configuration in which nothing is shared with another daemon on this machine.
fn configuration(dir: &Path, cgroup: &str, bridge: &str, subnet: &str) -> String {
    let dir = dir.display();
    format!(
        "[daemon]\nroot = \"{dir}/root\"\nstate = \"{dir}/run\"\n\
         [cri]\nsocket = \"{dir}/run/kelson.sock\"\n\
         [cgroup]\nprefix = \"{cgroup}\"\n\
         [network]\nconf_dir = \"{dir}/net.d\"\nipam_dir = \"{dir}/ipam\"\nfallback = \"bridge\"\n\
         fallback_bridge = \"{bridge}\"\nfallback_subnet = \"{subnet}\"\n\
         nft_table = \"{bridge}\"\n\
         [image]\ncerts_dir = \"{dir}/certs.d\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_with_a_route_is_not_free() {
        // 198.18.77.0/24 and a default route, as a little-endian machine prints them.
        let routes = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
                      br0\t004D12C6\t00000000\t0001\t0\t0\t0\t00FFFFFF\n\
                      eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\n";
        assert!(!is_free(routes, 77));
        assert!(is_free(routes, 78));
        let wide = "\nbr0\t000012C6\t00000000\t0001\t0\t0\t0\t0000FFFF\n";
        assert!(!is_free(wide, 78));
    }
}
