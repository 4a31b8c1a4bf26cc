//! Containers: their life, their exits, their processes and what they see.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kelson_cri::v1;

use crate::case::{Case, Outcome, on_node};
use crate::node::Node;
use crate::pod::{command, pod, shell};

pub(super) fn cases() -> Vec<Case> {
    vec![
        on_node("containers::layers_do_not_wait_for_the_disk", |node| {
            Box::pin(volatile(node))
        }),
        on_node("containers::life", |node| Box::pin(life(node))),
        on_node("containers::exit_codes_and_reasons", |node| {
            Box::pin(exits(node))
        }),
        on_node("containers::out_of_memory", |node| Box::pin(oom(node))),
        on_node("containers::stop_is_patient_and_then_not", |node| {
            Box::pin(stop(node))
        }),
        on_node("containers::exec_sync", |node| Box::pin(exec(node))),
        on_node("containers::exec_timeout_kills_the_tree", |node| {
            Box::pin(exec_timeout(node))
        }),
        on_node("containers::exec_output_is_capped", |node| {
            Box::pin(exec_cap(node))
        }),
        on_node("containers::command_arguments_environment", |node| {
            Box::pin(environment(node))
        }),
        on_node("containers::mounts", |node| Box::pin(mounts(node))),
        on_node("containers::limits_are_set", |node| Box::pin(limits(node))),
        on_node("containers::terminal", |node| Box::pin(terminal(node))),
        on_node("containers::run_after_their_image_is_removed", |node| {
            Box::pin(image_gone(node))
        }),
    ]
}

/// Else the file system of all layers would be written out whenever a container ends.
async fn volatile(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let config = shell("main", &image, "grep ' / overlay ' /proc/mounts");
    let (mounts, _) = node.run_to_end(config).await?;
    // Since 6.18 the kernel names it as a way of syncing.
    let volatile = |option| matches!(option, "volatile" | "fsync=volatile");
    ensure!(mounts.split([',', ' ']).any(volatile), "{mounts}");
    Ok(())
}

async fn life(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let config = pod(&node.logs());
    let pod = node.run_pod(&config).await?;
    let id = node
        .create(&pod, &config, shell("main", &image, "sleep 1000"))
        .await?;
    let again = node
        .create(&pod, &config, shell("main", &image, "sleep 1000"))
        .await?;
    ensure!(id == again, "the same request made a second container");
    let status = node.status(&id).await?;
    ensure!(status.state() == v1::ContainerState::ContainerCreated);
    ensure!(status.created_at > 0 && status.started_at == 0);
    node.start_container(&id).await?;
    ensure!(
        node.start_container(&id).await.is_err(),
        "a container was started twice"
    );
    let status = node.status(&id).await?;
    ensure!(status.state() == v1::ContainerState::ContainerRunning && status.started_at > 0);
    ensure!(!status.image_ref.is_empty() && !status.image_id.is_empty());
    for filter in [
        v1::ContainerFilter {
            id: id[..13].to_owned(),
            ..Default::default()
        },
        v1::ContainerFilter {
            pod_sandbox_id: pod.clone(),
            ..Default::default()
        },
    ] {
        let request = v1::ListContainersRequest {
            filter: Some(filter),
        };
        ensure!(node.client.list_containers(request).await?.containers.len() == 1);
    }
    for _ in 0..2 {
        let request = v1::StopContainerRequest {
            container_id: id.clone(),
            timeout: 0,
        };
        node.client.stop_container(request).await?;
    }
    let status = node.status(&id).await?;
    ensure!(
        status.exit_code == 137 && status.finished_at >= status.started_at,
        "{status:?}"
    );
    for _ in 0..2 {
        let request = v1::RemoveContainerRequest {
            container_id: id.clone(),
        };
        node.client.remove_container(request).await?;
    }
    ensure!(node.status(&id).await.is_err());
    Ok(())
}

async fn exits(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    for (script, code, reason) in [
        ("exit 0", 0, "Completed"),
        ("exit 3", 3, "Error"),
        ("kill -TERM $$; sleep 5", 143, "Error"),
    ] {
        // A shell that is the first process of its namespace ignores SIGTERM, so it has a child do it.
        let script = format!("sh -c '{script}'; exit $?");
        let (_, status) = node.run_to_end(shell("main", &image, &script)).await?;
        ensure!(
            (status.exit_code, status.reason.as_str()) == (code, reason),
            "{script}: {status:?}"
        );
    }
    Ok(())
}

async fn oom(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let mut config = shell(
        "main",
        &image,
        "x=0123456789abcdef; while true; do x=$x$x; done",
    );
    let linux = config.linux.as_mut().context("no linux")?;
    linux.resources = Some(v1::LinuxContainerResources {
        memory_limit_in_bytes: 32 << 20,
        ..Default::default()
    });
    let (_, status) = node.run_to_end(config).await?;
    ensure!(
        status.reason == "OOMKilled" && status.exit_code == 137,
        "{status:?}"
    );
    Ok(())
}

async fn stop(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let polite = "trap 'exit 7' TERM; while true; do sleep 0.05; done";
    let (_, container) = node
        .run(&pod(&node.logs()), shell("main", &image, polite))
        .await?;
    ready(node, &container, polite).await?;
    let request = v1::StopContainerRequest {
        container_id: container.clone(),
        timeout: 20,
    };
    node.client.stop_container(request).await?;
    ensure!(node.status(&container).await?.exit_code == 7);

    let deaf = "trap '' TERM; while true; do sleep 0.05; done";
    let (_, container) = node
        .run(&pod(&node.logs()), shell("main", &image, deaf))
        .await?;
    ready(node, &container, deaf).await?;
    let begin = Instant::now();
    let request = v1::StopContainerRequest {
        container_id: container.clone(),
        timeout: 1,
    };
    node.client.stop_container(request).await?;
    ensure!(node.status(&container).await?.exit_code == 137);
    ensure!(
        begin.elapsed() >= Duration::from_secs(1),
        "it was not given its time"
    );

    let mut config = shell(
        "main",
        &image,
        "trap 'exit 9' USR1; while true; do sleep 0.05; done",
    );
    config.stop_signal = v1::Signal::Sigusr1.into();
    let (_, container) = node.run(&pod(&node.logs()), config).await?;
    ready(node, &container, "").await?;
    ensure!(node.status(&container).await?.stop_signal() == v1::Signal::Sigusr1);
    let request = v1::StopContainerRequest {
        container_id: container.clone(),
        timeout: 20,
    };
    node.client.stop_container(request).await?;
    ensure!(node.status(&container).await?.exit_code == 9);
    Ok(())
}

/// Waits until the shell of a container has set its traps: it has started its first sleep.
async fn ready(node: &Node, container: &str, _script: &str) -> Outcome {
    node.output(
        container,
        "until ps | grep -q '[s]leep 0.05'; do sleep 0.01; done",
    )
    .await?;
    Ok(())
}

async fn exec(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let (_, container) = node
        .run(&pod(&node.logs()), shell("main", &image, "sleep 1000"))
        .await?;
    let answer = node
        .exec(&container, "echo out; echo err >&2; exit 5")
        .await?;
    ensure!(answer.stdout == b"out\n" && answer.stderr == b"err\n" && answer.exit_code == 5);
    let answer = node.exec(&container, "printf 'a\\000b'").await?;
    ensure!(answer.stdout == b"a\0b");
    // A grandchild that keeps the pipe open does not keep the answer.
    let begin = Instant::now();
    let answer = node.exec(&container, "sleep 30 & echo done").await?;
    ensure!(answer.stdout == b"done\n" && begin.elapsed() < Duration::from_secs(15));
    let request = v1::ExecSyncRequest {
        container_id: container.clone(),
        cmd: vec!["/no/such/program".into()],
        timeout: 5,
    };
    let error = node
        .client
        .exec_sync(request)
        .await
        .err()
        .context("it was found")?;
    ensure!(
        format!("{error:?}").contains("/no/such/program"),
        "{error:?}"
    );
    Ok(())
}

async fn exec_timeout(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let (_, container) = node
        .run(&pod(&node.logs()), shell("main", &image, "sleep 1000"))
        .await?;
    let request = v1::ExecSyncRequest {
        container_id: container.clone(),
        cmd: ["sh", "-c", "setsid sleep 4242 & sleep 4343"]
            .map(str::to_owned)
            .into(),
        timeout: 1,
    };
    let begin = Instant::now();
    let error = node
        .client
        .exec_sync(request)
        .await
        .err()
        .context("no timeout")?;
    ensure!(
        begin.elapsed() < Duration::from_secs(10),
        "{:?}",
        begin.elapsed()
    );
    ensure!(format!("{error:?}").contains("timeout"), "{error:?}");
    let left = node
        .output(&container, "ps | grep -c 'sleep 4[23]4' || true")
        .await?;
    // The counting grep sees itself and its shell.
    let own = node
        .output(
            &container,
            "ps | grep 'sleep 4[23]4' | grep -v grep || true",
        )
        .await?;
    ensure!(own.is_empty(), "the tree lives: {left} {own}");
    Ok(())
}

async fn exec_cap(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let (_, container) = node
        .run(&pod(&node.logs()), shell("main", &image, "sleep 1000"))
        .await?;
    let request = v1::ExecSyncRequest {
        container_id: container,
        cmd: ["sh", "-c", "head -c 20000000 /dev/zero"]
            .map(str::to_owned)
            .into(),
        timeout: 20,
    };
    let answer = node.client.exec_sync(request).await?;
    ensure!(
        answer.stdout.len() == 16 << 20 && answer.exit_code == 0,
        "{}",
        answer.stdout.len()
    );
    Ok(())
}

async fn environment(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let mut config = shell("main", &image, "pwd; echo $COLOUR $PATH $HOME; id -u");
    config.working_dir = "/made/for/this".into();
    config.envs = vec![v1::KeyValue {
        key: "COLOUR".into(),
        value: b"blue".to_vec(),
    }];
    let (log, _) = node.run_to_end(config).await?;
    let lines: Vec<_> = log.lines().collect();
    ensure!(lines[0] == "/made/for/this", "{log}");
    ensure!(
        lines[1].starts_with("blue /") && lines[1].ends_with("/root"),
        "{log}"
    );
    let mut config = command("main", &image, &[]);
    config.args = vec!["-c".into(), "echo from args".into()];
    // The image's entry point is the shell.
    let (log, _) = node.run_to_end(config).await?;
    ensure!(log == "from args", "{log}");
    Ok(())
}

async fn mounts(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let shared = node.dir().join("shared");
    std::fs::create_dir(&shared)?;
    std::fs::write(shared.join("file"), "of the host")?;
    let link = node.dir().join("link");
    std::os::unix::fs::symlink(&shared, &link)?;
    let absent = node.dir().join("absent/deep");
    let mount = |host: &std::path::Path, container: &str, readonly| v1::Mount {
        host_path: host.display().to_string(),
        container_path: container.to_owned(),
        readonly,
        ..Default::default()
    };
    let script = "cat /rw/file /link/file; echo; echo new > /rw/new; touch /ro/x 2>&1; ls -d /absent; \
                  mount | grep -c ' /proc '";
    let mut config = shell("main", &image, script);
    config.mounts = vec![
        mount(&shared, "/rw", false),
        mount(&shared, "/ro", true),
        mount(&link, "/link", false),
        mount(&absent, "/absent", false),
    ];
    let (log, status) = node.run_to_end(config).await?;
    ensure!(log.contains("of the hostof the host"), "{log}");
    ensure!(
        log.contains("Read-only file system") && log.contains("/absent"),
        "{log}"
    );
    ensure!(std::fs::read_to_string(shared.join("new"))? == "new\n" && absent.is_dir());
    ensure!(status.mounts.len() == 4 && status.mounts[1].readonly);
    Ok(())
}

async fn limits(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let mut config = shell("main", &image, "sleep 1000");
    let linux = config.linux.as_mut().context("no linux")?;
    linux.resources = Some(v1::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        oom_score_adj: 500,
        ..Default::default()
    });
    let (_, container) = node.run(&pod(&node.logs()), config).await?;
    ensure!(node.output(&container, "cat /proc/1/oom_score_adj").await? == "500");
    let resources = node.status(&container).await?.resources.unwrap_or_default();
    ensure!(resources.linux.unwrap_or_default().memory_limit_in_bytes == 64 << 20);
    let memory =
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null";
    ensure!(
        node.output(&container, &format!("{memory} || true"))
            .await?
            == (64 << 20).to_string()
    );
    let cpu = "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max 2>/dev/null || true";
    ensure!(node.output(&container, cpu).await?.starts_with("50000"));
    Ok(())
}

async fn terminal(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let mut config = shell(
        "main",
        &image,
        "tty; test -t 0 && test -t 1 && echo terminal; echo $TERM",
    );
    config.tty = true;
    let (log, _) = node.run_to_end(config).await?;
    ensure!(
        log.contains("/dev/pts/0") || log.contains("/dev/console"),
        "{log}"
    );
    ensure!(log.contains("terminal") && log.contains("xterm"), "{log}");
    Ok(())
}

async fn image_gone(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let (_, container) = node
        .run(&pod(&node.logs()), shell("main", &image, "sleep 1000"))
        .await?;
    let spec = v1::ImageSpec {
        image: image.clone(),
        ..Default::default()
    };
    for _ in 0..2 {
        let request = v1::RemoveImageRequest {
            image: Some(spec.clone()),
        };
        node.client.remove_image(request).await?;
    }
    let request = v1::ImageStatusRequest {
        image: Some(spec),
        verbose: false,
    };
    ensure!(node.client.image_status(request).await?.image.is_none());
    ensure!(node.output(&container, "busybox true && echo fine").await? == "fine");
    ensure!(!node.status(&container).await?.image_ref.is_empty());
    Ok(())
}
