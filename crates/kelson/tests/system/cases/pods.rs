//! Pods: their life, their namespaces, what lists and statuses say of them.

use anyhow::{Context, ensure};
use kelson_cri::v1;

use crate::case::{Case, Outcome, on_node};
use crate::node::Node;
use crate::pod::{host_network_pod, pod, shell};

pub(super) fn cases() -> Vec<Case> {
    vec![
        on_node("pods::life", |node| Box::pin(life(node))),
        on_node("pods::filters_and_short_ids", |node| {
            Box::pin(filters(node))
        }),
        on_node("pods::the_same_request_again_is_the_same_pod", |node| {
            Box::pin(same_request(node))
        }),
        on_node("pods::containers_share_network_ipc_and_host_name", |node| {
            Box::pin(shared(node))
        }),
        on_node("pods::a_shared_pid_namespace_is_shared", |node| {
            Box::pin(shared_pid(node))
        }),
        on_node("pods::host_network", |node| Box::pin(host_network(node))),
        on_node("pods::dns_hosts_and_hostname", |node| Box::pin(dns(node))),
        on_node("pods::sysctls", |node| Box::pin(sysctls(node))),
        on_node("pods::events_come_in_order", |node| Box::pin(events(node))),
        on_node("pods::the_newest_container_is_told_first", |node| {
            Box::pin(newest_first(node))
        }),
        on_node("pods::version_status_and_config", |node| {
            Box::pin(about(node))
        }),
        on_node("pods::many_at_once", |node| Box::pin(many(node))),
    ]
}

async fn life(node: &mut Node) -> Outcome {
    let config = pod(&node.logs());
    let id = node.run_pod(&config).await?;
    ensure!(id.len() == 64, "{id}");
    let status = node.pod_status(&id).await?;
    ensure!(status.state() == v1::PodSandboxState::SandboxReady);
    ensure!(status.metadata == config.metadata);
    ensure!(!status.network.unwrap_or_default().ip.is_empty());
    for _ in 0..2 {
        // Stopping twice is as good as once.
        let request = v1::StopPodSandboxRequest {
            pod_sandbox_id: id.clone(),
        };
        node.client.stop_pod_sandbox(request).await?;
        let status = node.pod_status(&id).await?;
        ensure!(status.state() == v1::PodSandboxState::SandboxNotready);
    }
    for _ in 0..2 {
        node.remove_pod(&id).await?;
        ensure!(
            node.pod_status(&id).await.is_err(),
            "a removed pod has a status"
        );
    }
    Ok(())
}

async fn filters(node: &mut Node) -> Outcome {
    let (one, two) = (pod(&node.logs()), pod(&node.logs()));
    let first = node.run_pod(&one).await?;
    let second = node.run_pod(&two).await?;
    let request = v1::StopPodSandboxRequest {
        pod_sandbox_id: second[..13].to_owned(),
    };
    node.client.stop_pod_sandbox(request).await?;
    let ready = v1::PodSandboxStateValue {
        state: v1::PodSandboxState::SandboxReady.into(),
    };
    for (filter, expected) in [
        (v1::PodSandboxFilter::default(), 2),
        (
            v1::PodSandboxFilter {
                id: first[..12].to_owned(),
                ..Default::default()
            },
            1,
        ),
        (
            v1::PodSandboxFilter {
                state: Some(ready),
                ..Default::default()
            },
            1,
        ),
        (
            v1::PodSandboxFilter {
                label_selector: one.labels.clone(),
                ..Default::default()
            },
            1,
        ),
        (
            v1::PodSandboxFilter {
                id: "0123abc".repeat(3),
                ..Default::default()
            },
            0,
        ),
    ] {
        let request = v1::ListPodSandboxRequest {
            filter: Some(filter.clone()),
        };
        let found = node.client.list_pod_sandbox(request).await?.items;
        ensure!(found.len() == expected, "{filter:?}: {found:?}");
    }
    Ok(())
}

async fn same_request(node: &mut Node) -> Outcome {
    let config = pod(&node.logs());
    // Two at once and one after: never a second pod, never an error.
    let (one, two) = tokio::join!(node.run_pod(&config), node.run_pod(&config));
    let (one, two) = (one?, two?);
    ensure!(one == two && one == node.run_pod(&config).await?);
    Ok(())
}

async fn shared(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let config = pod(&node.logs());
    let (pod, one) = node
        .run(&config, shell("one", &image, "sleep 1000"))
        .await?;
    let two = node
        .create(&pod, &config, shell("two", &image, "sleep 1000"))
        .await?;
    node.start_container(&two).await?;
    for namespace in ["net", "ipc", "uts"] {
        let script = format!("readlink /proc/self/ns/{namespace}");
        let (a, b) = (
            node.output(&one, &script).await?,
            node.output(&two, &script).await?,
        );
        let host = std::fs::read_link(format!("/proc/self/ns/{namespace}"))?;
        ensure!(a == b, "{namespace} differs: {a} {b}");
        ensure!(a != host.display().to_string(), "{namespace} is the host's");
    }
    for namespace in ["pid", "mnt", "cgroup"] {
        let script = format!("readlink /proc/self/ns/{namespace}");
        let (a, b) = (
            node.output(&one, &script).await?,
            node.output(&two, &script).await?,
        );
        ensure!(a != b, "{namespace} is shared");
    }
    node.output(&one, "echo x > /dev/shm/shared").await?;
    ensure!(node.output(&two, "cat /dev/shm/shared").await? == "x");
    ensure!(
        node.output(&one, "echo $$; cat /proc/1/comm")
            .await?
            .ends_with("sleep")
    );
    Ok(())
}

async fn shared_pid(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let mut config = pod(&node.logs());
    let options = v1::NamespaceOption::default();
    let security = config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut());
    security.context("no security")?.namespace_options = Some(options.clone());
    let in_pod = |name: &str| {
        let mut container = shell(name, &image, "sleep 1000");
        if let Some(security) = container
            .linux
            .as_mut()
            .and_then(|linux| linux.security_context.as_mut())
        {
            security.namespace_options = Some(options.clone());
        }
        container
    };
    let (pod, one) = node.run(&config, in_pod("one")).await?;
    let two = node.create(&pod, &config, in_pod("two")).await?;
    node.start_container(&two).await?;
    let script = "readlink /proc/self/ns/pid";
    ensure!(node.output(&one, script).await? == node.output(&two, script).await?);
    ensure!(node.output(&one, "ps | grep -c '[s]leep 1000'").await? == "2");
    // Stopping one leaves the other.
    let request = v1::StopContainerRequest {
        container_id: one.clone(),
        timeout: 0,
    };
    node.client.stop_container(request).await?;
    ensure!(node.output(&two, "echo alive").await? == "alive");
    Ok(())
}

async fn host_network(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let mut config = shell("main", &image, "sleep 1000");
    let security = config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut());
    security.context("no security")?.namespace_options = None;
    let (pod, container) = node.run(&host_network_pod(&node.logs()), config).await?;
    let host = std::fs::read_link("/proc/self/ns/net")?;
    let inside = node
        .output(&container, "readlink /proc/self/ns/net")
        .await?;
    ensure!(inside == host.display().to_string());
    ensure!(
        node.pod_status(&pod)
            .await?
            .network
            .unwrap_or_default()
            .ip
            .is_empty()
    );
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    ensure!(node.output(&container, "hostname").await? == name.trim());
    Ok(())
}

async fn dns(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let mut config = pod(&node.logs());
    config.hostname = "turtle".into();
    config.dns_config = Some(v1::DnsConfig {
        servers: vec!["192.0.2.53".into()],
        searches: vec!["svc.example".into(), "example".into()],
        options: vec!["ndots:5".into()],
    });
    let (pod, container) = node
        .run(&config, shell("main", &image, "sleep 1000"))
        .await?;
    ensure!(
        node.output(&container, "hostname; cat /etc/hostname")
            .await?
            == "turtle\nturtle"
    );
    ensure!(node.output(&container, "echo $HOSTNAME").await? == "turtle");
    let resolv = node.output(&container, "cat /etc/resolv.conf").await?;
    for line in [
        "nameserver 192.0.2.53",
        "search svc.example example",
        "options ndots:5",
    ] {
        ensure!(
            resolv.lines().any(|found| found == line),
            "{line:?} is not in {resolv:?}"
        );
    }
    let hosts = node.output(&container, "cat /etc/hosts").await?;
    let ip = node.pod_status(&pod).await?.network.unwrap_or_default().ip;
    ensure!(hosts.contains("127.0.0.1"), "{hosts} (pod address {ip})");
    Ok(())
}

async fn sysctls(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let mut config = pod(&node.logs());
    let linux = config.linux.as_mut().context("no linux")?;
    linux.sysctls = [
        ("net.ipv4.ip_unprivileged_port_start", "77"),
        ("kernel.shm_rmid_forced", "1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let (_, container) = node
        .run(&config, shell("main", &image, "sleep 1000"))
        .await?;
    let script =
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced";
    ensure!(node.output(&container, script).await? == "77\n1");
    // By default every user may bind low ports and send pings, and the host's network stays as it is.
    let (_, plain) = node
        .run(&pod(&node.logs()), shell("main", &image, "sleep 1000"))
        .await?;
    let script =
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range";
    ensure!(node.output(&plain, script).await? == "0\n0\t2147483647");
    let mut bad = pod(&node.logs());
    let linux = bad.linux.as_mut().context("no linux")?;
    linux.sysctls = [("kernel.panic".to_owned(), "1".to_owned())].into();
    let error = node
        .run_pod(&bad)
        .await
        .err()
        .context("a sysctl of the host was accepted")?;
    ensure!(format!("{error:#}").contains("kernel.panic"), "{error:#}");
    Ok(())
}

async fn events(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let client = node.client.clone();
    let (ready, listening) = tokio::sync::oneshot::channel();
    let listener = tokio::spawn(async move {
        let mut events = client.events().await?;
        let _ = ready.send(());
        let mut seen = Vec::new();
        while let Some(event) = events.next().await? {
            let of_pod = event
                .pod_sandbox_status
                .as_ref()
                .is_some_and(|status| status.id == event.container_id);
            seen.push((event.container_id.clone(), event.container_event_type()));
            if of_pod
                && event.container_event_type() == v1::ContainerEventType::ContainerDeletedEvent
            {
                break;
            }
        }
        anyhow::Ok(seen)
    });
    // The answer's headers come with the stream; nothing is lost once they are there.
    tokio::time::timeout(std::time::Duration::from_secs(5), listening)
        .await
        .ok();
    let (pod, container) = node
        .run(&pod(&node.logs()), shell("main", &image, "exit 0"))
        .await?;
    node.exited(&container).await?;
    node.remove_pod(&pod).await?;
    let seen = tokio::time::timeout(crate::node::PATIENCE, listener).await???;
    use v1::ContainerEventType::{
        ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted,
        ContainerStartedEvent as Started, ContainerStoppedEvent as Stopped,
    };
    for id in [&container, &pod] {
        let kinds: Vec<_> = seen
            .iter()
            .filter(|(of, _)| of == id)
            .map(|(_, kind)| *kind)
            .collect();
        ensure!(
            kinds == [Created, Started, Stopped, Deleted],
            "{id}: {kinds:?}"
        );
    }
    Ok(())
}

/// The kubelet takes the first container of a name for the current one.
async fn newest_first(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let config = pod(&node.logs());
    let pod = node.run_pod(&config).await?;
    let mut made = Vec::new();
    for attempt in 0..3 {
        let mut again = shell("main", &image, "sleep 1000");
        again.metadata.get_or_insert_default().attempt = attempt;
        made.insert(0, node.create(&pod, &config, again).await?);
    }
    for restarted in [false, true] {
        if restarted {
            node.kill().await?;
            node.restart().await?;
        }
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: pod.clone(),
            verbose: false,
        };
        let answer = node.client.pod_sandbox_status(request).await?;
        let told: Vec<_> = answer
            .containers_statuses
            .into_iter()
            .map(|status| status.id)
            .collect();
        ensure!(told == made, "told {told:?}, made {made:?}");
    }
    Ok(())
}

async fn about(node: &mut Node) -> Outcome {
    let version = node.client.version(v1::VersionRequest::default()).await?;
    ensure!(version.runtime_name == "kelson" && version.runtime_api_version == "v1");
    let status = node
        .client
        .status(v1::StatusRequest { verbose: true })
        .await?;
    let conditions = status.status.unwrap_or_default().conditions;
    for name in ["RuntimeReady", "NetworkReady"] {
        let condition = conditions.iter().find(|one| one.r#type == name);
        ensure!(
            condition.is_some_and(|one| one.status),
            "{name}: {condition:?}"
        );
    }
    ensure!(status.info.contains_key("config"));
    let config = node
        .client
        .runtime_config(v1::RuntimeConfigRequest {})
        .await?;
    ensure!(config.linux.unwrap_or_default().cgroup_driver() == v1::CgroupDriver::Cgroupfs);
    Ok(())
}

async fn many(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let configs: Vec<_> = (0..12).map(|_| pod(&node.logs())).collect();
    let here = &*node;
    let runs = configs
        .iter()
        .map(|config| here.run(config, shell("main", &image, "sleep 1000")));
    let mut addresses = std::collections::BTreeSet::new();
    for run in futures(runs).await {
        let (pod, _) = run?;
        addresses.insert(node.pod_status(&pod).await?.network.unwrap_or_default().ip);
    }
    ensure!(
        addresses.len() == configs.len(),
        "addresses are not unique: {addresses:?}"
    );
    Ok(())
}

/// Waits for all of these at the same time.
async fn futures<F: Future>(all: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut pending: Vec<_> = all.map(|one| (Box::pin(one), None)).collect();
    std::future::poll_fn(|context| {
        let mut waiting = false;
        for (future, output) in &mut pending {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *output = Some(value),
                    std::task::Poll::Pending => waiting = true,
                }
            }
        }
        if waiting {
            std::task::Poll::Pending
        } else {
            std::task::Poll::Ready(())
        }
    })
    .await;
    pending
        .into_iter()
        .filter_map(|(_, output)| output)
        .collect()
}
