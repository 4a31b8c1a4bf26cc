//! `kelson port-forward`: local TCP ports whose connections end in a pod, until it is interrupted.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use kelson_client::Client;
use kelson_cri::v1::PortForwardRequest;
use kelson_streaming::client::Forwarder;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use super::stream::options;
use super::target::{Inventory, Target};
use crate::ui::Io;

/// The most connections at once; more wait until one ends.
const MAX_CONNECTIONS: usize = 512;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Pod, or a container of it: id, beginning of an id, or name
    pod: String,
    /// Local port and port in the pod; without a local port, a free one is chosen
    #[arg(required = true, value_name = "[LOCAL:]PORT", value_parser = Ports::parse)]
    ports: Vec<Ports>,
}

/// A local port and a pod's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ports {
    /// Zero: a free one.
    local: u16,
    pod: u16,
}

impl Ports {
    /// `8080:80`, `80` for the same port on both sides, `:80` for a free local one.
    fn parse(text: &str) -> Result<Self, String> {
        let number = |text: &str| match text.parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(format!("{text:?} is not a port: use 1 to 65535")),
        };
        let (local, pod) = match text.split_once(':') {
            None => (number(text)?, number(text)?),
            Some(("" | "0", pod)) => (0, number(pod)?),
            Some((local, pod)) => (number(local)?, number(pod)?),
        };
        Ok(Self { local, pod })
    }
}

/// A connection that has been accepted, or why one failed.
enum News {
    Accepted(TcpStream, u16, OwnedSemaphorePermit),
    Failed(String),
}

pub(crate) async fn run(args: Args, client: &Client, io: &mut Io<'_>) -> Result<u8> {
    let pod = match Inventory::take(client).await?.find(&args.pod)? {
        Target::Pod(pod) => pod.id,
        Target::Container(container) => container.pod_sandbox_id,
    };
    let ports: Vec<i32> = args.ports.iter().map(|ports| ports.pod.into()).collect();
    let ask = || {
        let request = PortForwardRequest {
            pod_sandbox_id: pod.clone(),
            port: ports.clone(),
        };
        async move { Ok(client.port_forward(request).await?.url) }
    };
    // All are there before anything is said, or none.
    let (sender, mut news) = mpsc::channel(16);
    let mut tasks = JoinSet::new();
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut lines = Vec::new();
    for ports in &args.ports {
        for listener in listen(ports.local).await? {
            let local = listener.local_addr().context("ask for the local port")?;
            lines.push(format!("{local} -> {}", ports.pod));
            let room = Arc::clone(&room);
            tasks.spawn(accept(listener, ports.pod, room, sender.clone()));
        }
    }
    let forwarder = Arc::new(Forwarder::connect(ask, &options()).await?);
    for line in lines {
        writeln!(io.out, "{line}")?;
    }
    io.out.flush()?;
    let mut int = signal(SignalKind::interrupt()).context("install a signal handler")?;
    let mut term = signal(SignalKind::terminate()).context("install a signal handler")?;
    loop {
        let news = tokio::select! {
            news = news.recv() => news,
            () = forwarder.closed() => bail!("the runtime has ended the connection to pod {pod}"),
            _ = int.recv() => return Ok(0),
            _ = term.recv() => return Ok(0),
            // Those that are over are forgotten.
            Some(_) = tasks.join_next() => continue,
        };
        match news {
            Some(News::Accepted(stream, port, place)) => {
                let (forwarder, sender) = (Arc::clone(&forwarder), sender.clone());
                tasks.spawn(async move {
                    if let Err(error) = forwarder.relay(port, stream).await {
                        let text = format!("{:#}", anyhow::Error::from(error));
                        let _ = sender.send(News::Failed(text)).await;
                    }
                    drop(place);
                });
            }
            Some(News::Failed(text)) => writeln!(io.err, "{text}")?,
            None => return Ok(0),
        }
    }
}

/// Listens on both loopback addresses; one of them is enough where the other does not exist.
async fn listen(port: u16) -> Result<Vec<TcpListener>> {
    let first = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        .await
        .with_context(|| format!("listen on 127.0.0.1:{port}"))?;
    let port = first.local_addr().context("ask for the local port")?.port();
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::LOCALHOST, port))).await {
        Ok(second) => Ok(vec![first, second]),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            Err(error).with_context(|| format!("listen on [::1]:{port}"))
        }
        Err(_) => Ok(vec![first]),
    }
}

async fn accept(
    listener: TcpListener,
    port: u16,
    room: Arc<Semaphore>,
    sender: mpsc::Sender<News>,
) {
    while let Ok(place) = Arc::clone(&room).acquire_owned().await {
        let news = match listener.accept().await {
            Ok((stream, _)) => News::Accepted(stream, port, place),
            Err(error) => {
                // Of descriptors or memory; there may be some again when a connection has ended.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                News::Failed(format!("cannot accept a connection: {error}"))
            }
        };
        if sender.send(news).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_in_three_ways() {
        let ports = |local, pod| Ok(Ports { local, pod });
        assert_eq!(Ports::parse("8080:80"), ports(8080, 80));
        assert_eq!(Ports::parse("80"), ports(80, 80));
        assert_eq!(Ports::parse(":80"), ports(0, 80));
        for bad in ["", ":", "0", "80:", "80:0", "a:80", "65536", "1:2:3", "-1"] {
            assert!(Ports::parse(bad).is_err(), "{bad:?}");
        }
    }
}
