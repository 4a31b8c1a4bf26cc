//! The registry client: one [`Session`] reads one repository, from its mirrors and its registry
//! (OCI distribution specification 1.1, pull).
//!
//! Every answer is checked: digests and sizes where they are known, limits everywhere. What fails
//! is tried again where that makes sense, then at the next host. The client never writes a file.

mod auth;
mod blob;
mod challenge;
mod endpoint;
mod error;
mod hosts;
mod http;
mod resolve;
mod retry;
mod tls;

use std::collections::BTreeSet;
use std::sync::Arc;

use ::http::header::{ACCEPT, CONTENT_TYPE};
use ::http::{HeaderMap, HeaderValue, Method, StatusCode};
use bytes::Bytes;
use kelson_snapshot::Digest;

use blob::{Download, Ended};
pub(crate) use blob::{Piece, Sink};
use endpoint::Endpoint;
pub use error::RequestError;
pub use hosts::HostsError;
pub(crate) use http::Clients;
use http::{read_all, status_error};
use retry::Backoff;

use crate::config::{ImageConfig, NetworkConfig};
use crate::credentials::Credentials;
use crate::error::PullError;
use crate::manifest::{self, Descriptor, MAX_MANIFEST};
use crate::reference::Reference;

/// Most resumptions of one blob at one host, however much progress each of them makes.
const MAX_RESUMES: u32 = 100;
/// Attempts at a host that is not the last one: a dead mirror shall not cost much time.
const MIRROR_ATTEMPTS: u32 = 2;

/// A manifest as it came.
pub(crate) struct Fetched {
    pub(crate) bytes: Bytes,
    pub(crate) digest: Digest,
    pub(crate) content_type: Option<String>,
}

/// The hosts of one repository, for the length of one pull.
pub(crate) struct Session {
    reference: Reference,
    endpoints: Vec<Endpoint>,
    network: NetworkConfig,
}

/// Which hosts served bytes of a blob, so that others can be asked when the bytes were wrong.
pub(crate) type Served = BTreeSet<usize>;

/// Why a blob is not there.
pub(crate) enum BlobError {
    /// Whoever read the bytes stopped reading.
    Closed,
    /// No host could deliver it.
    Failed(PullError),
}

impl Session {
    /// Reads the configuration of the reference's registry. Opens no connection.
    pub(crate) async fn open(
        config: &ImageConfig,
        clients: &Clients,
        reference: &Reference,
        credentials: &Credentials,
    ) -> Result<Self, PullError> {
        let (certs_dir, network) = (config.certs_dir.clone(), config.network.clone());
        let (clients, reference) = (clients.clone(), reference.clone());
        let identity = credentials.for_domain(reference.domain()).cloned();
        let domain = reference.domain().to_owned();
        let opened = tokio::task::spawn_blocking(move || {
            let endpoints = hosts::load(&certs_dir, reference.domain())?
                .into_iter()
                .map(|host| Endpoint::new(host, &reference, identity.as_ref(), &clients, &network))
                .collect::<Result<_, _>>()?;
            Ok(Self {
                reference,
                endpoints,
                network,
            })
        });
        match opened.await {
            Err(_) => Err(PullError::Stopped),
            Ok(Ok(session)) => Ok(session),
            Ok(Err(source)) => Err(PullError::Hosts {
                domain,
                source: Arc::new(source),
            }),
        }
    }

    /// The digest that a tag points to, as far as a registry tells it without sending the manifest
    /// (which counts less against rate limits). `None` if it does not say.
    pub(crate) async fn head(&self, tag: &str) -> Option<Digest> {
        let endpoint = self.candidates(|endpoint| endpoint.resolve).next()?.1;
        let url = endpoint.url(&format!("manifests/{tag}")).ok()?;
        let response = endpoint.send(Method::HEAD, url, accept()).await.ok()?;
        if response.status() != StatusCode::OK {
            return None;
        }
        response
            .headers()
            .get("docker-content-digest")?
            .to_str()
            .ok()?
            .parse()
            .ok()
    }

    /// The manifest or index that a tag points to.
    pub(crate) async fn manifest_by_tag(&self, tag: &str) -> Result<Fetched, PullError> {
        self.manifest(tag, None, |endpoint| endpoint.resolve, "resolve")
            .await
    }

    /// The manifest or index with this digest.
    pub(crate) async fn manifest_by_digest(&self, digest: &Digest) -> Result<Fetched, PullError> {
        let name = digest.to_string();
        self.manifest(&name, Some(digest), |endpoint| endpoint.pull, "pull")
            .await
    }

    async fn manifest(
        &self,
        name: &str,
        expected: Option<&Digest>,
        able: impl Fn(&Endpoint) -> bool,
        capability: &'static str,
    ) -> Result<Fetched, PullError> {
        let mut last = RequestError::NoHost(capability);
        for (index, endpoint) in self.candidates(able) {
            let mut backoff = self.backoff(index);
            loop {
                let error = match self.manifest_once(endpoint, name, expected).await {
                    Ok(fetched) => return Ok(fetched),
                    Err(error) => error,
                };
                if let Err(error) = backoff.pause(error).await {
                    last = self.give_up(endpoint, error);
                    break;
                }
            }
        }
        let source = Arc::new(last);
        let reference = self.reference.to_string();
        Err(match &*source {
            error if error.is_not_found() => PullError::NotFound { reference, source },
            error if error.is_unauthorized() => PullError::Unauthorized { reference, source },
            RequestError::Digest { expected, got, .. } => PullError::DigestMismatch {
                what: format!("manifest {name}"),
                expected: *expected,
                got: *got,
            },
            RequestError::TooLarge { limit, .. } => PullError::TooLarge {
                what: format!("manifest {name}"),
                limit: *limit,
            },
            _ => PullError::RegistryUnavailable {
                reference,
                what: "the manifest".into(),
                source,
            },
        })
    }

    async fn manifest_once(
        &self,
        endpoint: &Endpoint,
        name: &str,
        expected: Option<&Digest>,
    ) -> Result<Fetched, RequestError> {
        let url = endpoint.url(&format!("manifests/{name}"))?;
        let wait = self.network.response_timeout;
        let response = endpoint.send(Method::GET, url.clone(), accept()).await?;
        if response.status() != StatusCode::OK {
            return Err(status_error(&url, response, wait).await);
        }
        let text = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
        let announced = text("docker-content-digest").and_then(|digest| digest.parse().ok());
        let content_type = text(CONTENT_TYPE.as_str()).map(|value| {
            value
                .split(';')
                .next()
                .unwrap_or_default()
                .trim()
                .to_owned()
        });
        let bytes = read_all(&url, response, MAX_MANIFEST, wait).await?;
        let got = Digest::of(&bytes);
        match expected.or(announced.as_ref()) {
            Some(expected) if *expected != got => Err(RequestError::Digest {
                url: error::shown(&url),
                expected: *expected,
                got,
            }),
            _ => Ok(Fetched {
                bytes,
                digest: got,
                content_type,
            }),
        }
    }

    /// A small blob, checked. Its declared size is what memory it takes.
    pub(crate) async fn small_blob(&self, blob: &Descriptor) -> Result<Bytes, PullError> {
        let mut bad = Served::new();
        loop {
            let mut sink = Sink::Memory(Vec::new());
            let mut served = Served::new();
            match self.blob(blob, &mut sink, &bad, &mut served).await {
                Ok(()) => {}
                Err(BlobError::Closed) => return Err(PullError::Stopped),
                Err(BlobError::Failed(error)) => return Err(error),
            }
            let Sink::Memory(bytes) = sink else {
                return Err(PullError::Stopped);
            };
            let got = Digest::of(&bytes);
            if got == blob.digest {
                return Ok(Bytes::from(bytes));
            }
            bad.extend(served);
            if !self.has_others(&bad) {
                let what = "the image configuration".to_owned();
                return Err(PullError::DigestMismatch {
                    what,
                    expected: blob.digest,
                    got,
                });
            }
        }
    }

    /// Whether a host is left besides those in `bad`.
    pub(crate) fn has_others(&self, bad: &Served) -> bool {
        self.candidates(|endpoint| endpoint.pull)
            .any(|(index, _)| !bad.contains(&index))
    }

    /// Downloads a blob into `sink`, from the hosts that are not in `bad`. Sizes are checked here,
    /// the digest by whoever reads; `served` receives the hosts that bytes came from.
    pub(crate) async fn blob(
        &self,
        blob: &Descriptor,
        sink: &mut Sink,
        bad: &Served,
        served: &mut Served,
    ) -> Result<(), BlobError> {
        let mut download = Download { blob, got: 0, sink };
        let mut last = RequestError::NoHost("pull");
        for (index, endpoint) in self.candidates(|endpoint| endpoint.pull) {
            if bad.contains(&index) {
                continue;
            }
            let mut backoff = self.backoff(index);
            let mut resumes = 0;
            loop {
                let before = download.got;
                let ended = download.attempt(endpoint, &self.network).await;
                if download.got > before || ended.is_ok() {
                    served.insert(index);
                }
                let error = match ended {
                    Ok(()) => return Ok(()),
                    Err(Ended::Closed) => return Err(BlobError::Closed),
                    Err(Ended::Failed(error)) => error,
                };
                let progressed = download.got - before >= self.network.progress_bytes;
                if progressed && resumes < MAX_RESUMES {
                    resumes += 1;
                    backoff.reset();
                }
                if let Err(error) = backoff.pause(error).await {
                    last = self.give_up(endpoint, error);
                    break;
                }
            }
        }
        Err(BlobError::Failed(self.blob_error(blob, last)))
    }

    fn blob_error(&self, blob: &Descriptor, error: RequestError) -> PullError {
        let what = format!("blob {}", blob.digest);
        let reference = self.reference.to_string();
        match error {
            RequestError::Size { expected, .. } => PullError::SizeMismatch { what, expected },
            error if error.is_unauthorized() => PullError::Unauthorized {
                reference,
                source: Arc::new(error),
            },
            error => PullError::RegistryUnavailable {
                reference,
                what,
                source: Arc::new(error),
            },
        }
    }

    /// Hosts to try, those that did not answer last time after the others.
    fn candidates<'a>(
        &'a self,
        able: impl Fn(&Endpoint) -> bool + 'a,
    ) -> impl Iterator<Item = (usize, &'a Endpoint)> {
        let mut able: Vec<_> = self
            .endpoints
            .iter()
            .enumerate()
            .filter(|(_, endpoint)| able(endpoint))
            .collect();
        able.sort_by_key(|(_, endpoint)| endpoint.is_down());
        able.into_iter()
    }

    fn backoff(&self, index: usize) -> Backoff<'_> {
        let is_last = index + 1 == self.endpoints.len();
        let attempts = self.network.attempts;
        Backoff::new(
            &self.network,
            if is_last {
                attempts
            } else {
                attempts.min(MIRROR_ATTEMPTS)
            },
        )
    }

    fn give_up(&self, endpoint: &Endpoint, error: RequestError) -> RequestError {
        if self.endpoints.len() > 1 {
            let (host, image) = (endpoint.name(), &self.reference);
            tracing::warn!(host, %image, %error, "a registry host failed, trying the next");
        }
        error
    }
}

fn accept() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static(manifest::ACCEPT));
    headers
}
