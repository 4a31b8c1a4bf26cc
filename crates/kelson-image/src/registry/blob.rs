//! One blob's download: piece by piece, resumed where it broke, ended where it stalls.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::endpoint::Endpoint;
use super::error::{RequestError, shown};
use super::http::status_error;
use crate::config::NetworkConfig;
use crate::manifest::Descriptor;
use crate::progress::Meter;

/// A part of a layer on its way to the thread that unpacks it.
pub(crate) enum Piece {
    /// The next bytes.
    Data(Bytes),
    /// All bytes were sent.
    End,
}

/// Where the bytes go.
pub(crate) enum Sink {
    /// Into memory, for small blobs: their declared size was checked before.
    Memory(Vec<u8>),
    /// To another thread, whose pace slows the download.
    Channel(mpsc::Sender<Piece>, Arc<Meter>),
}

/// The reader at the other end of a [`Sink::Channel`] went away.
pub(crate) struct Closed;

impl Sink {
    async fn put(&mut self, data: Bytes) -> Result<(), Closed> {
        match self {
            Self::Memory(bytes) => bytes.extend_from_slice(&data),
            Self::Channel(sender, meter) => {
                let length = data.len() as u64;
                sender.send(Piece::Data(data)).await.map_err(|_| Closed)?;
                meter.add(length);
            }
        }
        Ok(())
    }
}

/// Why an attempt ended early.
pub(super) enum Ended {
    Closed,
    Failed(RequestError),
}

impl From<RequestError> for Ended {
    fn from(error: RequestError) -> Self {
        Self::Failed(error)
    }
}

/// A blob and how much of it has come, from whatever host.
pub(super) struct Download<'a> {
    pub(super) blob: &'a Descriptor,
    pub(super) got: u64,
    pub(super) sink: &'a mut Sink,
}

impl Download<'_> {
    /// Gets what is missing from `endpoint`.
    pub(super) async fn attempt(
        &mut self,
        endpoint: &Endpoint,
        network: &NetworkConfig,
    ) -> Result<(), Ended> {
        let url = endpoint.url(&format!("blobs/{}", self.blob.digest))?;
        let mut headers = HeaderMap::new();
        if self.got > 0 {
            let range = HeaderValue::from_str(&format!("bytes={}-", self.got));
            headers.insert(RANGE, range.expect("digits make a header value"));
        }
        let response = endpoint.send(Method::GET, url.clone(), headers).await?;
        let skip = match response.status() {
            // A server without ranges starts again: what is known already is thrown away.
            StatusCode::OK => self.got,
            StatusCode::PARTIAL_CONTENT if self.got > 0 => 0,
            _ => {
                return Err(status_error(&url, response, network.response_timeout)
                    .await
                    .into());
            }
        };
        self.check_length(&url, &response)?;
        self.receive(&url, response, skip, network).await
    }

    fn check_length(&self, url: &Uri, response: &Response<Incoming>) -> Result<(), RequestError> {
        let text = |name| {
            response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let expected = format!("bytes {}-", self.got);
            if !text(CONTENT_RANGE).is_some_and(|range| range.starts_with(&expected)) {
                let reason = "it answers with another range than the one asked for";
                return Err(RequestError::Protocol {
                    url: shown(url),
                    reason,
                });
            }
            return Ok(());
        }
        match text(CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok()) {
            Some(length) if length != self.blob.size => Err(RequestError::Size {
                url: shown(url),
                expected: self.blob.size,
            }),
            _ => Ok(()),
        }
    }

    async fn receive(
        &mut self,
        url: &Uri,
        response: Response<Incoming>,
        mut skip: u64,
        network: &NetworkConfig,
    ) -> Result<(), Ended> {
        let mut body = response.into_body();
        let mut pace = Pace::new(network);
        while self.got < self.blob.size || !body.is_end_stream() {
            let Some(mut data) = pace.next(url, &mut body).await? else {
                break;
            };
            let skipped = skip.min(data.len() as u64);
            skip -= skipped;
            let _ = data.split_to(skipped as usize);
            if self.got + data.len() as u64 > self.blob.size {
                let expected = self.blob.size;
                return Err(RequestError::Size {
                    url: shown(url),
                    expected,
                }
                .into());
            }
            let length = data.len() as u64;
            if length > 0 {
                self.sink.put(data).await.map_err(|Closed| Ended::Closed)?;
                self.got += length;
            }
        }
        if self.got < self.blob.size {
            let (got, expected) = (self.got, self.blob.size);
            return Err(RequestError::Truncated {
                url: shown(url),
                got,
                expected,
            }
            .into());
        }
        Ok(())
    }
}

/// The minimum-progress rule. Only the time spent waiting for the network counts.
struct Pace<'a> {
    network: &'a NetworkConfig,
    waited: Duration,
    bytes: u64,
}

impl<'a> Pace<'a> {
    fn new(network: &'a NetworkConfig) -> Self {
        Self {
            network,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    async fn next(
        &mut self,
        url: &Uri,
        body: &mut Incoming,
    ) -> Result<Option<Bytes>, RequestError> {
        let NetworkConfig {
            progress_bytes,
            progress_window,
            ..
        } = *self.network;
        loop {
            let left = progress_window.saturating_sub(self.waited);
            let start = Instant::now();
            let frame = timeout(left, body.frame())
                .await
                .map_err(|_| RequestError::Stalled {
                    url: shown(url),
                    bytes: progress_bytes,
                    window: progress_window,
                })?;
            self.waited += start.elapsed();
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|source| RequestError::Broken {
                url: shown(url),
                source: Box::new(source),
            })?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            self.bytes += data.len() as u64;
            if self.bytes >= progress_bytes {
                (self.waited, self.bytes) = (Duration::ZERO, 0);
            }
            return Ok(Some(data));
        }
    }
}
