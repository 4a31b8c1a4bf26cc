//! What goes well: pods and containers from the request to the removal.

use super::*;
use crate::config::Resources;
use crate::error::ErrorKind;
use crate::view::{ExitReason, PodState};
use crate::{EventKind, ExecError, PodError};

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_lives_and_leaves_nothing() {
    let node = Node::new().await;
    let mut events = node.pods.events();
    let (pod, container) = node.running().await;

    let snapshot = node.pods.snapshot();
    let view = snapshot.find_pod(&pod.as_str()[..8]).unwrap().unwrap();
    // IPv4 first.
    assert_eq!(view.ips()[0].to_string(), "10.0.0.2");
    assert!(matches!(
        node.container(container).state,
        ContainerState::Running { .. }
    ));
    assert_eq!(view.cgroup, format!("/kelson/{pod}"));
    assert_eq!(
        node.container(container).resolved.cgroup,
        format!("/kelson/{pod}/{container}")
    );
    assert_eq!(
        snapshot
            .find_container(container.as_str())
            .unwrap()
            .unwrap()
            .1
            .id,
        container
    );
    assert!(snapshot.find_pod("").unwrap().is_none() && snapshot.find_pod("zz").unwrap().is_none());

    node.pods
        .stop_container(&container, Duration::from_secs(10))
        .await
        .unwrap();
    let exited = node.exited(container);
    assert_eq!((exited.exit_code, exited.reason), (143, ExitReason::Error));
    node.pods.remove_container(&container).await.unwrap();
    node.pods.stop_pod(&pod).await.unwrap();
    assert!(!node.pods.snapshot().pod(&pod).unwrap().is_ready());
    node.pods.remove_pod(&pod).await.unwrap();
    assert!(node.pods.snapshot().pods().next().is_none());
    assert!(node.is_clean());

    use EventKind::{Created, Deleted, Started, Stopped};
    assert_eq!(
        next_events(&mut events, 8).await,
        [
            (Created, false),
            (Started, false),
            (Created, true),
            (Started, true),
            (Stopped, true),
            (Deleted, true),
            (Stopped, false),
            (Deleted, false),
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_and_remove_are_idempotent() {
    let node = Node::new().await;
    let (pod, container) = node.running().await;
    for _ in 0..2 {
        node.pods
            .stop_container(&container, Duration::ZERO)
            .await
            .unwrap();
        node.pods.stop_pod(&pod).await.unwrap();
    }
    for _ in 0..2 {
        node.pods.remove_container(&container).await.unwrap();
        node.pods.remove_pod(&pod).await.unwrap();
        node.pods
            .stop_container(&container, Duration::ZERO)
            .await
            .unwrap();
        node.pods.stop_pod(&pod).await.unwrap();
    }
    assert!(node.is_clean());
    let error = node.pods.start_container(&container).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = node
        .pods
        .create_container(&pod, container_config("x"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_pod_ends_all_that_runs_in_it() {
    let node = Node::new().await;
    let (pod, _) = node.running().await;
    let created = node
        .pods
        .create_container(&pod, container_config("idle"))
        .await
        .unwrap();
    assert_eq!(node.container(created).state, ContainerState::Created);
    node.pods.remove_pod(&pod).await.unwrap();
    assert!(node.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_joins_or_gets_what_it_made() {
    let node = Node::new().await;
    let gate = node.machine.hold("fork");
    let run = || {
        let pods = node.pods.clone();
        tokio::spawn(async move { pods.run_pod(pod_config("web")).await })
    };
    let (first, second) = (run(), run());
    // Both wait for the one fork.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!first.is_finished() && !second.is_finished());
    gate.add_permits(1);
    let (first, second) = (
        first.await.unwrap().unwrap(),
        second.await.unwrap().unwrap(),
    );
    assert_eq!(first, second);
    assert_eq!(node.pods.run_pod(pod_config("web")).await.unwrap(), first);
    assert_eq!(node.machine.count("fork"), 1);

    let different = PodConfig {
        hostname: "other".into(),
        ..pod_config("web")
    };
    let error = node.pods.run_pod(different).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);

    let create = || {
        let pods = node.pods.clone();
        tokio::spawn(async move { pods.create_container(&first, container_config("a")).await })
    };
    let (one, two) = (create(), create());
    assert_eq!(one.await.unwrap().unwrap(), two.await.unwrap().unwrap());
    assert_eq!(node.snapshots().len(), 1);
    // Another attempt is another container.
    let again = ContainerConfig {
        attempt: 1,
        ..container_config("a")
    };
    node.pods.create_container(&first, again).await.unwrap();
    assert_eq!(node.snapshots().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_does_not_undo_what_it_asked_for() {
    let node = Node::new().await;
    let gate = node.machine.hold("network add");
    let pods = node.pods.clone();
    let call = tokio::spawn(async move { pods.run_pod(pod_config("web")).await });
    until(|| (!node.machine.things().networks.is_empty()).then_some(())).await;
    call.abort();
    gate.add_permits(1);
    until(|| node.pods.snapshot().pods().next().map(|_| ())).await;
    // The retry gets it.
    node.pods.run_pod(pod_config("web")).await.unwrap();
    assert_eq!(node.machine.count("fork"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_started_once_and_the_retry_joins() {
    let node = Node::new().await;
    let pod = node.pod().await;
    let container = node
        .pods
        .create_container(&pod, container_config("a"))
        .await
        .unwrap();
    let gate = node.machine.hold("start");
    let start = || {
        let pods = node.pods.clone();
        tokio::spawn(async move { pods.start_container(&container).await })
    };
    let (one, two) = (start(), start());
    tokio::time::sleep(Duration::from_millis(50)).await;
    gate.add_permits(1);
    one.await.unwrap().unwrap();
    two.await.unwrap().unwrap();
    let error = node.pods.start_container(&container).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::State);
}

#[tokio::test(flavor = "multi_thread")]
async fn exits_have_reasons() {
    let node = Node::new().await;
    let pod = node.pod().await;
    let cases = [
        ("a", 0, false, ExitReason::Completed),
        ("b", 3, false, ExitReason::Error),
        ("c", 137, true, ExitReason::OomKilled),
    ];
    for (name, code, oom, reason) in cases {
        let id = node
            .pods
            .create_container(&pod, container_config(name))
            .await
            .unwrap();
        node.pods.start_container(&id).await.unwrap();
        node.machine.exit(id, code, oom);
        let exited = until(|| match &node.container(id).state {
            ContainerState::Exited(exited) => Some(exited.clone()),
            _ => None,
        })
        .await;
        assert_eq!((exited.exit_code, exited.reason), (code, reason));
        assert_eq!((exited.started_at, exited.finished_at), (Some(3), 5));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_stop_with_a_shorter_timeout_shortens_the_wait() {
    let node = Node::new().await;
    let (_, container) = node.running().await;
    node.machine.things().stubborn = true;
    let pods = node.pods.clone();
    let patient = tokio::spawn(async move {
        pods.stop_container(&container, Duration::from_secs(600))
            .await
    });
    until(|| (node.machine.count("signal") == 1).then_some(())).await;
    assert!(!patient.is_finished());
    let before = std::time::Instant::now();
    node.pods
        .stop_container(&container, Duration::from_millis(50))
        .await
        .unwrap();
    patient.await.unwrap().unwrap();
    assert!(before.elapsed() < Duration::from_secs(5));
    assert_eq!(node.exited(container).exit_code, 137);
    // The second call joined: no second signal.
    assert_eq!(node.machine.count("signal"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_of_zero_kills_at_once() {
    let node = Node::new().await;
    let (_, container) = node.running().await;
    node.pods
        .stop_container(&container, Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(node.machine.count("signal"), 0);
    assert_eq!(node.exited(container).exit_code, 137);
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_run_in_running_containers_only() {
    let node = Node::new().await;
    let (pod, container) = node.running().await;
    let exec = |cmd: &str, timeout| {
        let cmd = cmd.split_whitespace().map(str::to_owned).collect();
        node.pods.exec_sync(&container, cmd, timeout)
    };
    assert_eq!(exec("echo hi", None).await.unwrap().stdout, b"echo hi");
    // Zero is no timeout.
    assert!(exec("sleep 9", Some(Duration::ZERO)).await.is_ok());
    let late = exec("sleep 9", Some(Duration::from_secs(1))).await;
    assert!(matches!(late, Err(ExecError::TimedOut { .. })));
    assert!(matches!(exec("", None).await, Err(ExecError::NoCommand)));
    node.pods.reopen_log(&container).await.unwrap();

    let idle = node
        .pods
        .create_container(&pod, container_config("idle"))
        .await
        .unwrap();
    let refused = node.pods.exec_sync(&idle, vec!["true".into()], None).await;
    assert!(matches!(refused, Err(ExecError::NotRunning(_))));
    let refused = node.pods.reopen_log(&idle).await.unwrap_err();
    assert!(matches!(refused, PodError::ContainerState { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hosts_network_needs_no_attachment() {
    let node = Node::new().await;
    let mut config = pod_config("host");
    config.namespaces.network = NamespaceMode::Node;
    let pod = node.pods.run_pod(config).await.unwrap();
    let snapshot = node.pods.snapshot();
    let PodState::Ready { ips, .. } = &snapshot.pod(&pod).unwrap().state else {
        panic!()
    };
    assert!(ips.is_empty());
    assert_eq!(node.machine.count("network add"), 0);
    node.pods.remove_pod(&pod).await.unwrap();
    assert_eq!(node.machine.count("network del"), 0);
    assert!(node.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_of_what_runs() {
    let node = Node::new().await;
    let (pod, container) = node.running().await;
    let idle = node
        .pods
        .create_container(&pod, container_config("idle"))
        .await
        .unwrap();
    let all = node.pods.container_stats(&[container, idle]).await;
    assert!(all[0].cgroup.is_some() && all[1].cgroup.is_none());
    assert!(all[0].usage_nano_cores.is_none());
    let writable = all[0].writable.as_ref().unwrap();
    assert!(writable.directory.ends_with("upper"));
    let pods = node.pods.pod_stats(&[pod]).await;
    assert_eq!(pods[0].containers.len(), 1);
    assert!(pods[0].cgroup.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pods_at_once() {
    let node = Node::new().await;
    let mut lives = Vec::new();
    for n in 0..40 {
        let pods = node.pods.clone();
        lives.push(tokio::spawn(async move {
            let pod = pods.run_pod(pod_config(&format!("pod-{n}"))).await.unwrap();
            let id = pods
                .create_container(&pod, container_config("main"))
                .await
                .unwrap();
            pods.start_container(&id).await.unwrap();
            pods.stop_pod(&pod).await.unwrap();
            pods.remove_pod(&pod).await.unwrap();
        }));
    }
    for life in lives {
        life.await.unwrap();
    }
    assert!(node.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_is_made_and_survives_a_restart() {
    let node = Node::new().await;
    let (pod, container) = node.running().await;
    let limit = |memory_limit| Resources {
        memory_limit,
        ..Resources::default()
    };
    node.pods
        .update_container(&container, limit(1 << 20))
        .await
        .unwrap();
    let shares = Resources {
        cpu_shares: 512,
        ..Resources::default()
    };
    node.pods
        .update_container(&container, shares.clone())
        .await
        .unwrap();
    {
        let set = &node.machine.things().limits;
        assert_eq!(set[0].1.memory_limit, Some(1 << 20));
        assert_eq!(
            (set[1].1.memory_limit, set[1].1.cpu_shares),
            (None, Some(512))
        );
        assert!(set[0].0.ends_with(container.as_str()));
    }
    // What cannot be set leaves everything as it was.
    node.machine.things().failing.insert("cgroup apply");
    let error = node.pods.update_container(&container, limit(2 << 20)).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Internal);
    node.machine.things().failing.clear();
    let unified = Resources {
        unified: [("memory.high".to_owned(), "1".to_owned())].into(),
        ..Resources::default()
    };
    let error = node.pods.update_container(&container, unified).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Unsupported);
    node.pods
        .update_pod(&pod, Some(shares), None)
        .await
        .unwrap();

    let node = node.restart().await;
    let resources = node.container(container).resolved.resources.clone();
    assert_eq!(
        (resources.memory_limit, resources.cpu_shares),
        (1 << 20, 512)
    );
    let overhead = node
        .pods
        .snapshot()
        .pod(&pod)
        .unwrap()
        .config
        .overhead
        .clone();
    assert_eq!(overhead.unwrap().cpu_shares, 512);
    // The same pod asked for again is still the same.
    assert_eq!(node.pod().await, pod);

    node.pods
        .stop_container(&container, Duration::from_secs(10))
        .await
        .unwrap();
    let error = node.pods.update_container(&container, limit(1)).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::State);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_before_the_start_is_started_with() {
    let node = Node::new().await;
    let pod = node.pod().await;
    let config = container_config("main");
    let id = node.pods.create_container(&pod, config).await.unwrap();
    let change = Resources {
        memory_limit: 1 << 20,
        oom_score_adj: 7,
        ..Resources::default()
    };
    let pods = node.pods.clone();
    let (updated, started) = tokio::join!(
        pods.update_container(&id, change),
        pods.start_container(&id)
    );
    updated.unwrap();
    started.unwrap();
    assert!(node.machine.things().limits.is_empty());
    let record: Option<crate::record::SpecRecord> =
        node.pods.world().store.get(id.as_str()).unwrap();
    let spec = record.unwrap().spec;
    let limits = spec.linux().as_ref().unwrap().resources().clone().unwrap();
    assert_eq!(limits.memory().unwrap().limit(), Some(1 << 20));
    assert!(limits.devices().is_some());
    assert_eq!(spec.process().as_ref().unwrap().oom_score_adj(), Some(7));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_systemd_a_container_is_a_scope_in_the_slice_of_its_pod() {
    let machine = Machine::default();
    machine.things().driver = crate::CgroupDriver::Systemd;
    let node = Node::on(machine).await;
    assert_eq!(node.pods.cgroup_driver(), crate::CgroupDriver::Systemd);
    let pod = node.pod().await;
    let slice = format!("/kelson.slice/kelson-{pod}.slice");
    assert_eq!(node.pods.snapshot().pod(&pod).unwrap().cgroup, slice);
    let mut config = container_config("main");
    config.resources.memory_limit = 1 << 20;
    let container = node.pods.create_container(&pod, config).await.unwrap();
    let scope = format!("{slice}/kelson-{container}.scope");

    // What systemd refuses is told, and nothing runs.
    node.machine.fail("scope");
    let error = node.pods.start_container(&container).await.unwrap_err();
    assert!(
        crate::error::chain(&error).contains("cannot make its cgroup"),
        "{error:?}"
    );
    node.machine.heal();
    node.pods.remove_container(&container).await.unwrap();

    let mut config = container_config("main");
    config.attempt = 1;
    config.resources.memory_limit = 1 << 20;
    let container = node.pods.create_container(&pod, config).await.unwrap();
    node.pods.start_container(&container).await.unwrap();
    assert_ne!(scope, node.container(container).resolved.cgroup);
    {
        let things = node.machine.things();
        let (path, limits) = things.limits.last().unwrap();
        assert_eq!(*path, format!("{slice}/kelson-{container}.scope"));
        assert_eq!(limits.memory_limit, Some(1 << 20));
        assert!(limits.devices.is_empty());
    }
    node.pods.remove_pod(&pod).await.unwrap();

    // A parent is a slice, which is its owner's to make and to remove.
    let mut config = pod_config("kubelet");
    config.cgroup_parent = "kubepods-pod1.slice".into();
    let pod = node.pods.run_pod(config).await.unwrap();
    let path = node.pods.snapshot().pod(&pod).unwrap().cgroup.clone();
    assert_eq!(path, "/kubepods.slice/kubepods-pod1.slice");
    node.pods.remove_pod(&pod).await.unwrap();
    assert!(node.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_selinux_level_is_its_own_until_it_is_gone() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: labels are root's to set");
        return;
    }
    let node = Node::new().await;
    let files = node.dir.path().join("selinux");
    crate::selinux::tests::make_up(&files, crate::selinux::tests::CONTEXTS);
    let node = node.restart().await;
    let (pod, container) = node.running().await;
    let other = node.pods.run_pod(pod_config("other")).await.unwrap();
    // The same request again is for the same pod, whatever its level.
    assert_eq!(node.pods.run_pod(pod_config("web")).await.unwrap(), pod);
    let level = |node: &Node, id| {
        let snapshot = node.pods.snapshot();
        snapshot.pod(id).unwrap().config.selinux_level.clone()
    };
    let first = level(&node, &pod);
    assert!(first.starts_with("s0:c") && first != level(&node, &other));
    assert_eq!(node.pods.world().selinux.levels_in_use(), 2);

    let record: Option<crate::record::SpecRecord> =
        node.pods.world().store.get(container.as_str()).unwrap();
    let spec = record.unwrap().spec;
    let process = spec.process().as_ref().unwrap().selinux_label().clone();
    assert_eq!(
        process,
        Some(format!("system_u:system_r:container_t:{first}"))
    );
    let files = spec.linux().as_ref().unwrap().mount_label().clone();
    assert_eq!(
        files,
        Some(format!("system_u:object_r:container_file_t:{first}"))
    );
    let hosts = node.pods.world().pod_dir(&pod).join("hosts");
    let mut label = [0_u8; 256];
    let length = rustix::fs::getxattr(&hosts, c"security.selinux", &mut label).unwrap();
    assert_eq!(files.unwrap().as_bytes(), &label[..length]);

    let node = node.restart().await;
    assert_eq!(level(&node, &pod), first);
    assert_eq!(node.pods.world().selinux.levels_in_use(), 2);
    node.pods.remove_pod(&pod).await.unwrap();
    node.pods.remove_pod(&other).await.unwrap();
    until(|| (node.pods.world().selinux.levels_in_use() == 0).then_some(())).await;
}
