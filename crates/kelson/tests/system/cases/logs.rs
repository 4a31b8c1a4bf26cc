//! Logs: nothing is lost, long lines are cut as the CRI says, and a rotation loses nothing.

use anyhow::{Context, ensure};
use kelson_cri::v1;

use crate::case::{Case, Outcome, on_node};
use crate::node::Node;
use crate::pod::{pod, shell};

pub(super) fn cases() -> Vec<Case> {
    vec![
        on_node("logs::format", |node| Box::pin(format(node))),
        on_node("logs::no_line_is_lost_at_the_end", |node| {
            Box::pin(complete(node))
        }),
        on_node("logs::reopening_loses_nothing", |node| {
            Box::pin(reopen(node))
        }),
        on_node("logs::long_lines", |node| Box::pin(long(node))),
    ]
}

/// The parts of a log line: time, stream, tag, text.
fn parse(line: &str) -> anyhow::Result<(&str, &str, &str)> {
    let mut parts = line.splitn(4, ' ');
    let time = parts.next().context("no time")?;
    time.parse::<jiff::Timestamp>()
        .with_context(|| format!("{time:?} is no time"))?;
    let stream = parts.next().context("no stream")?;
    let tag = parts.next().context("no tag")?;
    ensure!(
        ["stdout", "stderr"].contains(&stream) && ["F", "P"].contains(&tag),
        "{line:?}"
    );
    Ok((stream, tag, parts.next().context("no text")?))
}

async fn format(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let script = "echo one; echo two >&2; echo; printf last";
    let (_, container) = node
        .run(&pod(&node.logs()), shell("main", &image, script))
        .await?;
    let status = node.exited(&container).await?;
    let text = std::fs::read_to_string(&status.log_path)?;
    let mut lines = text.lines().map(parse).collect::<Result<Vec<_>, _>>()?;
    lines.sort_unstable();
    ensure!(
        lines.contains(&("stdout", "F", "one")) && lines.contains(&("stderr", "F", "two")),
        "{text}"
    );
    ensure!(lines.contains(&("stdout", "F", "")), "{text}");
    ensure!(lines.iter().any(|(_, _, text)| *text == "last"), "{text}");
    Ok(())
}

async fn complete(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let (log, _) = node
        .run_to_end(shell("main", &image, "seq 1 200000"))
        .await?;
    ensure!(
        log.lines().count() == 200_000 && log.ends_with("\n200000"),
        "{}",
        log.lines().count()
    );
    Ok(())
}

async fn reopen(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let script = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); echo $i; done";
    let (_, container) = node
        .run(&pod(&node.logs()), shell("main", &image, script))
        .await?;
    let path = node.status(&container).await?.log_path;
    let mut files = Vec::new();
    for turn in 0..5 {
        let old = format!("{path}.{turn}");
        std::fs::rename(&path, &old)?;
        let request = v1::ReopenContainerLogRequest {
            container_id: container.clone(),
        };
        match node.client.reopen_container_log(request).await {
            Ok(_) => files.push(old),
            // It was faster than the rotation: what it wrote is in the renamed file.
            Err(_) => {
                std::fs::rename(&old, &path)?;
                break;
            }
        }
    }
    node.exited(&container).await?;
    files.push(path);
    let mut expected = 1;
    for file in files {
        for line in std::fs::read_to_string(&file)?.lines() {
            let (_, tag, text) = parse(line)?;
            ensure!(
                tag == "F" && text.parse() == Ok(expected),
                "{file}: {line} is not {expected}"
            );
            expected += 1;
        }
    }
    ensure!(expected == 100_001, "lines end at {expected}");
    Ok(())
}

async fn long(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let script = "head -c 100000 /dev/zero | tr '\\000' x; echo; echo short";
    let (_, container) = node
        .run(&pod(&node.logs()), shell("main", &image, script))
        .await?;
    let status = node.exited(&container).await?;
    let text = std::fs::read_to_string(&status.log_path)?;
    let mut joined = String::new();
    let mut lines = Vec::new();
    for line in text.lines() {
        let (_, tag, part) = parse(line)?;
        ensure!(part.len() <= 16 << 10, "a part has {} bytes", part.len());
        joined.push_str(part);
        if tag == "F" {
            lines.push(std::mem::take(&mut joined));
        }
    }
    ensure!(lines.len() == 2 && lines[0] == "x".repeat(100_000) && lines[1] == "short");
    Ok(())
}
