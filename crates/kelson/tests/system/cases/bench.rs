//! `kelson bench` on a node, with numbers so small that the figures say nothing.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tokio::process::Command;

use crate::case::{Case, Outcome, on_node};
use crate::node::{Node, PATIENCE, program};

/// How long a run may take.
const LIMIT: Duration = Duration::from_secs(240);

const SMALL: &[&str] = &[
    "--rounds=2",
    "--pods=1,3",
    "--parallel=2",
    "--calls=2",
    "--idle=1",
    "--log-size=2",
    "--stream-size=2",
    "--pulls=1",
    "--pull-size=4",
    "--warm=8",
    "-ojson",
];

pub(super) fn cases() -> Vec<Case> {
    vec![
        on_node("bench::measures_everything_and_leaves_nothing", |node| {
            Box::pin(everything(node))
        }),
        on_node("bench::measures_a_runtime_alone", |node| {
            Box::pin(alone(node))
        }),
    ]
}

async fn run(node: &Node, arguments: &[&str]) -> anyhow::Result<Output> {
    let mut command = Command::new(program());
    command.arg("bench").args(SMALL).args(arguments);
    command.arg("--directory").arg(node.dir());
    let output = tokio::time::timeout(LIMIT, command.kill_on_drop(true).output());
    output
        .await
        .context("the benchmark does not end")?
        .context("cannot run it")
}

/// The report of a run that went well: values by what was done.
fn report(output: &Output) -> anyhow::Result<BTreeMap<String, Value>> {
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "it failed: {text}");
    let report: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(report["remarks"] == serde_json::json!([]), "{report:#}");
    let rows = report["results"].as_array().context("no results")?;
    let row = |row: &Value| {
        let work = row["work"].as_str().unwrap_or_default().to_owned();
        (work, row["values"][0].clone())
    };
    Ok(rows.iter().map(row).collect())
}

async fn everything(node: &mut Node) -> Outcome {
    let endpoint = node.endpoint();
    let html = node.dir().join("report.html");
    let config = node.dir().join("config.toml");
    let trace = node.dir().join("trace.json");
    let start = format!(
        "{} serve --config {} --trace {} 2>/dev/null &",
        program().display(),
        config.display(),
        trace.display()
    );
    let restart = format!("--restart={endpoint}={start}");
    let page = format!("--html={}", html.display());
    let output = run(node, &["--endpoint", &endpoint, &restart, &page]).await;
    // The daemon that it has started is nobody's child.
    end_daemon(node).await?;
    node.restart().await?;
    let rows = report(&output?)?;
    timeline(&std::fs::read_to_string(&trace)?)?;
    for work in [
        "pull gzip: nothing there",
        "pull zstd: most layers there",
        "pull zstd: all there",
        "pod network: RunPodSandbox",
        "pod network: pod down",
        "host network: pod up",
        "3 pods, 2 at a time: up",
        "3 pods, 2 at a time: down",
        "ExecSync, 1 pod",
        "ListPodSandboxStats, 3 pods",
        "memory (PSS), 3 pods: daemon",
        "memory (PSS) that a pod adds, 3 pods",
        "processor time while idle, 3 pods",
        "processor time to start a pod, 3 pods",
        "daemon start, 3 pods",
        "container output to log",
        "plain copy to the same file system",
    ] {
        let value = rows
            .get(work)
            .with_context(|| format!("no {work}: {rows:#?}"))?;
        ensure!(
            value["p50"].as_f64().is_some_and(|p50| p50 >= 0.0),
            "{work}: {value}"
        );
    }
    let count = rows["pod network: pod up"]["count"].as_u64();
    ensure!(count == Some(2), "rounds were lost: {count:?}");
    let page = std::fs::read_to_string(&html)?;
    ensure!(page.contains("</svg>") && page.contains("3 pods"), "{page}");
    let left = std::fs::read_dir(node.dir())?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let left: Vec<String> = left
        .filter(|name| name.starts_with("kelson-bench"))
        .collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    let images = node.client.list_images(Default::default()).await?.images;
    let pulled = images.iter().flat_map(|image| &image.repo_tags);
    let pulled: Vec<&String> = pulled.filter(|tag| tag.contains("/pull-")).collect();
    ensure!(pulled.is_empty(), "images stay: {pulled:?}");
    Ok(())
}

/// The timeline of the daemon that was started last: it has removed pods, and made some on the host's network.
fn timeline(text: &str) -> Outcome {
    let text = format!("{}]", text.trim_end().trim_end_matches(','));
    let events: Vec<Value> = serde_json::from_str(&text).context("the timeline is no JSON")?;
    let named = |name: &str| -> Vec<(f64, f64)> {
        let these = events.iter().filter(|event| event["name"] == name);
        let number = |event: &Value, key: &str| event[key].as_f64().unwrap_or(-1.0);
        let times = these.map(|event| (number(event, "ts"), number(event, "dur")));
        times.collect()
    };
    for (call, stages) in [
        (
            "RunPodSandbox",
            &["fork the shim", "files and cgroup", "commit"][..],
        ),
        (
            "CreateContainer",
            &[
                "look up the user",
                "build the spec",
                "make the writable directory",
            ],
        ),
        (
            "StartContainer",
            &["make the request", "the shim starts it"],
        ),
        ("StopContainer", &["kill the cgroup"]),
        ("RemoveContainer", &["remove the files"]),
        ("StopPodSandbox", &["give the network back", "end the shim"]),
    ] {
        let calls = named(call);
        ensure!(!calls.is_empty(), "no {call}: {text}");
        for stage in stages {
            // Not every call has every stage: what is on the host's network needs none given back.
            let within = |(begin, length): &(f64, f64)| {
                named(stage)
                    .iter()
                    .any(|(b, l)| b >= begin && b + l <= begin + length)
            };
            ensure!(calls.iter().any(within), "{call} without {stage}: {text}");
        }
    }
    Ok(())
}

/// Ends whoever serves the node's socket.
async fn end_daemon(node: &Node) -> Outcome {
    let path = node.endpoint();
    let path = path.trim_start_matches("unix://");
    let pid = rustix::net::sockopt::socket_peercred(&UnixStream::connect(path)?)?.pid;
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    let begin = Instant::now();
    while rustix::process::test_kill_process(pid).is_ok() {
        if begin.elapsed() > PATIENCE {
            bail!("the daemon does not end");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn alone(node: &mut Node) -> Outcome {
    let runtime = format!("--runtime={} oci", program().display());
    let rows = report(&run(node, &[&runtime]).await?)?;
    for work in [
        "create",
        "start, exit",
        "delete",
        "create, start, exit, delete",
    ] {
        let value = &rows[&format!("runtime: {work}")];
        ensure!(value["count"] == 2, "{work}: {value}");
    }
    let nobody = run(node, &["--runtime=/does/not/exist"]).await?;
    let text = String::from_utf8_lossy(&nobody.stdout).into_owned();
    ensure!(text.contains("/does/not/exist"), "{text}");
    Ok(())
}
