//! The daemon dies: pods go on, and the next daemon knows everything.

use anyhow::ensure;
use kelson_cri::v1;

use crate::case::{Case, Outcome, on_node};
use crate::node::Node;
use crate::pod::{pod, shell};

pub(super) fn cases() -> Vec<Case> {
    vec![
        on_node("crash::twenty_pods_survive", |node| Box::pin(survive(node))),
        on_node("crash::exits_meanwhile_are_known", |node| {
            Box::pin(exits(node))
        }),
        on_node("crash::in_the_middle_of_pods_being_made", |node| {
            Box::pin(midway(node))
        }),
        on_node("crash::a_killed_shim_is_noticed", |node| {
            Box::pin(shim(node))
        }),
    ]
}

async fn survive(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let mut containers = Vec::new();
    for _ in 0..20 {
        let script = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.02; done";
        let (_, container) = node
            .run(&pod(&node.logs()), shell("main", &image, script))
            .await?;
        let started = node.status(&container).await?.started_at;
        containers.push((container, started));
    }
    node.kill().await?;
    node.restart().await?;
    for (container, started) in &containers {
        let status = node.status(container).await?;
        ensure!(
            status.state() == v1::ContainerState::ContainerRunning,
            "{status:?}"
        );
        ensure!(status.started_at == *started, "it was started again");
        ensure!(node.output(container, "echo here").await? == "here");
    }
    // Logs went on without a gap while nobody served.
    let (container, _) = &containers[0];
    let request = v1::StopContainerRequest {
        container_id: container.clone(),
        timeout: 0,
    };
    node.client.stop_container(request).await?;
    let log = std::fs::read_to_string(node.status(container).await?.log_path)?;
    for (index, line) in log.lines().enumerate() {
        ensure!(line.ends_with(&format!(" {}", index + 1)), "{line}");
    }
    Ok(())
}

async fn exits(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let go = node.dir().join("go");
    std::fs::create_dir(&go)?;
    let mut config = shell(
        "main",
        &image,
        "until test -e /go/now; do sleep 0.02; done; echo bye; exit 42",
    );
    config.mounts = vec![v1::Mount {
        host_path: go.display().to_string(),
        container_path: "/go".into(),
        ..Default::default()
    }];
    let (pod, container) = node.run(&pod(&node.logs()), config).await?;
    node.kill().await?;
    std::fs::write(go.join("now"), "")?;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    node.restart().await?;
    let status = node.exited(&container).await?;
    ensure!(
        status.exit_code == 42 && status.reason == "Error",
        "{status:?}"
    );
    ensure!(std::fs::read_to_string(&status.log_path)?.ends_with("bye\n"));
    ensure!(node.pod_status(&pod).await?.state() == v1::PodSandboxState::SandboxReady);
    Ok(())
}

async fn midway(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    for round in 0..4u64 {
        let here = &*node;
        let config = pod(&here.logs());
        let making = async {
            loop {
                // Errors are what a killed daemon gives.
                let mut config = config.clone();
                if let Some(metadata) = config.metadata.as_mut() {
                    metadata.attempt = here.log().len() as u32;
                }
                if here
                    .run(&config, shell("main", &image, "sleep 1000"))
                    .await
                    .is_err()
                {
                    return;
                }
            }
        };
        let pid = here.daemon_pid()?;
        let kill = async {
            tokio::time::sleep(std::time::Duration::from_millis(40 + round * 23)).await;
            let pid = rustix::process::Pid::from_raw(pid as i32);
            pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL))
        };
        tokio::join!(making, kill);
        node.restart().await?;
        // What the daemon shows is whole: a ready pod has a working container or none.
        let list = node
            .client
            .list_containers(v1::ListContainersRequest::default())
            .await?;
        for container in list.containers {
            if container.state() == v1::ContainerState::ContainerRunning {
                ensure!(node.output(&container.id, "echo here").await? == "here");
            }
        }
    }
    Ok(())
}

async fn shim(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let (pod, container) = node
        .run(&pod(&node.logs()), shell("main", &image, "sleep 1000"))
        .await?;
    let pid = i32::try_from(node.shim_pid(&pod).await?)?;
    let pid = rustix::process::Pid::from_raw(pid).ok_or_else(|| anyhow::anyhow!("no pid"))?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    let status = node.exited(&container).await?;
    ensure!(status.exit_code != 0, "{status:?}");
    ensure!(node.pod_status(&pod).await?.state() == v1::PodSandboxState::SandboxNotready);
    Ok(())
}
