//! Many sessions, sessions whose clients vanish, and sessions across a restart: nothing is left of them.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use kelson_cri::v1;
use kelson_streaming::client::{Forwarder, Options, Process, Protocols, SourceError, Trust};
use kelson_streaming::{Outcome as End, Streams};
use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::case::{Case, Need, Outcome, on_node};
use crate::node::{Node, PATIENCE, slowness};
use crate::pod::{pod, shell};

const BOTH: [Protocols; 2] = [Protocols::WebSocket, Protocols::Spdy];
/// The streams of `exec -i`.
const ALL: Streams = Streams {
    stdin: true,
    stdout: true,
    stderr: true,
    tty: false,
};
/// Where in the pod is sent back what comes.
const ECHO: u16 = 9;
/// Sessions one after another, of each kind.
const MANY: usize = 1000;
/// Sessions at once, of each kind.
const AT_ONCE: usize = 100;
/// Threads of a daemon that has had something to do; they end some time after it.
const THREADS: usize = 40;

pub(super) fn cases() -> Vec<Case> {
    vec![
        on_node("streams::thousands_leave_nothing", |node| {
            Box::pin(thousands(node))
        }),
        on_node("streams::clients_that_vanish_leave_nothing", |node| {
            Box::pin(vanish(node))
        }),
        on_node("streams::a_restart_ends_sessions_alone", |node| {
            Box::pin(restart(node))
        }),
        on_node("streams::tls_with_a_new_key_pair", |node| {
            Box::pin(tls(node))
        })
        .needs(Need::Program("/usr/bin/openssl", "openssl")),
    ]
}

/// A pod in which somebody echoes, its shim, and how to reach both.
struct Echo {
    client: kelson_client::Client,
    pod: String,
    container: String,
    shim: u32,
}

impl Echo {
    async fn start(node: &Node) -> anyhow::Result<Self> {
        let image = node.busybox().await?;
        let (pod, container) = node
            .run(&pod(&node.logs()), shell("main", &image, "sleep 5555"))
            .await?;
        let shim = node.shim_pid(&pod).await?;
        let echo = Self {
            client: node.client.clone(),
            pod,
            container,
            shim,
        };
        tokio::spawn(send_back(listen_in(echo.shim)?));
        Ok(echo)
    }

    async fn exec_url(&self, words: &[&str]) -> anyhow::Result<String> {
        let request = v1::ExecRequest {
            container_id: self.container.clone(),
            cmd: words.iter().map(|word| (*word).to_owned()).collect(),
            stdin: true,
            stdout: true,
            stderr: true,
            tty: false,
        };
        Ok(self.client.exec(request).await?.url)
    }

    async fn forward_url(&self) -> anyhow::Result<String> {
        let request = v1::PortForwardRequest {
            pod_sandbox_id: self.pod.clone(),
            port: vec![],
        };
        Ok(self.client.port_forward(request).await?.url)
    }

    async fn process(&self, protocols: Protocols, words: &[&str]) -> anyhow::Result<Process> {
        let urls = async || Ok::<_, SourceError>(self.exec_url(words).await?);
        Ok(Process::connect(urls, ALL, &options(protocols)).await?)
    }

    async fn forwarder(&self, protocols: Protocols) -> anyhow::Result<Forwarder> {
        let urls = async || Ok::<_, SourceError>(self.forward_url().await?);
        Ok(Forwarder::connect(urls, &options(protocols)).await?)
    }

    /// Runs a command that sends its input back, to its end.
    async fn exec(&self, protocols: Protocols) -> anyhow::Result<()> {
        let mut process = self.process(protocols, &["cat"]).await?;
        let (mut stdin, mut stdout) = (
            process.stdin.take().context("no stdin")?,
            process.stdout.take().context("no stdout")?,
        );
        stdin.write_all(b"ahoy").await?;
        stdin.shutdown().await?;
        let mut text = String::new();
        stdout.read_to_string(&mut text).await?;
        let end = process.waiting.outcome().await?;
        ensure!(text == "ahoy" && end == End::Exited(0), "{text:?} {end:?}");
        Ok(())
    }

    /// Forwards one connection to its end.
    async fn forward(&self, protocols: Protocols) -> anyhow::Result<()> {
        let forwarder = self.forwarder(protocols).await?;
        let (near, mut far) = tokio::io::duplex(100);
        let user = async {
            far.write_all(b"ahoy").await?;
            far.shutdown().await?;
            let mut text = String::new();
            far.read_to_string(&mut text).await?;
            anyhow::Ok(text)
        };
        let (relayed, text) = tokio::join!(forwarder.relay(ECHO, near), user);
        relayed?;
        let text = text?;
        ensure!(text == "ahoy", "{text:?}");
        Ok(())
    }
}

/// Listens in the network namespace of a process. A socket stays where it was made.
fn listen_in(process: u32) -> anyhow::Result<TcpListener> {
    let namespace = std::fs::File::open(format!("/proc/{process}/ns/net"))?;
    let thread = std::thread::spawn(move || {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(namespace.as_fd(), kind)?;
        std::net::TcpListener::bind(("127.0.0.1", ECHO))
    });
    let listener = thread.join().ok().context("the thread panicked")??;
    listener.set_nonblocking(true)?;
    Ok(TcpListener::from_std(listener)?)
}

/// Sends back what comes in each connection, to its end.
async fn send_back(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let (mut from, mut to) = stream.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
        });
    }
}

fn options(protocols: Protocols) -> Options {
    Options {
        protocols,
        trust: Trust::Anybody,
    }
}

/// What a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
struct Holds {
    descriptors: usize,
    threads: usize,
    children: usize,
    /// Memory of its own, in KiB.
    memory: usize,
}

fn holds(pid: u32) -> anyhow::Result<Holds> {
    let process = format!("/proc/{pid}");
    let count =
        |folder: &str| anyhow::Ok(std::fs::read_dir(format!("{process}/{folder}"))?.count());
    let children = std::fs::read_dir(format!("{process}/task"))?.map(|task| {
        let list = std::fs::read_to_string(task?.path().join("children"))?;
        Ok(list.split_whitespace().count())
    });
    let memory = std::fs::read_to_string(format!("{process}/smaps_rollup"))?;
    let memory = memory.lines().filter_map(|line| {
        let value = line.strip_prefix("Private_Dirty:")?.trim();
        value.strip_suffix(" kB")?.parse::<usize>().ok()
    });
    Ok(Holds {
        descriptors: count("fd")?,
        threads: count("task")?,
        children: children.sum::<std::io::Result<usize>>()?,
        memory: memory.sum(),
    })
}

/// Waits until a process holds no more than it did, and at most so much more memory, in KiB.
async fn settles(name: &str, pid: u32, before: Holds, memory: usize) -> anyhow::Result<Holds> {
    let end = Instant::now() + PATIENCE;
    loop {
        let now = holds(pid)?;
        if now.descriptors <= before.descriptors
            && now.threads <= before.threads.max(THREADS)
            && now.children <= before.children
            && now.memory <= before.memory + memory
        {
            return Ok(now);
        }
        ensure!(
            Instant::now() < end,
            "the {name} holds {now:?}, before {before:?}"
        );
        sleep(Duration::from_millis(50)).await;
    }
}

async fn at_once(echo: &std::sync::Arc<Echo>) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    for number in 0..2 * AT_ONCE / slowness() {
        let echo = std::sync::Arc::clone(echo);
        tasks.spawn(async move {
            let protocols = BOTH[number / 2 % 2];
            match number % 2 {
                0 => echo.exec(protocols).await,
                _ => echo.forward(protocols).await,
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "figures for who runs it")]
async fn thousands(node: &mut Node) -> Outcome {
    let echo = std::sync::Arc::new(Echo::start(node).await?);
    let daemon = node.daemon_pid()?;
    // What the first sessions need is kept for the next ones.
    at_once(&echo).await?;
    sleep(Duration::from_secs(5)).await;
    let before = (holds(daemon)?, holds(echo.shim)?);
    for number in 0..MANY / slowness() {
        let protocols = BOTH[number % 2];
        echo.exec(protocols).await?;
        echo.forward(protocols).await?;
    }
    at_once(&echo).await?;
    // Beside what is in use, allocators keep a little; 2 KiB a session would be 4 MiB.
    let after = (
        settles("daemon", daemon, before.0, 3500).await?,
        settles("shim", echo.shim, before.1, 300).await?,
    );
    println!("daemon before {:?} and after {:?}", before.0, after.0);
    println!("shim before {:?} and after {:?}", before.1, after.1);
    Ok(())
}

/// Sends the head of a request to an address as it is; the connection with the answer in it.
async fn upgrade(url: &str, headers: &str) -> anyhow::Result<TcpStream> {
    let rest = url.strip_prefix("http://").context("not HTTP")?;
    let (address, path) = rest.split_once('/').context("no path")?;
    let mut stream = TcpStream::connect(address).await?;
    let text = format!("{headers}\r\nHost: {address}\r\n\r\n").replace("URL", &format!("/{path}"));
    stream.write_all(text.as_bytes()).await?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await?;
    ensure!(answer == *b"HTTP/1.1 101", "{answer:?}");
    Ok(stream)
}

const SPDY: &str = "POST URL HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
    X-Stream-Protocol-Version: v4.channel.k8s.io";
const WEBSOCKET: &str = "GET URL HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Protocol: v5.channel.k8s.io";

/// Begins sessions and lets each go at another stage.
async fn let_go(echo: &Echo, protocols: Protocols) -> anyhow::Result<()> {
    let head = match protocols {
        Protocols::Spdy => SPDY,
        _ => WEBSOCKET,
    };
    // Without a connection, without a request, with half of one, and before any stream.
    let url = echo.exec_url(&["cat"]).await?;
    let address = url.trim_start_matches("http://").split('/').next();
    let address = address.context("no address")?.to_owned();
    drop(TcpStream::connect(&address).await?);
    let mut half = TcpStream::connect(&address).await?;
    half.write_all(b"POST /exec/").await?;
    drop(half);
    drop(upgrade(&url, head).await?);
    // With a frame that is not whole.
    let mut stream = upgrade(&echo.exec_url(&["cat"]).await?, head).await?;
    stream.write_all(&[0x80, 0x03, 0, 1, 0]).await?;
    drop(stream);
    // While nothing moves, and while output comes that is not read.
    drop(echo.process(protocols, &["cat"]).await?);
    let mut yes = echo
        .process(protocols, &["sh", "-c", "while echo y; do :; done"])
        .await?;
    let mut some = [0; 1000];
    let stdout = yes.stdout.as_mut().context("no stdout")?;
    stdout.read_exact(&mut some).await?;
    sleep(Duration::from_millis(200)).await;
    drop(yes);
    // In the middle of a write to a process that never reads.
    let mut process = echo
        .process(protocols, &["sh", "-c", "sleep 1000; exit"])
        .await?;
    let stdin = process.stdin.as_mut().context("no stdin")?;
    let endless = async {
        loop {
            stdin.write_all(&[0; 65536]).await?;
        }
    };
    let wrote: Result<anyhow::Result<()>, _> = timeout(Duration::from_millis(500), endless).await;
    ensure!(wrote.is_err(), "{wrote:?}");
    drop(process);
    // With connections into the pod: one that is silent, one that is full.
    let forwarder = echo.forwarder(protocols).await?;
    let (near, _far) = tokio::io::duplex(100);
    let (full, mut feed) = tokio::io::duplex(65536);
    let endless = async {
        loop {
            if let Err(error) = feed.write_all(&[0; 65536]).await {
                break error;
            }
        }
    };
    let relays = async {
        tokio::select! {
            ended = forwarder.relay(ECHO, near) => bail!("the silent one ends: {ended:?}"),
            ended = forwarder.relay(ECHO, full) => bail!("the full one ends: {ended:?}"),
            error = endless => bail!("the full one takes no more: {error}"),
        }
    };
    // An elapsed time is how it shall be.
    if let Ok(ended) = timeout(Duration::from_millis(500), relays).await {
        return ended;
    }
    Ok(())
}

async fn vanish(node: &mut Node) -> Outcome {
    let echo = Echo::start(node).await?;
    let daemon = node.daemon_pid()?;
    for protocols in BOTH {
        echo.exec(protocols).await?;
        echo.forward(protocols).await?;
    }
    sleep(Duration::from_millis(500)).await;
    let before = (holds(daemon)?, holds(echo.shim)?);
    for protocols in BOTH {
        let_go(&echo, protocols).await?;
    }
    // Processes outlive their clients, those that have input to its end; nothing else does.
    settles("daemon", daemon, before.0, 4096).await?;
    let left = node
        .output(&echo.container, "busybox ps -o pid,args")
        .await?;
    let pids = |word: &str| -> Vec<&str> {
        let lines = left.lines().filter(|line| line.contains(word));
        lines
            .filter_map(|line| line.split_whitespace().next())
            .collect()
    };
    let (silent, loud) = (pids("sleep 1000; exit"), pids("echo y"));
    ensure!(
        (silent.len(), loud.len(), pids("cat").len()) == (2, 2, 0),
        "{left}"
    );
    let all = [silent, loud, pids("sleep 1000")].concat();
    let script = format!("kill -9 {}", all.join(" "));
    node.exec(&echo.container, &script).await?;
    settles("shim", echo.shim, before.1, 300).await?;
    Ok(())
}

/// Reads until the connection ends, however it does.
async fn ends(mut process: Process) -> anyhow::Result<()> {
    let stdout = process.stdout.as_mut().context("no stdout")?;
    let mut rest = Vec::new();
    // A cut is an error, an end is none; both are an end.
    let _ = timeout(PATIENCE, stdout.read_to_end(&mut rest)).await?;
    match timeout(PATIENCE, process.waiting.outcome()).await? {
        Ok(End::Exited(code)) => bail!("the client was told the exit code {code}"),
        Ok(End::Failed(_)) | Err(_) => Ok(()),
    }
}

async fn restart(node: &mut Node) -> Outcome {
    let mut echo = Echo::start(node).await?;
    let started = node.status(&echo.container).await?.started_at;
    let shim = holds(echo.shim)?;
    for graceful in [true, false] {
        let mut processes = Vec::new();
        for protocols in BOTH {
            let mut process = echo.process(protocols, &["cat"]).await?;
            let stdin = process.stdin.as_mut().context("no stdin")?;
            stdin.write_all(b"ahoy").await?;
            let stdout = process.stdout.as_mut().context("no stdout")?;
            stdout.read_exact(&mut [0; 4]).await?;
            processes.push(process);
        }
        let forwarder = echo.forwarder(Protocols::Both).await?;
        if graceful {
            let pid = i32::try_from(node.daemon_pid()?)?;
            let pid = rustix::process::Pid::from_raw(pid).context("no pid")?;
            rustix::process::kill_process(pid, Signal::TERM)?;
        } else {
            node.kill().await?;
        }
        for process in processes {
            ends(process).await?;
        }
        timeout(PATIENCE, forwarder.closed()).await?;
        node.restart().await?;
        echo.client = node.client.clone();
        let status = node.status(&echo.container).await?;
        ensure!(
            status.state() == v1::ContainerState::ContainerRunning && status.started_at == started,
            "{status:?}"
        );
        // The commands have seen the end of their input. What the shim shared with its zygote is its own
        // now that the zygote is gone.
        settles("shim", echo.shim, shim, 16 << 10).await?;
        for protocols in BOTH {
            echo.exec(protocols).await?;
            echo.forward(protocols).await?;
        }
    }
    Ok(())
}

/// Makes a key pair for this address; its certificate is also kept under the name.
async fn key_pair(dir: &Path, name: &str) -> anyhow::Result<std::path::PathBuf> {
    let kept = dir.join(format!("{name}.pem"));
    let output = tokio::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
        .args(["ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args([
            "-subj",
            "/CN=kelson",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ])
        .arg("-keyout")
        .arg(dir.join("new.key"))
        .arg("-out")
        .arg(&kept)
        .output()
        .await?;
    ensure!(output.status.success(), "{output:?}");
    std::fs::copy(&kept, dir.join("tls.crt"))?;
    std::fs::rename(dir.join("new.key"), dir.join("tls.key"))?;
    Ok(kept)
}

async fn tls(node: &mut Node) -> Outcome {
    let dir = node.dir().to_owned();
    let first = key_pair(&dir, "first").await?;
    let path = dir.join("config.toml");
    let mut text = std::fs::read_to_string(&path)?;
    let (certificate, key) = (dir.join("tls.crt"), dir.join("tls.key"));
    text.push_str(&format!(
        "[streaming]\ntls_cert = {certificate:?}\ntls_key = {key:?}\n"
    ));
    std::fs::write(&path, text)?;
    node.kill().await?;
    node.restart().await?;
    let echo = Echo::start(node).await?;
    let trusting = async |protocols, file: &Path| {
        let trust = Trust::File(file.to_owned());
        let urls = async || Ok::<_, SourceError>(echo.exec_url(&["true"]).await?);
        let process = Process::connect(urls, ALL, &Options { protocols, trust }).await?;
        anyhow::Ok(process.waiting.outcome().await?)
    };
    let url = echo.exec_url(&["true"]).await?;
    ensure!(url.starts_with("https://127.0.0.1:"), "{url}");
    for protocols in BOTH {
        ensure!(trusting(protocols, &first).await? == End::Exited(0));
        echo.exec(protocols).await?;
        echo.forward(protocols).await?;
    }
    // A session goes on while its server gets another key pair.
    let mut live = echo.process(Protocols::Spdy, &["cat"]).await?;
    let second = key_pair(&dir, "second").await?;
    ensure!(trusting(Protocols::WebSocket, &second).await? == End::Exited(0));
    ensure!(trusting(Protocols::WebSocket, &first).await.is_err());
    let stdin = live.stdin.as_mut().context("no stdin")?;
    stdin.write_all(b"ahoy").await?;
    stdin.shutdown().await?;
    let mut text = String::new();
    let stdout = live.stdout.as_mut().context("no stdout")?;
    stdout.read_to_string(&mut text).await?;
    ensure!(text == "ahoy", "{text}");
    // One that is of no use is not taken.
    std::fs::write(&certificate, "no certificate")?;
    ensure!(trusting(Protocols::Spdy, &second).await? == End::Exited(0));
    ensure!(node.log().contains("of no use"), "nothing is said of it");
    Ok(())
}
