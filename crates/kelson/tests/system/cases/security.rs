//! What a container may not do, and whom it runs as.

use anyhow::{Context, ensure};
use kelson_cri::v1;

use crate::case::{Case, Outcome, on_node};
use crate::node::Node;
use crate::pod::{pod, shell, with_security};

pub(super) fn cases() -> Vec<Case> {
    vec![
        on_node("security::defaults_are_strict", |node| {
            Box::pin(defaults(node))
        }),
        on_node("security::users_and_groups", |node| Box::pin(users(node))),
        on_node("security::capabilities", |node| {
            Box::pin(capabilities(node))
        }),
        on_node("security::privileged", |node| Box::pin(privileged(node))),
        on_node("security::read_only_root", |node| Box::pin(read_only(node))),
        on_node("security::limits_of_the_configuration", |node| {
            Box::pin(configured(node))
        }),
        on_node("security::the_program_is_not_visible", |node| {
            Box::pin(program(node))
        }),
    ]
}

async fn defaults(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    // Nothing is said about security at all.
    let script = "grep -E '^(Seccomp|CapBnd):' /proc/self/status; cat /proc/kcore >/dev/null 2>&1 && head -c1 /proc/kcore | wc -c; \
                  echo x 2>&1 > /proc/sys/kernel/domainname; unshare -U true 2>&1; mount -t tmpfs none /mnt 2>&1; ls /sys/firmware | wc -l";
    let mut config = shell("main", &image, script);
    config.linux = None;
    let (log, _) = node.run_to_end(config).await?;
    ensure!(log.contains("Seccomp:\t2"), "{log}");
    ensure!(log.contains("CapBnd:\t00000000a80425fb"), "{log}");
    ensure!(log.contains("not permitted"), "{log}");
    ensure!(log.ends_with('0'), "/sys/firmware is not masked: {log}");
    Ok(())
}

async fn users(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let script = "id -u; id -g; id -G";
    let config = with_security(shell("main", &image, script), |security| {
        security.run_as_user = Some(v1::Int64Value { value: 1234 });
        security.run_as_group = Some(v1::Int64Value { value: 2345 });
        security.supplemental_groups = vec![3456];
    });
    let (log, status) = node.run_to_end(config).await?;
    ensure!(log == "1234\n2345\n2345 3456", "{log}");
    let user = status.user.unwrap_or_default().linux.unwrap_or_default();
    ensure!((user.uid, user.gid) == (1234, 2345), "{user:?}");
    let config = with_security(shell("main", &image, script), |security| {
        security.run_as_username = "sailor".into();
    });
    let (log, _) = node.run_to_end(config).await?;
    // The image's /etc/group has the user in a second group.
    ensure!(log == "1000\n1000\n1000 1001", "{log}");
    let config = with_security(shell("main", &image, script), |security| {
        security.run_as_username = "sailor".into();
        security.supplemental_groups_policy = v1::SupplementalGroupsPolicy::Strict.into();
    });
    let (log, _) = node.run_to_end(config).await?;
    ensure!(log == "1000\n1000\n1000", "{log}");
    Ok(())
}

async fn capabilities(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let script = "grep -E '^Cap(Inh|Eff|Amb)' /proc/self/status | awk '{print $2}'";
    let none = with_security(shell("main", &image, script), |security| {
        security.capabilities = Some(v1::Capability {
            drop_capabilities: vec!["ALL".into()],
            ..Default::default()
        });
    });
    let (log, _) = node.run_to_end(none).await?;
    ensure!(
        log == "0000000000000000\n0000000000000000\n0000000000000000",
        "{log}"
    );
    let one = with_security(shell("main", &image, script), |security| {
        security.capabilities = Some(v1::Capability {
            add_capabilities: vec!["NET_ADMIN".into()],
            drop_capabilities: vec!["ALL".into()],
            ..Default::default()
        });
    });
    let (log, _) = node.run_to_end(one).await?;
    ensure!(log.lines().nth(1) == Some("0000000000001000"), "{log}");
    let ambient = with_security(shell("main", &image, script), |security| {
        security.run_as_user = Some(v1::Int64Value { value: 1000 });
        security.capabilities = Some(v1::Capability {
            add_ambient_capabilities: vec!["NET_BIND_SERVICE".into()],
            ..Default::default()
        });
    });
    let (log, _) = node.run_to_end(ambient).await?;
    ensure!(
        log == "0000000000000400\n0000000000000400\n0000000000000400",
        "{log}"
    );
    Ok(())
}

async fn privileged(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let script = "mount -t tmpfs none /mnt && echo mounted; grep Seccomp: /proc/self/status; test -e /dev/kmsg && echo devices";
    let config = with_security(shell("main", &image, script), |security| {
        security.privileged = true;
        security.seccomp = None;
    });
    let refused = node.run(&pod(&node.logs()), config.clone()).await;
    ensure!(
        refused.is_err(),
        "a pod that is not privileged has a privileged container"
    );
    let mut privileged = pod(&node.logs());
    let security = privileged
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut());
    security.context("no security")?.privileged = true;
    let (_, container) = node.run(&privileged, config).await?;
    let status = node.exited(&container).await?;
    let log = std::fs::read_to_string(&status.log_path)?;
    ensure!(
        log.contains("mounted") && log.contains("Seccomp:\t0"),
        "{log}"
    );
    ensure!(log.contains("devices"), "{log}");
    Ok(())
}

async fn read_only(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let config = with_security(
        shell(
            "main",
            &image,
            "touch /x 2>&1; touch /dev/shm/y && echo shm",
        ),
        |security| {
            security.readonly_rootfs = true;
        },
    );
    let (log, _) = node.run_to_end(config).await?;
    ensure!(
        log.contains("Read-only file system") && log.contains("shm"),
        "{log}"
    );
    Ok(())
}

async fn configured(node: &mut Node) -> Outcome {
    let path = node.dir().join("conf.d");
    std::fs::create_dir(&path)?;
    std::fs::write(
        path.join("limits.toml"),
        "[container]\nshm_size = 1048576\npids_limit = 20\nrlimits = [\"nofile=100:200\", \"core=0\"]\n\
         device_owner = true\n[security]\nunset_seccomp = \"default\"\n",
    )?;
    node.kill().await?;
    node.restart().await?;
    let image = node.busybox().await?;
    let script = "ulimit -Sn; ulimit -Hn; ulimit -Sc; df -k /dev/shm | awk 'END {print $2}'; \
                  stat -c %u:%g /dev/mine; grep Seccomp: /proc/self/status; for n in $(seq 30); do sleep 5 & done 2>&1 | tail -1";
    let config = with_security(shell("main", &image, script), |security| {
        security.run_as_user = Some(v1::Int64Value { value: 1000 });
        security.run_as_group = Some(v1::Int64Value { value: 7 });
        security.seccomp = None;
    });
    let config = v1::ContainerConfig {
        devices: vec![v1::Device {
            container_path: "/dev/mine".into(),
            host_path: "/dev/null".into(),
            permissions: "rw".into(),
        }],
        ..config
    };
    let (log, _) = node.run_to_end(config).await?;
    ensure!(
        log.starts_with("100\n200\n0\n1024\n1000:7\nSeccomp:\t2\n"),
        "{log}"
    );
    ensure!(log.contains("fork"), "{log}");
    Ok(())
}

async fn program(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    // Neither a descriptor nor a mapping of the runtime is left in the container's first process.
    let script = "ls -l /proc/1/fd | grep -vE 'pipe|null|total|/proc/' ; grep -ci kelson /proc/1/maps; readlink /proc/1/exe";
    let (log, _) = node.run_to_end(shell("main", &image, script)).await?;
    ensure!(
        log.lines()
            .last()
            .is_some_and(|exe| exe.contains("busybox") || exe.contains("sh")),
        "{log}"
    );
    ensure!(log.lines().rev().nth(1) == Some("0"), "{log}");
    ensure!(!log.contains("memfd"), "{log}");
    Ok(())
}
