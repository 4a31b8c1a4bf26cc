//! Wrong requests: the right code, a text that says what is wrong, and nothing half-made.

use anyhow::{Context, ensure};
use kelson_client::{Code, Error};
use kelson_cri::v1;

use crate::case::{Case, Outcome, on_node};
use crate::node::Node;
use crate::pod::{command, pod, shell};

pub(super) fn cases() -> Vec<Case> {
    vec![
        on_node("bad_input::pods", |node| Box::pin(pods(node))),
        on_node("bad_input::containers", |node| Box::pin(containers(node))),
        on_node("bad_input::unknown_ids", |node| Box::pin(unknown(node))),
        on_node("bad_input::commands_that_do_not_exist", |node| {
            Box::pin(commands(node))
        }),
        on_node("bad_input::images", |node| Box::pin(images(node))),
    ]
}

/// The status code and text of a failed call.
fn refused<T>(result: anyhow::Result<T>, what: &str) -> anyhow::Result<(Code, String)> {
    let error = result
        .err()
        .with_context(|| format!("{what} was accepted"))?;
    let code = error.downcast_ref::<Error>().and_then(Error::code);
    Ok((
        code.with_context(|| format!("{what}: {error:#}"))?,
        format!("{error:#}"),
    ))
}

async fn pods(node: &mut Node) -> Outcome {
    let good = pod(&node.logs());
    let metadata = good.metadata.clone().context("no metadata")?;
    for (config, word) in [
        (
            v1::PodSandboxConfig {
                metadata: None,
                ..good.clone()
            },
            "metadata",
        ),
        (
            v1::PodSandboxConfig {
                metadata: Some(v1::PodSandboxMetadata {
                    name: String::new(),
                    ..metadata.clone()
                }),
                ..good.clone()
            },
            "name",
        ),
        (
            v1::PodSandboxConfig {
                metadata: Some(v1::PodSandboxMetadata {
                    uid: String::new(),
                    ..metadata.clone()
                }),
                ..good.clone()
            },
            "uid",
        ),
        (
            v1::PodSandboxConfig {
                log_directory: "relative".into(),
                ..good.clone()
            },
            "log_directory",
        ),
        (
            v1::PodSandboxConfig {
                hostname: "a/b".into(),
                ..good.clone()
            },
            "hostname",
        ),
    ] {
        let (code, text) = refused(node.run_pod(&config).await, word)?;
        ensure!(
            code == Code::InvalidArgument && text.contains(word),
            "{word}: {code:?} {text}"
        );
    }
    let request = v1::RunPodSandboxRequest {
        config: Some(good),
        runtime_handler: "no-such-handler".into(),
    };
    let error = node
        .client
        .run_pod_sandbox(request)
        .await
        .err()
        .context("a handler was found")?;
    ensure!(
        format!("{error:?}").contains("no-such-handler"),
        "{error:?}"
    );
    let list = node
        .client
        .list_pod_sandbox(v1::ListPodSandboxRequest::default())
        .await?;
    ensure!(list.items.is_empty(), "{:?}", list.items);
    Ok(())
}

async fn containers(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let config = pod(&node.logs());
    let id = node.run_pod(&config).await?;
    let good = shell("main", &image, "sleep 1000");
    let with_user = |name: &str| {
        let mut config = good.clone();
        if let Some(security) = config
            .linux
            .as_mut()
            .and_then(|l| l.security_context.as_mut())
        {
            security.run_as_username = name.into();
        }
        config
    };
    for (container, code, word) in [
        (
            v1::ContainerConfig {
                metadata: None,
                ..good.clone()
            },
            Code::InvalidArgument,
            "metadata",
        ),
        (
            v1::ContainerConfig {
                image: None,
                ..good.clone()
            },
            Code::InvalidArgument,
            "image",
        ),
        (
            command("main", &format!("{image}-no"), &["true"]),
            Code::NotFound,
            "pull",
        ),
        (
            with_user("nobody-like-this"),
            Code::InvalidArgument,
            "nobody-like-this",
        ),
        (
            v1::ContainerConfig {
                log_path: "../../escape.log".into(),
                ..good.clone()
            },
            Code::InvalidArgument,
            "log_path",
        ),
        (
            v1::ContainerConfig {
                log_path: "/etc/escape.log".into(),
                ..good.clone()
            },
            Code::InvalidArgument,
            "log_path",
        ),
    ] {
        let (got, text) = refused(node.create(&id, &config, container).await, word)?;
        ensure!(got == code && text.contains(word), "{word}: {got:?} {text}");
    }
    let request = v1::StopPodSandboxRequest {
        pod_sandbox_id: id.clone(),
    };
    node.client.stop_pod_sandbox(request).await?;
    let (code, text) = refused(node.create(&id, &config, good).await, "a stopped pod")?;
    ensure!(code == Code::FailedPrecondition, "{code:?} {text}");
    let list = node
        .client
        .list_containers(v1::ListContainersRequest::default())
        .await?;
    ensure!(list.containers.is_empty());
    Ok(())
}

async fn unknown(node: &mut Node) -> Outcome {
    let id = "f".repeat(64);
    let (code, _) = refused(node.pod_status(&id).await, "an unknown pod")?;
    ensure!(code == Code::NotFound);
    let (code, _) = refused(node.status(&id).await, "an unknown container")?;
    ensure!(code == Code::NotFound);
    let (code, _) = refused(node.exec(&id, "true").await, "an unknown container")?;
    ensure!(code == Code::NotFound);
    let (code, _) = refused(node.start_container(&id).await, "an unknown container")?;
    ensure!(code == Code::NotFound);
    // Stopping and removing what is not there is done.
    let request = v1::StopContainerRequest {
        container_id: id.clone(),
        timeout: 1,
    };
    node.client.stop_container(request).await?;
    node.client
        .remove_container(v1::RemoveContainerRequest {
            container_id: id.clone(),
        })
        .await?;
    node.client
        .stop_pod_sandbox(v1::StopPodSandboxRequest {
            pod_sandbox_id: id.clone(),
        })
        .await?;
    node.remove_pod(&id).await?;
    let (code, _) = refused(node.status("").await, "an empty id")?;
    ensure!(code == Code::InvalidArgument);
    Ok(())
}

async fn commands(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let config = pod(&node.logs());
    let id = node.run_pod(&config).await?;
    let container = node
        .create(&id, &config, command("main", &image, &["/no/such/thing"]))
        .await?;
    let (_, text) = refused(node.start_container(&container).await, "a missing command")?;
    ensure!(text.contains("/no/such/thing"), "{text}");
    let status = node.status(&container).await?;
    ensure!(status.state() == v1::ContainerState::ContainerExited);
    ensure!(
        status.exit_code == 128 && status.reason == "StartError",
        "{status:?}"
    );
    ensure!(status.message.contains("/no/such/thing"), "{status:?}");
    Ok(())
}

async fn images(node: &mut Node) -> Outcome {
    for (image, code) in [
        ("library/UPPER:x".to_owned(), Code::InvalidArgument),
        (String::new(), Code::InvalidArgument),
        (
            node.registry.reference("no-such-image:latest"),
            Code::NotFound,
        ),
        ("127.0.0.1:1/x:latest".to_owned(), Code::Unavailable),
    ] {
        let request = v1::PullImageRequest {
            image: Some(v1::ImageSpec {
                image: image.clone(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let result = node
            .client
            .pull_image(request)
            .await
            .map_err(anyhow::Error::from);
        let (got, text) = refused(result, &image)?;
        ensure!(got == code, "{image}: {got:?} {text}");
    }
    ensure!(
        node.client
            .list_images(v1::ListImagesRequest::default())
            .await?
            .images
            .is_empty()
    );
    Ok(())
}
