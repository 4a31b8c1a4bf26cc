//! The server's side: addresses with tokens, HTTP/1.1, and the way to the [`Backend`].

mod backend;
mod forward;
mod hangup;
mod http;
mod process;
mod tokens;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

pub use backend::{Attach, Backend, BackendError, Exec, Io};
pub use tokens::{MAX_TOKENS, TokenError};

use crate::tls::{self, KeyPair, KeyPairError};
use hangup::HangUp;
use tokens::{Forward, Request, Tokens};

/// Connections at once, at most; further ones wait.
pub const MAX_CONNECTIONS: usize = 1024;
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a runtime may take to read what a client sent before it went away.
const LAST_INPUT: Duration = Duration::from_secs(10);
/// How long sessions may take to end when the server does.
const DRAIN: Duration = Duration::from_secs(5);

/// Where and how to serve.
#[derive(Debug, Clone)]
pub struct Config {
    /// Port 0 takes any free one.
    pub address: SocketAddr,
    /// A session in which nothing moves for this long is ended.
    pub idle: Duration,
    /// How long a client may take to ask for all the streams of its request.
    pub creation: Duration,
    /// Serve HTTPS with this key pair.
    pub tls: Option<KeyPair>,
}

impl Default for Config {
    /// Any port of this machine alone, 4 h, 30 s, no TLS.
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            idle: Duration::from_secs(4 * 60 * 60),
            creation: Duration::from_secs(30),
            tls: None,
        }
    }
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address cannot be had.
    #[error("cannot serve streams on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The key pair is of no use.
    #[error("cannot serve streams over TLS")]
    KeyPair(#[source] KeyPairError),
}

/// A streaming server. Clones are one server.
#[derive(Debug, Clone)]
pub struct Server {
    shared: Arc<Shared>,
    base: String,
}

#[derive(Debug)]
struct Shared {
    tokens: Tokens,
    idle: Duration,
    creation: Duration,
    sessions: TaskTracker,
    /// No new connections, and sessions end.
    stop: CancellationToken,
}

impl Server {
    /// Begins to listen and to serve.
    ///
    /// # Errors
    /// When the address is taken or the key pair is of no use.
    pub async fn bind(config: Config, backend: Arc<impl Backend>) -> Result<Self, BindError> {
        let tls = config.tls.as_ref().map(tls::server_config).transpose();
        let tls = tls.map_err(BindError::KeyPair)?.map(TlsAcceptor::from);
        let listen = |source| BindError::Listen {
            address: config.address,
            source,
        };
        let listener = TcpListener::bind(config.address).await.map_err(listen)?;
        let address = reachable(listener.local_addr().map_err(listen)?);
        let scheme = if tls.is_some() { "https" } else { "http" };
        let server = Self {
            shared: Arc::new(Shared {
                tokens: Tokens::default(),
                idle: config.idle,
                creation: config.creation,
                sessions: TaskTracker::new(),
                stop: CancellationToken::new(),
            }),
            base: format!("{scheme}://{address}"),
        };
        let shared = Arc::clone(&server.shared);
        tokio::spawn(accept(listener, tls, backend, shared));
        Ok(server)
    }

    /// Scheme, host and port of all addresses.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// An address to run a command at.
    ///
    /// # Errors
    /// When too many addresses are waiting to be used.
    pub fn exec(&self, exec: Exec) -> Result<String, TokenError> {
        self.url(Request::Exec(exec))
    }

    /// An address to attach to a container at.
    ///
    /// # Errors
    /// When too many addresses are waiting to be used.
    pub fn attach(&self, attach: Attach) -> Result<String, TokenError> {
        self.url(Request::Attach(attach))
    }

    /// An address to forward ports of a pod at. `ports` are for WebSocket clients without SPDY,
    /// which cannot name them.
    ///
    /// # Errors
    /// When too many addresses are waiting to be used.
    pub fn port_forward(&self, pod: String, ports: Vec<u16>) -> Result<String, TokenError> {
        self.url(Request::Forward(Forward { pod, ports }))
    }

    fn url(&self, request: Request) -> Result<String, TokenError> {
        let verb = request.verb();
        let token = self.shared.tokens.add(request, Instant::now())?;
        Ok(format!("{}/{verb}/{token}", self.base))
    }

    /// Takes no more connections, tells every client that its session ends, and waits a while.
    pub async fn shutdown(&self) {
        self.shared.stop.cancel();
        self.shared.sessions.close();
        if timeout(DRAIN, self.shared.sessions.wait()).await.is_err() {
            debug!(left = self.shared.sessions.len(), "sessions are cut off");
        }
    }
}

/// An address that a client on this node can connect to.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    backend: Arc<impl Backend>,
    shared: Arc<Shared>,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let next = async {
            // The semaphore is never closed.
            let place = Arc::clone(&places).acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        let (place, stream) = tokio::select! {
            next = next => next,
            () = shared.stop.cancelled() => return,
        };
        let stream = match stream {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: others have to be closed first.
                warn!(%error, "the streaming server cannot take a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (tls, backend) = (tls.clone(), Arc::clone(&backend));
        let state = Arc::clone(&shared);
        shared.sessions.spawn(async move {
            let _place = place;
            serve(stream, tls, Arc::clone(&backend), state).await;
            backend.ended();
        });
    }
}

async fn serve(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    backend: Arc<impl Backend>,
    shared: Arc<Shared>,
) {
    let client = match prepare(&stream).and_then(|()| HangUp::watch(&stream)) {
        Ok(client) => client,
        Err(error) => return debug!(%error, "a connection cannot be set up"),
    };
    let session = async {
        let Some(tls) = tls else {
            return http::serve(stream, backend, shared).await;
        };
        match timeout(HANDSHAKE, tls.accept(stream)).await {
            Ok(Ok(stream)) => http::serve(stream, backend, shared).await,
            Ok(Err(error)) => debug!(%error, "a TLS handshake failed"),
            Err(_) => debug!("a TLS handshake took too long"),
        }
    };
    tokio::select! {
        () = session => {}
        _ = client.abandoned(LAST_INPUT) => debug!("the client is gone and its input is not read"),
    }
}

/// Small messages go at once, and a client whose machine is gone is noticed.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(15))?;
    sockopt::set_tcp_keepcnt(stream, 4)?;
    Ok(())
}

#[cfg(test)]
mod tests;
