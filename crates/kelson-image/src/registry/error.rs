//! Why a request to a registry failed. Messages hold addresses without query, since signed
//! addresses carry secrets there, and never a header.

use std::io;
use std::time::Duration;

use http::{StatusCode, Uri};
use kelson_snapshot::Digest;

/// Why one registry host did not give what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// No connection, or no TLS session, could be made, or it broke before the answer.
    #[error("{url}: cannot connect")]
    Connect {
        /// The address.
        url: String,
        /// Why.
        #[source]
        source: Box<hyper_util::client::legacy::Error>,
    },
    /// There was no answer in time.
    #[error("{url}: no answer within {} s", after.as_secs_f32())]
    Timeout {
        /// The address.
        url: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The connection broke in the middle of the answer.
    #[error("{url}: the connection broke")]
    Broken {
        /// The address.
        url: String,
        /// Why.
        #[source]
        source: Box<hyper::Error>,
    },
    /// The answer trickles.
    #[error("{url}: fewer than {bytes} bytes in {} s", window.as_secs_f32())]
    Stalled {
        /// The address.
        url: String,
        /// The least number of bytes.
        bytes: u64,
        /// The time in which they should have come.
        window: Duration,
    },
    /// The answer is an error.
    #[error("{url}: the server answers {status}{message}")]
    Status {
        /// The address.
        url: String,
        /// The status code.
        status: StatusCode,
        /// What the server said beside it; empty, or with a colon before it.
        message: String,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
    /// The server redirects without end.
    #[error("{url}: more than {limit} redirects")]
    Redirects {
        /// The first address.
        url: String,
        /// The limit.
        limit: usize,
    },
    /// The server redirects to something that will not be followed.
    #[error("{url}: redirect refused: {reason}")]
    BadRedirect {
        /// The redirecting address.
        url: String,
        /// Why.
        reason: &'static str,
    },
    /// The answer is longer than it may be.
    #[error("{url}: the answer exceeds the limit of {limit} bytes")]
    TooLarge {
        /// The address.
        url: String,
        /// The limit.
        limit: u64,
    },
    /// The answer is not as long as announced.
    #[error("{url}: the content has not the {expected} bytes that its descriptor announces")]
    Size {
        /// The address.
        url: String,
        /// The announced size.
        expected: u64,
    },
    /// The answer ends before the content does.
    #[error("{url}: the answer ends after {got} bytes of {expected}")]
    Truncated {
        /// The address.
        url: String,
        /// Bytes received, in earlier attempts too.
        got: u64,
        /// The announced size.
        expected: u64,
    },
    /// The content is not what its digest says.
    #[error("{url}: the content has digest {got} instead of {expected}")]
    Digest {
        /// The address.
        url: String,
        /// What was asked for.
        expected: Digest,
        /// What came.
        got: Digest,
    },
    /// The answer breaks the protocol.
    #[error("{url}: {reason}")]
    Protocol {
        /// The address.
        url: String,
        /// How.
        reason: &'static str,
    },
    /// The configuration leaves no host to ask.
    #[error("no host of hosts.toml has the capability to {0}; add one or remove the file")]
    NoHost(&'static str),
}

impl RequestError {
    /// Whether the same request may succeed at the same host a little later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Connect { source, .. } => !is_tls_failure(&**source),
            Self::Timeout { .. }
            | Self::Broken { .. }
            | Self::Truncated { .. }
            | Self::Stalled { .. } => true,
            Self::Status { status, .. } => {
                status.is_server_error()
                    || matches!(
                        *status,
                        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS
                    )
            }
            _ => false,
        }
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Status { status, .. } if *status == StatusCode::NOT_FOUND)
    }

    pub(crate) fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Status { status, .. }
            if matches!(*status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN))
    }
}

/// Whether the peers do not agree on TLS, which a repetition does not change. An I/O error hides the
/// one it carries from `source`.
fn is_tls_failure(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let carried = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        if carried.is_some_and(|carried| carried.is::<rustls::Error>()) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// An address as messages show it: without query and user.
pub(crate) fn shown(url: &Uri) -> String {
    format!("{}{}", origin(url), url.path())
}

/// Scheme, host and port.
pub(crate) fn origin(url: &Uri) -> String {
    let authority = url.authority().map_or("", |authority| authority.as_str());
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    format!("{}://{host}", url.scheme_str().unwrap_or_default())
}
