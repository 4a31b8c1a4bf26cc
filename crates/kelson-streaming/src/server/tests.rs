//! Both sides against each other over real sockets, and clients that are wrong or go away.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::client::{ConnectError, ForwardError, Forwarder, Options, Process, Protocols};
use crate::{Outcome, Size, Streams};

mod trouble;

const ALL: Streams = Streams {
    stdin: true,
    stdout: true,
    stderr: true,
    tty: false,
};
const TERMINAL: Streams = Streams {
    stdin: true,
    stdout: true,
    stderr: false,
    tty: true,
};

/// Commands: `cat`, `fail`, `exit N`, `sizes`, `sleep`. Pods: an address to connect to.
#[derive(Debug, Default)]
struct Fake {
    running: AtomicUsize,
}

struct Running<'a>(&'a AtomicUsize);

impl<'a> Running<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Backend for Fake {
    type Socket = TcpStream;

    async fn exec(&self, exec: &Exec, io: &mut Io) -> Result<i32, BackendError> {
        let _running = Running::new(&self.running);
        let words: Vec<&str> = exec.command.iter().map(String::as_str).collect();
        match words[..] {
            ["cat"] => {
                let (stdin, stdout) = (io.stdin.as_mut().unwrap(), io.stdout.as_mut().unwrap());
                tokio::io::copy(stdin, stdout).await?;
                if let Some(stderr) = &mut io.stderr {
                    stderr.write_all(b"done").await?;
                }
                Ok(0)
            }
            ["exit", code] => Ok(code.parse()?),
            ["sizes"] => {
                let size = io.sizes.as_mut().unwrap().next().await.unwrap();
                Ok(i32::from(size.columns) * 1000 + i32::from(size.rows))
            }
            ["sleep"] => std::future::pending().await,
            _ => Err("no such program".into()),
        }
    }

    async fn attach(&self, attach: &Attach, io: &mut Io) -> Result<(), BackendError> {
        let _running = Running::new(&self.running);
        io.stdout
            .as_mut()
            .unwrap()
            .write_all(attach.container.as_bytes())
            .await?;
        Ok(())
    }

    async fn dial(&self, pod: &str, port: u16) -> Result<TcpStream, BackendError> {
        let _running = Running::new(&self.running);
        Ok(TcpStream::connect((pod, port)).await?)
    }
}

async fn start(config: Config) -> (Server, Arc<Fake>) {
    let backend = Arc::new(Fake::default());
    let server = Server::bind(config, Arc::clone(&backend)).await.unwrap();
    (server, backend)
}

fn request(words: &[&str], streams: Streams) -> Exec {
    Exec {
        container: "c".to_owned(),
        command: words.iter().map(|word| (*word).to_owned()).collect(),
        streams,
    }
}

fn options(protocols: Protocols) -> Options {
    Options {
        protocols,
        ..Options::default()
    }
}

async fn run(server: &Server, protocols: Protocols, words: &[&str], streams: Streams) -> Process {
    let urls = async || Ok(server.exec(request(words, streams)).unwrap());
    Process::connect(urls, streams, &options(protocols))
        .await
        .unwrap()
}

const BOTH: [Protocols; 2] = [Protocols::WebSocket, Protocols::Spdy];

#[tokio::test]
async fn much_goes_in_and_out_and_nothing_is_lost() {
    let (server, _) = start(Config::default()).await;
    for protocols in BOTH {
        let process = run(&server, protocols, &["cat"], ALL).await;
        let data: Vec<u8> = (0..20_000_000_u32).map(|n| (n % 251) as u8).collect();
        let (mut stdin, mut stdout) = (process.stdin.unwrap(), process.stdout.unwrap());
        let (mut out, mut err) = (Vec::new(), String::new());
        let mut stderr = process.stderr.unwrap();
        let write = async {
            stdin.write_all(&data).await.unwrap();
            stdin.shutdown().await.unwrap();
        };
        let (_, _, _, outcome) = tokio::join!(
            write,
            stdout.read_to_end(&mut out),
            stderr.read_to_string(&mut err),
            process.waiting.outcome(),
        );
        assert_eq!(outcome.unwrap(), Outcome::Exited(0), "{protocols:?}");
        assert!(out == data, "{protocols:?}: {} bytes", out.len());
        assert_eq!(err, "done");
    }
}

#[tokio::test]
async fn ends_are_told_as_they_are() {
    let (server, _) = start(Config::default()).await;
    for protocols in BOTH {
        let process = run(&server, protocols, &["exit", "42"], ALL).await;
        let outcome = process.waiting.outcome().await.unwrap();
        assert_eq!(outcome, Outcome::Exited(42), "{protocols:?}");
        let process = run(&server, protocols, &["fail"], ALL).await;
        let Outcome::Failed(text) = process.waiting.outcome().await.unwrap() else {
            panic!("it did not fail");
        };
        assert!(text.ends_with("in container: no such program"), "{text}");
        let urls = async || {
            Ok(server
                .attach(Attach {
                    container: "boat".to_owned(),
                    streams: ALL,
                })
                .unwrap())
        };
        let mut process = Process::connect(urls, ALL, &options(protocols))
            .await
            .unwrap();
        let mut text = String::new();
        let stdout = process.stdout.as_mut().unwrap();
        stdout.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "boat");
        assert_eq!(process.waiting.outcome().await.unwrap(), Outcome::Exited(0));
    }
}

#[tokio::test]
async fn sizes_arrive_and_zeros_do_not() {
    let (server, _) = start(Config::default()).await;
    for protocols in BOTH {
        let mut process = run(&server, protocols, &["sizes"], TERMINAL).await;
        let resizer = process.resizer.as_mut().unwrap();
        for (columns, rows) in [(0, 24), (80, 24)] {
            resizer.resize(Size { columns, rows }).await.unwrap();
        }
        let outcome = process.waiting.outcome().await.unwrap();
        assert_eq!(outcome, Outcome::Exited(80_024), "{protocols:?}");
    }
}

/// A server that sends back what it gets, and then ends.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    port
}

async fn forwarder(server: &Server, protocols: Protocols) -> Forwarder {
    let urls = async || Ok(server.port_forward("127.0.0.1".to_owned(), vec![]).unwrap());
    Forwarder::connect(urls, &options(protocols)).await.unwrap()
}

#[tokio::test]
async fn many_connections_go_through_one_forward() {
    let (server, backend) = start(Config::default()).await;
    let port = echo().await;
    for protocols in BOTH {
        let forwarder = Arc::new(forwarder(&server, protocols).await);
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..100_u8 {
            let forwarder = Arc::clone(&forwarder);
            tasks.spawn(async move {
                let (near, mut far) = tokio::io::duplex(1000);
                let data = vec![number; 50_000 + usize::from(number)];
                let mut back = Vec::new();
                let user = async {
                    let (mut from, mut to) = tokio::io::split(&mut far);
                    let write = async {
                        to.write_all(&data).await.unwrap();
                        // Everything before the half-close comes back after it.
                        to.shutdown().await.unwrap();
                    };
                    tokio::join!(write, from.read_to_end(&mut back)).1.unwrap();
                };
                let (relayed, ()) = tokio::join!(forwarder.relay(port, near), user);
                relayed.unwrap();
                assert!(back == data);
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    }
    assert_eq!(backend.running.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_port_that_refuses_is_told_and_others_go_on() {
    let (server, _) = start(Config::default()).await;
    let port = echo().await;
    // A port that was free a moment ago: its listener is dropped at once.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr();
    let closed = closed.unwrap().port();
    for protocols in BOTH {
        let forwarder = forwarder(&server, protocols).await;
        let (near, _far) = tokio::io::duplex(1000);
        let error = forwarder.relay(closed, near).await.unwrap_err();
        let ForwardError::Refused { text, .. } = error else {
            panic!("{error}");
        };
        assert!(text.contains("refused"), "{text}");
        let (near, mut far) = tokio::io::duplex(1000);
        let user = async {
            far.write_all(b"ahoy").await.unwrap();
            far.shutdown().await.unwrap();
            let mut back = String::new();
            far.read_to_string(&mut back).await.unwrap();
            assert_eq!(back, "ahoy");
        };
        tokio::join!(forwarder.relay(port, near), user).0.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_knows_no_websocket_is_spoken_to_in_spdy() {
    let (server, _) = start(Config::default()).await;
    let old = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = old.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = old.accept().await.unwrap();
        let mut head = [0; 1024];
        let _ = stream.read(&mut head).await.unwrap();
        let answer = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno";
        stream.write_all(answer).await.unwrap();
    });
    let asked = AtomicUsize::new(0);
    let urls = async || match asked.fetch_add(1, Ordering::SeqCst) {
        0 => Ok(format!("http://{address}/exec/x")),
        _ => Ok(server.exec(request(&["exit", "3"], ALL)).unwrap()),
    };
    let process = Process::connect(urls, ALL, &Options::default())
        .await
        .unwrap();
    assert_eq!(process.waiting.outcome().await.unwrap(), Outcome::Exited(3));
}

#[tokio::test]
async fn a_used_address_is_not_found() {
    let (server, _) = start(Config::default()).await;
    let url = server.exec(request(&["exit", "0"], ALL)).unwrap();
    let connect = async || {
        let urls = async || Ok(url.clone());
        Process::connect(urls, ALL, &Options::default()).await
    };
    connect().await.unwrap();
    let error = connect().await.unwrap_err();
    assert!(
        matches!(error, ConnectError::Refused { status, .. } if status == 404),
        "{error}"
    );
}
