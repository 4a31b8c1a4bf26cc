//! A daemon starts on what another one left.

use super::*;
use crate::record::{PodPhase, PodRecord};
use crate::view::ExitReason;

#[tokio::test(flavor = "multi_thread")]
async fn pods_and_containers_are_found_again() {
    let node = Node::new().await;
    let (pod, running) = node.running().await;
    let idle = node
        .pods
        .create_container(&pod, container_config("idle"))
        .await
        .unwrap();
    let before = node.pods.snapshot();
    let node = node.restart().await;
    let after = node.pods.snapshot();
    assert_eq!(
        after.pod(&pod).unwrap().state,
        before.pod(&pod).unwrap().state
    );
    assert_eq!(
        after.pod(&pod).unwrap().config,
        before.pod(&pod).unwrap().config
    );
    assert_eq!(
        node.container(running).state,
        before.container(&running).unwrap().1.state
    );
    // Everything works as before.
    assert_eq!(node.pods.run_pod(pod_config("web")).await.unwrap(), pod);
    node.pods.start_container(&idle).await.unwrap();
    node.machine.exit(idle, 4, false);
    until(|| matches!(node.container(idle).state, ContainerState::Exited(_)).then_some(())).await;
    node.pods.remove_pod(&pod).await.unwrap();
    assert!(node.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn exits_while_nobody_listened_are_collected() {
    let node = Node::new().await;
    let (_, container) = node.running().await;
    node.pods.shutdown().await;
    node.machine.exit(container, 7, false);
    let node = node.restart().await;
    assert_eq!(node.exited(container).exit_code, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_whose_answer_was_lost_is_taken_over() {
    let node = Node::new().await;
    let (_, container) = node.running().await;
    // The record says that it was never started.
    let world = node.pods.world();
    let mut record: crate::record::ContainerRecord =
        world.store.get(container.as_str()).unwrap().unwrap();
    node.pods.shutdown().await;
    record.state = crate::record::ContainerPhase::Created;
    world.store.put(container.as_str(), &record).unwrap();
    drop(world);
    let node = node.restart().await;
    assert!(matches!(
        node.container(container).state,
        ContainerState::Running { .. }
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_that_died_meanwhile() {
    let node = Node::new().await;
    let (pod, container) = node.running().await;
    node.pods.shutdown().await;
    node.machine.kill_shims();
    // The shim left a record of one exit before it died.
    let other = node
        .dir
        .path()
        .join(format!("run/pods/{pod}/containers/{container}"));
    std::fs::create_dir_all(&other).unwrap();
    let json = r#"{"exit_code":9,"signal":null,"oom_killed":false,"finished_at":5}"#;
    std::fs::write(other.join("exit.json"), json).unwrap();
    let node = node.restart().await;
    // The first answers after the start are right already.
    assert!(!node.pods.snapshot().pod(&pod).unwrap().is_ready());
    assert_eq!(node.exited(container).exit_code, 9);
    assert!(node.machine.things().networks.is_empty());
    node.pods.remove_pod(&pod).await.unwrap();
    assert!(node.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_an_earlier_boot_is_not_ready() {
    let node = Node::new().await;
    let (pod, container) = node.running().await;
    let world = node.pods.world();
    node.pods.shutdown().await;
    let mut record: PodRecord = world.store.get(pod.as_str()).unwrap().unwrap();
    record.boot = "another".into();
    world.store.put(pod.as_str(), &record).unwrap();
    drop(world);
    node.machine.kill_shims();
    node.machine.things().cgroups.clear();
    let node = node.restart().await;
    assert!(!node.pods.snapshot().pod(&pod).unwrap().is_ready());
    let exited = node.exited(container);
    assert_eq!(
        (exited.exit_code, exited.reason),
        (255, ExitReason::Unknown)
    );
    node.pods.remove_pod(&pod).await.unwrap();
    assert!(node.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn intents_are_undone_or_finished() {
    let node = Node::new().await;
    let (pod, _) = node.running().await;
    let half = node.pods.run_pod(pod_config("half")).await.unwrap();
    let world = node.pods.world();
    node.pods.shutdown().await;
    let change = |id: &PodId, phase| {
        let mut record: PodRecord = world.store.get(id.as_str()).unwrap().unwrap();
        record.phase = phase;
        world.store.put(id.as_str(), &record).unwrap();
    };
    // One was being made, the other was being stopped, when the daemon died.
    change(&half, PodPhase::Starting);
    change(
        &pod,
        PodPhase::NotReady {
            reason: "stopped".into(),
            clean: false,
        },
    );
    drop(world);
    let node = node.restart().await;
    let snapshot = node.pods.snapshot();
    assert!(snapshot.pod(&half).is_none());
    assert!(!snapshot.pod(&pod).unwrap().is_ready());
    assert!(node.machine.things().shims.is_empty() && node.machine.things().networks.is_empty());
    node.pods.remove_pod(&pod).await.unwrap();
    assert!(node.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_nobody_is_removed() {
    let node = Node::new().await;
    let (pod, container) = node.running().await;
    let world = node.pods.world();
    node.pods.shutdown().await;
    world.store.delete::<PodRecord>(pod.as_str()).unwrap();
    world
        .store
        .delete::<crate::record::ContainerRecord>(container.as_str())
        .unwrap();
    world
        .store
        .delete::<crate::record::SpecRecord>(container.as_str())
        .unwrap();
    drop(world);
    let node = node.restart().await;
    assert!(node.pods.snapshot().pods().next().is_none());
    assert!(node.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_records_and_what_belongs_to_them_are_left_alone() {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Future {}
    impl kelson_store::Record for Future {
        const TABLE: &'static str = "pods";
        const VERSION: u32 = 99;
    }
    let node = Node::new().await;
    let pod = node.pod().await;
    let world = node.pods.world();
    node.pods.shutdown().await;
    world.store.put(pod.as_str(), &Future {}).unwrap();
    drop(world);
    let node = node.restart().await;
    assert!(node.pods.snapshot().pods().next().is_none());
    assert_eq!(node.machine.things().shims.len(), 1);
    assert!(
        node.pods
            .world()
            .store
            .get::<Future>(pod.as_str())
            .unwrap()
            .is_some()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pods_are_recovered_side_by_side() {
    let node = Node::new().await;
    for n in 0..50 {
        node.pods
            .run_pod(pod_config(&format!("pod-{n}")))
            .await
            .unwrap();
    }
    let node = node.restart().await;
    assert_eq!(
        node.pods
            .snapshot()
            .pods()
            .filter(|pod| pod.is_ready())
            .count(),
        50
    );
}
