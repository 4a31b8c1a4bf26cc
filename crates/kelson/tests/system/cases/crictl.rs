//! crictl drives the daemon as a user does: with JSON files and commands, whose output is checked.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::case::{Case, Need, Outcome, on_node};
use crate::node::{Node, PATIENCE};
use crate::tool::{self, Ran};

pub(super) fn cases() -> Vec<Case> {
    [
        on_node("crictl::a_pods_life", |node| Box::pin(life(node))),
        on_node("crictl::files_without_a_linux_section", |node| {
            Box::pin(minimal(node))
        }),
        on_node("crictl::images", |node| Box::pin(images(node))),
        on_node("crictl::runtime", |node| Box::pin(runtime(node))),
        on_node("crictl::stats", |node| Box::pin(stats(node))),
        on_node("crictl::events", |node| Box::pin(events(node))),
        on_node("crictl::mistakes", |node| Box::pin(mistakes(node))),
        on_node("crictl::image_volumes_devices_and_targets", |node| {
            Box::pin(fields(node))
        }),
    ]
    .map(|case| case.needs(Need::Crictl))
    .into()
}

/// crictl with a configuration file of its own, so that the machine's is not read.
struct Crictl {
    dir: PathBuf,
}

impl Crictl {
    fn new(node: &Node) -> anyhow::Result<Self> {
        let dir = node.dir().join("crictl");
        std::fs::create_dir(&dir)?;
        let text = format!(
            "runtime-endpoint: {0}\nimage-endpoint: {0}\n",
            node.endpoint()
        );
        std::fs::write(dir.join("crictl.yaml"), text)?;
        Ok(Self { dir })
    }

    fn command(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let program = std::env::var_os("KELSON_TEST_CRICTL").context("no crictl")?;
        let mut command = Command::new(program);
        command
            .arg("--config")
            .arg(self.dir.join("crictl.yaml"))
            .args(["--timeout", "30s"]);
        command.args(arguments).kill_on_drop(true);
        Ok(command)
    }

    async fn run(&self, arguments: &[&str]) -> anyhow::Result<Ran> {
        tool::run(&mut self.command(arguments)?).await
    }

    /// The trimmed output of a command that must succeed.
    async fn ok(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let text = self
            .run(arguments)
            .await?
            .ok()
            .with_context(|| format!("{arguments:?}"))?;
        Ok(text.trim().to_owned())
    }

    async fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let text = self.ok(arguments).await?;
        serde_json::from_str(&text).with_context(|| format!("{arguments:?} printed {text:?}"))
    }

    /// Writes a file and returns its path.
    fn file(&self, name: &str, content: &Value) -> anyhow::Result<String> {
        let path = self.dir.join(name);
        std::fs::write(&path, content.to_string())?;
        Ok(path.display().to_string())
    }
}

fn pod_file(node: &Node) -> Value {
    json!({
        "metadata": { "name": "web", "namespace": "default", "uid": "one", "attempt": 1 },
        "hostname": "web-host",
        "log_directory": node.logs().join("web"),
        "labels": { "app": "web" },
        "linux": {},
    })
}

fn container_file(image: &str, script: &str) -> Value {
    json!({
        "metadata": { "name": "main" },
        "image": { "image": image },
        "command": ["/bin/sh", "-c", script],
        "envs": [{ "key": "COLOUR", "value": "sea green" }],
        "log_path": "main.log",
        "linux": { "resources": { "memory_limit_in_bytes": 67_108_864 } },
    })
}

fn lines(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .collect()
}

async fn life(node: &mut Node) -> Outcome {
    let image = node.registry.reference("busybox:latest");
    let crictl = Crictl::new(node)?;
    crictl.ok(&["pull", &image]).await?;
    let pod_json = crictl.file("pod.json", &pod_file(node))?;
    let script =
        "echo to stdout; echo to stderr >&2; trap 'exit 3' TERM; while :; do sleep 0.1; done";
    let container_json = crictl.file("container.json", &container_file(&image, script))?;

    let pod = crictl.ok(&["runp", &pod_json]).await?;
    ensure!(pod.len() == 64, "runp printed {pod:?}");
    let table = crictl.ok(&["pods"]).await?;
    ensure!(
        lines(&table).len() == 2 && table.contains(&pod[..13]) && table.contains("Ready"),
        "{table}"
    );
    ensure!(crictl.ok(&["pods", "-q", "--label", "app=web"]).await? == pod[..]);
    ensure!(
        crictl
            .ok(&["pods", "-q", "--label", "app=other"])
            .await?
            .is_empty()
    );
    let inspected = crictl.json(&["inspectp", &pod[..10]]).await?;
    ensure!(
        inspected["status"]["state"] == "SANDBOX_READY",
        "{inspected}"
    );
    let address: std::net::Ipv4Addr = inspected["status"]["network"]["ip"]
        .as_str()
        .context("no address")?
        .parse()?;
    ensure!(address.octets()[0] == 198, "{address}");

    let container = crictl
        .ok(&["create", &pod, &container_json, &pod_json])
        .await?;
    ensure!(container.len() == 64, "create printed {container:?}");
    ensure!(
        crictl.ok(&["ps", "-q"]).await?.is_empty(),
        "it runs before it is started"
    );
    ensure!(crictl.ok(&["ps", "-a"]).await?.contains("Created"));
    crictl.ok(&["start", &container]).await?;
    let table = crictl.ok(&["ps", "--pod", &pod]).await?;
    ensure!(
        lines(&table).len() == 2 && table.contains("Running") && table.contains(&image),
        "{table}"
    );

    let text = crictl
        .ok(&[
            "exec",
            "-s",
            &container,
            "/bin/sh",
            "-c",
            "hostname; echo $COLOUR",
        ])
        .await?;
    ensure!(lines(&text) == ["web-host", "sea green"], "{text:?}");
    let failed = crictl
        .run(&["exec", "-s", &container, "/bin/sh", "-c", "exit 7"])
        .await?;
    ensure!(
        failed.code != 0 && failed.stderr.contains("exited with 7"),
        "{failed:?}"
    );
    let logs = crictl.run(&["logs", &container]).await?;
    ensure!(
        logs.stdout == "to stdout\n" && logs.stderr == "to stderr\n",
        "{logs:?}"
    );

    let inspected = crictl.json(&["inspect", &container]).await?;
    let status = &inspected["status"];
    ensure!(
        status["state"] == "CONTAINER_RUNNING" && status["image"]["image"] == *image,
        "{status}"
    );
    let limit = &status["resources"]["linux"]["memoryLimitInBytes"];
    ensure!(*limit == "67108864", "{limit}");

    crictl.ok(&["stop", "--timeout", "10", &container]).await?;
    let status = &crictl.json(&["inspect", &container]).await?["status"];
    ensure!(
        status["state"] == "CONTAINER_EXITED" && status["exitCode"] == 3,
        "{status}"
    );
    crictl.ok(&["rm", &container]).await?;
    ensure!(crictl.ok(&["ps", "-aq"]).await?.is_empty());
    crictl.ok(&["stopp", &pod]).await?;
    ensure!(crictl.ok(&["pods", "--state", "NotReady", "-q"]).await? == pod[..]);
    crictl.ok(&["rmp", &pod]).await?;
    ensure!(crictl.ok(&["pods", "-q"]).await?.is_empty());
    Ok(())
}

async fn minimal(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let crictl = Crictl::new(node)?;
    let metadata = json!({ "name": "least", "namespace": "default", "uid": "two" });
    let pod_json = crictl.file("pod.json", &json!({ "metadata": metadata }))?;
    let content = json!({
        "metadata": { "name": "least" },
        "image": { "image": image },
        "command": ["/bin/sleep", "1000"],
    });
    let container_json = crictl.file("container.json", &content)?;
    let container = crictl
        .ok(&["run", "--no-pull", &container_json, &pod_json])
        .await?;
    ensure!(
        crictl
            .ok(&["exec", "-s", &container, "echo", "works"])
            .await?
            == "works"
    );
    let logs = crictl.run(&["logs", &container]).await?;
    ensure!(
        logs.code != 0 && logs.stdout.is_empty(),
        "a log without a log directory: {logs:?}"
    );
    let pod = crictl.ok(&["pods", "-q"]).await?;
    // Without force, a running container must not be removed by accident.
    ensure!(
        crictl.run(&["rmp", &pod]).await?.code != 0,
        "a ready pod was removed"
    );
    crictl.ok(&["rmp", "-f", &pod]).await?;
    ensure!(crictl.ok(&["ps", "-aq"]).await?.is_empty());
    Ok(())
}

async fn images(node: &mut Node) -> Outcome {
    let image = node.registry.reference("busybox:latest");
    let crictl = Crictl::new(node)?;
    let pulled = crictl.ok(&["pull", &image]).await?;
    ensure!(pulled.contains("sha256:"), "{pulled}");
    let table = crictl.ok(&["images", "--digests"]).await?;
    ensure!(
        lines(&table).len() == 2 && table.contains("latest"),
        "{table}"
    );
    let list = crictl.json(&["images", "-o", "json"]).await?;
    let one = &list["images"][0];
    let id = one["id"].as_str().context("no id")?.to_owned();
    ensure!(
        one["repoTags"] == json!([image]) && one["pinned"] == false,
        "{one}"
    );
    ensure!(
        one["size"]
            .as_str()
            .is_some_and(|size| size.parse().is_ok_and(|n: u64| n > 100_000)),
        "{one}"
    );
    let inspected = crictl.json(&["inspecti", &id]).await?;
    ensure!(inspected["status"]["id"] == id[..], "{inspected}");
    let config = &inspected["info"]["imageSpec"]["config"];
    ensure!(config["Entrypoint"] == json!(["/bin/sh"]), "{config}");
    let usage = crictl.json(&["imagefsinfo"]).await?;
    let used = &usage["status"]["imageFilesystems"][0]["usedBytes"]["value"];
    ensure!(
        used.as_str()
            .is_some_and(|used| used.parse().is_ok_and(|n: u64| n > 500_000)),
        "{usage}"
    );
    crictl.ok(&["rmi", &id[..20]]).await?;
    ensure!(crictl.ok(&["images", "-q"]).await?.is_empty());
    ensure!(crictl.run(&["inspecti", &image]).await?.code != 0);
    Ok(())
}

async fn runtime(node: &mut Node) -> Outcome {
    let crictl = Crictl::new(node)?;
    let version = crictl.ok(&["version"]).await?;
    ensure!(
        version.contains("RuntimeName:  kelson") && version.contains("RuntimeApiVersion:  v1"),
        "{version}"
    );
    let info = crictl.json(&["info"]).await?;
    let conditions = info["status"]["conditions"]
        .as_array()
        .context("no conditions")?;
    for name in ["RuntimeReady", "NetworkReady"] {
        let ready = conditions
            .iter()
            .any(|c| c["type"] == name && c["status"] == true);
        ensure!(ready, "{name}: {conditions:?}");
    }
    ensure!(
        info["config"]["cgroup_prefix"] == format!("/{}", node.name()),
        "{info}"
    );
    let driver = crictl.ok(&["runtime-config"]).await?;
    ensure!(driver.to_lowercase().contains("cgroupfs"), "{driver}");
    Ok(())
}

async fn stats(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let crictl = Crictl::new(node)?;
    let pod_json = crictl.file("pod.json", &pod_file(node))?;
    let container_json = crictl.file("container.json", &container_file(&image, "sleep 1000"))?;
    let container = crictl
        .ok(&["run", "--no-pull", &container_json, &pod_json])
        .await?;
    let pod = crictl.ok(&["pods", "-q"]).await?;
    let stats = crictl
        .json(&["stats", "-o", "json", &container[..12]])
        .await?;
    ensure!(
        stats["stats"][0]["attributes"]["id"] == container[..],
        "{stats}"
    );
    let memory = &stats["stats"][0]["memory"]["workingSetBytes"]["value"];
    ensure!(
        memory
            .as_str()
            .is_some_and(|m| m.parse().is_ok_and(|n: u64| n > 10_000)),
        "{stats}"
    );
    let table = crictl.ok(&["stats"]).await?;
    ensure!(
        table.contains("CONTAINER") && table.contains(&container[..13]),
        "{table}"
    );
    let stats = crictl.json(&["statsp", "-o", "json", "--id", &pod]).await?;
    let one = &stats["stats"][0];
    ensure!(one["attributes"]["metadata"]["name"] == "web", "{stats}");
    ensure!(
        one["linux"]["containers"]
            .as_array()
            .is_some_and(|list| list.len() == 1),
        "{stats}"
    );
    let table = crictl.ok(&["statsp"]).await?;
    ensure!(
        table.contains(&pod[..13]) && table.contains("web"),
        "{table}"
    );
    Ok(())
}

async fn events(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let crictl = Crictl::new(node)?;
    let pod_json = crictl.file("pod.json", &pod_file(node))?;
    let container_json = crictl.file("container.json", &container_file(&image, "exit 5"))?;
    let mut watcher = crictl
        .command(&["events"])?
        .stdout(Stdio::piped())
        .spawn()?;
    let mut output = BufReader::new(watcher.stdout.take().context("no output")?).lines();
    // There is no sign that the watcher listens, so pods are made until one is seen.
    let mut pods = Vec::new();
    let mut seen = loop {
        let name = format!("probe{}", pods.len());
        let mut content = pod_file(node);
        content["metadata"]["name"] = name.as_str().into();
        let probe_json = crictl.file("probe.json", &content)?;
        pods.push(crictl.ok(&["runp", &probe_json]).await?);
        let wait = tokio::time::timeout(Duration::from_millis(500), output.next_line());
        match wait.await {
            Ok(line) => break line?.context("the watcher has ended")?,
            Err(_) => ensure!(pods.len() < 30, "no event is seen"),
        }
    };
    let container = crictl
        .ok(&["run", "--no-pull", &container_json, &pod_json])
        .await?;
    node.exited(&container).await?;
    crictl.ok(&["rm", &container]).await?;
    let end = "CONTAINER_DELETED_EVENT";
    let reading = async {
        while let Some(line) = output.next_line().await? {
            seen.push('\n');
            seen.push_str(&line);
            if line.contains(end) {
                break;
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, reading)
        .await
        .context("the events do not come")??;
    watcher.kill().await?;
    let position = |what: &str| {
        let own = seen
            .find(&format!("\"{container}\""))
            .context("no event of the container")?;
        seen[own..]
            .find(what)
            .with_context(|| format!("no {what}: {seen}"))
    };
    let created = position("CONTAINER_CREATED_EVENT")?;
    let started = position("CONTAINER_STARTED_EVENT")?;
    let stopped = position("CONTAINER_STOPPED_EVENT")?;
    ensure!(
        created < started && started < stopped && stopped < position(end)?,
        "{seen}"
    );
    Ok(())
}

async fn mistakes(node: &mut Node) -> Outcome {
    let crictl = Crictl::new(node)?;
    for (arguments, code) in [
        (vec!["inspect", "abcdef"], "NotFound"),
        (vec!["inspectp", "abcdef"], "NotFound"),
        (vec!["start", "abcdef"], "NotFound"),
        (vec!["exec", "-s", "abcdef", "true"], "NotFound"),
        (vec!["pull", "Wrong//name"], "InvalidArgument"),
    ] {
        let ran = crictl.run(&arguments).await?;
        ensure!(
            ran.code != 0 && ran.stderr.contains(code),
            "{arguments:?}: {ran:?}"
        );
    }
    let nameless = crictl.file(
        "pod.json",
        &json!({ "metadata": { "name": "", "uid": "" } }),
    )?;
    let ran = crictl.run(&["runp", &nameless]).await?;
    ensure!(
        ran.code != 0 && ran.stderr.contains("name") && ran.stderr.contains("uid"),
        "{ran:?}"
    );
    Ok(())
}

async fn fields(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let volume = node.pull("content").await?;
    let crictl = Crictl::new(node)?;
    let cdi = node.dir().join("cdi");
    std::fs::create_dir(&cdi)?;
    let document = "cdiVersion: 0.6.0\nkind: example.com/toy\ndevices:\n- name: one\n  \
                    containerEdits: {deviceNodes: [{path: /dev/toy, hostPath: /dev/zero}]}\n";
    std::fs::write(cdi.join("toy.yaml"), document)?;
    let pod_json = crictl.file("pod.json", &pod_file(node))?;
    let mut content = container_file(&image, "sleep 1000");
    content["mounts"] = json!([{
        "container_path": "/docs",
        "image": { "image": volume, "user_specified_image": "docs" },
        "image_sub_path": "docs",
    }]);
    content["CDI_devices"] = json!([{ "name": "example.com/toy=one" }]);
    content["linux"]["security_context"] = json!({ "namespace_options": { "pid": 1 } });
    let main_json = crictl.file("main.json", &content)?;
    let pod = crictl.ok(&["runp", &pod_json]).await?;
    let main = crictl
        .ok(&["create", "--no-pull", &pod, &main_json, &pod_json])
        .await?;
    crictl.ok(&["start", &main]).await?;
    let read = crictl
        .ok(&["exec", "-s", &main, "cat", "/docs/page"])
        .await?;
    ensure!(read == "a page", "{read}");
    let read = crictl
        .ok(&["exec", "-s", &main, "head", "-c", "2", "/dev/toy"])
        .await?;
    ensure!(read == "\0\0", "{read:?}");
    let status = crictl.json(&["inspect", &main]).await?;
    let mount = &status["status"]["mounts"][0];
    ensure!(
        mount["imageSubPath"] == "docs"
            && mount["readonly"] == true
            && mount["image"]["imageRef"]
                .as_str()
                .is_some_and(|text| text.contains("@sha256:")),
        "{mount}"
    );
    let mut content = container_file(&image, "sleep 2000");
    content["metadata"]["name"] = "debug".into();
    content["linux"]["security_context"] =
        json!({ "namespace_options": { "pid": 3, "target_id": main } });
    let debug_json = crictl.file("debug.json", &content)?;
    let debug = crictl
        .ok(&["create", "--no-pull", &pod, &debug_json, &pod_json])
        .await?;
    crictl.ok(&["start", &debug]).await?;
    let seen = crictl.ok(&["exec", "-s", &debug, "ps"]).await?;
    ensure!(seen.contains("sleep 1000"), "{seen}");
    crictl.ok(&["stop", "-t", "0", &main]).await?;
    content["metadata"]["name"] = "late".into();
    let late_json = crictl.file("late.json", &content)?;
    let refused = crictl
        .run(&["create", "--no-pull", &pod, &late_json, &pod_json])
        .await?;
    ensure!(
        refused.code != 0 && refused.stderr.contains("target_id"),
        "{refused:?}"
    );
    Ok(())
}
