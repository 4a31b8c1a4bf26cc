//! Changes of what pods and containers may use.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use kelson_cri::v1;

use crate::case::{Case, Outcome, on_node};
use crate::node::Node;
use crate::pod::{pod, shell};

pub(super) fn cases() -> Vec<Case> {
    vec![
        on_node("updates::resources_of_a_running_container", |node| {
            Box::pin(running(node))
        }),
        on_node("updates::resources_of_a_created_container", |node| {
            Box::pin(created(node))
        }),
        on_node("updates::resources_of_a_pod", |node| Box::pin(of_pod(node))),
        on_node("updates::a_pod_cidr_makes_a_network", |node| {
            Box::pin(pod_cidr(node))
        }),
    ]
}

fn change(id: &str, linux: v1::LinuxContainerResources) -> v1::UpdateContainerResourcesRequest {
    v1::UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(linux),
        ..Default::default()
    }
}

fn memory(limit: i64) -> v1::LinuxContainerResources {
    v1::LinuxContainerResources {
        memory_limit_in_bytes: limit,
        ..Default::default()
    }
}

async fn resources(node: &Node, id: &str) -> anyhow::Result<v1::LinuxContainerResources> {
    let resources = node.status(id).await?.resources.context("no resources")?;
    resources.linux.context("no resources of Linux")
}

/// What a file of the container's cgroup says, by its name on v1 or v2.
fn limit(node: &Node, pod: &str, id: &str, v1: (&str, &str), v2: &str) -> anyhow::Result<String> {
    let beneath = format!("{}/{pod}/{id}", node.name());
    let root = Path::new("/sys/fs/cgroup");
    let files: [PathBuf; 2] = [
        root.join(v1.0).join(&beneath).join(v1.1),
        root.join(&beneath).join(v2),
    ];
    let file = files
        .iter()
        .find(|file| file.exists())
        .context("no such file")?;
    Ok(std::fs::read_to_string(file)?.trim().to_owned())
}

async fn running(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let mut config = shell("main", &image, "sleep 1000");
    config.linux.as_mut().context("no linux")?.resources = Some(v1::LinuxContainerResources {
        cpu_shares: 256,
        ..memory(64 << 20)
    });
    let (pod, id) = node.run(&pod(&node.logs()), config).await?;
    node.client
        .update_container_resources(change(&id, memory(96 << 20)))
        .await?;
    let found = limit(
        node,
        &pod,
        &id,
        ("memory", "memory.limit_in_bytes"),
        "memory.max",
    )?;
    ensure!(found == (96 << 20).to_string(), "{found}");
    let cpu = v1::LinuxContainerResources {
        cpu_quota: 50_000,
        cpu_period: 100_000,
        oom_score_adj: 500,
        ..Default::default()
    };
    node.client
        .update_container_resources(change(&id[..12], cpu))
        .await?;
    let found = limit(node, &pod, &id, ("cpu", "cpu.cfs_quota_us"), "cpu.max")?;
    ensure!(found.starts_with("50000"), "{found}");
    ensure!(node.output(&id, "cat /proc/1/oom_score_adj").await? == "500");

    let before = resources(node, &id).await?;
    ensure!(
        (before.memory_limit_in_bytes, before.cpu_shares) == (96 << 20, 256),
        "{before:?}"
    );
    ensure!(
        (before.cpu_quota, before.oom_score_adj) == (50_000, 500),
        "{before:?}"
    );

    // Refused with the field's name, and nothing changes.
    let wrong = [
        (memory(4096), "memory_limit_in_bytes"),
        (
            v1::LinuxContainerResources {
                cpu_shares: -1,
                ..Default::default()
            },
            "cpu_shares",
        ),
        (
            v1::LinuxContainerResources {
                cpuset_cpus: "all".into(),
                ..Default::default()
            },
            "cpuset_cpus",
        ),
    ];
    for (linux, field) in wrong {
        let answer = node
            .client
            .update_container_resources(change(&id, linux))
            .await;
        let text = answer.err().context("not refused")?.to_string();
        ensure!(text.contains(field), "{text}");
    }
    let mut annotated = change(&id, memory(64 << 20));
    annotated.annotations = [("kind".to_owned(), "other".to_owned())].into();
    let answer = node.client.update_container_resources(annotated).await;
    let text = answer.err().context("not refused")?.to_string();
    ensure!(text.contains("annotations[kind]"), "{text}");
    ensure!(resources(node, &id).await? == before);
    let found = limit(
        node,
        &pod,
        &id,
        ("memory", "memory.limit_in_bytes"),
        "memory.max",
    )?;
    ensure!(found == (96 << 20).to_string(), "{found}");

    node.kill().await?;
    node.restart().await?;
    ensure!(resources(node, &id).await? == before);
    let request = v1::StopContainerRequest {
        container_id: id.clone(),
        timeout: 0,
    };
    node.client.stop_container(request).await?;
    let answer = node
        .client
        .update_container_resources(change(&id, memory(96 << 20)))
        .await;
    ensure!(answer.is_err(), "an exited container is updated");
    Ok(())
}

async fn created(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let config = pod(&node.logs());
    let pod = node.run_pod(&config).await?;
    let id = node
        .create(&pod, &config, shell("main", &image, "sleep 1000"))
        .await?;
    let linux = v1::LinuxContainerResources {
        cpu_shares: 700,
        ..memory(80 << 20)
    };
    node.client
        .update_container_resources(change(&id, linux))
        .await?;
    node.start_container(&id).await?;
    let found = limit(
        node,
        &pod,
        &id,
        ("memory", "memory.limit_in_bytes"),
        "memory.max",
    )?;
    ensure!(found == (80 << 20).to_string(), "{found}");
    ensure!(resources(node, &id).await?.cpu_shares == 700);
    let unknown = "0".repeat(64);
    let answer = node
        .client
        .update_container_resources(change(&unknown, memory(1)))
        .await;
    ensure!(answer.is_err_and(|error| error.is_not_found()));
    Ok(())
}

async fn of_pod(node: &mut Node) -> Outcome {
    let config = pod(&node.logs());
    let pod = node.run_pod(&config).await?;
    let request = v1::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.clone(),
        overhead: Some(memory(123_456_000)),
        resources: Some(v1::LinuxContainerResources {
            cpu_shares: 777,
            ..Default::default()
        }),
    };
    node.client.update_pod_sandbox_resources(request).await?;
    node.kill().await?;
    node.restart().await?;
    let request = v1::PodSandboxStatusRequest {
        pod_sandbox_id: pod.clone(),
        verbose: true,
    };
    let info = node.client.pod_sandbox_status(request).await?.info;
    let info = info.get("info").context("no info")?;
    ensure!(info.contains("123456000") && info.contains("777"), "{info}");
    ensure!(
        node.run_pod(&config).await? == pod,
        "the same request made another pod"
    );
    Ok(())
}

async fn pod_cidr(node: &mut Node) -> Outcome {
    let range = |pod_cidr: &str| v1::UpdateRuntimeConfigRequest {
        runtime_config: Some(v1::RuntimeConfig {
            network_config: Some(v1::NetworkConfig {
                pod_cidr: pod_cidr.to_owned(),
            }),
        }),
    };
    // Without a template it is taken and does nothing.
    node.client
        .update_runtime_config(range("10.1.2.0/24"))
        .await?;
    ensure!(!node.dir().join("net.d").exists());

    let template = node.dir().join("template");
    let name = node.name();
    let conflist = format!(
        "{{\"cniVersion\":\"1.0.0\",\"name\":\"{name}\",\"plugins\":[{{\"type\":\"bridge\",\
         \"bridge\":\"{name}\",\"isGateway\":true,\"ipam\":{{\"type\":\"host-local\",\
         \"ranges\":{{{{.PodCIDRRanges}}}},\"routes\":{{{{.Routes}}}}}}}}]}}"
    );
    std::fs::write(&template, conflist)?;
    let path = node.dir().join("config.toml");
    let config = std::fs::read_to_string(&path)?;
    let keys = format!(
        "fallback = \"none\"\nconf_template = \"{}\"",
        template.display()
    );
    std::fs::write(&path, config.replace("fallback = \"bridge\"", &keys))?;
    node.kill().await?;
    node.restart().await?;
    ensure!(!network_ready(node).await?);
    let answer = node.client.update_runtime_config(range("ten")).await;
    let text = answer.err().context("not refused")?.to_string();
    ensure!(text.contains("pod_cidr"), "{text}");
    node.client
        .update_runtime_config(range("198.19.250.0/24"))
        .await?;
    ensure!(network_ready(node).await?);
    let config = pod(&node.logs());
    let pod = node.run_pod(&config).await?;
    let address = node
        .pod_status(&pod)
        .await?
        .network
        .context("no network")?
        .ip;
    ensure!(address.starts_with("198.19.250."), "{address}");
    node.remove_pod(&pod).await
}

async fn network_ready(node: &Node) -> anyhow::Result<bool> {
    let status = node
        .client
        .status(v1::StatusRequest::default())
        .await?
        .status;
    let conditions = status.context("no status")?.conditions;
    let network = conditions
        .into_iter()
        .find(|one| one.r#type == "NetworkReady");
    Ok(network.context("no condition")?.status)
}
