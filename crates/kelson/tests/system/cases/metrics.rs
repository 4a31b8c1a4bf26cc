//! Streams of lists and statistics, and metrics.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};
use kelson_cri::v1;

use crate::case::{Case, Outcome, on_node};
use crate::node::Node;
use crate::pod::{pod, shell};

pub(super) fn cases() -> Vec<Case> {
    vec![
        on_node("metrics::streams_give_what_lists_give", |node| {
            Box::pin(streams(node))
        }),
        on_node("metrics::all_are_described", |node| {
            Box::pin(described(node))
        }),
    ]
}

async fn streams(node: &mut Node) -> Outcome {
    ensure!(node.client.stream_containers(None).await?.is_empty());
    ensure!(node.client.stream_pod_sandboxes(None).await?.is_empty());
    ensure!(node.client.stream_images(None).await?.is_empty());
    ensure!(node.client.stream_container_stats(None).await?.is_empty());
    let image = node.busybox().await?;
    let (first, _) = node
        .run(&pod(&node.logs()), shell("main", &image, "sleep 1000"))
        .await?;
    // Long enough that both pods do not fit into one batch.
    let mut large = pod(&node.logs());
    large
        .annotations
        .insert("large".to_owned(), "x".repeat(1_000_000));
    let second_pod = node.run_pod(&large).await?;
    for name in ["one", "two"] {
        let mut config = shell(name, &image, "sleep 1000");
        config
            .annotations
            .insert("large".to_owned(), "x".repeat(1_000_000));
        let id = node.create(&second_pod, &large, config).await?;
        node.start_container(&id).await?;
    }

    let listed = node
        .client
        .list_pod_sandbox(v1::ListPodSandboxRequest::default())
        .await?
        .items;
    ensure!(node.client.stream_pod_sandboxes(None).await? == listed);
    let filter = v1::PodSandboxFilter {
        id: first.clone(),
        ..Default::default()
    };
    ensure!(node.client.stream_pod_sandboxes(Some(filter)).await?.len() == 1);

    let listed = node
        .client
        .list_containers(v1::ListContainersRequest::default())
        .await?;
    ensure!(listed.containers.len() == 3);
    ensure!(node.client.stream_containers(None).await? == listed.containers);
    let filter = v1::ContainerFilter {
        pod_sandbox_id: second_pod.clone(),
        ..Default::default()
    };
    ensure!(node.client.stream_containers(Some(filter)).await?.len() == 2);

    let stats = node.client.stream_container_stats(None).await?;
    ensure!(stats.len() == 3 && stats.iter().all(|one| one.cpu.is_some()));
    let filter = v1::ContainerStatsFilter {
        pod_sandbox_id: first.clone(),
        ..Default::default()
    };
    ensure!(
        node.client
            .stream_container_stats(Some(filter))
            .await?
            .len()
            == 1
    );
    let stats = node.client.stream_pod_sandbox_stats(None).await?;
    ensure!(stats.len() == 2 && stats.iter().all(|one| one.linux.is_some()));
    let filter = v1::PodSandboxStatsFilter {
        id: first,
        ..Default::default()
    };
    ensure!(
        node.client
            .stream_pod_sandbox_stats(Some(filter))
            .await?
            .len()
            == 1
    );

    let listed = node
        .client
        .list_images(v1::ListImagesRequest::default())
        .await?
        .images;
    ensure!(node.client.stream_images(None).await? == listed);
    Ok(())
}

async fn described(node: &mut Node) -> Outcome {
    let request = v1::ListMetricDescriptorsRequest {};
    let descriptors = node
        .client
        .list_metric_descriptors(request)
        .await?
        .descriptors;
    let keys: BTreeMap<_, _> = descriptors
        .into_iter()
        .map(|one| (one.name, one.label_keys))
        .collect();
    ensure!(keys.len() > 50, "{} families", keys.len());
    let image = node.busybox().await?;
    let mut config = shell(
        "main",
        &image,
        "head -c 20000000 /dev/zero | tail -c 1; sleep 1000",
    );
    config.linux.as_mut().context("no linux")?.resources = Some(v1::LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        cpu_shares: 512,
        ..Default::default()
    });
    let (first, container) = node.run(&pod(&node.logs()), config).await?;
    let (stopped, _) = node
        .run(&pod(&node.logs()), shell("main", &image, "sleep 1000"))
        .await?;
    let request = v1::StopPodSandboxRequest {
        pod_sandbox_id: stopped,
    };
    node.client.stop_pod_sandbox(request).await?;
    let request = v1::ListPodSandboxMetricsRequest {};
    let listed = node
        .client
        .list_pod_sandbox_metrics(request)
        .await?
        .pod_metrics;
    let streamed = node.client.stream_pod_sandbox_metrics().await?;
    for pods in [&listed, &streamed] {
        ensure!(
            pods.len() == 1 && pods[0].pod_sandbox_id == first,
            "{pods:?}"
        );
        let of_pod = &pods[0].metrics;
        ensure!(of_pod.len() == 8, "{of_pod:?}");
        ensure!(
            of_pod
                .iter()
                .all(|one| one.label_values.last().is_some_and(|i| i == "eth0"))
        );
        let of_container = &pods[0].container_metrics[0];
        ensure!(of_container.container_id == container);
        for metric in of_pod.iter().chain(&of_container.metrics) {
            let keys = keys
                .get(&metric.name)
                .with_context(|| metric.name.clone())?;
            ensure!(keys.len() == metric.label_values.len(), "{metric:?}");
            ensure!(metric.label_values[3] == first || metric.label_values[3] == container);
        }
        let value = |name: &str| -> anyhow::Result<u64> {
            let found = of_container.metrics.iter().find(|one| one.name == name);
            Ok(found
                .with_context(|| name.to_owned())?
                .value
                .unwrap_or_default()
                .value)
        };
        ensure!(value("container_spec_memory_limit_bytes")? == 64 << 20);
        ensure!(value("container_spec_cpu_shares")? == 512);
        ensure!(value("container_memory_usage_bytes")? > 0);
        ensure!(value("container_processes")? >= 1 && value("container_threads")? >= 1);
        ensure!(value("container_file_descriptors")? >= 3);
        ensure!(value("container_start_time_seconds")? > 1_600_000_000);
        ensure!(value("container_fs_limit_bytes")? > 0);
        let names: BTreeSet<_> = of_container.metrics.iter().map(|one| &one.name).collect();
        ensure!(names.len() > 30, "{names:?}");
    }
    Ok(())
}
