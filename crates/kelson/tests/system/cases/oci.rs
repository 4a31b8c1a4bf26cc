//! `kelson oci` alone, on plain bundles.

use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::case::{Case, Outcome, on_node};
use crate::node::{Node, PATIENCE, program};
use crate::tool::{self, Ran};

pub(super) fn cases() -> Vec<Case> {
    vec![
        on_node("oci::create_start_kill_delete", |node| {
            Box::pin(lifecycle(node))
        }),
        on_node("oci::run", |node| Box::pin(run(node))),
        on_node("oci::exec", |node| Box::pin(exec(node))),
        on_node("oci::pause_and_resume", |node| Box::pin(pause(node))),
        on_node("oci::update", |node| Box::pin(update(node))),
        on_node("oci::hooks", |node| Box::pin(hooks(node))),
        on_node("oci::features", |node| Box::pin(features(node))),
        on_node("oci::mistakes", |node| Box::pin(mistakes(node))),
    ]
}

/// A bundle with busybox as its root, and a state directory.
struct Bundle {
    dir: PathBuf,
    /// The configuration; written by [`Bundle::write`].
    config: Value,
}

/// Puts busybox and its links into `root`.
pub(super) fn fill(root: &Path) -> Outcome {
    for folder in ["bin", "proc", "dev", "tmp"] {
        std::fs::create_dir_all(root.join(folder))?;
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    for applet in [
        "cat", "echo", "id", "kill", "ps", "pwd", "sh", "sleep", "touch",
    ] {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    Ok(())
}

impl Bundle {
    /// Makes it in the node's directory, with cgroups that the node looks after.
    fn new(node: &Node, script: &str) -> anyhow::Result<Self> {
        let dir = node.dir().join("bundle");
        fill(&dir.join("rootfs"))?;
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "args": ["/bin/sh", "-c", script],
                "env": ["PATH=/bin", "COLOUR=blue"],
                "cwd": "/",
                "user": { "uid": 0, "gid": 0 },
                "noNewPrivileges": true,
            },
            "root": { "path": "rootfs" },
            "hostname": "bundle",
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
            ],
            "linux": {
                "cgroupsPath": format!("/{}/oci", node.name()),
                "namespaces": [
                    { "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" },
                    { "type": "network" },
                ],
            },
        });
        let bundle = Self { dir, config };
        bundle.write()?;
        Ok(bundle)
    }

    fn write(&self) -> Outcome {
        Ok(std::fs::write(
            self.dir.join("config.json"),
            self.config.to_string(),
        )?)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(["oci", "--root"])
            .arg(self.dir.join("state"))
            .args(arguments);
        command.current_dir(&self.dir).kill_on_drop(true);
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

    /// Runs a command whose container keeps its output open; the output goes to the file `output`.
    async fn spawn(&self, arguments: &[&str]) -> Outcome {
        let output = File::create(self.dir.join("output"))?;
        let mut command = self.command(arguments);
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let status = tokio::time::timeout(PATIENCE, command.status()).await??;
        ensure!(
            status.success(),
            "{arguments:?}: {status}: {}",
            self.output()?
        );
        Ok(())
    }

    fn output(&self) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.dir.join("output"))?)
    }

    async fn state(&self, id: &str) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.ok(&["state", id]).await?)?)
    }

    /// Whether a container, which may not be there yet, executes this program: what is killed before
    /// was not run.
    async fn executes(&self, id: &str, program: &str) -> anyhow::Result<bool> {
        let ran = self.run(&["state", id]).await?;
        if ran.code != 0 {
            return Ok(false);
        }
        let state: Value = serde_json::from_str(&ran.stdout)?;
        let name = std::fs::read_to_string(format!("/proc/{}/comm", state["pid"]));
        Ok(name.is_ok_and(|name| name.trim() == program))
    }

    /// Waits until a container has this status.
    async fn wait(&self, id: &str, status: &str) -> Outcome {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let state = self.state(id).await?;
            if state["status"] == status {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not {status}: {state}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn lifecycle(node: &mut Node) -> Outcome {
    let script = "echo begun; trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let bundle = Bundle::new(node, script)?;
    bundle
        .spawn(&["create", "--pid-file", "pid", "one"])
        .await?;
    let state = bundle.state("one").await?;
    ensure!(
        state["status"] == "created" && state["id"] == "one",
        "{state}"
    );
    ensure!(
        state["bundle"] == bundle.dir.display().to_string(),
        "{state}"
    );
    let pid: u32 = std::fs::read_to_string(bundle.dir.join("pid"))?
        .trim()
        .parse()?;
    ensure!(state["pid"] == pid, "{state} {pid}");
    ensure!(bundle.output()?.is_empty(), "it runs before it is started");
    bundle.ok(&["start", "one"]).await?;
    bundle.wait("one", "running").await?;
    ensure!(bundle.ok(&["list"]).await?.contains("one"));
    bundle.run(&["start", "one"]).await?.failed(1)?;
    let error = bundle.run(&["delete", "one"]).await?.failed(1)?;
    ensure!(error.contains("one"), "{error}");
    let deadline = Instant::now() + PATIENCE;
    while bundle.output()? != "begun\n" {
        ensure!(Instant::now() < deadline, "{:?}", bundle.output());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bundle.ok(&["kill", "one", "TERM"]).await?;
    bundle.wait("one", "stopped").await?;
    bundle.run(&["kill", "one", "KILL"]).await?.failed(1)?;
    bundle.ok(&["delete", "one"]).await?;
    bundle.run(&["state", "one"]).await?.failed(1)?;
    // Its name is free again; --force ends what runs, and what is not there.
    bundle.spawn(&["run", "--detach", "one"]).await?;
    bundle.ok(&["delete", "--force", "one"]).await?;
    bundle.ok(&["delete", "--force", "one"]).await?;
    let left = std::fs::read_dir(bundle.dir.join("state"))?.count();
    ensure!(left == 0, "{left} directories are left");
    Ok(())
}

async fn run(node: &mut Node) -> Outcome {
    let mut bundle = Bundle::new(node, "echo out $COLOUR; echo err >&2; exit 9")?;
    let ran = bundle.run(&["run", "one"]).await?;
    ensure!(
        (ran.code, &*ran.stdout, &*ran.stderr) == (9, "out blue\n", "err\n"),
        "{ran:?}"
    );
    bundle.run(&["state", "one"]).await?.failed(1)?;
    let elsewhere = bundle.dir.display().to_string();
    let mut command = bundle.command(&["run", "--bundle", &elsewhere, "two"]);
    ensure!(tool::run(command.current_dir("/")).await?.code == 9);
    bundle.config["process"]["args"] = json!(["/bin/sleep", "1000"]);
    bundle.write()?;
    let mut running = bundle.command(&["run", "three"]).spawn()?;
    let deadline = Instant::now() + PATIENCE;
    while !bundle.executes("three", "sleep").await? {
        ensure!(Instant::now() < deadline, "it does not run");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bundle.ok(&["kill", "three", "KILL"]).await?;
    let status = tokio::time::timeout(PATIENCE, running.wait()).await??;
    ensure!(status.code() == Some(137), "{status}");
    bundle.config["process"]["args"] =
        json!(["/bin/sh", "-c", "echo $$; touch /new && echo written"]);
    bundle.config["root"]["readonly"] = true.into();
    bundle.config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    bundle.write()?;
    let ran = bundle.run(&["run", "four"]).await?;
    ensure!(
        ran.stdout == "1\n" && ran.stderr.contains("Read-only"),
        "{ran:?}"
    );
    ensure!(!bundle.dir.join("rootfs/new").exists());
    Ok(())
}

async fn exec(node: &mut Node) -> Outcome {
    let bundle = Bundle::new(node, "sleep 1000")?;
    bundle.spawn(&["run", "-d", "one"]).await?;
    let ran = bundle
        .run(&[
            "exec",
            "one",
            "sh",
            "-c",
            "echo out $COLOUR; echo err >&2; exit 4",
        ])
        .await?;
    ensure!(
        (ran.code, &*ran.stdout, &*ran.stderr) == (4, "out blue\n", "err\n"),
        "{ran:?}"
    );
    let arguments = [
        "exec",
        "--env",
        "COLOUR=red",
        "--cwd",
        "/tmp",
        "--user",
        "1000:1001",
        "one",
    ];
    let script = ["sh", "-c", "echo $COLOUR; pwd; id -u; id -g"];
    let text = bundle.ok(&[arguments.as_slice(), &script].concat()).await?;
    ensure!(text == "red\n/tmp\n1000\n1001", "{text}");
    let user = json!({ "uid": 0, "gid": 0 });
    let process = json!({ "args": ["/bin/echo", "from a file"], "cwd": "/", "user": user });
    std::fs::write(bundle.dir.join("process.json"), process.to_string())?;
    ensure!(
        bundle
            .ok(&["exec", "--process", "process.json", "one"])
            .await?
            == "from a file"
    );
    bundle
        .spawn(&[
            "exec",
            "--detach",
            "--pid-file",
            "pid",
            "one",
            "sleep",
            "2000",
        ])
        .await?;
    let pid: u32 = std::fs::read_to_string(bundle.dir.join("pid"))?
        .trim()
        .parse()?;
    let table = bundle.ok(&["ps", "one"]).await?;
    ensure!(
        table.contains("sleep 1000") && table.contains("sleep 2000"),
        "{table}"
    );
    let pids: Vec<u32> = serde_json::from_str(&bundle.ok(&["ps", "-f", "json", "one"]).await?)?;
    ensure!(pids.len() == 2 && pids.contains(&pid), "{pids:?} {pid}");
    let ran = bundle.run(&["exec", "one", "no-such-program"]).await?;
    ensure!(
        ran.code != 0 && ran.stderr.contains("no-such-program"),
        "{ran:?}"
    );
    bundle.ok(&["delete", "-f", "one"]).await?;
    Ok(())
}

async fn pause(node: &mut Node) -> Outcome {
    let script = "while :; do echo x >> /ticks; sleep 0.02; done";
    let bundle = Bundle::new(node, script)?;
    bundle.spawn(&["run", "-d", "one"]).await?;
    let ticks = || std::fs::metadata(bundle.dir.join("rootfs/ticks")).map_or(0, |file| file.len());
    let moves = async || {
        let deadline = Instant::now() + PATIENCE;
        let before = ticks();
        while ticks() == before {
            ensure!(Instant::now() < deadline, "it stands still");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::Ok(())
    };
    moves().await?;
    bundle.ok(&["pause", "one"]).await?;
    ensure!(bundle.state("one").await?["status"] == "paused");
    let before = ticks();
    tokio::time::sleep(Duration::from_millis(300)).await;
    ensure!(ticks() == before, "it goes on while paused");
    bundle
        .run(&["exec", "one", "id"])
        .await?
        .failed(255)
        .or_else(|error| {
            // Engines only look whether it failed.
            ensure!(!format!("{error:#}").contains("ended with 0"), "{error:#}");
            Ok(String::new())
        })?;
    bundle.ok(&["resume", "one"]).await?;
    moves().await?;
    bundle.ok(&["pause", "one"]).await?;
    bundle.ok(&["delete", "--force", "one"]).await?;
    Ok(())
}

/// Reads a file of the container's cgroup, of whichever version.
fn cgroup_file(node: &Node, names: [&str; 2]) -> anyhow::Result<String> {
    let [v1, v2] = names;
    let old = format!("/sys/fs/cgroup/memory/{}/oci/{v1}", node.name());
    let new = format!("/sys/fs/cgroup/{}/oci/{v2}", node.name());
    let path = if Path::new(&old).exists() { old } else { new };
    Ok(std::fs::read_to_string(&path)
        .with_context(|| path)?
        .trim()
        .to_owned())
}

async fn update(node: &mut Node) -> Outcome {
    let mut bundle = Bundle::new(node, "sleep 1000")?;
    bundle.config["linux"]["resources"] = json!({ "memory": { "limit": 67_108_864 } });
    bundle.write()?;
    bundle.spawn(&["run", "-d", "one"]).await?;
    let limit = ["memory.limit_in_bytes", "memory.max"];
    ensure!(cgroup_file(node, limit)? == "67108864");
    bundle
        .ok(&["update", "--memory", "33554432", "one"])
        .await?;
    ensure!(cgroup_file(node, limit)? == "33554432");
    let resources = json!({ "memory": { "limit": 50_331_648 } });
    std::fs::write(bundle.dir.join("resources.json"), resources.to_string())?;
    bundle
        .ok(&["update", "--resources", "resources.json", "one"])
        .await?;
    ensure!(cgroup_file(node, limit)? == "50331648");
    bundle.ok(&["delete", "-f", "one"]).await?;
    Ok(())
}

async fn hooks(node: &mut Node) -> Outcome {
    let mut bundle = Bundle::new(node, "exit 0")?;
    let record = bundle.dir.join("record");
    let hook = |name: &str| {
        let script = format!(
            "echo {name} $(grep -o '\"status\": *\"[a-z]*\"') >> {}",
            record.display()
        );
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"] }])
    };
    bundle.config["hooks"] = json!({
        "prestart": hook("prestart"),
        "createRuntime": hook("createRuntime"),
        "poststart": hook("poststart"),
        "poststop": hook("poststop"),
    });
    bundle.write()?;
    bundle.ok(&["run", "one"]).await?;
    let text = std::fs::read_to_string(&record)?;
    let names: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    ensure!(
        names == ["prestart", "createRuntime", "poststart", "poststop"],
        "{text}"
    );
    ensure!(text.contains("stopped"), "the state is not given: {text}");
    let failing = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo refused >&2; exit 1"] }]);
    bundle.config["hooks"] = json!({ "createRuntime": failing });
    bundle.write()?;
    let error = bundle.run(&["run", "two"]).await?.failed(1)?;
    ensure!(
        error.contains("hook") && error.contains("refused"),
        "{error}"
    );
    bundle.run(&["state", "two"]).await?.failed(1)?;
    Ok(())
}

async fn features(node: &mut Node) -> Outcome {
    let bundle = Bundle::new(node, "")?;
    let features: Value = serde_json::from_str(&bundle.ok(&["features"]).await?)?;
    let linux = &features["linux"];
    let has = |list: &Value, name: &str| {
        list.as_array()
            .is_some_and(|list| list.iter().any(|one| one == name))
    };
    ensure!(
        features["ociVersionMin"].is_string() && features["ociVersionMax"].is_string(),
        "{features}"
    );
    ensure!(
        has(&linux["namespaces"], "network") && has(&linux["capabilities"], "CAP_CHOWN"),
        "{linux}"
    );
    ensure!(
        has(&features["mountOptions"], "rbind") && has(&features["hooks"], "poststop"),
        "{features}"
    );
    ensure!(linux["seccomp"]["enabled"] == true, "{linux}");
    let help = bundle.ok(&["--help"]).await?;
    ensure!(
        help.contains("kelson oci") && help.contains("create"),
        "{help}"
    );
    let version = bundle.ok(&["--version"]).await?;
    ensure!(version.contains("kelson"), "{version}");
    Ok(())
}

async fn mistakes(node: &mut Node) -> Outcome {
    let mut bundle = Bundle::new(node, "sleep 1000")?;
    let error = bundle
        .run(&["run", "--bundle", "/no/such/bundle", "one"])
        .await?
        .failed(1)?;
    ensure!(error.contains("/no/such/bundle"), "{error}");
    let error = bundle.run(&["state", "nobody"]).await?.failed(1)?;
    ensure!(error.contains("nobody"), "{error}");
    for id in ["../escape", "a/b", ""] {
        let ran = bundle.run(&["create", id]).await?;
        ensure!(
            ran.code != 0 && !bundle.dir.join("escape").exists(),
            "{id:?}: {ran:?}"
        );
    }
    bundle.spawn(&["create", "one"]).await?;
    let error = bundle.run(&["run", "one"]).await?.failed(1)?;
    ensure!(error.contains("one"), "{error}");
    bundle.ok(&["delete", "-f", "one"]).await?;
    bundle.config["process"]["args"] = json!(["/no/such/program"]);
    bundle.write()?;
    let log = bundle.dir.join("log.json").display().to_string();
    let ran = bundle
        .run(&["--log", &log, "--log-format", "json", "run", "two"])
        .await?;
    ensure!(
        ran.code != 0 && ran.stderr.contains("/no/such/program"),
        "{ran:?}"
    );
    let line: Value = serde_json::from_str(
        std::fs::read_to_string(&log)?
            .lines()
            .last()
            .context("no log")?,
    )?;
    ensure!(
        line["level"] == "error"
            && line["msg"]
                .as_str()
                .is_some_and(|m| m.contains("/no/such/program"))
    );
    std::fs::write(bundle.dir.join("config.json"), "{ no JSON")?;
    let error = bundle.run(&["run", "three"]).await?.failed(1)?;
    ensure!(error.contains("config.json"), "{error}");
    let left = std::fs::read_dir(bundle.dir.join("state"))?.count();
    ensure!(left == 0, "{left} directories are left");
    Ok(())
}
