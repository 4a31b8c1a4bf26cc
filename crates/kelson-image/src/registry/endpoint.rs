//! One host that serves a repository: its addresses, its headers, its authentication.

use std::sync::atomic::{AtomicBool, Ordering};

use http::header::AUTHORIZATION;
use http::{HeaderMap, Method, Response, StatusCode, Uri};
use hyper::body::Incoming;

use super::auth::{Auth, form};
use super::error::{RequestError, shown};
use super::hosts::{Host, HostsError, TlsFiles};
use super::http::{Call, Clients, HttpClient};
use crate::config::NetworkConfig;
use crate::credentials::Identity;
use crate::reference::Reference;

/// Refusals that one request answers with other credentials: a token may be missing, then expired.
const MAX_CHALLENGES: usize = 2;

/// A host and what was learned of it in this session.
pub(crate) struct Endpoint {
    base: Uri,
    pub(super) pull: bool,
    pub(super) resolve: bool,
    headers: HeaderMap,
    repository: String,
    /// The domain that a mirror serves for.
    namespace: Option<String>,
    client: HttpClient,
    auth: Auth,
    down: AtomicBool,
}

impl Endpoint {
    /// Reads certificate files: call it on a blocking thread.
    pub(super) fn new(
        host: Host,
        reference: &Reference,
        identity: Option<&Identity>,
        clients: &Clients,
        network: &NetworkConfig,
    ) -> Result<Self, HostsError> {
        let client = clients.get(&host.tls, host.dial_timeout, network)?;
        // "skip_verify" is meant for the registry, not for whatever token server it names.
        let token_client = if host.tls.skip_verify {
            let verified = TlsFiles {
                skip_verify: false,
                ..host.tls.clone()
            };
            clients.get(&verified, host.dial_timeout, network)?
        } else {
            client.clone()
        };
        let authority = host
            .base
            .authority()
            .map_or("", |authority| authority.as_str());
        let is_registry = host.origin || authority == reference.domain();
        let identity = identity.filter(|_| is_registry).cloned();
        let mirrors_hub = reference.domain() == "docker.io" && authority == "registry-1.docker.io";
        let foreign = authority != reference.domain() && !mirrors_hub;
        let scope = format!("repository:{}:pull", reference.path());
        Ok(Self {
            auth: Auth::new(
                host.base.clone(),
                identity,
                scope,
                token_client,
                network.clone(),
            ),
            namespace: foreign.then(|| reference.domain().to_owned()),
            repository: reference.path().to_owned(),
            base: host.base,
            pull: host.pull,
            resolve: host.resolve,
            headers: host.headers,
            client,
            down: AtomicBool::new(false),
        })
    }

    /// The address of a thing of the repository, such as `manifests/latest`.
    pub(super) fn url(&self, thing: &str) -> Result<Uri, RequestError> {
        let query = match &self.namespace {
            None => String::new(),
            Some(namespace) => format!("?{}", form(&[("ns", namespace)])),
        };
        let base = self.base.to_string();
        let base = base.trim_end_matches('/');
        format!("{base}/{}/{thing}{query}", self.repository)
            .parse()
            .map_err(|_| RequestError::Protocol {
                url: shown(&self.base),
                reason: "it makes no usable URL",
            })
    }

    /// Sends a request, with credentials where the host wants them. The answer may have any status.
    pub(super) async fn send(
        &self,
        method: Method,
        url: Uri,
        headers: HeaderMap,
    ) -> Result<Response<Incoming>, RequestError> {
        let mut call = Call::new(method, url);
        call.headers = headers;
        let mut challenges = 0;
        loop {
            let authorization = self.auth.header().await?;
            call.secrets = self.headers.clone();
            if let Some(value) = &authorization {
                call.secrets.insert(AUTHORIZATION, value.clone());
            }
            let (response, at_origin) = match self.client.send(&call).await {
                Ok(answer) => answer,
                Err(error) => {
                    let unreachable = matches!(
                        error,
                        RequestError::Connect { .. } | RequestError::Timeout { .. }
                    );
                    self.down.fetch_or(unreachable, Ordering::Relaxed);
                    return Err(error);
                }
            };
            self.down.store(false, Ordering::Relaxed);
            // Only the host itself may ask for its credentials, not one that it redirects to.
            let refused = response.status() == StatusCode::UNAUTHORIZED && at_origin;
            if !refused || challenges == MAX_CHALLENGES {
                return Ok(response);
            }
            challenges += 1;
            if !self
                .auth
                .challenged(authorization.as_ref(), response.headers())
                .await?
            {
                return Ok(response);
            }
        }
    }

    /// Whether the last request got no connection: others should be tried first.
    pub(super) fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    /// The host as messages show it.
    pub(super) fn name(&self) -> String {
        shown(&self.base)
    }
}
