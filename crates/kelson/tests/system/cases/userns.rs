//! Pods in user namespaces of their own: whom a process is inside and on the host, files in layers
//! and volumes, exec, the network, and a daemon that dies.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, ensure};
use kelson_cri::v1;

use crate::case::{Case, Outcome, on_node};
use crate::node::Node;
use crate::pod::{host_network_pod, pod, shell};

/// The first id of the host that pods are given.
const FIRST: u32 = 3_000_000;
const COUNT: u32 = 65_536;

pub(super) fn cases() -> Vec<Case> {
    vec![
        on_node("userns::root_inside_is_nobody_outside", |node| {
            Box::pin(inside(node))
        }),
        on_node("userns::volumes_are_mapped", |node| Box::pin(volumes(node))),
        on_node("userns::what_comes_of_images_is_mapped", |node| {
            Box::pin(of_images(node))
        }),
        on_node("userns::it_survives_the_daemon", |node| {
            Box::pin(survives(node))
        }),
        on_node("userns::on_the_hosts_network", |node| {
            Box::pin(host_network(node))
        }),
        on_node("userns::what_makes_no_sense_is_refused", |node| {
            Box::pin(refused(node))
        }),
    ]
}

fn mapping() -> Vec<v1::IdMapping> {
    vec![v1::IdMapping {
        host_id: FIRST,
        container_id: 0,
        length: COUNT,
    }]
}

fn users() -> v1::UserNamespace {
    v1::UserNamespace {
        mode: v1::NamespaceMode::Pod.into(),
        uids: mapping(),
        gids: mapping(),
    }
}

fn mapped(mut config: v1::PodSandboxConfig) -> v1::PodSandboxConfig {
    if let Some(options) = config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut())
        .and_then(|security| security.namespace_options.as_mut())
    {
        options.userns_options = Some(users());
    }
    config
}

/// A container with all namespaces of its pod.
fn like(pod: &v1::PodSandboxConfig, mut config: v1::ContainerConfig) -> v1::ContainerConfig {
    let options = pod
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|security| security.namespace_options.clone());
    if let Some(security) = config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut())
    {
        security.namespace_options = options;
    }
    config
}

/// The process of a container on the host, by its cgroup.
fn process_of(container: &str) -> anyhow::Result<u32> {
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let cgroup = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if cgroup.lines().any(|line| line.ends_with(container))
            && let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
        {
            return Ok(pid);
        }
    }
    anyhow::bail!("container {container} has no process")
}

/// The owners of everything beneath a directory.
fn owners(dir: &Path, all: &mut Vec<u32>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = std::fs::symlink_metadata(entry.path())?;
        all.push(metadata.uid());
        if metadata.is_dir() {
            owners(&entry.path(), all)?;
        }
    }
    Ok(())
}

async fn inside(node: &mut Node) -> Outcome {
    let status = node.client.status(v1::StatusRequest::default()).await?;
    let features = status
        .runtime_handlers
        .iter()
        .filter_map(|handler| handler.features);
    ensure!(features.clone().count() == 2 && features.clone().all(|f| f.user_namespaces));
    ensure!(
        status
            .features
            .is_some_and(|f| f.user_namespaces_host_network)
    );

    let image = node.busybox().await?;
    let config = mapped(pod(&node.logs()));
    let script = "touch /mine; echo up; sleep 1000";
    let mut wanted = shell("main", &image, script);
    wanted.working_dir = "/made/here".into();
    let (pod, container) = node.run(&config, wanted).await?;
    let pid = process_of(&container)?;
    for kind in ["uid_map", "gid_map"] {
        let map = std::fs::read_to_string(format!("/proc/{pid}/{kind}"))?;
        let words: Vec<&str> = map.split_whitespace().collect();
        ensure!(words == ["0", "3000000", "65536"], "{map}");
    }
    ensure!(std::fs::metadata(format!("/proc/{pid}"))?.uid() == FIRST);

    let inside = "id -u; stat -c %u:%g / /bin/busybox /mine /made/here /etc/hosts /etc/resolv.conf \
                  /dev/shm; cat /proc/sys/net/ipv4/ping_group_range \
                  /proc/sys/net/ipv4/ip_unprivileged_port_start; echo x > /dev/null; \
                  echo 1.1.1.1 one >> /etc/hosts; touch /dev/shm/new; ls /sys/class >/dev/null; \
                  mount -t tmpfs t /mnt 2>/dev/null || echo no mount";
    let out = node.output(&container, inside).await?;
    let expected = format!("0\n{}0\t65535\n0\nno mount", "0:0\n".repeat(7));
    ensure!(out == expected, "{out}");

    // On the host the layer is as it was, and nothing of it was copied.
    let upper = node
        .dir()
        .join("root/containers")
        .join(&container)
        .join("upper");
    ensure!(std::fs::metadata(upper.join("mine"))?.uid() == FIRST);
    ensure!(std::fs::metadata(upper.join("made/here"))?.uid() == FIRST);
    ensure!(
        !upper.join("bin").exists(),
        "files of the image were copied"
    );
    let mut of_layers = Vec::new();
    owners(&node.dir().join("root/layers"), &mut of_layers)?;
    ensure!(
        of_layers.len() > 3 && of_layers.iter().all(|uid| *uid == 0),
        "{of_layers:?}"
    );

    // The network is the pod's, and works.
    let ip = node
        .pod_status(&pod)
        .await?
        .network
        .context("no network")?
        .ip;
    ensure!(node.output(&container, "ip addr").await?.contains(&ip));
    let ping = format!("ping -c 1 -W 5 {ip} >/dev/null && echo pong");
    ensure!(node.output(&container, &ping).await? == "pong");

    // A user of the container is one of the pod's.
    let mut other = shell("other", &image, "id -u; echo x > /dev/stdout");
    if let Some(security) = other
        .linux
        .as_mut()
        .and_then(|l| l.security_context.as_mut())
    {
        security.run_as_user = Some(v1::Int64Value { value: 1000 });
    }
    let other = node.create(&pod, &config, other).await?;
    node.start_container(&other).await?;
    let status = node.exited(&other).await?;
    ensure!(status.exit_code == 0, "{status:?}");
    let mut far = shell("far", &image, "true");
    if let Some(security) = far.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
        security.run_as_user = Some(v1::Int64Value { value: 70_000 });
    }
    let Err(error) = node.create(&pod, &config, far).await else {
        anyhow::bail!("a user that does not exist was accepted");
    };
    ensure!(format!("{error:#}").contains("user 70000"), "{error:#}");
    Ok(())
}

async fn volumes(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let volume = node.dir().join("volume");
    std::fs::create_dir(&volume)?;
    std::fs::write(volume.join("file"), "")?;
    std::os::unix::fs::chown(volume.join("file"), Some(1000), Some(1000))?;
    let script = "stat -c %u /mapped/file /plain/file; touch /mapped/new; \
                  touch /plain/new 2>/dev/null || echo denied";
    let mut wanted = shell("main", &image, script);
    let mount = |target: &str, mapping: Vec<v1::IdMapping>| v1::Mount {
        host_path: volume.display().to_string(),
        container_path: target.into(),
        uid_mappings: mapping.clone(),
        gid_mappings: mapping,
        ..Default::default()
    };
    wanted.mounts = vec![mount("/mapped", mapping()), mount("/plain", Vec::new())];
    let (_, container) = node.run(&mapped(pod(&node.logs())), wanted).await?;
    let status = node.exited(&container).await?;
    let log = std::fs::read_to_string(status.log_path)?;
    let words: Vec<&str> = log
        .lines()
        .filter_map(|line| line.split(' ').nth(3))
        .collect();
    ensure!(words == ["1000", "65534", "denied"], "{log}");
    ensure!(std::fs::metadata(volume.join("file"))?.uid() == 1000);
    ensure!(std::fs::metadata(volume.join("new"))?.uid() == 0);
    Ok(())
}

/// An image as a volume and the volumes that an image declares have the owners that they have in the image,
/// and what is written into the latter is the container's.
async fn of_images(node: &mut Node) -> Outcome {
    let image = node.pull("declaring").await?;
    let content = node.pull("content").await?;
    let mut wanted = shell("main", &image, "sleep 1000");
    wanted.mounts = vec![
        v1::Mount {
            container_path: "/whole".into(),
            image: Some(v1::ImageSpec {
                image: content.clone(),
                ..Default::default()
            }),
            ..Default::default()
        },
        v1::Mount {
            container_path: "/part".into(),
            image: Some(v1::ImageSpec {
                image: content,
                ..Default::default()
            }),
            image_sub_path: "docs/deep".into(),
            ..Default::default()
        },
    ];
    let (_, container) = node.run(&mapped(pod(&node.logs())), wanted).await?;
    ensure!(std::fs::metadata(format!("/proc/{}", process_of(&container)?))?.uid() == FIRST);
    let script = "stat -c %u:%g:%a /data /data/file /none/yet /whole /whole/docs/page /part/leaf; \
                  cat /data/file; echo; touch /data/new /none/yet/new; \
                  stat -c %u:%g /data/new /none/yet/new; chown 1000:1000 /data/file; \
                  stat -c %u:%g /data/file; touch /whole/new 2>/dev/null || echo protected";
    let found = node.output(&container, script).await?;
    let expected = "0:0:750\n0:0:640\n0:0:755\n0:0:755\n0:0:644\n0:0:644\nof the image\n0:0\n0:0\n\
                    1000:1000\nprotected";
    ensure!(found == expected, "{found}");
    // The layers are as they were.
    let mut of_layers = Vec::new();
    owners(&node.dir().join("root/layers"), &mut of_layers)?;
    ensure!(of_layers.iter().all(|uid| *uid == 0), "{of_layers:?}");
    Ok(())
}

async fn survives(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let mut config = mapped(pod(&node.logs()));
    if let Some(options) = config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut())
        .and_then(|security| security.namespace_options.as_mut())
    {
        options.pid = v1::NamespaceMode::Pod.into();
    }
    let first = like(&config, shell("first", &image, "sleep 1000"));
    let (pod, first) = node.run(&config, first).await?;
    node.kill().await?;
    node.restart().await?;
    // A container that is made now is in the same namespaces.
    let second = like(&config, shell("second", &image, "sleep 1000"));
    let second = node.create(&pod, &config, second).await?;
    node.start_container(&second).await?;
    let (a, b) = (process_of(&first)?, process_of(&second)?);
    for name in ["user", "net", "pid"] {
        let of = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/{name}"));
        ensure!(of(a)? == of(b)?, "{name}");
    }
    let request = v1::ContainerStatsRequest {
        container_id: second.clone(),
    };
    let stats = node.client.container_stats(request).await?;
    ensure!(stats.stats.is_some_and(|stats| stats.memory.is_some()));
    let request = v1::StopContainerRequest {
        container_id: second.clone(),
        timeout: 0,
    };
    node.client.stop_container(request).await?;
    ensure!(node.exited(&second).await?.exit_code == 137);
    ensure!(node.output(&first, "echo here").await? == "here");
    Ok(())
}

async fn host_network(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let config = mapped(host_network_pod(&node.logs()));
    let script =
        "ls /sys/class/net | grep -c lo; touch /sys/x 2>/dev/null || echo protected; sleep 1000";
    let (_, container) = node
        .run(&config, like(&config, shell("main", &image, script)))
        .await?;
    let pid = process_of(&container)?;
    let own = std::fs::read_link("/proc/self/ns/net")?;
    ensure!(std::fs::read_link(format!("/proc/{pid}/ns/net"))? == own);
    ensure!(std::fs::metadata(format!("/proc/{pid}"))?.uid() == FIRST);
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mounts"))?;
    for mount in mounts.lines().filter(|line| line.contains(" /sys ")) {
        ensure!(mount.contains(" ro,"), "{mount}");
    }
    ensure!(node.output(&container, "id -u").await? == "0");
    Ok(())
}

async fn refused(node: &mut Node) -> Outcome {
    let line = |host_id, container_id, length| v1::IdMapping {
        host_id,
        container_id,
        length,
    };
    let right = line(FIRST, 0, COUNT);
    for (uids, gids, field) in [
        (
            vec![right, line(FIRST + COUNT, 10, COUNT)],
            vec![right],
            "uids",
        ),
        (vec![right], vec![line(FIRST, 1, COUNT)], "gids"),
        (vec![line(u32::MAX, 0, COUNT)], vec![right], "uids"),
        (Vec::new(), vec![right], "uids"),
    ] {
        let mut config = mapped(pod(&node.logs()));
        if let Some(user) = config
            .linux
            .as_mut()
            .and_then(|linux| linux.security_context.as_mut())
            .and_then(|security| security.namespace_options.as_mut())
            .and_then(|options| options.userns_options.as_mut())
        {
            (user.uids, user.gids) = (uids, gids);
        }
        let Err(error) = node.run_pod(&config).await else {
            anyhow::bail!("{config:?} was accepted");
        };
        let text = format!("{error:#}");
        ensure!(text.contains(&format!("userns_options.{field}")), "{text}");
    }
    let pods = node
        .client
        .list_pod_sandbox(v1::ListPodSandboxRequest::default())
        .await?;
    ensure!(pods.items.is_empty(), "{pods:?}");
    Ok(())
}
