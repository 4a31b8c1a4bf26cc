//! One HTTP request that becomes a WebSocket or a SPDY connection.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY};
use http::header::{SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::SourceError;
use crate::protocol::{PROTOCOL_VERSION, SPDY, WEBSOCKET};
use crate::{tls, ws};

/// How long the server may take to answer the request.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of an error text that are read, at most.
const MAX_TEXT: usize = 4096;

/// Whom an `https` address is believed.
#[derive(Debug, Clone, Default)]
pub enum Trust {
    /// The certificate authorities of this machine.
    #[default]
    System,
    /// The certificate authorities in this PEM file.
    File(PathBuf),
    /// Anybody. Right only for an address that came over a trusted socket and stays on the node.
    Anybody,
}

/// Which protocols are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocols {
    /// WebSocket, then SPDY.
    #[default]
    Both,
    /// WebSocket alone.
    WebSocket,
    /// SPDY alone.
    Spdy,
}

/// How to connect.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Which protocols are tried.
    pub protocols: Protocols,
    /// For `https` addresses.
    pub trust: Trust,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Whoever gives addresses gave none.
    #[error("the runtime gives no address for streaming")]
    Source(#[source] SourceError),
    /// The address is of no use.
    #[error("the streaming address {url:?} has no {missing}")]
    Address {
        /// The address.
        url: String,
        /// What it lacks.
        missing: &'static str,
    },
    /// Nobody listens there, or it is lost on the way.
    #[error("cannot reach the streaming server at {address}")]
    Unreachable {
        /// Host and port.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The server does not answer.
    #[error("the streaming server at {address} does not answer within {} s", PATIENCE.as_secs())]
    Silent {
        /// Host and port.
        address: String,
    },
    /// What comes back is no HTTP.
    #[error("the streaming server at {address} does not speak HTTP/1.1")]
    Http {
        /// Host and port.
        address: String,
        /// Why.
        #[source]
        source: hyper::Error,
    },
    /// The certificates to trust cannot be read.
    #[error("cannot set up TLS; check the file of certificate authorities")]
    Trust(#[source] SourceError),
    /// The server wants no such stream.
    #[error("the streaming server refuses ({status}): {text}")]
    Refused {
        /// What it answered.
        status: StatusCode,
        /// Its words.
        text: String,
    },
    /// The server changes to another protocol than was asked for.
    #[error("the streaming server speaks another protocol than {asked}")]
    Protocol {
        /// What was asked for.
        asked: String,
    },
    /// SPDY cannot be set up, or a stream is not taken.
    #[error("the streaming server takes the connection but not its streams")]
    Streams(#[source] crate::spdy::OpenError),
    /// The system gives no random bytes, or the compressor no memory.
    #[error("cannot begin a connection")]
    Begin(#[source] io::Error),
}

impl ConnectError {
    /// Whether another protocol may have more luck: the server is there and knows the stream.
    fn is_about_protocol(&self) -> bool {
        match self {
            Self::Refused { status, .. } => *status != StatusCode::NOT_FOUND,
            Self::Protocol { .. } => true,
            _ => false,
        }
    }
}

/// A connection that either protocol has.
pub(super) enum Dialed {
    WebSocket(TokioIo<Upgraded>),
    Spdy(TokioIo<Upgraded>),
}

/// Connects by WebSocket, or by SPDY when the server does not want that.
///
/// Tokens of streaming addresses are used up by the first attempt on some runtimes, so `urls` is
/// asked for each.
pub(super) async fn dial<F>(
    mut urls: impl FnMut() -> F,
    options: &Options,
    websocket: &str,
    spdy: &str,
) -> Result<Dialed, ConnectError>
where
    F: Future<Output = Result<String, SourceError>>,
{
    if options.protocols != Protocols::Spdy {
        let url = urls().await.map_err(ConnectError::Source)?;
        match by_websocket(&url, options, websocket).await {
            Ok(io) => return Ok(Dialed::WebSocket(io)),
            Err(error) if error.is_about_protocol() && options.protocols == Protocols::Both => {
                tracing::debug!(%error, "no WebSocket, trying SPDY");
            }
            Err(error) => return Err(error),
        }
    }
    let url = urls().await.map_err(ConnectError::Source)?;
    by_spdy(&url, options, spdy).await.map(Dialed::Spdy)
}

async fn by_websocket(
    url: &str,
    options: &Options,
    protocol: &str,
) -> Result<TokioIo<Upgraded>, ConnectError> {
    let key = ws::key().map_err(ConnectError::Begin)?;
    let headers = [
        (UPGRADE, WEBSOCKET),
        (SEC_WEBSOCKET_VERSION, "13"),
        (SEC_WEBSOCKET_KEY, &key),
        (SEC_WEBSOCKET_PROTOCOL, protocol),
    ];
    let headers = headers.map(|(name, value)| (name.to_string(), value.to_owned()));
    let response = request(url, options, Method::GET, &headers).await?;
    let good = says(
        response.headers(),
        SEC_WEBSOCKET_ACCEPT.as_str(),
        &ws::accept(&key),
    ) && says(
        response.headers(),
        SEC_WEBSOCKET_PROTOCOL.as_str(),
        protocol,
    );
    upgrade(response, good, protocol, url).await
}

async fn by_spdy(
    url: &str,
    options: &Options,
    protocol: &str,
) -> Result<TokioIo<Upgraded>, ConnectError> {
    let headers = [(UPGRADE.as_str(), SPDY), (PROTOCOL_VERSION, protocol)];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let response = request(url, options, Method::POST, &headers).await?;
    let good = says(response.headers(), PROTOCOL_VERSION, protocol);
    upgrade(response, good, protocol, url).await
}

fn says(headers: &HeaderMap, name: &str, value: &str) -> bool {
    headers.get(name).is_some_and(|said| said == value)
}

async fn request(
    url: &str,
    options: &Options,
    method: Method,
    headers: &[(String, String)],
) -> Result<Response<Incoming>, ConnectError> {
    let lacks = |missing| ConnectError::Address {
        url: url.to_owned(),
        missing,
    };
    let uri: Uri = url.parse().map_err(|_| lacks("form of a URL"))?;
    let authority = uri.authority().ok_or_else(|| lacks("host"))?;
    let tls = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(lacks("scheme http or https")),
    };
    let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let host = authority.host().trim_matches(['[', ']']);
    let address = authority.to_string();
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, authority.as_str())
        .header(CONNECTION, "Upgrade");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|_| lacks("usable path"))?;
    let unreachable = |source| ConnectError::Unreachable {
        address: address.clone(),
        source,
    };
    let answer = async {
        let stream = TcpStream::connect((host, port))
            .await
            .map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        if tls {
            let name = ServerName::try_from(host.to_owned()).map_err(|_| lacks("host"))?;
            let connector = connector(&options.trust).map_err(ConnectError::Trust)?;
            let stream = connector.connect(name, stream).await.map_err(unreachable)?;
            send(stream, request, &address).await
        } else {
            send(stream, request, &address).await
        }
    };
    match timeout(PATIENCE, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(ConnectError::Silent { address }),
    }
}

async fn send(
    stream: impl crate::connection::Transport + Unpin,
    request: Request<Empty<Bytes>>,
    address: &str,
) -> Result<Response<Incoming>, ConnectError> {
    let http = |source| ConnectError::Http {
        address: address.to_owned(),
        source,
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(http)?;
    tokio::spawn(async move {
        // What goes wrong is told by the request or by the upgraded connection.
        let _ = connection.with_upgrades().await;
    });
    sender.send_request(request).await.map_err(http)
}

async fn upgrade(
    response: Response<Incoming>,
    good: bool,
    asked: &str,
    url: &str,
) -> Result<TokioIo<Upgraded>, ConnectError> {
    let status = response.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        let body = Limited::new(response.into_body(), MAX_TEXT).collect();
        let text = timeout(PATIENCE, body).await.ok().and_then(Result::ok);
        let text = text.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned());
        return Err(ConnectError::Refused {
            status,
            text: text.unwrap_or_default(),
        });
    }
    if !good {
        return Err(ConnectError::Protocol {
            asked: asked.to_owned(),
        });
    }
    let upgraded = hyper::upgrade::on(response).await;
    upgraded
        .map(TokioIo::new)
        .map_err(|source| ConnectError::Http {
            address: url.to_owned(),
            source,
        })
}

fn connector(trust: &Trust) -> Result<TlsConnector, SourceError> {
    let builder = tls::client_builder()?;
    let mut roots = rustls::RootCertStore::empty();
    match trust {
        Trust::Anybody => {
            let config = builder
                .dangerous()
                .with_custom_certificate_verifier(tls::anybody())
                .with_no_client_auth();
            return Ok(TlsConnector::from(Arc::new(config)));
        }
        Trust::System => {
            let loaded = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(loaded.certs);
        }
        Trust::File(path) => {
            for certificate in CertificateDer::pem_file_iter(path)? {
                roots.add(certificate?)?;
            }
        }
    }
    let config = builder.with_root_certificates(roots).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
