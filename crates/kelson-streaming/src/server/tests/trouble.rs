//! Clients that are wrong, late, silent or gone.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::*;

/// Sends a request as it is; gives the head of the answer and the connection.
async fn ask(server: &Server, head: &str) -> (String, TcpStream) {
    let address = server.base().trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let text = format!("{head}\r\nHost: {address}\r\n\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => answer.push(byte),
            Err(_) => break,
        }
    }
    (String::from_utf8(answer).unwrap(), stream)
}

fn path(server: &Server, url: &str) -> String {
    url.strip_prefix(server.base()).unwrap().to_owned()
}

const SPDY: &str = "Connection: Upgrade\r\nUpgrade: SPDY/3.1";
const WEBSOCKET: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";

#[tokio::test]
async fn wrong_requests_get_the_status_that_peers_give() {
    let (server, _) = start(Config::default()).await;
    let exec = path(&server, &server.exec(request(&["cat"], ALL)).unwrap());
    let v4 = "X-Stream-Protocol-Version: v4.channel.k8s.io";
    for (head, status) in [
        (format!("GET /exec/unknown HTTP/1.1\r\n{SPDY}\r\n{v4}"), 404),
        ("GET / HTTP/1.1".to_owned(), 404),
        (
            format!("GET {} HTTP/1.1", exec.replace("exec", "attach")),
            404,
        ),
        (format!("DELETE {exec} HTTP/1.1\r\n{SPDY}\r\n{v4}"), 405),
        (format!("POST {exec} HTTP/1.1\r\n{WEBSOCKET}"), 405),
        (format!("GET {exec} HTTP/1.1"), 400),
        (format!("POST {exec} HTTP/1.1\r\n{SPDY}"), 400),
        (
            format!("POST {exec} HTTP/1.1\r\n{SPDY}\r\nX-Stream-Protocol-Version: v9"),
            403,
        ),
        (
            format!("GET {exec} HTTP/1.1\r\n{WEBSOCKET}\r\nSec-WebSocket-Protocol: v9"),
            403,
        ),
        (
            format!("GET {exec} HTTP/1.1\r\n{}", WEBSOCKET.replace("13", "8")),
            400,
        ),
        (
            format!("GET {exec} HTTP/1.1\r\nX: {}", "x".repeat(20_000)),
            431,
        ),
        // None of these has used the token up.
        (format!("POST {exec} HTTP/1.1\r\n{SPDY}\r\n{v4}"), 101),
        (format!("POST {exec} HTTP/1.1\r\n{SPDY}\r\n{v4}"), 404),
    ] {
        let (answer, _) = ask(&server, &head).await;
        let got: u16 = answer.split(' ').nth(1).unwrap_or("0").parse().unwrap();
        assert_eq!(got, status, "{head}\n{answer}");
        // Go's clients look at one line of this header only.
        let says = |line: &str| answer.matches(line).count();
        let upgrades = says("connection: Upgrade");
        assert_eq!(upgrades, usize::from(status == 101), "{answer}");
        assert!(says("connection: ") <= 1, "{answer}");
        if status == 403 && head.contains("SPDY") {
            assert!(answer.contains("x-accepted-stream-protocol-versions: v4.channel.k8s.io"));
        }
    }
}

/// Waits until the backend runs as many commands.
async fn until(backend: &Fake, count: usize) {
    let wait = async {
        while backend.running.load(Ordering::SeqCst) != count {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), wait).await.unwrap();
}

/// Waits until the server has no connections.
async fn until_idle(server: &Server) {
    let wait = async {
        while !server.shared.sessions.is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), wait).await.unwrap();
}

/// Writes without end.
async fn fill(to: &mut (impl tokio::io::AsyncWrite + Unpin)) {
    loop {
        to.write_all(&[0; 65536]).await.unwrap();
    }
}

#[tokio::test]
async fn clients_that_vanish_leave_nothing() {
    let (server, backend) = start(Config::default()).await;
    for protocols in BOTH {
        // Before the request, within it, and before the streams.
        let address = server.base().trim_start_matches("http://").to_owned();
        drop(TcpStream::connect(&address).await.unwrap());
        let mut half = TcpStream::connect(&address).await.unwrap();
        half.write_all(b"GET /exec/").await.unwrap();
        drop(half);
        let exec = server.exec(request(&["sleep"], ALL)).unwrap();
        let exec = path(&server, &exec);
        let v4 = "X-Stream-Protocol-Version: v4.channel.k8s.io";
        drop(ask(&server, &format!("POST {exec} HTTP/1.1\r\n{SPDY}\r\n{v4}")).await);
        // While a command runs that neither reads nor writes.
        let process = run(&server, protocols, &["sleep"], ALL).await;
        until(&backend, 1).await;
        drop(process);
        until(&backend, 0).await;
        // In the middle of a write that nobody reads.
        let mut process = run(&server, protocols, &["cat"], ALL).await;
        let stdin = process.stdin.as_mut().unwrap();
        let _ = timeout(Duration::from_millis(300), fill(stdin)).await;
        drop(process);
        until(&backend, 0).await;
        // With a connection into a pod.
        let port = echo().await;
        let forwarder = forwarder(&server, protocols).await;
        let (near, mut far) = tokio::io::duplex(1000);
        far.write_all(b"ahoy").await.unwrap();
        let mut back = [0; 4];
        tokio::select! {
            relayed = forwarder.relay(port, near) => panic!("{relayed:?}"),
            read = far.read_exact(&mut back) => drop(read.unwrap()),
        }
        drop(forwarder);
        until_idle(&server).await;
    }
}

#[tokio::test]
async fn a_client_that_goes_while_its_input_waits_leaves_nothing() {
    let (server, backend) = start(Config::default()).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    for protocols in BOTH {
        let mut process = run(&server, protocols, &["sleep"], ALL).await;
        let stdin = process.stdin.as_mut().unwrap();
        let _ = timeout(Duration::from_millis(300), fill(stdin)).await;
        drop(process);
        // The same into a connection whose other end never reads.
        let forwarder = forwarder(&server, protocols).await;
        let (near, mut far) = tokio::io::duplex(65536);
        let both = async {
            tokio::join!(fill(&mut far), async {
                drop(forwarder.relay(port, near).await)
            })
        };
        let _ = timeout(Duration::from_millis(300), both).await;
        drop(forwarder);
    }
    until(&backend, 0).await;
    until_idle(&server).await;
}

#[tokio::test]
async fn streams_that_do_not_come_end_the_session() {
    let config = Config {
        creation: Duration::from_millis(100),
        ..Config::default()
    };
    let (server, backend) = start(config).await;
    let exec = server.exec(request(&["cat"], ALL)).unwrap();
    let v4 = "X-Stream-Protocol-Version: v4.channel.k8s.io";
    let head = format!("POST {} HTTP/1.1\r\n{SPDY}\r\n{v4}", path(&server, &exec));
    let (_, mut stream) = ask(&server, &head).await;
    let mut rest = Vec::new();
    let end = stream.read_to_end(&mut rest);
    timeout(Duration::from_secs(20), end)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(backend.running.load(Ordering::SeqCst), 0);
    until_idle(&server).await;
}

#[tokio::test]
async fn a_session_in_which_nothing_moves_ends() {
    let config = Config {
        idle: Duration::from_millis(200),
        ..Config::default()
    };
    let (server, backend) = start(config).await;
    for protocols in BOTH {
        let process = run(&server, protocols, &["sleep"], ALL).await;
        let end = timeout(Duration::from_secs(20), process.waiting.outcome());
        assert!(end.await.unwrap().is_err());
        until(&backend, 0).await;
    }
    until_idle(&server).await;
}

#[tokio::test]
async fn a_server_that_ends_tells_its_clients() {
    for protocols in BOTH {
        let (server, backend) = start(Config::default()).await;
        let process = run(&server, protocols, &["sleep"], ALL).await;
        until(&backend, 1).await;
        let (outcome, ()) = tokio::join!(process.waiting.outcome(), server.shutdown());
        let Outcome::Failed(text) = outcome.unwrap() else {
            panic!("no failure");
        };
        assert!(text.contains("the runtime is ending"), "{text}");
        assert_eq!(backend.running.load(Ordering::SeqCst), 0);
        assert!(server.shared.sessions.is_empty());
    }
}

/// A session of SPDY whose frames are written by hand.
async fn by_hand(server: &Server) -> TcpStream {
    let exec = server.exec(request(&["cat"], ALL)).unwrap();
    let v4 = "X-Stream-Protocol-Version: v4.channel.k8s.io";
    let head = format!("POST {} HTTP/1.1\r\n{SPDY}\r\n{v4}", path(server, &exec));
    let (answer, stream) = ask(server, &head).await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    stream
}

#[tokio::test]
async fn what_breaks_the_protocol_ends_the_session_with_a_goaway() {
    let (server, backend) = start(Config::default()).await;
    let syn = |ids: &[u32]| {
        let mut encoder = crate::spdy::Encoder::new().unwrap();
        let headers = vec![("streamtype".to_owned(), "stdin".to_owned())];
        let mut buf = Vec::new();
        for id in ids {
            encoder.syn_stream(*id, &headers, &mut buf).unwrap();
        }
        buf
    };
    let mut never = Vec::new();
    crate::spdy::data(9, b"x", false, &mut never);
    let mut bomb = Vec::new();
    crate::spdy::Encoder::new()
        .unwrap()
        .syn_stream(1, &vec![("a".to_owned(), "x".repeat(9 << 20))], &mut bomb)
        .unwrap();
    for wrong in [
        syn(&[3, 1]),
        syn(&[1, 1]),
        syn(&[2]),
        never,
        bomb,
        vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff],
        vec![0xff; 64],
    ] {
        let mut stream = by_hand(&server).await;
        stream.write_all(&wrong).await.unwrap();
        let mut rest = Vec::new();
        let end = stream.read_to_end(&mut rest);
        timeout(Duration::from_secs(20), end)
            .await
            .unwrap()
            .unwrap();
        // The last frame is a GOAWAY with PROTOCOL_ERROR.
        let last = &rest[rest.len() - 16..];
        assert_eq!(last[..4], [0x80, 3, 0, 7], "{rest:?}");
        assert_eq!(last[12..], [0, 0, 0, 1], "{rest:?}");
    }
    drop(backend);
    until_idle(&server).await;
}

#[tokio::test]
async fn a_malformed_websocket_message_ends_the_session() {
    let (server, backend) = start(Config::default()).await;
    let mut bad_base64 = Vec::new();
    crate::ws::message(true, &[b"0", b"not base64!"], Some([1; 4]), &mut bad_base64);
    let mut bad_close = Vec::new();
    crate::ws::message(false, &[&[255, 0, 0]], Some([1; 4]), &mut bad_close);
    for (protocol, wrong) in [
        ("v4.base64.channel.k8s.io", bad_base64),
        ("v5.channel.k8s.io", bad_close),
        ("v4.channel.k8s.io", vec![0x82, 0]),
    ] {
        let exec = path(&server, &server.exec(request(&["cat"], ALL)).unwrap());
        let head =
            format!("GET {exec} HTTP/1.1\r\n{WEBSOCKET}\r\nSec-WebSocket-Protocol: {protocol}");
        let (answer, mut stream) = ask(&server, &head).await;
        assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
        stream.write_all(&wrong).await.unwrap();
        let mut rest = Vec::new();
        let end = stream.read_to_end(&mut rest);
        timeout(Duration::from_secs(20), end)
            .await
            .unwrap()
            .unwrap();
        assert!(rest.ends_with(&[0x88, 2, 0x03, 0xea]), "{rest:?}");
    }
    until(&backend, 0).await;
    until_idle(&server).await;
}
