//! HTTP/1.1: which request is which, the answers to wrong ones, and the upgrade.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{
    ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, Request as HttpRequest, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::oneshot;
use tracing::debug;

use super::backend::Backend;
use super::tokens::Request;
use super::{Shared, forward, process};
use crate::connection::Transport;
use crate::protocol::{
    ACCEPTED_VERSIONS, PORT_FORWARD, PROTOCOL_VERSION, SPDY, TUNNEL, V4, V5, WEBSOCKET,
};
use crate::ws::{self, Codec};

/// How long a client may take to send a request's head.
const HEAD: Duration = Duration::from_secs(30);
/// Bytes of a request's head, at most; the least that hyper takes.
const MAX_HEAD: usize = 8192;
/// Headers of a request, at most.
const MAX_HEADERS: usize = 64;

/// What a SPDY client of exec and attach may speak, the best first.
const SPDY_PROCESS: &[&str] = &[
    V5,
    V4,
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
];
/// What a WebSocket client of exec and attach may speak; one that names nothing speaks the first.
const WEBSOCKET_PROCESS: &[&str] = &[
    "",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    V4,
    "v4.base64.channel.k8s.io",
    V5,
];
/// What a WebSocket client of port-forward may speak; one that names nothing speaks the first.
const WEBSOCKET_FORWARD: &[&str] = &["", V4, "v4.base64.channel.k8s.io", TUNNEL];

type Answer = Response<Full<Bytes>>;

/// What was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Agreed {
    Spdy(&'static str),
    WebSocket(&'static str),
}

impl Agreed {
    /// The name of the version.
    pub(super) fn version(self) -> &'static str {
        match self {
            Self::Spdy(version) | Self::WebSocket(version) => version,
        }
    }

    /// What the messages of a WebSocket look like.
    pub(super) fn codec(self) -> Codec {
        match self.version() {
            TUNNEL => Codec::Tunnel,
            version if version.contains("base64") => Codec::Base64,
            version => Codec::Binary {
                closes: version == V5,
            },
        }
    }
}

/// Answers one request and, if it upgrades, serves the session to its end.
pub(super) async fn serve(
    transport: impl Transport + Unpin,
    backend: Arc<impl Backend>,
    shared: Arc<Shared>,
) {
    let (begin, begun) = oneshot::channel();
    let begin = std::sync::Mutex::new(Some(begin));
    let stop = shared.stop.clone();
    let state = Arc::clone(&shared);
    let service = service_fn(move |mut request: HttpRequest<Incoming>| {
        let answer = match admit(&request, &state) {
            Ok((wanted, agreed, answer)) => {
                let upgrade = hyper::upgrade::on(&mut request);
                let begin = begin.lock().ok().and_then(|mut begin| begin.take());
                if let Some(begin) = begin {
                    // An error says that the session was given up.
                    let _ = begin.send((wanted, agreed, upgrade));
                }
                answer
            }
            Err(answer) => *answer,
        };
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(transport), service)
        .with_upgrades();
    tokio::select! {
        ended = connection => {
            if let Err(error) = ended {
                debug!(%error, "a request failed");
            }
        }
        () = stop.cancelled() => return,
    }
    // Without a session the sender is gone.
    let Ok((wanted, agreed, upgrade)) = begun.await else {
        return;
    };
    match upgrade.await {
        Ok(upgraded) => session(TokioIo::new(upgraded), wanted, agreed, backend, &shared).await,
        Err(error) => debug!(%error, "the upgrade failed"),
    }
}

async fn session(
    io: TokioIo<Upgraded>,
    wanted: Request,
    agreed: Agreed,
    backend: Arc<impl Backend>,
    shared: &Shared,
) {
    debug!(verb = wanted.verb(), ?agreed, "a session begins");
    let verb = wanted.verb();
    match wanted {
        Request::Forward(wanted) => forward::serve(io, agreed, wanted, backend, shared).await,
        Request::Exec(exec) => process::exec(io, agreed, exec, &*backend, shared).await,
        Request::Attach(attach) => process::attach(io, agreed, attach, &*backend, shared).await,
    }
    debug!(verb, "a session ends");
}

/// Checks a request; uses its token up when the answer is an upgrade.
fn admit<B>(
    request: &HttpRequest<B>,
    shared: &Shared,
) -> Result<(Request, Agreed, Answer), Box<Answer>> {
    let unknown = || refuse(StatusCode::NOT_FOUND, "404 page not found");
    let mut path = request.uri().path().splitn(3, '/').skip(1);
    let (verb, token) = (path.next().unwrap_or(""), path.next().unwrap_or(""));
    if !matches!(verb, "exec" | "attach" | "portforward") || token.is_empty() {
        return Err(unknown());
    }
    if !matches!(*request.method(), Method::GET | Method::POST) {
        return Err(with_allow(refuse(
            StatusCode::METHOD_NOT_ALLOWED,
            "streams are asked for with GET or POST",
        )));
    }
    let wanted = shared
        .tokens
        .look(verb, token, Instant::now())
        .ok_or_else(unknown)?;
    let is_forward = matches!(wanted, Request::Forward(_));
    let (agreed, answer) = if lists(request.headers(), &UPGRADE, WEBSOCKET) {
        websocket(request, is_forward)?
    } else {
        spdy(request.headers(), is_forward)?
    };
    // Another request may have been faster.
    if !shared.tokens.take(token) {
        return Err(unknown());
    }
    Ok((wanted, agreed, answer))
}

fn spdy(headers: &HeaderMap, is_forward: bool) -> Result<(Agreed, Answer), Box<Answer>> {
    if !lists(headers, &CONNECTION, "upgrade") || !lists(headers, &UPGRADE, SPDY) {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            "unable to upgrade: the request asks for neither SPDY/3.1 nor WebSocket",
        ));
    }
    let known = if is_forward {
        &[PORT_FORWARD]
    } else {
        SPDY_PROCESS
    };
    let name = HeaderName::from_static(PROTOCOL_VERSION);
    if values(headers, &name).next().is_none() {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            "unable to upgrade: the request has no X-Stream-Protocol-Version",
        ));
    }
    let Some(version) = agree(headers, &name, known) else {
        let mut answer = refuse(
            StatusCode::FORBIDDEN,
            &format!(
                "unable to upgrade: none of the protocols asked for is known; known are {known:?}"
            ),
        );
        for version in known {
            let value = HeaderValue::from_static(version);
            answer.headers_mut().append(ACCEPTED_VERSIONS, value);
        }
        return Err(answer);
    };
    let mut answer = switch(SPDY);
    answer
        .headers_mut()
        .insert(name, HeaderValue::from_static(version));
    Ok((Agreed::Spdy(version), answer))
}

fn websocket<B>(
    request: &HttpRequest<B>,
    is_forward: bool,
) -> Result<(Agreed, Answer), Box<Answer>> {
    let headers = request.headers();
    if request.method() != Method::GET {
        let text = "a WebSocket is asked for with GET";
        return Err(with_allow(refuse(StatusCode::METHOD_NOT_ALLOWED, text)));
    }
    if !lists(headers, &CONNECTION, "upgrade") {
        let text = "unable to upgrade: Connection does not say so";
        return Err(refuse(StatusCode::BAD_REQUEST, text));
    }
    if !lists(headers, &SEC_WEBSOCKET_VERSION, "13") {
        let mut answer = refuse(StatusCode::BAD_REQUEST, "the WebSocket version is not 13");
        let version = HeaderValue::from_static("13");
        answer.headers_mut().insert(SEC_WEBSOCKET_VERSION, version);
        return Err(answer);
    }
    let Some(key) = headers
        .get(SEC_WEBSOCKET_KEY)
        .and_then(|key| key.to_str().ok())
    else {
        let text = "the request has no Sec-WebSocket-Key";
        return Err(refuse(StatusCode::BAD_REQUEST, text));
    };
    let known = if is_forward {
        WEBSOCKET_FORWARD
    } else {
        WEBSOCKET_PROCESS
    };
    let asks = values(headers, &SEC_WEBSOCKET_PROTOCOL).next().is_some();
    let version = if asks {
        agree(headers, &SEC_WEBSOCKET_PROTOCOL, known)
    } else {
        Some("")
    };
    let Some(version) = version else {
        let text = format!(
            "none of the protocols asked for is known; known are {:?}",
            &known[1..]
        );
        return Err(refuse(StatusCode::FORBIDDEN, &text));
    };
    let mut answer = switch(WEBSOCKET);
    let accept = HeaderValue::try_from(ws::accept(key)).map_err(|_| {
        refuse(
            StatusCode::BAD_REQUEST,
            "the Sec-WebSocket-Key is of no use",
        )
    })?;
    answer.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    if asks {
        let version = HeaderValue::from_static(version);
        answer.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, version);
    }
    Ok((Agreed::WebSocket(version), answer))
}

/// The elements of a header that is a list, over all of its lines.
fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|value| !value.is_empty())
}

fn lists(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    values(headers, name).any(|value| value.eq_ignore_ascii_case(wanted))
}

/// The first that the client asks for and the server knows.
fn agree(
    headers: &HeaderMap,
    name: &HeaderName,
    known: &'static [&'static str],
) -> Option<&'static str> {
    values(headers, name).find_map(|asked| known.iter().find(|known| **known == asked).copied())
}

fn switch(to: &'static str) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(to));
    answer
}

fn refuse(status: StatusCode, text: &str) -> Box<Answer> {
    let mut answer = Response::new(Full::from(format!("{text}\n")));
    *answer.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, plain);
    let close = HeaderValue::from_static("close");
    answer.headers_mut().insert(CONNECTION, close);
    Box::new(answer)
}

fn with_allow(mut answer: Box<Answer>) -> Box<Answer> {
    let methods = HeaderValue::from_static("GET, POST");
    answer.headers_mut().insert(ALLOW, methods);
    answer
}
