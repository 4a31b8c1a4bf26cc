//! The commands of the program as a person and as a script use them.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::case::{Case, Outcome, on_node};
use crate::node::{Node, PATIENCE, program};
use crate::tool::{self, Ran, client, kelson};

pub(super) fn cases() -> Vec<Case> {
    vec![
        on_node("cli::images", |node| Box::pin(images(node))),
        on_node("cli::logs", |node| Box::pin(logs(node))),
        on_node("cli::events", |node| Box::pin(events(node))),
        on_node("cli::info_and_version", |node| Box::pin(info(node))),
        on_node("cli::mistakes", |node| Box::pin(mistakes(node))),
        on_node("cli::config", |node| Box::pin(config(node))),
        on_node("cli::one_daemon_for_a_state_directory", |node| {
            Box::pin(second_daemon(node))
        }),
    ]
}

/// `kelson run` with its logs in the node's directory.
pub(super) async fn run(node: &Node, arguments: &[&str]) -> anyhow::Result<Ran> {
    let logs = node.logs().display().to_string();
    kelson(node, ["run", "--log-dir", &logs].iter().chain(arguments)).await
}

/// The trimmed output of a client command that must succeed.
pub(super) async fn ok(node: &Node, arguments: &[&str]) -> anyhow::Result<String> {
    let text = kelson(node, arguments)
        .await?
        .ok()
        .with_context(|| format!("{arguments:?}"))?;
    Ok(text.trim().to_owned())
}

pub(super) async fn json(node: &Node, arguments: &[&str]) -> anyhow::Result<Value> {
    let text = ok(node, &[arguments, &["-o", "json"]].concat()).await?;
    serde_json::from_str(&text).with_context(|| format!("{arguments:?} printed {text:?}"))
}

pub(super) async fn yaml(node: &Node, arguments: &[&str]) -> anyhow::Result<Value> {
    let text = ok(node, &[arguments, &["-o", "yaml"]].concat()).await?;
    serde_saphyr::from_str(&text).with_context(|| format!("{arguments:?} printed {text:?}"))
}

async fn images(node: &mut Node) -> Outcome {
    let image = node.registry.reference("busybox:latest");
    let pulled = kelson(node, ["pull", &image]).await?;
    ensure!(
        pulled.code == 0 && pulled.stdout == format!("{image}\n"),
        "{pulled:?}"
    );
    ensure!(
        pulled.stderr.contains("MB") || pulled.stderr.contains("kB"),
        "{pulled:?}"
    );
    let table = ok(node, &["images"]).await?;
    let lines: Vec<&str> = table.lines().collect();
    ensure!(
        lines.len() == 2 && lines[0].starts_with("IMAGE") && lines[1].contains(" latest "),
        "{table}"
    );
    let id = ok(node, &["images", "-q"]).await?;
    ensure!(id.starts_with("sha256:") && id.len() == 71, "{id}");
    let list = json(node, &["images"]).await?;
    ensure!(list["images"][0]["id"] == id[..], "{list}");
    ensure!(yaml(node, &["images"]).await? == list);
    let inspected = json(node, &["inspect", &image]).await?;
    ensure!(inspected["status"]["id"] == id[..], "{inspected}");
    ensure!(
        inspected["info"]["imageSpec"]["os"] == "linux",
        "{inspected}"
    );
    ok(node, &["rmi", &image]).await?;
    ensure!(ok(node, &["images", "-q"]).await?.is_empty());
    let error = kelson(node, ["rmi", &image]).await?.failed(1)?;
    ensure!(
        error.contains(&image) && error.contains("kelson images"),
        "{error}"
    );
    let absent = node.registry.reference("absent:1");
    let ran = kelson(node, ["pull", &absent, &image]).await?;
    ensure!(
        ran.stdout == format!("{image}\n"),
        "one failure ends the others: {ran:?}"
    );
    let error = ran.failed(1)?;
    ensure!(
        error.contains("absent:1") && error.contains("not in the registry"),
        "{error}"
    );
    Ok(())
}

async fn logs(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let script = "for i in 1 2 3 4 5; do echo line $i; done; echo last >&2";
    run(node, &["--name", "done", &image, "-c", script])
        .await?
        .ok()?;
    let ran = kelson(node, ["logs", "done"]).await?;
    ensure!(
        ran.stdout == "line 1\nline 2\nline 3\nline 4\nline 5\n" && ran.stderr == "last\n",
        "{ran:?}"
    );
    let ran = kelson(node, ["logs", "--tail", "0", "done"]).await?;
    ensure!(
        ran.code == 0 && ran.stdout.is_empty() && ran.stderr.is_empty(),
        "{ran:?}"
    );
    let ran = kelson(node, ["logs", "-n", "3", "done"]).await?;
    ensure!(
        ran.stdout.lines().count() + ran.stderr.lines().count() == 3,
        "{ran:?}"
    );
    let text = ok(node, &["logs", "-t", "done"]).await?;
    let (time, line) = text
        .lines()
        .next()
        .and_then(|l| l.split_once(' '))
        .context("no line")?;
    let time: jiff::Timestamp = time.parse()?;
    ensure!(line == "line 1", "{text}");
    ensure!(
        ok(node, &["logs", "--since", "1h", "done"])
            .await?
            .lines()
            .count()
            == 5
    );
    let later = (time + jiff::SignedDuration::from_hours(1)).to_string();
    ensure!(
        ok(node, &["logs", "--since", &later, "done"])
            .await?
            .is_empty()
    );

    let script = "echo one; until test -e /go; do sleep 0.05; done; echo two";
    run(node, &["-d", "--name", "slow", &image, "-c", script])
        .await?
        .ok()?;
    let mut child = client(node)
        .args(["logs", "-f", "slow"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let line = tokio::time::timeout(PATIENCE, lines.next_line()).await??;
    ensure!(line.as_deref() == Some("one"), "{line:?}");
    ok(node, &["exec", "slow", "touch", "/go"]).await?;
    let line = tokio::time::timeout(PATIENCE, lines.next_line()).await??;
    ensure!(line.as_deref() == Some("two"), "{line:?}");
    let status = tokio::time::timeout(PATIENCE, child.wait())
        .await
        .context("it follows a dead one")??;
    ensure!(status.success(), "{status}");
    Ok(())
}

async fn events(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let mut child = client(node)
        .args(["events", "-o", "json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    // There is no sign that the watcher listens, so containers are run until one is seen.
    let mut seen = Vec::new();
    for _ in 0..30 {
        run(node, &["--rm", &image, "-c", "exit 5"])
            .await?
            .failed(5)?;
        while let Ok(line) =
            tokio::time::timeout(Duration::from_millis(300), lines.next_line()).await
        {
            let event: Value = serde_json::from_str(&line?.context("the watcher has ended")?)?;
            seen.push(
                event["containerEventType"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
            );
        }
        if !seen.is_empty() {
            break;
        }
    }
    child.kill().await?;
    for kind in ["CREATED", "STARTED", "STOPPED", "DELETED"] {
        ensure!(
            seen.iter().any(|event| event.contains(kind)),
            "no {kind}: {seen:?}"
        );
    }
    Ok(())
}

async fn info(node: &mut Node) -> Outcome {
    let text = ok(node, &["info"]).await?;
    for word in [
        "kelson",
        "RuntimeReady:",
        "NetworkReady:",
        "CGROUPFS",
        "root",
    ] {
        ensure!(text.contains(word), "no {word}: {text}");
    }
    let info = json(node, &["info"]).await?;
    let conditions = info["status"]["conditions"]
        .as_array()
        .context("no conditions")?;
    ensure!(
        conditions
            .iter()
            .all(|condition| condition["status"] == true),
        "{info}"
    );
    ensure!(yaml(node, &["info"]).await?["status"] == info["status"]);
    let text = ok(node, &["version"]).await?;
    ensure!(
        text.contains("CRI v1") && text.lines().count() == 2,
        "{text}"
    );
    ensure!(json(node, &["version"]).await?["runtimeName"] == "kelson");
    Ok(())
}

async fn mistakes(node: &mut Node) -> Outcome {
    for arguments in [
        vec![],
        vec!["fly"],
        vec!["pull"],
        vec!["logs"],
        vec!["exec", "only-a-container"],
        vec!["run", "-p", "99999:80", "image"],
        vec!["run", "--rm", "-d", "image"],
        vec!["images", "-o", "xml"],
        vec!["logs", "--since", "yesterday", "x"],
    ] {
        let ran = kelson(node, &arguments).await?;
        ensure!(
            ran.code == 2 && ran.stderr.contains("--help"),
            "{arguments:?}: {ran:?}"
        );
    }
    for arguments in [
        vec!["logs", "nothing"],
        vec!["exec", "nothing", "true"],
        vec!["inspect", "nothing"],
    ] {
        let error = kelson(node, &arguments).await?.failed(1)?;
        ensure!(
            error.contains("nothing") && error.contains("kelson ps"),
            "{arguments:?}: {error}"
        );
    }
    // Nobody answers at the socket.
    let nowhere = format!("unix://{}/nowhere.sock", node.dir().display());
    for arguments in [vec!["pods"], vec!["version"], vec!["run", "image"]] {
        let mut command = Command::new(program());
        let ran = tool::run(command.args(["-r", &nowhere]).args(&arguments)).await?;
        let error = ran.failed(1)?;
        ensure!(
            error.contains("nowhere.sock") && error.contains("next:"),
            "{arguments:?}: {error}"
        );
    }
    // The environment names the socket as well.
    let mut command = Command::new(program());
    let command = command
        .env("KELSON_ENDPOINT", node.endpoint())
        .args(["pods", "-q"]);
    tool::run(command).await?.ok()?;
    Ok(())
}

async fn config(node: &mut Node) -> Outcome {
    let dir = node.dir().join("etc");
    std::fs::create_dir_all(dir.join("conf.d"))?;
    let file = dir.join("config.toml");
    let path = file.display().to_string();
    let defaults = ok(node, &["config", "default"]).await?;
    std::fs::write(&file, &defaults)?;
    ok(node, &["config", "check", "--config", &path]).await?;
    let wrong =
        "[daemon]\nroot = \"relative\"\nsate = \"/x\"\n\n[network]\nfallback = \"brigde\"\n";
    std::fs::write(&file, wrong)?;
    std::fs::write(
        dir.join("conf.d/20-more.toml"),
        "[image]\nmax_concurrent_downloads = 1000\n",
    )?;
    std::fs::write(dir.join("conf.d/30-broken.toml"), "[image\n")?;
    let error = kelson(node, ["config", "check", "--config", &path])
        .await?
        .failed(1)?;
    for place in [
        "config.toml:2:",
        "config.toml:3:",
        "config.toml:6:",
        "20-more.toml:2:",
        "30-broken.toml:1:",
        "daemon.sate",
        "5 mistakes",
    ] {
        ensure!(error.contains(place), "no {place}: {error}");
    }
    // The daemon refuses the same.
    let error = kelson(node, ["serve", "--config", &path])
        .await?
        .failed(1)?;
    ensure!(error.contains("5 mistakes"), "{error}");
    let missing = dir.join("missing.toml").display().to_string();
    let error = kelson(node, ["config", "check", "--config", &missing])
        .await?
        .failed(1)?;
    ensure!(error.contains("missing.toml"), "{error}");
    Ok(())
}

async fn second_daemon(node: &mut Node) -> Outcome {
    let config = node.dir().join("config.toml").display().to_string();
    let error = kelson(node, ["serve", "--config", &config])
        .await?
        .failed(1)?;
    ensure!(
        error.contains("another kelson") && error.contains("daemon.state"),
        "{error}"
    );
    // The same socket with other directories is refused as well, and the first goes on.
    let text = std::fs::read_to_string(&config)?;
    let other = node.dir().join("second");
    std::fs::create_dir(&other)?;
    let shown = other.display();
    let text = text
        .replace(
            &format!("root = \"{}/root", node.dir().display()),
            &format!("root = \"{shown}/root"),
        )
        .replace(
            &format!("state = \"{}/run", node.dir().display()),
            &format!("state = \"{shown}/run"),
        );
    std::fs::write(other.join("config.toml"), text)?;
    let config = other.join("config.toml").display().to_string();
    let error = kelson(node, ["serve", "--config", &config])
        .await?
        .failed(1)?;
    ensure!(
        error.contains("already serves") && error.contains("kelson.sock"),
        "{error}"
    );
    ok(node, &["pods", "-q"]).await?;
    Ok(())
}
