//! Statistics of containers, pods and file systems.

use anyhow::{Context, ensure};
use kelson_cri::v1;

use crate::case::{Case, Outcome, on_node};
use crate::node::{Node, PATIENCE};
use crate::pod::{pod, shell};

pub(super) fn cases() -> Vec<Case> {
    vec![
        on_node("stats::containers_and_pods", |node| {
            Box::pin(containers(node))
        }),
        on_node("stats::file_systems", |node| Box::pin(file_systems(node))),
    ]
}

async fn containers(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let work = "head -c 3000000 /dev/zero > /written; i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; sleep 1000";
    let (pod, container) = node
        .run(&pod(&node.logs()), shell("main", &image, work))
        .await?;
    node.output(
        &container,
        "until ps | grep -q '[s]leep 1000'; do sleep 0.05; done",
    )
    .await?;
    let begin = std::time::Instant::now();
    let stats = loop {
        let request = v1::ContainerStatsRequest {
            container_id: container[..13].to_owned(),
        };
        let stats = node
            .client
            .container_stats(request)
            .await?
            .stats
            .context("no stats")?;
        // The writable layer is measured in the background, and not at every call.
        let written = stats
            .writable_layer
            .as_ref()
            .and_then(|layer| layer.used_bytes);
        if written.is_some_and(|bytes| bytes.value >= 3_000_000) || begin.elapsed() > PATIENCE {
            break stats;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    let cpu = stats
        .cpu
        .context("no cpu")?
        .usage_core_nano_seconds
        .context("no usage")?
        .value;
    ensure!(cpu > 1_000_000, "{cpu} ns of CPU");
    let memory = stats
        .memory
        .context("no memory")?
        .working_set_bytes
        .context("no set")?
        .value;
    ensure!(memory > 10_000, "{memory} bytes");
    let written = stats
        .writable_layer
        .context("no writable layer")?
        .used_bytes
        .unwrap_or_default();
    ensure!(written.value >= 3_000_000, "{written:?}");
    for filter in [
        None,
        Some(v1::ContainerStatsFilter {
            pod_sandbox_id: pod.clone(),
            ..Default::default()
        }),
    ] {
        let request = v1::ListContainerStatsRequest { filter };
        ensure!(node.client.list_container_stats(request).await?.stats.len() == 1);
    }
    let request = v1::PodSandboxStatsRequest {
        pod_sandbox_id: pod,
    };
    let stats = node
        .client
        .pod_sandbox_stats(request)
        .await?
        .stats
        .context("no stats")?;
    let linux = stats.linux.context("no linux")?;
    ensure!(
        linux.containers.len() == 1 && linux.process.unwrap_or_default().process_count.is_some()
    );
    let network = linux
        .network
        .context("no network")?
        .default_interface
        .context("no interface")?;
    ensure!(network.name == "eth0", "{network:?}");
    Ok(())
}

async fn file_systems(node: &mut Node) -> Outcome {
    let before = usage(node).await?;
    node.busybox().await?;
    let with_image = usage(node).await?;
    ensure!(with_image > before + 500_000, "{before} {with_image}");
    let list = node
        .client
        .list_images(v1::ListImagesRequest::default())
        .await?
        .images;
    ensure!(list.len() == 1 && list[0].size > 100_000, "{list:?}");
    let request = v1::RemoveImageRequest {
        image: Some(v1::ImageSpec {
            image: list[0].id.clone(),
            ..Default::default()
        }),
    };
    node.client.remove_image(request).await?;
    ensure!(usage(node).await? < with_image - 500_000);
    Ok(())
}

async fn usage(node: &Node) -> anyhow::Result<u64> {
    let info = node.client.image_fs_info(v1::ImageFsInfoRequest {}).await?;
    let images = info.image_filesystems.first().context("no file system")?;
    Ok(images.used_bytes.unwrap_or_default().value)
}
