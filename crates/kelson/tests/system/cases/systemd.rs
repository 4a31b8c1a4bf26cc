//! Pods as slices and containers as scopes of the machine's systemd.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kelson_cri::v1;

use crate::case::{Case, Need, Outcome, on_node};
use crate::node::{Node, PATIENCE};
use crate::pod::{pod, shell};
use crate::tool;

pub(super) fn cases() -> Vec<Case> {
    let case = |case: Case| case.needs(Need::Systemd);
    vec![
        case(on_node("systemd::a_container_is_a_scope", |node| {
            Box::pin(scope(node))
        })),
        case(on_node("systemd::limits_survive_a_reload", |node| {
            Box::pin(limits(node))
        })),
        case(on_node("systemd::a_scope_outlives_the_daemon", |node| {
            Box::pin(recovery(node))
        })),
        case(on_node("systemd::a_parent_is_a_slice", |node| {
            Box::pin(parents(node))
        })),
        case(on_node("systemd::out_of_memory", |node| {
            Box::pin(oom(node))
        })),
        case(on_node("systemd::out_of_memory_of_a_group", |node| {
            Box::pin(group_oom(node))
        })),
        case(on_node("systemd::a_limit_of_one_process", |node| {
            Box::pin(one_process(node))
        })),
    ]
}

/// The value of a unit's property.
async fn property(unit: &str, name: &str) -> anyhow::Result<String> {
    let arguments = ["show", "--value", "--property", name, unit];
    Ok(tool::output("systemctl", arguments)
        .await?
        .trim()
        .to_owned())
}

fn unit(container: &str) -> String {
    format!("kelson-{container}.scope")
}

/// The cgroup of a container's first process, from the root of the hierarchy.
async fn cgroup(node: &Node, container: &str) -> anyhow::Result<String> {
    let procs = property(&unit(container), "ControlGroup").await?;
    let pids = std::fs::read_to_string(format!("/sys/fs/cgroup{procs}/cgroup.procs"))
        .with_context(|| format!("the scope of {container} has no cgroup; {}", node.log()))?;
    let pid = pids.lines().next().context("the scope has no process")?;
    let own = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    Ok(own.trim().trim_start_matches("0::").to_owned())
}

/// Waits for the end of a unit, which has not failed.
async fn gone(unit: &str) -> Outcome {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let state = property(unit, "ActiveState").await?;
        if state == "inactive" {
            break;
        }
        ensure!(Instant::now() < deadline, "{unit} is {state}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn scope(node: &mut Node) -> Outcome {
    node.use_systemd().await?;
    let answer = node
        .client
        .runtime_config(v1::RuntimeConfigRequest {})
        .await?;
    let linux = answer.linux.context("no answer for Linux")?;
    ensure!(linux.cgroup_driver() == v1::CgroupDriver::Systemd);

    let image = node.busybox().await?;
    let config = shell("main", &image, "sleep 1000");
    let (pod, container) = node.run(&pod(&node.logs()), config).await?;
    let slice = format!("{}-{pod}.slice", node.slice());
    let scope = unit(&container);
    ensure!(property(&slice, "ActiveState").await? == "active");
    ensure!(property(&scope, "Slice").await? == slice);
    ensure!(property(&scope, "Delegate").await? == "yes");
    let expected = format!("/{}.slice/{slice}/{scope}", node.slice());
    ensure!(cgroup(node, &container).await? == expected);
    // The process that held its place is gone.
    let procs = std::fs::read_to_string(format!("/sys/fs/cgroup{expected}/cgroup.procs"))?;
    ensure!(procs.lines().count() == 1, "{procs}");
    ensure!(node.output(&container, "echo in it").await? == "in it");
    let stats = v1::ContainerStatsRequest {
        container_id: container.clone(),
    };
    let stats = node
        .client
        .container_stats(stats)
        .await?
        .stats
        .context("no statistics")?;
    let used = stats.memory.and_then(|memory| memory.usage_bytes);
    ensure!(used.is_some_and(|bytes| bytes.value > 0), "{used:?}");

    node.remove_pod(&pod).await?;
    gone(&scope).await?;
    gone(&slice).await?;
    ensure!(!Path::new("/sys/fs/cgroup").join(&expected[1..]).exists());
    Ok(())
}

/// systemd writes cgroups anew when it is told to: it must know what was asked for.
async fn limits(node: &mut Node) -> Outcome {
    node.use_systemd().await?;
    let image = node.busybox().await?;
    let mut config = shell("main", &image, "sleep 1000");
    config.linux.as_mut().context("no linux")?.resources = Some(v1::LinuxContainerResources {
        cpu_shares: 512,
        cpu_quota: 20_000,
        cpu_period: 50_000,
        cpuset_cpus: "0".into(),
        memory_limit_in_bytes: 64 << 20,
        ..Default::default()
    });
    let (_, container) = node.run(&pod(&node.logs()), config).await?;
    let scope = unit(&container);
    let folder = format!("/sys/fs/cgroup{}", cgroup(node, &container).await?);
    let file = |name: &str| {
        let text = std::fs::read_to_string(format!("{folder}/{name}"));
        text.map(|text| text.trim().to_owned())
            .with_context(|| name.to_owned())
    };
    let expect = |memory: &str, cpu: &str| {
        for (name, value) in [
            ("memory.max", memory),
            ("memory.swap.max", "0"),
            ("cpu.max", cpu),
            ("cpu.weight", "59"),
            ("cpuset.cpus", "0"),
        ] {
            let found = file(name)?;
            ensure!(found == value, "{name} is {found}, not {value}");
        }
        Ok(())
    };
    expect("67108864", "20000 50000")?;
    ensure!(property(&scope, "MemoryMax").await? == "67108864");
    ensure!(property(&scope, "CPUQuotaPerSecUSec").await? == "400ms");
    tool::output("systemctl", ["daemon-reload"]).await?;
    expect("67108864", "20000 50000")?;

    let change = v1::UpdateContainerResourcesRequest {
        container_id: container,
        linux: Some(v1::LinuxContainerResources {
            memory_limit_in_bytes: 96 << 20,
            cpu_quota: 10_000,
            ..Default::default()
        }),
        ..Default::default()
    };
    node.client.update_container_resources(change).await?;
    expect("100663296", "10000 50000")?;
    tool::output("systemctl", ["daemon-reload"]).await?;
    expect("100663296", "10000 50000")
}

async fn recovery(node: &mut Node) -> Outcome {
    node.use_systemd().await?;
    let image = node.busybox().await?;
    let config = shell("main", &image, "sleep 1000");
    let (pod, container) = node.run(&pod(&node.logs()), config).await?;
    let before = cgroup(node, &container).await?;
    node.kill().await?;
    node.restart().await?;
    let status = node.status(&container).await?;
    ensure!(status.state() == v1::ContainerState::ContainerRunning);
    ensure!(cgroup(node, &container).await? == before);
    ensure!(node.output(&container, "echo still").await? == "still");
    node.remove_pod(&pod).await?;
    gone(&unit(&container)).await
}

async fn parents(node: &mut Node) -> Outcome {
    let with = |node: &Node, parent: &str| {
        let mut config = pod(&node.logs());
        if let Some(linux) = config.linux.as_mut() {
            parent.clone_into(&mut linux.cgroup_parent);
        }
        config
    };
    let slice = format!("{}-pod1.slice", node.slice());
    let refused = async |node: &Node, parent: &str| {
        let error = node
            .run_pod(&with(node, parent))
            .await
            .err()
            .context("it was taken")?;
        let said = format!("{error:#}");
        ensure!(said.contains("linux.cgroup_parent"), "{said}");
        Ok(())
    };
    refused(node, &slice).await?;
    node.use_systemd().await?;
    refused(node, "/kubepods/pod1").await?;

    // As the kubelet does: the slice is its own.
    tool::output("systemctl", ["start", &slice]).await?;
    let image = node.busybox().await?;
    let config = shell("main", &image, "sleep 1000");
    let (pod, container) = node.run(&with(node, &slice), config).await?;
    ensure!(property(&unit(&container), "Slice").await? == slice);
    node.remove_pod(&pod).await?;
    gone(&unit(&container)).await?;
    ensure!(property(&slice, "ActiveState").await? == "active");
    tool::output("systemctl", ["stop", &slice]).await?;
    Ok(())
}

/// What keeps the scope's place is not counted, neither before nor after.
async fn one_process(node: &mut Node) -> Outcome {
    node.use_systemd().await?;
    let image = node.busybox().await?;
    let mut config = shell("main", &image, "exec sleep 1000");
    config.linux.as_mut().context("no linux")?.resources = Some(v1::LinuxContainerResources {
        unified: [("pids.max".to_owned(), "1".to_owned())].into(),
        ..Default::default()
    });
    let (_, container) = node.run(&pod(&node.logs()), config).await?;
    let folder = format!("/sys/fs/cgroup{}", cgroup(node, &container).await?);
    for (name, value) in [("pids.max", "1"), ("pids.current", "1")] {
        let found = std::fs::read_to_string(format!("{folder}/{name}"))?;
        ensure!(found.trim() == value, "{name} is {found}");
    }
    ensure!(property(&unit(&container), "TasksMax").await? == "1");
    Ok(())
}

async fn oom(node: &mut Node) -> Outcome {
    node.use_systemd().await?;
    let image = node.busybox().await?;
    // Several times, as systemd removes the cgroup that tells it.
    for _ in 0..3 {
        let mut config = shell("main", &image, "exec tail /dev/zero");
        config.linux.as_mut().context("no linux")?.resources = Some(v1::LinuxContainerResources {
            memory_limit_in_bytes: 16 << 20,
            ..Default::default()
        });
        let (pod, container) = node.run(&pod(&node.logs()), config).await?;
        let status = node.exited(&container).await?;
        ensure!(status.reason == "OOMKilled", "{status:?}");
        node.remove_pod(&pod).await?;
    }
    Ok(())
}

/// All die together, as the kubelet asks for on v2: the shell does not outlive its child.
async fn group_oom(node: &mut Node) -> Outcome {
    node.use_systemd().await?;
    let image = node.busybox().await?;
    let mut config = shell("main", &image, "tail /dev/zero; exec sleep 1000");
    config.linux.as_mut().context("no linux")?.resources = Some(v1::LinuxContainerResources {
        memory_limit_in_bytes: 16 << 20,
        unified: [("memory.oom.group".to_owned(), "1".to_owned())].into(),
        ..Default::default()
    });
    let (_, container) = node.run(&pod(&node.logs()), config).await?;
    let status = node.exited(&container).await?;
    ensure!(
        status.reason == "OOMKilled" && status.exit_code == 137,
        "{status:?}"
    );
    Ok(())
}
