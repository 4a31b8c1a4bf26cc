//! podman with `kelson oci` as its runtime.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::process::Command;

use super::oci::fill;
use crate::case::{Case, Need, Outcome, on_node};
use crate::node::{Node, PATIENCE, program};
use crate::tool::{self, Ran};

pub(super) fn cases() -> Vec<Case> {
    vec![
        on_node("podman::containers", |node| Box::pin(podman(node)))
            .needs(Need::Program("/usr/bin/podman", "podman")),
    ]
}

/// podman with everything of its own in the node's directory.
struct Podman {
    dir: PathBuf,
    name: String,
}

impl Podman {
    fn new(node: &Node) -> anyhow::Result<Self> {
        let dir = node.dir().join("podman");
        std::fs::create_dir(&dir)?;
        // podman wants a program without arguments.
        let script = format!(
            "#!/bin/sh\nexec {} oci --root {}/oci \"$@\"\n",
            program().display(),
            dir.display()
        );
        std::fs::write(dir.join("runtime"), script)?;
        std::fs::set_permissions(dir.join("runtime"), PermissionsExt::from_mode(0o755))?;
        Ok(Self {
            dir,
            name: node.name().to_owned(),
        })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("/usr/bin/podman");
        let below = |name: &str| self.dir.join(name);
        command
            .arg("--root")
            .arg(below("root"))
            .arg("--runroot")
            .arg(below("run"));
        command
            .arg("--tmpdir")
            .arg(below("tmp"))
            .arg("--runtime")
            .arg(below("runtime"));
        command.args([
            "--cgroup-manager=cgroupfs",
            "--events-backend=none",
            "--storage-driver=vfs",
        ]);
        command.args(arguments).kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &[&str]) -> anyhow::Result<Ran> {
        tool::run(&mut self.command(arguments)).await
    }

    async fn ok(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let ran = self.run(arguments).await?;
        Ok(ran
            .ok()
            .with_context(|| format!("{arguments:?}"))?
            .trim()
            .to_owned())
    }

    /// `podman run` with a network of its own and the node's cgroup.
    async fn start(&self, arguments: &[&str]) -> anyhow::Result<Ran> {
        let parent = format!("--cgroup-parent=/{}", self.name);
        let fixed = ["run", &parent, "--network=none", "--log-driver=k8s-file"];
        self.run(&[fixed.as_slice(), arguments].concat()).await
    }
}

async fn podman(node: &mut Node) -> Outcome {
    let podman = Podman::new(node)?;
    let root = podman.dir.join("rootfs");
    fill(&root)?;
    let archive = podman.dir.join("image.tar").display().to_string();
    tool::output(
        "tar",
        ["-cf", &archive, "-C", &root.display().to_string(), "."],
    )
    .await?;
    podman
        .ok(&["import", "--change", "ENV PATH=/bin", &archive, "busybox"])
        .await?;
    let outcome = podman_containers(&podman).await;
    // Whatever has happened, nothing of podman's stays.
    let removed = podman.ok(&["rm", "--all", "--force", "--time", "0"]).await;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let below = |target: &&str| Path::new(target).starts_with(&podman.dir);
    for target in mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(below)
    {
        rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH)?;
    }
    remove_conmon_cgroups(&podman.name);
    outcome.and(removed.map(|_| ()))
}

/// podman leaves the cgroup of its own monitor beside those of containers.
fn remove_conmon_cgroups(name: &str) {
    let base = Path::new("/sys/fs/cgroup");
    let controllers = std::fs::read_dir(base).into_iter().flatten().flatten();
    for hierarchy in controllers
        .map(|entry| entry.path())
        .chain([base.to_owned()])
    {
        let cgroup = hierarchy.join(name).join("conmon");
        let deadline = Instant::now() + PATIENCE;
        // It goes when the last monitor has ended.
        while cgroup.exists() && std::fs::remove_dir(&cgroup).is_err() && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

async fn podman_containers(podman: &Podman) -> Outcome {
    let ran = podman
        .start(&[
            "--rm",
            "busybox",
            "sh",
            "-c",
            "echo out; echo err >&2; exit 6",
        ])
        .await?;
    ensure!(
        (ran.code, &*ran.stdout) == (6, "out\n") && ran.stderr.contains("err"),
        "{ran:?}"
    );
    let flags = [
        "--rm",
        "--user=1000:1000",
        "--read-only",
        "--read-only-tmpfs=false",
        "--memory=64m",
        "--pids-limit=50",
        "--cap-drop=all",
    ];
    let script = [
        "busybox",
        "sh",
        "-c",
        "id -u; cat /proc/self/status | busybox grep CapEff; touch /x",
    ];
    let ran = podman.start(&[flags.as_slice(), &script].concat()).await?;
    ensure!(
        ran.code == 1 && ran.stdout.starts_with("1000\nCapEff:\t0000000000000000\n"),
        "{ran:?}"
    );
    ensure!(ran.stderr.contains("Read-only"), "{ran:?}");

    let script = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    podman
        .start(&["-d", "--name=long", "busybox", "sh", "-c", script])
        .await?
        .ok()?;
    let status = [
        "inspect",
        "--format",
        "{{.State.Status}} {{.OCIRuntime}}",
        "long",
    ];
    let text = podman.ok(&status).await?;
    ensure!(
        text.starts_with("running") && text.ends_with("runtime"),
        "{text}"
    );
    let ran = podman
        .run(&["exec", "long", "sh", "-c", "echo inside; exit 8"])
        .await?;
    ensure!((ran.code, &*ran.stdout) == (8, "inside\n"), "{ran:?}");
    let ran = podman
        .run(&["exec", "-t", "long", "busybox", "tty"])
        .await?;
    ensure!(ran.stdout.trim() == "/dev/pts/0", "{ran:?}");
    let text = podman.ok(&["top", "long", "hpid", "args"]).await?;
    ensure!(text.lines().count() >= 2, "{text}");
    podman.ok(&["pause", "long"]).await?;
    ensure!(podman.ok(&status).await?.starts_with("paused"));
    podman.ok(&["unpause", "long"]).await?;
    podman.ok(&["stop", "--time", "20", "long"]).await?;
    let text = podman
        .ok(&[
            "inspect",
            "--format",
            "{{.State.Status}} {{.State.ExitCode}}",
            "long",
        ])
        .await?;
    ensure!(text == "exited 0", "{text}");
    podman.ok(&["start", "long"]).await?;
    ensure!(podman.ok(&status).await?.starts_with("running"));
    podman.ok(&["rm", "--force", "--time", "0", "long"]).await?;
    let ran = podman
        .start(&["--rm", "busybox", "no-such-program"])
        .await?;
    ensure!(ran.code == 127 || ran.code == 126, "{ran:?}");
    Ok(())
}
