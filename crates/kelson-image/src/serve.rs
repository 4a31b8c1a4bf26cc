//! A minimal read-only registry (OCI distribution specification 1.1, pull): it serves images that
//! are held in memory, without authentication, over plain HTTP. It is for demonstrations and tests
//! on this machine, never for a network.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT_RANGES, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kelson_snapshot::Digest;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::layout::{BuiltImage, StackedImage};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The content of a registry.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    /// By repository and by tag or digest.
    manifests: HashMap<(String, String), Content>,
    /// By digest.
    blobs: HashMap<String, Content>,
}

#[derive(Debug, Clone)]
struct Content {
    media_type: String,
    digest: String,
    bytes: Bytes,
}

impl Registry {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an image as `repository:tag`.
    pub fn add_image(&mut self, repository: &str, tag: &str, image: &BuiltImage) {
        self.add_blob(image.config.clone());
        self.add_blob(image.layer.clone());
        self.add_manifest(repository, tag, MANIFEST, image.manifest.clone());
    }

    /// As [`Registry::add_image`], of an image with several layers.
    pub fn add_stack(&mut self, repository: &str, tag: &str, image: &StackedImage) {
        for blob in image.layers.iter().chain([&image.config]) {
            self.add_blob(blob.clone());
        }
        self.add_manifest(repository, tag, MANIFEST, image.manifest.clone());
    }

    /// Adds a manifest or an index as `repository:tag`, and by its digest, which is returned.
    pub fn add_manifest(
        &mut self,
        repository: &str,
        tag: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Digest {
        let digest = Digest::of(&bytes);
        for name in [tag.to_owned(), digest.to_string()] {
            let content = Content {
                media_type: media_type.to_owned(),
                digest: digest.to_string(),
                bytes: bytes.clone(),
            };
            self.manifests
                .insert((repository.to_owned(), name), content);
        }
        digest
    }

    /// Adds a blob; it is served from every repository.
    pub fn add_blob(&mut self, bytes: Bytes) -> Digest {
        let digest = Digest::of(&bytes);
        let content = Content {
            media_type: "application/octet-stream".to_owned(),
            digest: digest.to_string(),
            bytes,
        };
        self.blobs.insert(digest.to_string(), content);
        digest
    }

    /// Answers one request.
    pub fn respond<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return failure(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED");
        }
        if path == "/v2/" || path == "/v2" {
            return Response::new(Full::default());
        }
        let Some(rest) = path.strip_prefix("/v2/") else {
            return failure(StatusCode::NOT_FOUND, "NAME_UNKNOWN");
        };
        if let Some((repository, name)) = rest.split_once("/manifests/") {
            let key = (repository.to_owned(), name.to_owned());
            return match self.manifests.get(&key) {
                Some(content) => answer(request, content),
                None => failure(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
            };
        }
        match rest
            .split_once("/blobs/")
            .and_then(|(_, digest)| self.blobs.get(digest))
        {
            Some(content) => answer(request, content),
            None => failure(StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
        }
    }
}

fn answer<B>(request: &Request<B>, content: &Content) -> Response<Full<Bytes>> {
    let bytes = &content.bytes;
    let total = bytes.len();
    let range = request
        .headers()
        .get(RANGE)
        .and_then(|value| value.to_str().ok());
    let range = range.and_then(|text| text.strip_prefix("bytes=")?.split_once('-'));
    let range = range.and_then(|(first, last)| {
        let first: usize = first.parse().ok()?;
        let last = last
            .parse()
            .unwrap_or(usize::MAX)
            .min(total.saturating_sub(1));
        Some((first, last))
    });
    let response = Response::builder()
        .header(CONTENT_TYPE, &content.media_type)
        .header(ACCEPT_RANGES, "bytes")
        .header("docker-content-digest", &content.digest);
    let response = match range {
        None => response.body(Full::new(bytes.clone())),
        Some((first, last)) if first <= last && last < total => response
            .status(StatusCode::PARTIAL_CONTENT)
            .header(CONTENT_RANGE, format!("bytes {first}-{last}/{total}"))
            .body(Full::new(bytes.slice(first..=last))),
        Some(_) => response
            .status(StatusCode::RANGE_NOT_SATISFIABLE)
            .header(CONTENT_RANGE, format!("bytes */{total}"))
            .body(Full::default()),
    };
    response.unwrap_or_else(|_| failure(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"))
}

fn failure(status: StatusCode, code: &str) -> Response<Full<Bytes>> {
    let body = json!({ "errors": [{ "code": code, "message": "" }] }).to_string();
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
}

/// Serves `registry` to whoever connects to `listener`, until the future is dropped.
pub async fn serve(listener: TcpListener, registry: Arc<Registry>) {
    let mut connections = JoinSet::new();
    loop {
        // Ended connections are taken out, so that the set does not grow.
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the registry could not accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            }
        };
        let registry = Arc::clone(&registry);
        let service = service_fn(move |request| {
            let response = registry.respond(&request);
            async move { Ok::<_, Infallible>(response) }
        });
        connections.spawn(async move {
            // A client that goes away early is no concern of the registry's.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}
