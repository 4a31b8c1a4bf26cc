//! What can go wrong between a client and a runtime, in the user's words, with the next step.

use std::io;
use std::time::Duration;

pub use tonic::Code;

use crate::endpoint::{DEFAULT_ENDPOINT, Endpoint};

/// A call that did not succeed. `Display` says what and why, [`Error::next_step`] what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket cannot be connected to.
    #[error("cannot connect to the runtime at {endpoint}")]
    Connect {
        /// The socket that was tried.
        endpoint: Endpoint,
        /// Why.
        source: io::Error,
    },
    /// The connection broke while the call was under way.
    #[error("{rpc}: the connection to the runtime at {endpoint} broke: {reason}")]
    Lost {
        /// The call.
        rpc: &'static str,
        /// The socket.
        endpoint: Endpoint,
        /// The innermost cause that the transport knows.
        reason: String,
    },
    /// The runtime did not answer in time.
    #[error("{rpc}: no answer from the runtime within {} seconds", after.as_secs())]
    Deadline {
        /// The call.
        rpc: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// The runtime answered, and the answer is no.
    #[error("{rpc}: {message} ({code:?})")]
    Refused {
        /// The call.
        rpc: &'static str,
        /// The gRPC code.
        code: Code,
        /// What the runtime says about it.
        message: String,
    },
}

impl Error {
    /// The gRPC code, where the runtime answered.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether the runtime says that what was asked for is not there.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(Code::NotFound)
    }

    /// Whether the runtime does not know the call.
    pub fn is_unimplemented(&self) -> bool {
        self.code() == Some(Code::Unimplemented)
    }

    /// What a user can do now; nothing where the message itself is the best advice.
    pub fn next_step(&self) -> Option<String> {
        let elsewhere = "name another socket with --runtime-endpoint";
        match self {
            Self::Connect { endpoint, source } => Some(match source.kind() {
                io::ErrorKind::NotFound if is_default(endpoint) => {
                    format!("is the daemon running? Start it with `kelson serve`, or {elsewhere}")
                }
                io::ErrorKind::NotFound => {
                    format!("is the runtime running? Start it, or {elsewhere}")
                }
                io::ErrorKind::PermissionDenied => {
                    "the socket belongs to root: run the command as root, for instance with sudo"
                        .into()
                }
                io::ErrorKind::ConnectionRefused => {
                    "the socket is there but nobody listens: the daemon has ended. Start it again"
                        .into()
                }
                _ => format!("see that the path is a runtime's socket, or {elsewhere}"),
            }),
            Self::Lost { .. } => {
                Some("the daemon may have been restarted: try again, then see its log".into())
            }
            Self::Deadline { .. } => Some(
                "the runtime may be busy or stuck: see `kelson info` and the daemon's log".into(),
            ),
            Self::Refused { code, .. } => match code {
                Code::Unimplemented => Some("this runtime does not offer the call".into()),
                Code::Unavailable => {
                    Some("the runtime is not ready: see `kelson info`, then try again".into())
                }
                Code::ResourceExhausted => Some(
                    "a limit of the runtime or of the message size was reached: ask for less"
                        .into(),
                ),
                _ => None,
            },
        }
    }

    /// Sorts what tonic answered into the kinds above. A status that came over the wire has no source;
    /// one with a source was made on this side, from a broken connection.
    pub(crate) fn from_status(
        rpc: &'static str,
        endpoint: &Endpoint,
        status: &tonic::Status,
    ) -> Self {
        let mut cause = std::error::Error::source(status);
        let mut reason = None;
        while let Some(error) = cause {
            reason = Some(error.to_string());
            cause = error.source();
        }
        match reason {
            Some(reason) => Self::Lost {
                rpc,
                endpoint: endpoint.clone(),
                reason,
            },
            None => Self::Refused {
                rpc,
                code: status.code(),
                message: status.message().to_owned(),
            },
        }
    }
}

fn is_default(endpoint: &Endpoint) -> bool {
    endpoint.path().as_os_str() == DEFAULT_ENDPOINT
}
