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
        on_node("bad_input::fields_are_refused_by_name", |node| {
            Box::pin(fields(node))
        }),
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

/// What is wrong in a field is refused with its name, and nothing of the pod or container stays.
async fn fields(node: &mut Node) -> Outcome {
    type PodChange = fn(&mut v1::LinuxPodSandboxConfig, &mut v1::NamespaceOption);
    let on_host: PodChange = |linux, options| {
        options.network = v1::NamespaceMode::Node.into();
        linux.sysctls = [("net.ipv4.tcp_syncookies".to_owned(), "1".to_owned())].into();
    };
    let ipc_on_host: PodChange = |linux, options| {
        options.ipc = v1::NamespaceMode::Node.into();
        linux.sysctls = [("kernel.shmmax".to_owned(), "1".to_owned())].into();
    };
    let cases: [(&str, PodChange); 6] = [
        ("linux.sysctls[net.ipv4.tcp_syncookies]", on_host),
        ("linux.sysctls[kernel.shmmax]", ipc_on_host),
        ("linux.cgroup_parent", |linux, _| {
            linux.cgroup_parent = "kubepods-besteffort.slice".into();
        }),
        ("namespace_options.pid", |_, options| {
            options.pid = v1::NamespaceMode::Target.into();
        }),
        ("overhead.memory_limit_in_bytes", |linux, _| {
            linux.overhead = Some(v1::LinuxContainerResources {
                memory_limit_in_bytes: -2,
                ..Default::default()
            });
        }),
        ("namespace_options.target_id", |_, options| {
            options.target_id = "abc".into();
        }),
    ];
    for (word, change) in cases {
        let mut config = pod(&node.logs());
        let linux = config.linux.as_mut().context("no linux")?;
        let mut options = crate::pod::private();
        change(linux, &mut options);
        let security = linux.security_context.as_mut().context("no security")?;
        security.namespace_options = Some(options);
        let (code, text) = refused(node.run_pod(&config).await, word)?;
        ensure!(
            code == Code::InvalidArgument && text.contains(word),
            "{word}: {code:?} {text}"
        );
    }
    let mut on_host = crate::pod::host_network_pod(&node.logs());
    on_host.hostname = "web".into();
    on_host.port_mappings = vec![v1::PortMapping {
        container_port: 80,
        host_port: 8080,
        ..Default::default()
    }];
    on_host.annotations = [
        ("io.kubernetes.cri.untrusted-workload", "true"),
        ("kubernetes.io/egress-bandwidth", "fast"),
        ("blockio.resources.beta.kubernetes.io/pod", "slow"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    let (code, text) = refused(node.run_pod(&on_host).await, "a pod of the host's network")?;
    ensure!(code == Code::InvalidArgument, "{code:?}");
    for word in [
        "hostname",
        "port_mappings[0].host_port",
        "annotations[io.kubernetes.cri.untrusted-workload]",
        "annotations[kubernetes.io/egress-bandwidth]",
        "annotations[blockio.resources.beta.kubernetes.io/pod]",
    ] {
        ensure!(text.contains(word), "{word}: {text}");
    }
    let image = node.busybox().await?;
    let pod_config = pod(&node.logs());
    let id = node.run_pod(&pod_config).await?;
    let host_dir = node.dir().join("never-made").display().to_string();
    let wrong =
        |change: &dyn Fn(&mut v1::ContainerConfig, &mut v1::LinuxContainerSecurityContext)| {
            let mut config = shell("main", &image, "true");
            let mut linux = config.linux.take().unwrap_or_default();
            let mut security = linux.security_context.take().unwrap_or_default();
            change(&mut config, &mut security);
            linux.security_context = Some(security);
            config.linux = Some(linux);
            config
        };
    let mount = v1::Mount {
        host_path: host_dir.clone(),
        container_path: "/m".into(),
        recursive_read_only: true,
        ..Default::default()
    };
    for (word, config) in [
        (
            "mounts[0].recursive_read_only",
            wrong(&|config, _| config.mounts = vec![mount.clone()]),
        ),
        (
            "mounts[0].recursive_read_only",
            wrong(&|config, _| {
                config.mounts = vec![v1::Mount {
                    readonly: true,
                    propagation: v1::MountPropagation::PropagationBidirectional.into(),
                    ..mount.clone()
                }];
            }),
        ),
        (
            "capabilities.add_capabilities",
            wrong(&|_, security| {
                security.capabilities = Some(v1::Capability {
                    add_capabilities: vec!["FLY".into()],
                    ..Default::default()
                });
            }),
        ),
        (
            "capabilities.add_ambient_capabilities",
            wrong(&|_, security| {
                security.capabilities = Some(v1::Capability {
                    add_ambient_capabilities: vec!["SYS_ADMIN".into()],
                    ..Default::default()
                });
            }),
        ),
        (
            "image.runtime_handler",
            wrong(&|config, _| {
                if let Some(image) = &mut config.image {
                    image.runtime_handler = "kata".into();
                }
            }),
        ),
        (
            "linux.security_context.selinux_options.type",
            wrong(&|_, security| {
                security.selinux_options = Some(v1::SeLinuxOption {
                    r#type: "a:b".into(),
                    ..Default::default()
                });
            }),
        ),
        (
            "annotations[io.kubernetes.cri.rdt-class]",
            wrong(&|config, _| {
                let class = ("io.kubernetes.cri.rdt-class".to_owned(), "gold".to_owned());
                config.annotations = [class].into();
            }),
        ),
        (
            "linux.security_context.run_as_group",
            wrong(&|_, security| security.run_as_group = Some(v1::Int64Value { value: 7 })),
        ),
    ] {
        let (code, text) = refused(node.create(&id, &pod_config, config).await, word)?;
        let known = matches!(code, Code::InvalidArgument | Code::Unimplemented);
        ensure!(known && text.contains(word), "{word}: {code:?} {text}");
    }
    // A profile that this machine cannot have; which of the two is its own business.
    let config = wrong(&|_, security| {
        security.apparmor = Some(v1::SecurityProfile {
            profile_type: v1::security_profile::ProfileType::Localhost.into(),
            localhost_ref: "kelson-test-no-such-profile".into(),
        });
    });
    let (code, text) = refused(node.create(&id, &pod_config, config).await, "apparmor")?;
    ensure!(
        matches!(code, Code::Unimplemented | Code::InvalidArgument)
            && text.contains("linux.security_context.apparmor"),
        "{code:?} {text}"
    );
    ensure!(
        !std::path::Path::new(&host_dir).exists(),
        "{host_dir} was made"
    );
    let containers = v1::ListContainersRequest::default();
    let containers = node.client.list_containers(containers).await?;
    ensure!(containers.containers.is_empty(), "{containers:?}");
    let left = std::fs::read_dir(node.dir().join("root/containers"))?.count();
    ensure!(left == 0, "{left} containers were left");
    Ok(())
}
