//! The client's side: WebSocket first, SPDY second.

mod dial;
mod forward;
mod process;

pub use dial::{ConnectError, Options, Protocols, Trust};
pub use forward::{ForwardError, Forwarder};
pub use process::{Process, ProcessError, Waiting};

use std::time::Duration;

/// How long a server may take to take a stream.
const CREATION: Duration = Duration::from_secs(30);
/// A client's connection is as idle as its user.
const IDLE: Duration = Duration::MAX;

/// Any error of whoever gives the address.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;
