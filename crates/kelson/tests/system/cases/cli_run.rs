//! `kelson run`: in the foreground, detached, with published ports, and interrupted.

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::cli::{json, ok, run, yaml};
use crate::case::{Case, Outcome, on_node};
use crate::node::{Node, PATIENCE};
use crate::tool::{self, client, kelson};

pub(super) fn cases() -> Vec<Case> {
    vec![
        on_node("cli_run::in_the_foreground", |node| {
            Box::pin(foreground(node))
        }),
        on_node("cli_run::detached", |node| Box::pin(detached(node))),
        on_node("cli_run::published", |node| Box::pin(published(node))),
        on_node("cli_run::interrupted", |node| Box::pin(interrupted(node))),
    ]
}

async fn foreground(node: &mut Node) -> Outcome {
    let image = node.registry.reference("busybox:latest");
    // The image is pulled because it is not there.
    let script = "echo \"$A $B\"; echo to stderr >&2; pwd; id -u; exit 7";
    let flags = [
        "--rm",
        "-e",
        "A=one two",
        "-e",
        "B",
        "-w",
        "/tmp",
        "-u",
        "1000",
    ];
    let ran = run(node, &[flags.as_slice(), &[&image, "-c", script]].concat()).await?;
    ensure!(
        ran.code == 7 && ran.stdout == "one two \n/tmp\n1000\n",
        "{ran:?}"
    );
    ensure!(
        ran.stderr.contains("to stderr\n") && ran.stderr.contains("pulled"),
        "{ran:?}"
    );
    ensure!(ok(node, &["pods", "-q"]).await?.is_empty());
    let left = std::fs::read_dir(node.logs())?.count();
    ensure!(left == 0, "{left} log directories are left");

    let logs = node.logs().display().to_string();
    let mut command = client(node);
    command
        .env("B", "passed on")
        .args(["run", "--log-dir", &logs, "--rm", "-e", "B", &image]);
    let ran = tool::run(command.args(["-c", "echo $B"])).await?;
    ensure!(ran.stdout == "passed on\n", "{ran:?}");

    let shared = node.dir().join("shared");
    std::fs::create_dir(&shared)?;
    let volume = format!("{}:/mnt", shared.display());
    run(
        node,
        &[
            "--rm",
            "-v",
            &volume,
            &image,
            "-c",
            "echo written > /mnt/file",
        ],
    )
    .await?
    .ok()?;
    ensure!(std::fs::read(shared.join("file"))? == b"written\n");
    let read_only = format!("{volume}:ro");
    let script = "cat /mnt/file; echo more > /mnt/file";
    let ran = run(node, &["--rm", "-v", &read_only, &image, "-c", script]).await?;
    ensure!(
        ran.code == 1 && ran.stdout == "written\n" && ran.stderr.contains("Read-only"),
        "{ran:?}"
    );

    // A command that is not there, a user that is not there.
    let ran = run(node, &["--rm", "--entrypoint", "/no/such", &image]).await?;
    ensure!(ran.code != 0 && ran.stderr.contains("/no/such"), "{ran:?}");
    let ran = run(node, &["--rm", "-u", "stranger", &image]).await?;
    ensure!(ran.code == 1 && ran.stderr.contains("stranger"), "{ran:?}");
    ensure!(
        ok(node, &["pods", "-q"]).await?.is_empty(),
        "a failed run leaves its pod"
    );

    // Without --rm the pod stays, stopped, and can be looked at.
    run(node, &["--name", "kept", &image, "-c", "echo kept"])
        .await?
        .ok()?;
    let table = ok(node, &["pods"]).await?;
    ensure!(
        table.contains("kept") && table.contains("NotReady"),
        "{table}"
    );
    ensure!(ok(node, &["logs", "kept"]).await? == "kept");
    ok(node, &["rm", "kept"]).await?;
    ensure!(ok(node, &["ps", "-aq"]).await?.is_empty());
    Ok(())
}

async fn detached(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let script = "echo started; trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let pod = run(node, &["-d", "--name", "web", &image, "-c", script])
        .await?
        .ok()?;
    let pod = pod.trim();
    ensure!(
        pod.len() == 64 && ok(node, &["pods", "-q"]).await? == pod,
        "{pod}"
    );
    let container = ok(node, &["ps", "-q"]).await?;
    let table = ok(node, &["ps"]).await?;
    let line = table.lines().nth(1).context("no line")?;
    for word in [&container[..13], "Running", "web", "busybox"] {
        ensure!(line.contains(word), "no {word}: {table}");
    }
    let list = json(node, &["ps"]).await?;
    ensure!(list["containers"][0]["podSandboxId"] == pod, "{list}");
    ensure!(yaml(node, &["pods"]).await?["items"][0]["metadata"]["name"] == "web");

    ensure!(ok(node, &["exec", &container[..8], "hostname"]).await? == "web");

    let table = ok(node, &["stats"]).await?;
    ensure!(
        table.contains("CPU %") && table.contains(&container[..13]),
        "{table}"
    );
    let stats = json(node, &["stats", "web"]).await?;
    ensure!(
        stats["stats"][0]["attributes"]["id"] == container[..],
        "{stats}"
    );
    let inspected = json(node, &["inspect", &container]).await?;
    ensure!(
        inspected["status"]["state"] == "CONTAINER_RUNNING",
        "{inspected}"
    );
    let inspected = json(node, &["inspect", pod]).await?;
    ensure!(
        inspected["status"]["network"]["ip"]
            .as_str()
            .is_some_and(|ip| ip.starts_with("198."))
    );

    let error = kelson(node, ["rm", "web"]).await?.failed(1)?;
    ensure!(error.contains("--force"), "{error}");
    let begin = Instant::now();
    ok(node, &["stop", "web"]).await?;
    ensure!(
        begin.elapsed() < Duration::from_secs(8),
        "the stop signal does not come through"
    );
    let inspected = json(node, &["inspect", &container]).await?;
    ensure!(inspected["status"]["exitCode"] == 0, "{inspected}");
    ok(node, &["rm", "web"]).await?;
    run(node, &["-d", "--name", "again", &image, "-c", "sleep 1000"])
        .await?
        .ok()?;
    ok(node, &["rm", "-f", "again"]).await?;
    ensure!(ok(node, &["pods", "-q"]).await?.is_empty());
    Ok(())
}

async fn published(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
    let script = "mkdir /www; echo ahoy > /www/index.html; exec httpd -f -p 80 -h /www";
    let publish = format!("127.0.0.1:{port}:80");
    run(
        node,
        &["-d", "--name", "web", "-p", &publish, &image, "-c", script],
    )
    .await?
    .ok()?;
    let get = || {
        let mut stream =
            std::net::TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET / HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        anyhow::Ok(text)
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        match get() {
            Ok(text) if text.ends_with("ahoy\n") => break,
            answer => ensure!(Instant::now() < deadline, "{answer:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ok(node, &["rm", "-f", "web"]).await?;
    ensure!(get().is_err(), "the port still leads somewhere");
    Ok(())
}

/// Sends a signal to a child.
fn signal(child: &tokio::process::Child, signal: rustix::process::Signal) -> Outcome {
    let pid = child.id().and_then(|id| i32::try_from(id).ok());
    let pid = pid
        .and_then(rustix::process::Pid::from_raw)
        .context("it has ended")?;
    Ok(rustix::process::kill_process(pid, signal)?)
}

async fn interrupted(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let logs = node.logs().display().to_string();
    let script = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let mut child = client(node)
        .args(["run", "--log-dir", &logs, &image, "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let first = tokio::time::timeout(PATIENCE, lines.next_line()).await??;
    ensure!(first.as_deref() == Some("ready"), "{first:?}");
    signal(&child, rustix::process::Signal::INT)?;
    let second = tokio::time::timeout(PATIENCE, lines.next_line()).await??;
    ensure!(second.as_deref() == Some("bye"), "{second:?}");
    let status = tokio::time::timeout(PATIENCE, child.wait()).await??;
    ensure!(status.code() == Some(3), "{status}");
    ensure!(
        ok(node, &["pods", "-q"]).await?.is_empty(),
        "the pod is left"
    );
    Ok(())
}
