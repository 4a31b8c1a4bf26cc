//! Containers that join the processes of another one: ephemeral debug containers.

use anyhow::{Context, ensure};
use kelson_client::{Code, Error};
use kelson_cri::v1;

use crate::case::{Case, Outcome, on_node};
use crate::node::Node;
use crate::pod::{pod, shell};

const FIELD: &str = "namespace_options.target_id";

pub(super) fn cases() -> Vec<Case> {
    vec![
        on_node("targets::a_debug_container_sees_its_target", |node| {
            Box::pin(joined(node))
        }),
        on_node("targets::wrong_targets_are_refused", |node| {
            Box::pin(refusals(node))
        }),
    ]
}

/// A container that joins the processes of `target`.
fn debugger(name: &str, image: &str, target: &str) -> anyhow::Result<v1::ContainerConfig> {
    let mut config = shell(name, image, "sleep 2000");
    let linux = config.linux.as_mut().context("no linux")?;
    let security = linux.security_context.as_mut().context("no security")?;
    let options = security.namespace_options.as_mut().context("no options")?;
    options.pid = v1::NamespaceMode::Target.into();
    options.target_id = target.to_owned();
    Ok(config)
}

async fn stop(node: &Node, id: &str) -> Outcome {
    let request = v1::StopContainerRequest {
        container_id: id.to_owned(),
        timeout: 0,
    };
    node.client.stop_container(request).await?;
    Ok(())
}

async fn joined(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let config = pod(&node.logs());
    let script = "trap 'exit 0' TERM; sleep 1000 & while true; do wait; done";
    let (pod, main) = node.run(&config, shell("main", &image, script)).await?;
    let debug = node
        .create(&pod, &config, debugger("debug", &image, &main[..12])?)
        .await?;
    node.start_container(&debug).await?;
    let seen = node.output(&debug, "ps").await?;
    ensure!(
        seen.contains("sleep 1000") && seen.contains("sleep 2000"),
        "{seen}"
    );
    let of = |id: &str| {
        let id = id.to_owned();
        let node = &*node;
        async move { node.output(&id, "readlink /proc/self/ns/pid").await }
    };
    ensure!(of(&main).await? == of(&debug).await?);
    // The target's files are reached by its process.
    let host = node.output(&debug, "cat /proc/1/root/etc/passwd").await;
    ensure!(host.is_ok(), "{host:?}");
    // Stopping the debug container ends its own processes only.
    stop(node, &debug).await?;
    let left = node.output(&main, "ps").await?;
    ensure!(
        left.contains("sleep 1000") && !left.contains("sleep 2000"),
        "{left}"
    );
    ensure!(node.status(&main).await?.state() == v1::ContainerState::ContainerRunning);
    // With the target's first process everything in its namespace ends.
    let second = node
        .create(&pod, &config, debugger("debug2", &image, &main)?)
        .await?;
    node.start_container(&second).await?;
    stop(node, &main).await?;
    let status = node.exited(&second).await?;
    ensure!(status.exit_code == 137, "{status:?}");
    Ok(())
}

async fn refusals(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let config = pod(&node.logs());
    let (first, main) = node
        .run(&config, shell("main", &image, "sleep 1000"))
        .await?;
    let other_config = crate::pod::pod(&node.logs());
    let (other, stranger) = node
        .run(&other_config, shell("main", &image, "sleep 1000"))
        .await?;
    let created = node
        .create(&first, &config, shell("later", &image, "sleep 1000"))
        .await?;
    for (target, code) in [
        (stranger.as_str(), Code::InvalidArgument),
        ("no-such-container", Code::InvalidArgument),
        ("", Code::InvalidArgument),
        (&created, Code::FailedPrecondition),
    ] {
        let error = node
            .create(&first, &config, debugger("debug", &image, target)?)
            .await
            .err()
            .with_context(|| format!("{target:?} was joined"))?;
        let got = error.downcast_ref::<Error>().and_then(Error::code);
        ensure!(
            got == Some(code) && format!("{error:#}").contains(FIELD),
            "{target:?}: {error:#}"
        );
    }
    let list = node
        .client
        .list_containers(v1::ListContainersRequest::default())
        .await?;
    ensure!(list.containers.len() == 3, "{list:?}");
    // A target that ends before the start is not replaced by whoever has its number.
    let debug = node
        .create(&first, &config, debugger("debug", &image, &main)?)
        .await?;
    stop(node, &main).await?;
    let error = node.start_container(&debug).await.err();
    let error = format!("{:#}", error.context("it was started")?);
    ensure!(error.contains(FIELD) && error.contains("exited"), "{error}");
    let status = node.status(&debug).await?;
    ensure!(
        (status.exit_code, status.reason.as_str()) == (128, "StartError"),
        "{status:?}"
    );
    node.remove_pod(&other).await
}
