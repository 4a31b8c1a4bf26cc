//! Labels of processes and files, on a machine whose SELinux has a policy for containers. Whether the policy
//! enforces anything does not matter here.

use std::path::Path;

use anyhow::{Context, ensure};
use kelson_cri::v1;

use crate::case::{Case, Need, Outcome, on_node};
use crate::node::Node;
use crate::pod::{pod, shell, with_security};

pub(super) fn cases() -> Vec<Case> {
    let case = |case: Case| case.needs(Need::Selinux);
    vec![
        case(on_node(
            "selinux::containers_have_their_pods_label",
            |node| Box::pin(labels(node)),
        )),
        case(on_node("selinux::a_label_can_be_asked_for", |node| {
            Box::pin(asked(node))
        })),
        case(on_node("selinux::user_namespaces", |node| {
            Box::pin(mapped(node))
        })),
    ]
}

async fn turn_on(node: &mut Node) -> Outcome {
    let path = node.dir().join("conf.d");
    std::fs::create_dir(&path)?;
    std::fs::write(path.join("selinux.toml"), "[security]\nselinux = true\n")?;
    node.kill().await?;
    node.restart().await
}

/// The label of a file of the host.
fn label_of(path: &Path) -> anyhow::Result<String> {
    let mut value = [0_u8; 256];
    let length = rustix::fs::lgetxattr(path, c"security.selinux", &mut value)
        .with_context(|| format!("{} has no label", path.display()))?;
    let text = String::from_utf8_lossy(&value[..length]);
    Ok(text.trim_end_matches('\0').to_owned())
}

/// What a process says its label is.
const OWN: &str = "tr -d '\\0' < /proc/self/attr/current; echo";

async fn labels(node: &mut Node) -> Outcome {
    turn_on(node).await?;
    let image = node.pull("declaring").await?;
    let content = node.pull("content").await?;
    let volume = node.dir().join("volume");
    std::fs::create_dir_all(volume.join("deep"))?;
    std::fs::write(volume.join("deep/file"), "")?;
    let kept = node.dir().join("kept");
    std::fs::create_dir(&kept)?;
    let before = label_of(&kept)?;
    let mut config = shell("main", &image, "sleep 1000");
    let mount = |container_path: &str, host_path: &Path, selinux_relabel| v1::Mount {
        container_path: container_path.into(),
        host_path: host_path.display().to_string(),
        selinux_relabel,
        ..Default::default()
    };
    config.mounts = vec![
        mount("/volume", &volume, true),
        mount("/kept", &kept, false),
        v1::Mount {
            container_path: "/image".into(),
            image: Some(v1::ImageSpec {
                image: content,
                ..Default::default()
            }),
            ..Default::default()
        },
    ];
    let pod_config = pod(&node.logs());
    let (id, first) = node.run(&pod_config, config.clone()).await?;
    let process = node.output(&first, OWN).await?;
    let level = process
        .strip_prefix("system_u:system_r:container_t:")
        .with_context(|| process.clone())?
        .to_owned();
    ensure!(level.starts_with("s0:c") && level.contains(",c"), "{level}");
    let init = node
        .output(&first, "tr -d '\\0' < /proc/1/attr/current")
        .await?;
    ensure!(init == process, "{init}");

    // Its root, new file systems and images are mounted with the label of its files.
    let files = format!("system_u:object_r:container_file_t:{level}");
    let context = format!("context=\"{files}\"");
    let table = node.output(&first, "cat /proc/1/mountinfo").await?;
    for place in [" / / ", " / /dev ", " / /dev/pts ", " / /image "] {
        let line = table.lines().find(|line| line.contains(place));
        let line = line.with_context(|| format!("{place}: {table}"))?;
        ensure!(line.contains(&context), "{line}");
    }
    // What comes from the host has it as an attribute.
    let dir = node.dir().join("run/pods").join(&id);
    let copies = node
        .dir()
        .join("root/containers")
        .join(&first)
        .join("volumes");
    for path in [
        volume.clone(),
        volume.join("deep/file"),
        dir.join("hosts"),
        dir.join("resolv.conf"),
        dir.join("shm"),
    ] {
        ensure!(
            label_of(&path)? == files,
            "{}: {}",
            path.display(),
            label_of(&path)?
        );
    }
    for copy in std::fs::read_dir(&copies)
        .with_context(|| copies.display().to_string())?
        .flatten()
    {
        ensure!(
            label_of(&copy.path())? == files,
            "{}",
            copy.path().display()
        );
    }
    ensure!(label_of(&kept)? == before, "{}", label_of(&kept)?);

    // The next container of the pod has the same label, one of another pod does not.
    let second = shell("second", &image, "sleep 1000");
    let second = node.create(&id, &pod_config, second).await?;
    node.start_container(&second).await?;
    ensure!(node.output(&second, OWN).await? == process);
    let mut other = pod(&node.logs());
    other.metadata.as_mut().context("no metadata")?.uid = "other".into();
    let (_, third) = node
        .run(&other, shell("third", &image, "sleep 1000"))
        .await?;
    ensure!(node.output(&third, OWN).await? != process);

    // And a restarted daemon knows it.
    node.kill().await?;
    node.restart().await?;
    let late = shell("late", &image, "sleep 1000");
    let late = node.create(&id, &pod_config, late).await?;
    node.start_container(&late).await?;
    ensure!(node.output(&late, OWN).await? == process);
    Ok(())
}

async fn asked(node: &mut Node) -> Outcome {
    turn_on(node).await?;
    let image = node.busybox().await?;
    let options = |kind: &str, level: &str| {
        Some(v1::SeLinuxOption {
            r#type: kind.into(),
            level: level.into(),
            ..Default::default()
        })
    };
    let script = format!("{OWN}; grep ' / / ' /proc/1/mountinfo");
    let only_level = with_security(shell("main", &image, &script), |security| {
        security.selinux_options = options("", "s0:c4,c5");
    });
    let (log, _) = node.run_to_end(only_level).await?;
    ensure!(
        log.starts_with("system_u:system_r:container_t:s0:c4,c5\n"),
        "{log}"
    );
    ensure!(log.contains("container_file_t:s0:c4,c5"), "{log}");
    let free = with_security(shell("main", &image, &script), |security| {
        security.selinux_options = options("spc_t", "");
    });
    let (log, _) = node.run_to_end(free).await?;
    ensure!(log.contains(":spc_t:"), "{log}");

    let mut pod_config = pod(&node.logs());
    let security = pod_config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut());
    security.context("no security")?.privileged = true;
    let privileged = with_security(shell("main", &image, "sleep 1000"), |security| {
        security.privileged = true;
        security.seccomp = None;
    });
    let (id, container) = node.run(&pod_config, privileged).await?;
    let label = node.output(&container, OWN).await?;
    ensure!(label == "system_u:system_r:spc_t:s0", "{label}");

    // Nothing is made with a label that nobody knows, nor of what the machine needs.
    let wrong = with_security(shell("wrong", &image, "true"), |security| {
        security.selinux_options = options("nobody_has_such_t", "");
    });
    let mut system = shell("wrong", &image, "true");
    system.mounts = vec![v1::Mount {
        container_path: "/m".into(),
        host_path: "/usr".into(),
        selinux_relabel: true,
        ..Default::default()
    }];
    for (config, word) in [
        (wrong, "linux.security_context.selinux_options"),
        (system, "mounts[0].selinux_relabel"),
    ] {
        let error = node.create(&id, &pod_config, config).await.err();
        let text = format!("{:#}", error.context("it was accepted")?);
        ensure!(text.contains(word), "{text}");
    }
    Ok(())
}

async fn mapped(node: &mut Node) -> Outcome {
    turn_on(node).await?;
    let image = node.pull("declaring").await?;
    let mapping = vec![v1::IdMapping {
        host_id: 3_000_000,
        container_id: 0,
        length: 65_536,
    }];
    let mut config = pod(&node.logs());
    let options = config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut())
        .and_then(|security| security.namespace_options.as_mut());
    options.context("no options")?.userns_options = Some(v1::UserNamespace {
        mode: v1::NamespaceMode::Pod.into(),
        uids: mapping.clone(),
        gids: mapping,
    });
    let (_, container) = node
        .run(&config, shell("main", &image, "sleep 1000"))
        .await?;
    let label = node.output(&container, OWN).await?;
    ensure!(
        label.starts_with("system_u:system_r:container_t:s0:c"),
        "{label}"
    );
    let table = node.output(&container, "cat /proc/1/mountinfo").await?;
    for place in [" / / ", " / /dev "] {
        let line = table.lines().find(|line| line.contains(place));
        let line = line.with_context(|| format!("{place}: {table}"))?;
        ensure!(line.contains("container_file_t:s0:c"), "{line}");
    }
    Ok(())
}
