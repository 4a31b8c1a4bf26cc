//! Sessions of exec and attach, and connections to pods.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Node, container_config, until};
use crate::{ContainerId, DialError, ErrorKind, ExecError, Output, PodId, TerminalSize};

fn sh() -> Vec<String> {
    vec!["sh".into()]
}

#[tokio::test]
async fn a_session_carries_input_output_and_sizes() {
    let node = Node::new().await;
    let (_, container) = node.running().await;
    let size = TerminalSize::new(24, 80);
    let mut session = node
        .pods
        .exec_stream(&container, sh(), true, true, size)
        .await
        .unwrap();
    assert_eq!(
        session.next().await.unwrap(),
        Output::Stdout(b"24x80".to_vec())
    );
    let resizer = session.resizer();
    resizer.resize(0, 80).await.unwrap();
    resizer.resize(2, 3).await.unwrap();
    let sized = Output::Stdout(vec![2, 0, 3, 0]);
    assert_eq!(session.next().await.unwrap(), sized);
    let mut stdin = session.take_stdin().unwrap();
    assert!(session.take_stdin().is_none());
    stdin.write(b"hello").await.unwrap();
    // Waiting may be given up without losing anything.
    for _ in 0..3 {
        let _ = tokio::time::timeout(Duration::ZERO, std::future::pending::<()>()).await;
    }
    assert_eq!(
        session.next().await.unwrap(),
        Output::Stderr(b"hello".to_vec())
    );
    stdin.close().await.unwrap();
    let Output::Exited(exit) = session.next().await.unwrap() else {
        panic!()
    };
    assert_eq!(exit.exit_code, 7);
    drop(session);
    until(|| (node.machine.count("session closed") == 1).then_some(())).await;
}

#[tokio::test]
async fn a_size_without_a_terminal_and_input_that_was_not_asked_for_are_none() {
    let node = Node::new().await;
    let (_, container) = node.running().await;
    let size = TerminalSize::new(24, 80);
    let mut session = node
        .pods
        .exec_stream(&container, sh(), false, false, size)
        .await
        .unwrap();
    assert!(session.take_stdin().is_none());
    assert_eq!(session.next().await.unwrap(), Output::Stdout(Vec::new()));
    drop(session);
    until(|| (node.machine.count("session closed") == 1).then_some(())).await;
}

#[tokio::test]
async fn what_does_not_run_has_no_sessions() {
    let node = &Node::new().await;
    let (pod, container) = node.running().await;
    let exec = |id| async move {
        let result = node.pods.exec_stream(&id, sh(), false, false, None).await;
        (result.err(), node.pods.attach(&id, false).await.err())
    };
    // Only told apart from one that does run by its state.
    assert!(matches!(exec(container).await, (None, None)));
    let unknown = ContainerId::random().unwrap();
    let (first, second) = exec(unknown).await;
    for error in [first.unwrap(), second.unwrap()] {
        assert!(matches!(error, ExecError::NoSuchContainer(_)), "{error}");
    }
    let idle = node
        .pods
        .create_container(&pod, container_config("idle"))
        .await
        .unwrap();
    for id in [idle, container] {
        if id == container {
            node.machine.exit(id, 0, false);
            until(|| {
                matches!(node.container(id).state, crate::ContainerState::Exited(_)).then_some(())
            })
            .await;
        }
        let result = node.pods.exec_stream(&id, sh(), false, false, None).await;
        assert!(matches!(result, Err(ExecError::NotRunning(_))));
        let result = node.pods.attach(&id, false).await;
        assert!(matches!(result, Err(ExecError::NotRunning(_))));
    }
    let steps = (node.machine.count("session"), node.machine.count("attach"));
    assert_eq!(steps, (1, 1));
    let nothing = node
        .pods
        .exec_stream(&container, Vec::new(), false, false, None)
        .await;
    assert!(nothing.is_err());
}

#[tokio::test]
async fn input_is_for_containers_that_have_it() {
    let node = Node::new().await;
    let pod = node.pod().await;
    let start = async |stdin| {
        let mut config = container_config(if stdin { "with" } else { "without" });
        config.stdin = stdin;
        let id = node.pods.create_container(&pod, config).await.unwrap();
        node.pods.start_container(&id).await.unwrap();
        id
    };
    let (with, without) = (start(true).await, start(false).await);
    let error = node.pods.attach(&without, true).await.unwrap_err();
    assert!(matches!(error, ExecError::NoStdin(_)), "{error}");
    assert_eq!(error.kind(), ErrorKind::State);
    assert!(error.to_string().starts_with("stdin: "), "{error}");
    assert!(node.pods.attach(&without, false).await.is_ok());
    let mut session = node.pods.attach(&with, true).await.unwrap();
    let said = Output::Stdout(b"attached".to_vec());
    assert_eq!(session.next().await.unwrap(), said);
    assert!(session.take_stdin().is_some());
    node.machine.fail("attach");
    let error = node.pods.attach(&with, true).await.unwrap_err();
    assert!(matches!(error, ExecError::Attach { .. }), "{error}");
}

#[tokio::test]
async fn ports_are_reached_by_ipv4_first_and_then_by_ipv6() {
    let node = Node::new().await;
    let pod = node.pod().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut stream = node.pods.dial(&pod, port).await.unwrap();
    let (mut peer, _) = listener.accept().await.unwrap();
    stream.write_all(b"hi").await.unwrap();
    let mut word = [0; 2];
    peer.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"hi");
    drop((listener, peer, stream));
    let error = node.pods.dial(&pod, port).await.unwrap_err();
    assert!(matches!(error, DialError::Refused { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    match tokio::net::TcpListener::bind("[::1]:0").await {
        Ok(listener) => {
            let port = listener.local_addr().unwrap().port();
            let stream = node.pods.dial(&pod, port).await.unwrap();
            assert!(stream.peer_addr().unwrap().is_ipv6());
        }
        Err(error) => eprintln!("skipped: no IPv6 here: {error}"),
    }
}

#[tokio::test]
async fn ports_that_cannot_be_reached_are_told_apart() {
    let node = Node::new().await;
    let pod = node.pod().await;
    let error = node.pods.dial(&pod, 0).await.unwrap_err();
    assert!(matches!(error, DialError::Port), "{error}");
    let unknown = PodId::random().unwrap();
    let error = node.pods.dial(&unknown, 80).await.unwrap_err();
    assert!(matches!(error, DialError::NoSuchPod(_)), "{error}");
    node.machine.fail("socket");
    let error = node.pods.dial(&pod, 80).await.unwrap_err();
    assert!(matches!(error, DialError::Shim { .. }), "{error}");
    node.machine.heal();
    node.pods.stop_pod(&pod).await.unwrap();
    let error = node.pods.dial(&pod, 80).await.unwrap_err();
    assert!(matches!(error, DialError::NotReady(_)), "{error}");
    node.pods.shutdown().await;
    let error = node.pods.dial(&pod, 80).await.unwrap_err();
    assert!(matches!(error, DialError::Closing), "{error}");
}
