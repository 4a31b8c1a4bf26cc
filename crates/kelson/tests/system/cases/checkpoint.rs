//! Checkpoints: archives of running containers, and containers made of them, with CRIU itself.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use kelson_cri::v1;

use crate::case::{Case, Need, Outcome, on_node};
use crate::node::{Node, PATIENCE};
use crate::pod::{pod, shell};

pub(super) fn cases() -> Vec<Case> {
    vec![
        on_node("checkpoint::a_counter_goes_on", |node| {
            Box::pin(counter(node))
        })
        .needs(Need::Criu),
        on_node("checkpoint::a_refused_dump_changes_nothing", |node| {
            Box::pin(refused_dump(node))
        })
        .needs(Need::Criu),
        on_node(
            "checkpoint::mounts_and_privileges_are_the_requests",
            |node| Box::pin(requests(node)),
        )
        .needs(Need::Criu),
    ]
}

/// Counts once in a tenth of a second, to its output and to a file that it keeps open.
const COUNTER: &str = "rm /etc/group; echo new > /root/new; exec 7>>/root/log; n=0; \
    while :; do n=$((n+1)); echo $n; echo $n >&7; sleep 0.1; done";

/// Starts the daemon again with checkpoints, by the CRIU at this path.
pub(super) async fn enable(node: &mut Node, criu: &Path) -> Outcome {
    let drop_ins = node.dir().join("conf.d");
    std::fs::create_dir_all(&drop_ins)?;
    let text = format!(
        "[checkpoint]\nenabled = true\ncriu = \"{}\"\n",
        criu.display()
    );
    std::fs::write(drop_ins.join("checkpoint.toml"), text)?;
    node.kill().await?;
    node.restart().await
}

fn criu() -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("KELSON_TEST_CRIU").context("no CRIU")?;
    Ok(path.into())
}

/// The error of what must not work.
pub(super) fn refused<T, E>(result: Result<T, E>) -> anyhow::Result<E> {
    match result {
        Ok(_) => bail!("it is not refused"),
        Err(error) => Ok(error),
    }
}

pub(super) async fn checkpoint(
    node: &Node,
    container: &str,
    location: &Path,
    timeout: i64,
) -> Result<(), kelson_client::Error> {
    let request = v1::CheckpointContainerRequest {
        container_id: container.to_owned(),
        location: location.display().to_string(),
        timeout,
    };
    node.client.checkpoint_container(request).await.map(drop)
}

/// The numbers in a container's log.
fn counted(path: &str) -> Vec<u64> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines = text
        .lines()
        .filter_map(|line| line.splitn(4, ' ').nth(3)?.parse().ok());
    lines.collect()
}

async fn counts_to(path: &str, least: u64) -> anyhow::Result<Vec<u64>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let numbers = counted(path);
        if numbers.last().is_some_and(|last| *last >= least) {
            return Ok(numbers);
        }
        ensure!(
            Instant::now() < deadline,
            "{path} ends with {:?}",
            numbers.last()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The work directories of checkpoints that are there.
fn work_left(node: &Node) -> anyhow::Result<Vec<PathBuf>> {
    let mut left = Vec::new();
    for container in std::fs::read_dir(node.dir().join("root/containers"))? {
        for entry in std::fs::read_dir(container?.path())? {
            let path = entry?.path();
            if path.ends_with("dump") || path.ends_with("checkpoint") {
                left.push(path);
            }
        }
    }
    Ok(left)
}

async fn counter(node: &mut Node) -> Outcome {
    enable(node, &criu()?).await?;
    let image = node.busybox().await?;
    let first_pod = pod(&node.logs());
    let (first, container) = node
        .run(&first_pod, shell("count", &image, COUNTER))
        .await?;
    let log = node.status(&container).await?.log_path;
    counts_to(&log, 5).await?;

    let archive = node.dir().join("count.tar");
    checkpoint(node, &container, &archive, 0).await?;
    let at = *counted(&log).last().context("nothing was counted")?;
    let mode = std::fs::metadata(&archive)?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "mode {mode:o}");
    ensure!(work_left(node)?.is_empty(), "left: {:?}", work_left(node)?);
    counts_to(&log, at + 5).await.context("it does not go on")?;
    let list = std::process::Command::new("tar")
        .arg("-tf")
        .arg(&archive)
        .output()?;
    let names = String::from_utf8_lossy(&list.stdout).into_owned();
    for name in [
        "config.dump",
        "spec.dump",
        "bind.mounts",
        "deleted.files",
        "rootfs-diff.tar",
        "dump.log",
        "checkpoint/inventory.img",
        "checkpoint/descriptors.json",
    ] {
        ensure!(
            names.lines().any(|line| line == name),
            "no {name} in {names}"
        );
    }
    node.remove_pod(&first).await?;

    let second_pod = pod(&node.logs());
    let mut config = shell("again", &archive.display().to_string(), "exit 99");
    config.envs = Vec::new();
    let (second, container) = node.run(&second_pod, config).await?;
    let log = node.status(&container).await?.log_path;
    ensure!(log.contains("/again.log"), "the log is at {log}");
    let numbers = counts_to(&log, at + 10).await?;
    let begin = *numbers.first().context("nothing is counted")?;
    ensure!(
        begin > 1 && begin <= at + 1,
        "it began with {begin}, after {at}"
    );
    let steps = numbers.windows(2).all(|pair| pair[1] == pair[0] + 1);
    ensure!(steps, "numbers are missing: {numbers:?}");
    ensure!(work_left(node)?.is_empty(), "left: {:?}", work_left(node)?);

    let script = "cat /root/new; test -e /etc/group || echo gone; head -n 1 /root/log; hostname";
    let output = node.output(&container, script).await?;
    let lines: Vec<&str> = output.lines().collect();
    ensure!(lines[..3] == ["new", "gone", "1"], "{lines:?}");
    let name: String = second.chars().take(12).collect();
    ensure!(
        lines[3] == name,
        "the host name is {}, not {name}",
        lines[3]
    );

    node.kill().await?;
    node.restart().await?;
    let again = *counted(&log).last().context("nothing is counted")?;
    counts_to(&log, again + 3)
        .await
        .context("not after a restart")?;
    let request = v1::StopContainerRequest {
        container_id: container.clone(),
        timeout: 0,
    };
    node.client.stop_container(request).await?;
    let status = node.exited(&container).await?;
    ensure!(status.exit_code == 137, "exit code {}", status.exit_code);
    Ok(())
}

/// CRIU refuses open connections: the container goes on, and nothing is written.
async fn refused_dump(node: &mut Node) -> Outcome {
    enable(node, &criu()?).await?;
    let image = node.busybox().await?;
    let script =
        "nc -l -p 7 -e sleep 1000 & until nc 127.0.0.1 7 -e sleep 1000; do sleep 0.1; done";
    let config = shell("talk", &image, script);
    let (_, container) = node.run(&pod(&node.logs()), config).await?;
    let deadline = Instant::now() + PATIENCE;
    // State 01 is an established connection.
    let count = "grep -c ': [0-9A-F:]* [0-9A-F:]* 01 ' /proc/net/tcp || true";
    while node.output(&container, count).await? == "0" {
        ensure!(Instant::now() < deadline, "no connection is made");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let archive = node.dir().join("talk.tar");
    let error = refused(checkpoint(node, &container, &archive, 30).await)?;
    let text = error.to_string();
    ensure!(text.contains("onnected TCP"), "{text}");
    ensure!(text.len() < 4096 && !archive.exists(), "{text}");
    ensure!(work_left(node)?.is_empty(), "left: {:?}", work_left(node)?);
    ensure!(node.output(&container, "echo alive").await? == "alive");
    let states = node
        .output(&container, "cat /proc/1/status | grep State")
        .await?;
    ensure!(!states.contains('T'), "it is stopped: {states}");
    let status = node.status(&container).await?;
    ensure!(status.state() == v1::ContainerState::ContainerRunning);
    Ok(())
}

/// What the request does not give, no checkpoint takes: mounts, capabilities, a seccomp profile.
async fn requests(node: &mut Node) -> Outcome {
    enable(node, &criu()?).await?;
    let image = node.busybox().await?;
    let volume = node.dir().join("volume");
    std::fs::create_dir(&volume)?;
    let mount = |readonly| v1::Mount {
        container_path: "/mnt".into(),
        host_path: volume.display().to_string(),
        readonly,
        ..Default::default()
    };
    let mut config = shell(
        "much",
        &image,
        "n=0; while :; do n=$((n+1)); echo $n; sleep 0.1; done",
    );
    config.mounts = vec![mount(false)];
    let security = config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut());
    security.context("no security context")?.capabilities = Some(v1::Capability {
        add_capabilities: vec!["SYS_NICE".into()],
        ..Default::default()
    });
    let (first, container) = node.run(&pod(&node.logs()), config.clone()).await?;
    let log = node.status(&container).await?.log_path;
    counts_to(&log, 2).await?;
    let archive = node.dir().join("much.tar");
    checkpoint(node, &container, &archive, 60).await?;
    node.remove_pod(&first).await?;
    if let Some(image) = &mut config.image {
        image.image = archive.display().to_string();
    }

    let second_pod = pod(&node.logs());
    let second = node.run_pod(&second_pod).await?;
    let mut none = config.clone();
    none.mounts.clear();
    let error = refused(node.create(&second, &second_pod, none).await)?;
    ensure!(format!("{error:#}").contains("\"/mnt\""), "{error:#}");

    let mut strict = config.clone();
    strict.mounts = vec![mount(true)];
    let mut weak = config.clone();
    let security = weak
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut());
    security.context("no security context")?.capabilities = None;
    let mut open = config.clone();
    let security = open
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut());
    security.context("no security context")?.seccomp = Some(v1::SecurityProfile {
        profile_type: v1::security_profile::ProfileType::Unconfined.into(),
        ..Default::default()
    });
    for (name, mut config, why) in [
        ("strict", strict, "/mnt is not mounted ro"),
        ("weak", weak, "seccomp filter"),
        ("open", open, "seccomp filter"),
    ] {
        if let Some(names) = &mut config.metadata {
            names.name = name.into();
        }
        let container = node.create(&second, &second_pod, config).await?;
        let error = refused(node.start_container(&container).await)?;
        ensure!(format!("{error:#}").contains(why), "{name}: {error:#}");
        let status = node.status(&container).await?;
        ensure!(status.state() == v1::ContainerState::ContainerExited);
    }
    let container = node.create(&second, &second_pod, config).await?;
    node.start_container(&container).await?;
    let log = node.status(&container).await?.log_path;
    counts_to(&log, 5).await?;
    node.output(&container, "touch /mnt/here").await?;
    ensure!(volume.join("here").exists(), "the volume is another");
    Ok(())
}
