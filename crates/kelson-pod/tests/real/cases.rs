//! The cases.

use std::pin::Pin;
use std::time::{Duration, Instant};

use kelson_pod::config::{NamespaceMode, Profile};
use kelson_pod::{ContainerState, ErrorKind, ExecError, ExitReason, PodError};
use rustix::process::{Signal, kill_process};

use crate::node::{Node, until};

pub(crate) type Case = fn(Node) -> Pin<Box<dyn Future<Output = ()>>>;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        &[$((stringify!($name), |node| Box::pin($name(node)))),*]
    };
}

/// All of them, by name.
pub(crate) const ALL: &[(&str, Case)] = cases![
    a_life_leaves_nothing,
    a_restart_finds_everything,
    a_stuck_shim_holds_nobody_up,
    a_shim_that_dies_takes_its_pod_along,
    a_shim_that_died_while_nobody_looked,
    a_shared_pid_namespace_ends_whole,
    what_cannot_start_is_exited,
    who_runs_and_what_is_allowed,
];

async fn a_life_leaves_nothing(node: Node) {
    let pods = node.pods();
    let pod = pods
        .run_pod(node.pod(NamespaceMode::Container))
        .await
        .unwrap();
    let id = node
        .run(&pod, node.shell("main", "echo hello; sleep 1000"))
        .await;
    assert_eq!(
        node.exec(&id, "echo $HOSTNAME; cat /etc/hostname")
            .await
            .lines()
            .count(),
        2
    );
    let log = node.at("logs/main/0.log");
    until("the line is logged", || {
        std::fs::read_to_string(&log)
            .ok()
            .filter(|text| text.contains("stdout F hello"))
    })
    .await;
    let stats = pods.container_stats(&[id]).await;
    assert!(stats[0].cgroup.as_ref().unwrap().memory.usage > 0);
    assert!(stats[0].writable.is_some());

    let late = pods.exec_sync(
        &id,
        vec!["sleep".into(), "100".into()],
        Some(Duration::from_secs(1)),
    );
    assert!(matches!(late.await, Err(ExecError::TimedOut { .. })));
    let missing = pods.exec_sync(&id, vec!["/nope".into()], None).await;
    assert!(
        matches!(missing, Err(ExecError::Command { .. })),
        "{missing:?}"
    );

    // The shell does not care for SIGTERM as the first process of its namespace.
    let before = Instant::now();
    pods.stop_container(&id, Duration::from_secs(1))
        .await
        .unwrap();
    assert!(before.elapsed() < Duration::from_secs(5));
    assert_eq!(node.exited(&id).await.exit_code, 137);
    pods.remove_container(&id).await.unwrap();
    pods.stop_pod(&pod).await.unwrap();
    pods.remove_pod(&pod).await.unwrap();
    // Logs belong to the caller.
    assert!(log.exists());
    node.nothing_is_left().await;
}

async fn a_restart_finds_everything(mut node: Node) {
    let pod = node
        .pods()
        .run_pod(node.pod(NamespaceMode::Container))
        .await
        .unwrap();
    let stays = node.run(&pod, node.shell("stays", "sleep 1000")).await;
    let ends = node.run(&pod, node.shell("ends", "sleep 1; exit 7")).await;
    let idle = node
        .pods()
        .create_container(&pod, node.shell("idle", "exit 0"))
        .await
        .unwrap();
    node.close().await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    node.open().await;
    assert_eq!(node.exited(&ends).await.exit_code, 7);
    assert!(matches!(
        node.container(&stays).state,
        ContainerState::Running { .. }
    ));
    assert_eq!(node.exec(&stays, "echo here").await, "here");
    node.pods().start_container(&idle).await.unwrap();
    let exited = node.exited(&idle).await;
    assert_eq!(
        (exited.exit_code, exited.reason),
        (0, ExitReason::Completed)
    );
    node.pods().remove_pod(&pod).await.unwrap();
    node.nothing_is_left().await;
}

async fn a_stuck_shim_holds_nobody_up(node: Node) {
    let pods = node.pods();
    let pod = pods
        .run_pod(node.pod(NamespaceMode::Container))
        .await
        .unwrap();
    let id = node
        .run(
            &pod,
            node.shell("main", "trap 'exit 0' TERM; sleep 1000 & wait"),
        )
        .await;
    kill_process(node.shim(&pod), Signal::STOP).unwrap();
    let before = Instant::now();
    pods.stop_container(&id, Duration::from_secs(1))
        .await
        .unwrap();
    pods.remove_pod(&pod).await.unwrap();
    assert!(
        before.elapsed() < Duration::from_secs(30),
        "{:?}",
        before.elapsed()
    );
    node.nothing_is_left().await;
}

async fn a_shim_that_dies_takes_its_pod_along(node: Node) {
    let pods = node.pods();
    let pod = pods.run_pod(node.pod(NamespaceMode::Pod)).await.unwrap();
    let id = node.run(&pod, node.shell("main", "sleep 1000")).await;
    kill_process(node.shim(&pod), Signal::KILL).unwrap();
    let exited = node.exited(&id).await;
    assert_ne!(exited.exit_code, 0);
    until("the pod is not ready", || {
        (!pods.snapshot().pod(&pod).unwrap().is_ready()).then_some(())
    })
    .await;
    pods.remove_pod(&pod).await.unwrap();
    node.nothing_is_left().await;
}

async fn a_shim_that_died_while_nobody_looked(mut node: Node) {
    let pod = node
        .pods()
        .run_pod(node.pod(NamespaceMode::Container))
        .await
        .unwrap();
    let id = node.run(&pod, node.shell("main", "sleep 1000")).await;
    let shim = node.shim(&pod);
    node.close().await;
    kill_process(shim, Signal::KILL).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    node.open().await;
    assert!(!node.pods().snapshot().pod(&pod).unwrap().is_ready());
    assert_eq!(node.exited(&id).await.reason, ExitReason::Unknown);
    node.pods().remove_pod(&pod).await.unwrap();
    node.nothing_is_left().await;
}

async fn a_shared_pid_namespace_ends_whole(node: Node) {
    let pods = node.pods();
    let pod = pods.run_pod(node.pod(NamespaceMode::Pod)).await.unwrap();
    // What the first process leaves behind must not outlive it.
    let id = node
        .run(
            &pod,
            node.shell("main", "setsid sleep 1000 & sleep 1; exit 3"),
        )
        .await;
    assert_eq!(node.exited(&id).await.exit_code, 3);
    let path = node.container(&id).resolved.cgroup.clone();
    let hierarchy = kelson_cgroup::Hierarchy::detect().unwrap();
    let cgroup = kelson_cgroup::Cgroup::new(&hierarchy, &path).unwrap();
    until("the rest of the container is gone", || {
        (!cgroup.exists() || !cgroup.populated().unwrap()).then_some(())
    })
    .await;
    assert!(pods.snapshot().pod(&pod).unwrap().is_ready());
    pods.remove_pod(&pod).await.unwrap();
    node.nothing_is_left().await;
}

async fn what_cannot_start_is_exited(node: Node) {
    let pods = node.pods();
    let pod = pods
        .run_pod(node.pod(NamespaceMode::Container))
        .await
        .unwrap();
    let mut config = node.shell("main", "");
    config.command = vec!["/no/such/program".into()];
    let id = pods.create_container(&pod, config).await.unwrap();
    let error = pods.start_container(&id).await.unwrap_err();
    assert!(matches!(error, PodError::Start { .. }), "{error}");
    let exited = node.exited(&id).await;
    assert_eq!(
        (exited.exit_code, exited.reason),
        (128, ExitReason::StartError)
    );
    assert!(
        exited.message.contains("/no/such/program"),
        "{}",
        exited.message
    );

    let mut config = node.shell("nobody", "");
    config.security.run_as_username = "nobody".into();
    let error = pods.create_container(&pod, config).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    pods.remove_pod(&pod).await.unwrap();
    node.nothing_is_left().await;
}

async fn who_runs_and_what_is_allowed(node: Node) {
    let pods = node.pods();
    let pod = pods
        .run_pod(node.pod(NamespaceMode::Container))
        .await
        .unwrap();
    let mut config = node.shell("main", "sleep 1000");
    config.security.run_as_username = "sailor".into();
    config.security.supplemental_groups = vec![4242];
    config.security.seccomp = Some(Profile::RuntimeDefault);
    config.security.readonly_rootfs = true;
    config.working_dir = "/made/for/this".into();
    let id = node.run(&pod, config).await;
    assert_eq!(node.exec(&id, "id -u; id -G").await, "1000\n1000 4242");
    assert_eq!(node.exec(&id, "echo $PWD").await, "/made/for/this");
    let status = node.exec(&id, "cat /proc/self/status").await;
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(field("Seccomp:"), "2");
    assert_eq!(field("CapEff:"), "0000000000000000");
    assert_eq!(
        node.exec(&id, "echo x > /x 2>/dev/null || echo read-only")
            .await,
        "read-only"
    );
    assert_eq!(node.exec(&id, "ls /sys/firmware").await, "");
    pods.remove_pod(&pod).await.unwrap();
    node.nothing_is_left().await;
}
