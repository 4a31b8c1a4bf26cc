//! Sockets in a pod's network, and what many calls leave behind.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use kelson_shim::proto::{AttachRequest, Family, Namespace, StdinPolicy};
use libtest_mimic::Trial;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

use crate::world::{Pod, SOON, World, trial, wait_until};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_socket_is_in_the_network_of_the_pod", in_the_pod),
        trial("a_pod_on_the_host_has_the_ports_of_the_host", on_the_host),
        trial(
            "a_thousand_sessions_leave_nothing_in_the_shim",
            nothing_left,
        ),
    ]
}

/// Connects to a port of the pod's own loopback.
async fn connect(pod: &Pod, port: u16) -> std::io::Result<tokio::net::TcpStream> {
    let socket = pod.shim.socket(Family::Inet, SOON).await.unwrap();
    let socket = TcpSocket::from_std_stream(socket.into());
    socket
        .connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        .await
}

async fn in_the_pod(world: World) -> World {
    let pod = world.pod().await;
    let script = "busybox ip link set lo up; \
                  busybox nc -lp 4711 -e sh -c 'read x; echo \"<$x>\"' & echo up; sleep 1000";
    let mut request = pod.request(&["sh", "-c", script]);
    let process = request.spec.process_mut().as_mut().unwrap();
    let admin = serde_json::json!({
        "bounding": ["CAP_NET_ADMIN"], "effective": ["CAP_NET_ADMIN"], "permitted": ["CAP_NET_ADMIN"],
    });
    process.set_capabilities(serde_json::from_value(admin).unwrap());
    request.stdin = StdinPolicy::None;
    pod.start(&request).await.unwrap();
    let mut stream = loop {
        match connect(&pod, 4711).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    // Nobody listens here on the host.
    let host = tokio::net::TcpStream::connect(("127.0.0.1", 4711)).await;
    assert!(host.is_err(), "port 4711 of the host is in use");
    stream.write_all(b"hi\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "<hi>\n");
    let refused = connect(&pod, 4712).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let socket = pod.shim.socket(Family::Inet6, SOON).await.unwrap();
    let flags = rustix::io::fcntl_getfd(socket.as_fd()).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    pod.shutdown().await;
    world
}

async fn on_the_host(world: World) -> World {
    let mut setup = world.setup();
    setup.namespaces.network = Namespace::Host;
    let pod = world.try_pod(&setup).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let stream = connect(&pod, port).await.unwrap();
    let (peer, from) = listener.accept().await.unwrap();
    assert_eq!(from, stream.local_addr().unwrap());
    drop((stream, peer));
    pod.shutdown().await;
    world
}

/// Proportional set size in KiB.
fn pss(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn nothing_left(world: World) -> World {
    let pod = world.pod().await;
    let mut request = pod.request(&["sh", "-c", "while :; do read x; done"]);
    request.stdin = StdinPolicy::Open;
    pod.start(&request).await.unwrap();
    let id = request.id;
    let shim = pod.ready.pid;
    let fds = || {
        std::fs::read_dir(format!("/proc/{shim}/fd"))
            .unwrap()
            .count()
    };
    let round = async || {
        let mut request = pod.exec_request(id, &["cat"]);
        request.stdin = true;
        request.detach = true;
        let mut session = pod.shim.exec(request, SOON).await.unwrap();
        let mut stdin = session.take_stdin().unwrap();
        stdin.write(b"x").await.unwrap();
        stdin.close().await.unwrap();
        assert_eq!(session.collect(10, SOON).await.unwrap().stdout, b"x");
        let attach = AttachRequest {
            container: id,
            stdin: true,
        };
        let mut session = pod.shim.attach(attach, SOON).await.unwrap();
        session.take_stdin().unwrap().write(b"x\n").await.unwrap();
        drop(session);
        drop(pod.shim.socket(Family::Inet, SOON).await.unwrap());
    };
    for _ in 0..20 {
        round().await;
    }
    // Long enough for the shim to give its buffers back.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let (before, open) = (pss(shim), fds());
    for _ in 0..1000 {
        round().await;
    }
    tokio::time::sleep(Duration::from_millis(1200)).await;
    wait_until("all descriptors are closed", || fds() <= open).await;
    let after = pss(shim);
    eprintln!("PSS of the shim: {before} KiB before, {after} KiB after 1000 of each");
    assert!(after <= before + 40, "{before} KiB became {after} KiB");
    pod.shutdown().await;
    world
}
