//! One HTTP request: connection, time limit, redirects, status.
//!
//! Secrets go only to the origin (scheme, host and port) that the request was made for: a redirect
//! to another one is followed without them.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderName, LOCATION, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::timeout;

use super::error::{RequestError, origin, shown};
use super::hosts::{HostsError, TlsFiles};
use super::resolve::Resolver;
use super::tls;
use crate::config::NetworkConfig;

/// Most redirects of one request.
const MAX_REDIRECTS: usize = 10;
/// Most bytes of an error's body that are read for its message.
const MAX_MESSAGE: u64 = 8 << 10;

/// Connections to hosts that share TLS settings. Cheap to clone.
#[derive(Clone)]
pub(crate) struct HttpClient {
    client: Client<HttpsConnector<HttpConnector<Resolver>>, Full<Bytes>>,
    response_timeout: Duration,
}

/// The client for hosts without settings of their own, made when it is first needed.
#[derive(Clone, Default)]
pub(crate) struct Clients {
    plain: Arc<OnceLock<HttpClient>>,
}

impl Clients {
    /// The client for a host. May read certificate files: call it on a blocking thread.
    pub(super) fn get(
        &self,
        files: &TlsFiles,
        dial_timeout: Option<Duration>,
        network: &NetworkConfig,
    ) -> Result<HttpClient, HostsError> {
        if dial_timeout.is_some() || *files != TlsFiles::default() {
            let connect = dial_timeout.unwrap_or(network.connect_timeout);
            return HttpClient::new(files, connect, network.response_timeout);
        }
        if let Some(client) = self.plain.get() {
            return Ok(client.clone());
        }
        let client = HttpClient::new(files, network.connect_timeout, network.response_timeout)?;
        Ok(self.plain.get_or_init(|| client).clone())
    }
}

impl HttpClient {
    fn new(files: &TlsFiles, connect: Duration, response: Duration) -> Result<Self, HostsError> {
        let mut http = HttpConnector::new_with_resolver(Resolver::of_system());
        http.enforce_http(false);
        http.set_connect_timeout(Some(connect));
        http.set_nodelay(true);
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls::client_config(files)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(10)
            .build(https);
        Ok(Self {
            client,
            response_timeout: response,
        })
    }
}

/// A request before its redirects. It holds secrets, so it cannot be printed.
pub(crate) struct Call {
    pub(super) method: Method,
    pub(super) url: Uri,
    /// Sent wherever redirects lead.
    pub(super) headers: HeaderMap,
    /// Sent to the origin of `url` only.
    pub(super) secrets: HeaderMap,
    pub(super) body: Bytes,
}

impl Call {
    pub(super) fn new(method: Method, url: Uri) -> Self {
        let (headers, secrets) = (HeaderMap::new(), HeaderMap::new());
        Self {
            method,
            url,
            headers,
            secrets,
            body: Bytes::new(),
        }
    }

    pub(super) fn header(mut self, name: HeaderName, value: &'static str) -> Self {
        self.headers.insert(name, HeaderValue::from_static(value));
        self
    }
}

impl HttpClient {
    /// Sends the request, follows redirects, and returns whatever answer is none, with whether it
    /// comes from the origin that was asked. The time limit holds for each hop.
    pub(super) async fn send(
        &self,
        call: &Call,
    ) -> Result<(Response<Incoming>, bool), RequestError> {
        let mut url = call.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send_once(call, &url).await?;
            if !is_redirect(response.status()) {
                let at_origin = origin(&url) == origin(&call.url);
                return Ok((response, at_origin));
            }
            let refuse = |reason| RequestError::BadRedirect {
                url: shown(&call.url),
                reason,
            };
            if !matches!(call.method, Method::GET | Method::HEAD) {
                return Err(refuse("the request is neither GET nor HEAD"));
            }
            let location = response
                .headers()
                .get(LOCATION)
                .and_then(|value| value.to_str().ok());
            let location = location.ok_or_else(|| refuse("it has no readable Location"))?;
            let next = join(&url, location).ok_or_else(|| refuse("its Location is no HTTP URL"))?;
            if url.scheme_str() == Some("https") && next.scheme_str() == Some("http") {
                return Err(refuse("it leads from HTTPS to plain HTTP"));
            }
            url = next;
        }
        Err(RequestError::Redirects {
            url: shown(&call.url),
            limit: MAX_REDIRECTS,
        })
    }

    async fn send_once(&self, call: &Call, url: &Uri) -> Result<Response<Incoming>, RequestError> {
        let mut request = Request::new(Full::new(call.body.clone()));
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = url.clone();
        let headers = request.headers_mut();
        *headers = call.headers.clone();
        let agent = concat!("kelson/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        if origin(url) == origin(&call.url) {
            headers.extend(call.secrets.clone());
        }
        match timeout(self.response_timeout, self.client.request(request)).await {
            Err(_) => Err(RequestError::Timeout {
                url: shown(&call.url),
                after: self.response_timeout,
            }),
            // The address that failed may be that of a redirect: only its origin is shown.
            Ok(Err(source)) => Err(RequestError::Connect {
                url: origin(url),
                source: Box::new(source),
            }),
            Ok(Ok(response)) => Ok(response),
        }
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// The address that `location` means at `base` (RFC 3986, section 5.2, without dot segments).
fn join(base: &Uri, location: &str) -> Option<Uri> {
    let text = if location.contains("://") && !location.starts_with(['/', '?']) {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{}://{rest}", base.scheme_str()?)
    } else if location.starts_with('/') {
        format!("{}{location}", origin(base))
    } else if location.starts_with('?') {
        format!("{}{location}", shown(base))
    } else {
        let directory = base
            .path()
            .rsplit_once('/')
            .map_or("", |(directory, _)| directory);
        format!("{}{directory}/{location}", origin(base))
    };
    let uri: Uri = text.split('#').next()?.parse().ok()?;
    (matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()).then_some(uri)
}

/// Reads a whole body of at most `limit` bytes, each piece of it within `wait`.
pub(super) async fn read_all(
    url: &Uri,
    response: Response<Incoming>,
    limit: u64,
    wait: Duration,
) -> Result<Bytes, RequestError> {
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    // The whole document is small: one time limit for all of it leaves no room for a trickle.
    let all = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|source| RequestError::Broken {
                url: shown(url),
                source: Box::new(source),
            })?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if bytes.len() as u64 + data.len() as u64 > limit {
                return Err(RequestError::TooLarge {
                    url: shown(url),
                    limit,
                });
            }
            bytes.extend_from_slice(&data);
        }
        Ok(())
    };
    match timeout(wait, all).await {
        Err(_) => Err(RequestError::Timeout {
            url: shown(url),
            after: wait,
        }),
        Ok(Err(error)) => Err(error),
        Ok(Ok(())) => Ok(Bytes::from(bytes)),
    }
}

/// Makes an error of a response that is none of the wanted ones, with what the registry says.
pub(super) async fn status_error(
    url: &Uri,
    response: Response<Incoming>,
    wait: Duration,
) -> RequestError {
    let status = response.status();
    let retry_after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .map(Duration::from_secs);
    let body = read_all(url, response, MAX_MESSAGE, wait)
        .await
        .unwrap_or_default();
    RequestError::Status {
        url: shown(url),
        status,
        message: message(&body),
        retry_after,
    }
}

/// The first error of a registry's answer (OCI distribution specification, "Error Codes").
fn message(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Body {
        errors: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(Body { errors }) = serde_json::from_slice(body) else {
        return String::new();
    };
    let Some(Entry { code, message }) = errors.into_iter().next() else {
        return String::new();
    };
    let text: String = format!(": {code}: {message}")
        .chars()
        .filter(|c| !c.is_control())
        .take(300)
        .collect();
    text.trim_end_matches([':', ' ']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirect_targets_are_resolved() {
        let base: Uri = "https://r.io:5000/v2/a/blobs/x?q=1".parse().unwrap();
        let joined = |location| join(&base, location).map(|uri| uri.to_string());
        let expect = |location, target: &str| assert_eq!(joined(location).as_deref(), Some(target));
        expect("http://s.io/y?sig=z#part", "http://s.io/y?sig=z");
        expect("//s.io/y", "https://s.io/y");
        expect("/y?next=http://x", "https://r.io:5000/y?next=http://x");
        expect("y", "https://r.io:5000/v2/a/blobs/y");
        expect("?z", "https://r.io:5000/v2/a/blobs/x?z");
        for bad in [
            "ftp://s.io/y",
            "file:///etc/passwd",
            "http://",
            "https:// /",
        ] {
            assert_eq!(joined(bad), None, "{bad}");
        }
    }

    #[test]
    fn messages_are_short_and_clean() {
        let body = br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow\ndown"}]}"#;
        assert_eq!(message(body), ": TOOMANYREQUESTS: slowdown");
        assert_eq!(message(b"<html>"), "");
        assert_eq!(message(b"{\"errors\":[]}"), "");
        let long = format!("{{\"errors\":[{{\"message\":\"{}\"}}]}}", "x".repeat(5000));
        assert!(message(long.as_bytes()).len() <= 300);
    }
}
