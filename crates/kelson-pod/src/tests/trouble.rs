//! What goes wrong: a step fails, a shim dies, a process does not.

use super::*;
use crate::PodError;
use crate::error::ErrorKind;
use crate::view::ExitReason;

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_cannot_be_made_leaves_nothing_and_no_name() {
    for step in ["fork", "network add", "cgroup create"] {
        let node = Node::new().await;
        node.machine.fail(step);
        let error = node.pods.run_pod(pod_config("web")).await.unwrap_err();
        let kind = if step == "network add" {
            ErrorKind::Unavailable
        } else {
            ErrorKind::Internal
        };
        assert_eq!(error.kind(), kind, "{step}");
        assert!(node.is_clean(), "{step} left something");
        assert!(node.pods.snapshot().pods().next().is_none());
        node.machine.heal();
        node.pods.run_pod(pod_config("web")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_who_joined_a_failing_request_hear_of_it() {
    let node = Node::new().await;
    node.machine.fail("fork");
    let gate = node.machine.hold("fork");
    let run = || {
        let pods = node.pods.clone();
        tokio::spawn(async move { pods.run_pod(pod_config("web")).await })
    };
    let (one, two) = (run(), run());
    tokio::time::sleep(Duration::from_millis(50)).await;
    gate.add_permits(2);
    assert!(one.await.unwrap().is_err() && two.await.unwrap().is_err());
    assert_eq!(node.machine.count("fork"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_undone_is_undone_later() {
    let node = Node::new().await;
    node.machine.fail("fork");
    node.machine.fail("network del");
    assert!(node.pods.run_pod(pod_config("web")).await.is_err());
    // The intent stays until the network is given back; the name is free all the same.
    assert!(!node.is_clean());
    node.machine.heal();
    until(|| node.is_clean().then_some(())).await;
    node.pods.run_pod(pod_config("web")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_cannot_be_given_back_holds_nobody_up() {
    let node = Node::new().await;
    let pod = node.pod().await;
    node.machine.fail("network del");
    node.pods.stop_pod(&pod).await.unwrap();
    node.pods.remove_pod(&pod).await.unwrap();
    assert_eq!(node.machine.things().networks.len(), 1);
    node.machine.heal();
    until(|| node.is_clean().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_that_cannot_be_made_leave_nothing() {
    let node = Node::new().await;
    let pod = node.pod().await;
    let create = |config| node.pods.create_container(&pod, config);

    let mut missing = container_config("a");
    missing.image.image = "nope".into();
    let error = create(missing).await.unwrap_err();
    assert!(matches!(error, PodError::NoSuchImage(_)));
    assert_eq!(error.kind(), ErrorKind::NotFound);

    let mut nobody = container_config("a");
    nobody.security.run_as_username = "nobody".into();
    let error = create(nobody).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);

    let wrong = ContainerConfig {
        log_path: "../../x".into(),
        ..container_config("a")
    };
    assert_eq!(create(wrong).await.unwrap_err().kind(), ErrorKind::Invalid);

    assert!(node.snapshots().is_empty());
    assert!(node.pods.snapshot().containers().next().is_none());
    create(container_config("a")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_cannot_be_started_is_exited() {
    let node = Node::new().await;
    let pod = node.pod().await;
    let id = node
        .pods
        .create_container(&pod, container_config("a"))
        .await
        .unwrap();
    node.machine.fail("start");
    let error = node.pods.start_container(&id).await.unwrap_err();
    assert!(matches!(error, PodError::Start { .. }));
    let exited = node.exited(id);
    assert_eq!(
        (exited.exit_code, exited.reason),
        (128, ExitReason::StartError)
    );
    assert!(
        exited.message.contains("start is broken"),
        "{}",
        exited.message
    );
    assert_eq!(exited.started_at, None);
    node.machine.heal();
    // Never again.
    assert_eq!(
        node.pods.start_container(&id).await.unwrap_err().kind(),
        ErrorKind::State
    );
    node.pods.remove_pod(&pod).await.unwrap();
    assert!(node.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_during_the_start_waits_for_it() {
    let node = Node::new().await;
    let pod = node.pod().await;
    let id = node
        .pods
        .create_container(&pod, container_config("a"))
        .await
        .unwrap();
    let gate = node.machine.hold("start");
    let pods = node.pods.clone();
    let start = tokio::spawn(async move { pods.start_container(&id).await });
    tokio::time::sleep(Duration::from_millis(30)).await;
    let pods = node.pods.clone();
    let remove = tokio::spawn(async move { pods.remove_pod(&pod).await });
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert!(!remove.is_finished());
    gate.add_permits(1);
    start.await.unwrap().unwrap();
    remove.await.unwrap().unwrap();
    assert!(node.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_during_the_making_waits_for_it() {
    let node = Node::new().await;
    let gate = node.machine.hold("fork");
    let pods = node.pods.clone();
    let run = tokio::spawn(async move { pods.run_pod(pod_config("web")).await });
    let mut rivals = Vec::new();
    tokio::time::sleep(Duration::from_millis(30)).await;
    for _ in 0..4 {
        let pods = node.pods.clone();
        rivals.push(tokio::spawn(async move {
            pods.run_pod(pod_config("web")).await
        }));
    }
    gate.add_permits(1);
    let pod = run.await.unwrap().unwrap();
    for rival in rivals {
        assert_eq!(rival.await.unwrap().unwrap(), pod);
    }
    let (stop, remove) = tokio::join!(node.pods.stop_pod(&pod), node.pods.remove_pod(&pod));
    stop.unwrap();
    remove.unwrap();
    assert!(node.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_that_passes_no_signal_on_is_gone_around() {
    let node = Node::new().await;
    let (_, container) = node.running().await;
    node.machine.fail("signal");
    node.pods
        .stop_container(&container, Duration::from_millis(50))
        .await
        .unwrap();
    assert_eq!(node.machine.count("direct signal"), 1);
    assert_eq!(node.exited(container).exit_code, 137);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_shim_dies_is_taken_down() {
    let node = Node::new().await;
    let (pod, container) = node.running().await;
    node.machine.kill_shims();
    until(|| (!node.pods.snapshot().pod(&pod).unwrap().is_ready()).then_some(())).await;
    let exited = node.exited(container);
    assert_eq!(
        (exited.exit_code, exited.reason),
        (137, ExitReason::Unknown)
    );
    let error = node
        .pods
        .create_container(&pod, container_config("x"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::State);
    node.pods.remove_pod(&pod).await.unwrap();
    assert!(node.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_do_not_die_are_told_of_and_killed_on() {
    let node = Node::new().await;
    let (pod, container) = node.running().await;
    node.machine.things().stubborn = true;
    node.machine.fail("cgroup kill");
    let error = node
        .pods
        .stop_container(&container, Duration::ZERO)
        .await
        .unwrap_err();
    assert!(matches!(error, PodError::Stuck { .. }));
    assert_eq!(error.kind(), ErrorKind::Timeout);
    node.machine.heal();
    node.pods.remove_pod(&pod).await.unwrap();
    assert!(node.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_fails_can_be_asked_for_again() {
    let node = Node::new().await;
    let (pod, container) = node.running().await;
    node.machine.fail("cgroup remove");
    assert!(node.pods.remove_container(&container).await.is_err());
    assert!(matches!(
        node.container(container).state,
        ContainerState::Exited(_)
    ));
    node.machine.heal();
    node.pods.remove_container(&container).await.unwrap();
    node.pods.remove_pod(&pod).await.unwrap();
    assert!(node.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_refused_before_anything_is_made() {
    let node = Node::new().await;
    let error = node.pods.run_pod(PodConfig::default()).await.unwrap_err();
    let PodError::Invalid(mistakes) = &error else {
        panic!("{error}")
    };
    assert_eq!(mistakes.0.len(), 3);
    assert!(node.machine.things().steps.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_ends_refuses_work() {
    let node = Node::new().await;
    let pod = node.pod().await;
    node.pods.shutdown().await;
    let refused = node.pods.run_pod(pod_config("b")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert_eq!(
        node.pods.stop_pod(&pod).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
}
