//! What the daemon uses to speak to the zygote and to shims (tokio).
//!
//! Every call has a deadline, so that a stuck shim stalls nobody. A [`Shim`] holds no connection:
//! each call makes its own.

mod session;
mod shim;
mod wire;
mod zygote;

use std::path::PathBuf;

pub use session::{ExecResult, Output, Resizer, Session, Stdin};
pub use shim::{Shim, ShimEvent, ShimEvents};
pub use zygote::{Forked, Zygote};

use crate::proto::{Refusal, RefusalKind};

/// Why a call to a shim or to the zygote failed.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// Nobody answers at the socket, or the shim left in the middle of the call.
    #[error("the shim at {} is gone", socket.display())]
    Gone {
        /// The shim's socket.
        socket: PathBuf,
        /// How that was seen.
        #[source]
        source: Option<std::io::Error>,
    },
    /// The deadline passed.
    #[error("the shim at {} did not answer {call} within {} ms", socket.display(), after.as_millis())]
    Timeout {
        /// The shim's socket.
        socket: PathBuf,
        /// What was asked.
        call: &'static str,
        /// The deadline.
        after: std::time::Duration,
    },
    /// The peer does not keep to the protocol, or a request does not fit into it.
    #[error("the protocol with the shim was broken: {0}")]
    Protocol(String),
    /// The shim refused, or what was asked of it failed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The zygote could not be started or reached.
    #[error("the zygote cannot be {action}")]
    Zygote {
        /// What was tried, as a participle.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

impl ShimError {
    /// The kind of a refusal.
    pub fn refusal(&self) -> Option<RefusalKind> {
        match self {
            Self::Refused(refusal) => Some(refusal.kind),
            _ => None,
        }
    }

    /// Whether the shim is not there any more.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Gone { .. })
    }
}
