//! What the demo does with its node, step by step, and how it tells.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use kelson_cri::v1;

use super::guest;
use super::node::Node;

/// Port of the first container, in the pod.
const WEB: u16 = 8080;
/// Port of the second one.
const HELPER: u16 = 8081;
/// Where the program is in the image.
pub(super) const PROGRAM: &str = "/kelson";
/// How long a container may take until it answers or its line is in the log.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tells one step.
pub(super) fn say(what: &str, text: &str) {
    println!("  {what:<10} {text}");
}

/// Tells one step and how long it took.
pub(super) fn took(what: &str, text: &str, begin: Instant) {
    say(what, &format!("{text}  ({})", duration(begin.elapsed())));
}

fn duration(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{:.1} ms", time.as_secs_f64() * 1e3)
    } else {
        format!("{:.2} s", time.as_secs_f64())
    }
}

/// Runs all steps; on an error what was made stays, for [`clean`].
pub(super) async fn run(node: &Node) -> anyhow::Result<()> {
    let image = pull(node).await?;
    let port = free_port()?;
    let config = pod_config(node, port);

    println!("\nA pod with two containers");
    let begin = Instant::now();
    let request = v1::RunPodSandboxRequest {
        config: Some(config.clone()),
        runtime_handler: String::new(),
    };
    let pod = node.client.run_pod_sandbox(request).await?.pod_sandbox_id;
    let ip = address(node, &pod).await?;
    took("pod", &format!("{} has address {ip}", short(&pod)), begin);
    let web = container(node, &pod, &config, &image, "web", WEB).await?;
    let helper = container(node, &pod, &config, &image, "helper", HELPER).await?;
    table(node).await?;

    println!("\nUsing it");
    exec(node, &helper, &format!("http://127.0.0.1:{WEB}/exec")).await?;
    exec(node, &helper, &format!("http://{ip}:{WEB}/exec")).await?;
    publish(port)?;
    logs(node, &web).await?;
    stats(node, &[&web, &helper]).await?;

    println!("\nTaking it down");
    for (name, id) in [("web", &web), ("helper", &helper)] {
        let begin = Instant::now();
        let request = v1::StopContainerRequest {
            container_id: id.clone(),
            timeout: 5,
        };
        node.client.stop_container(request).await?;
        let code = exit_code(node, id).await?;
        node.client
            .remove_container(v1::RemoveContainerRequest {
                container_id: id.clone(),
            })
            .await?;
        took(
            "container",
            &format!("{name} stopped (exit code {code}) and removed"),
            begin,
        );
    }
    let begin = Instant::now();
    node.client
        .stop_pod_sandbox(v1::StopPodSandboxRequest {
            pod_sandbox_id: pod.clone(),
        })
        .await?;
    node.client
        .remove_pod_sandbox(v1::RemovePodSandboxRequest {
            pod_sandbox_id: pod,
        })
        .await?;
    took("pod", "stopped and removed", begin);
    let request = v1::RemoveImageRequest {
        image: Some(v1::ImageSpec {
            image,
            ..Default::default()
        }),
    };
    node.client.remove_image(request).await?;
    say("image", "removed");
    Ok(())
}

/// Removes whatever pods are left after a failed step.
pub(super) async fn clean(node: &Node) {
    let list = node
        .client
        .list_pod_sandbox(v1::ListPodSandboxRequest::default())
        .await;
    for pod in list.map(|list| list.items).unwrap_or_default() {
        // The first error is what the person sees; this is only to leave nothing.
        let request = v1::RemovePodSandboxRequest {
            pod_sandbox_id: pod.id,
        };
        let _ = node.client.remove_pod_sandbox(request).await;
    }
}

async fn pull(node: &Node) -> anyhow::Result<String> {
    println!("\nAn image");
    let name = format!("{}/demo:latest", node.registry());
    let begin = Instant::now();
    let spec = v1::ImageSpec {
        image: name.clone(),
        ..Default::default()
    };
    let request = v1::PullImageRequest {
        image: Some(spec.clone()),
        ..Default::default()
    };
    let id = node.client.pull_image(request).await?.image_ref;
    let request = v1::ImageStatusRequest {
        image: Some(spec),
        verbose: false,
    };
    let image = node.client.image_status(request).await?.image;
    let size = image.context("the image is not there after its pull")?.size;
    took(
        "pull",
        &format!("{name}, {:.1} MB", size as f64 / 1e6),
        begin,
    );
    Ok(id)
}

fn pod_config(node: &Node, host_port: u16) -> v1::PodSandboxConfig {
    let namespaces = v1::NamespaceOption {
        pid: v1::NamespaceMode::Container.into(),
        ..Default::default()
    };
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: "shop".into(),
            uid: format!("demo-{}", std::process::id()),
            namespace: "demo".into(),
            attempt: 0,
        }),
        hostname: "shop".into(),
        log_directory: node.logs().display().to_string(),
        port_mappings: vec![v1::PortMapping {
            protocol: v1::Protocol::Tcp.into(),
            container_port: WEB.into(),
            host_port: host_port.into(),
            host_ip: String::new(),
        }],
        labels: BTreeMap::from([("app".to_owned(), "shop".to_owned())]),
        linux: Some(v1::LinuxPodSandboxConfig {
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

async fn container(
    node: &Node,
    pod: &str,
    pod_config: &v1::PodSandboxConfig,
    image: &str,
    name: &str,
    port: u16,
) -> anyhow::Result<String> {
    let begin = Instant::now();
    let config = v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata {
            name: name.into(),
            attempt: 0,
        }),
        image: Some(v1::ImageSpec {
            image: image.to_owned(),
            ..Default::default()
        }),
        command: [PROGRAM, "demo-guest", "serve", &port.to_string()]
            .map(str::to_owned)
            .into(),
        log_path: format!("{name}.log"),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(v1::LinuxContainerResources {
                memory_limit_in_bytes: 64 << 20,
                cpu_shares: 512,
                ..Default::default()
            }),
            security_context: Some(v1::LinuxContainerSecurityContext {
                namespace_options: Some(v1::NamespaceOption {
                    pid: v1::NamespaceMode::Container.into(),
                    ..Default::default()
                }),
                run_as_user: Some(v1::Int64Value { value: 1000 }),
                no_new_privs: true,
                readonly_rootfs: true,
                seccomp: Some(v1::SecurityProfile::default()),
                ..Default::default()
            }),
        }),
        ..Default::default()
    };
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: pod.to_owned(),
        config: Some(config),
        sandbox_config: Some(pod_config.clone()),
    };
    let id = node.client.create_container(request).await?.container_id;
    node.client
        .start_container(v1::StartContainerRequest {
            container_id: id.clone(),
        })
        .await?;
    took(
        "container",
        &format!("{name} {} runs on port {port}", short(&id)),
        begin,
    );
    Ok(id)
}

async fn address(node: &Node, pod: &str) -> anyhow::Result<String> {
    let request = v1::PodSandboxStatusRequest {
        pod_sandbox_id: pod.to_owned(),
        verbose: false,
    };
    let status = node.client.pod_sandbox_status(request).await?.status;
    let network = status.and_then(|status| status.network).unwrap_or_default();
    ensure!(!network.ip.is_empty(), "the pod has no address");
    Ok(network.ip)
}

async fn table(node: &Node) -> anyhow::Result<()> {
    println!(
        "\n  {:<10} {:<14} {:<12} {:<10} {:<8}",
        "NAME", "CONTAINER", "STATE", "AGE", "USER"
    );
    let list = node
        .client
        .list_containers(v1::ListContainersRequest::default())
        .await?;
    for container in list.containers {
        let request = v1::ContainerStatusRequest {
            container_id: container.id.clone(),
            verbose: false,
        };
        let status = node
            .client
            .container_status(request)
            .await?
            .status
            .unwrap_or_default();
        let state = status
            .state()
            .as_str_name()
            .trim_start_matches("CONTAINER_")
            .to_lowercase();
        let user = status
            .user
            .and_then(|user| user.linux)
            .map_or(0, |user| user.uid);
        let age = now().saturating_sub(status.started_at);
        let age = duration(Duration::from_nanos(u64::try_from(age).unwrap_or(0)));
        let name = container.metadata.unwrap_or_default().name;
        println!(
            "  {name:<10} {:<14} {state:<12} {age:<10} {user:<8}",
            short(&container.id)
        );
    }
    Ok(())
}

/// Runs `fetch` in a container until the other one answers.
async fn exec(node: &Node, container: &str, url: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let begin = Instant::now();
        let request = v1::ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: [PROGRAM, "demo-guest", "fetch", url]
                .map(str::to_owned)
                .into(),
            timeout: 10,
        };
        let answer = node.client.exec_sync(request).await?;
        if answer.exit_code == 0 {
            let text = String::from_utf8_lossy(&answer.stdout);
            took(
                "exec",
                &format!("helper fetches {url}: {}", text.trim()),
                begin,
            );
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!(
                "the containers do not talk: {}",
                String::from_utf8_lossy(&answer.stderr).trim()
            );
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn publish(port: u16) -> anyhow::Result<()> {
    let begin = Instant::now();
    let body = guest::get(&format!("127.0.0.1:{port}"), "host")
        .map_err(|error| anyhow::anyhow!("the published port {port} does not answer: {error}"))?;
    took(
        "host port",
        &format!("http://127.0.0.1:{port}: {}", body.trim()),
        begin,
    );
    Ok(())
}

/// Prints the log of a container as soon as all requests are in it.
async fn logs(node: &Node, container: &str) -> anyhow::Result<()> {
    let request = v1::ContainerStatusRequest {
        container_id: container.to_owned(),
        verbose: false,
    };
    let path = node
        .client
        .container_status(request)
        .await?
        .status
        .unwrap_or_default()
        .log_path;
    let deadline = Instant::now() + PATIENCE;
    let text = loop {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        if text.contains("GET /host") {
            break text;
        }
        ensure!(
            Instant::now() < deadline,
            "the log {path} lacks the last request:\n{text}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    for line in text.lines() {
        say("log", line);
    }
    Ok(())
}

async fn stats(node: &Node, containers: &[&str]) -> anyhow::Result<()> {
    for id in containers {
        let request = v1::ContainerStatsRequest {
            container_id: (*id).to_owned(),
        };
        let stats = node
            .client
            .container_stats(request)
            .await?
            .stats
            .unwrap_or_default();
        let name = stats
            .attributes
            .and_then(|one| one.metadata)
            .unwrap_or_default()
            .name;
        let cpu = stats
            .cpu
            .and_then(|cpu| cpu.usage_core_nano_seconds)
            .map_or(0, |v| v.value);
        let memory = stats.memory.and_then(|memory| memory.working_set_bytes);
        let memory = memory.map_or(0, |v| v.value);
        let text = format!(
            "{name}: {:.1} ms of CPU, {:.1} MiB of memory",
            cpu as f64 / 1e6,
            memory as f64 / f64::from(1 << 20)
        );
        say("stats", &text);
    }
    Ok(())
}

async fn exit_code(node: &Node, container: &str) -> anyhow::Result<i32> {
    let request = v1::ContainerStatusRequest {
        container_id: container.to_owned(),
        verbose: false,
    };
    let status = node.client.container_status(request).await?.status;
    Ok(status.context("the container has no status")?.exit_code)
}

/// A port that nobody listens on now.
fn free_port() -> anyhow::Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("there is no free port")?;
    Ok(listener
        .local_addr()
        .context("cannot tell the port")?
        .port())
}

fn now() -> i64 {
    jiff::Timestamp::now()
        .as_nanosecond()
        .try_into()
        .unwrap_or(i64::MAX)
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
