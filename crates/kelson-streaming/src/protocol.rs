//! The names that both sides agree on.

/// The version that a SPDY request and its answer name.
pub(crate) const PROTOCOL_VERSION: &str = "x-stream-protocol-version";
/// The versions that a server would have taken.
pub(crate) const ACCEPTED_VERSIONS: &str = "x-accepted-stream-protocol-versions";
/// What `Upgrade` says for SPDY.
pub(crate) const SPDY: &str = "SPDY/3.1";
/// What `Upgrade` says for WebSocket.
pub(crate) const WEBSOCKET: &str = "websocket";

/// SPDY's version of port-forward, and what its tunnel through a WebSocket is called.
pub(crate) const PORT_FORWARD: &str = "portforward.k8s.io";
pub(crate) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

pub(crate) const V4: &str = "v4.channel.k8s.io";
pub(crate) const V5: &str = "v5.channel.k8s.io";

/// Headers of a SPDY stream, in lower case as the wire has them.
pub(crate) const STREAM_TYPE: &str = "streamtype";
pub(crate) const PORT: &str = "port";
pub(crate) const REQUEST_ID: &str = "requestid";

/// The channels of exec and attach on a WebSocket.
pub(crate) mod channel {
    pub(crate) const STDIN: u32 = 0;
    pub(crate) const STDOUT: u32 = 1;
    pub(crate) const STDERR: u32 = 2;
    pub(crate) const ERROR: u32 = 3;
    pub(crate) const RESIZE: u32 = 4;
    pub(crate) const COUNT: usize = 5;
}

/// Which streams a client of exec or attach has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Streams {
    /// The client writes to the process.
    pub stdin: bool,
    /// The client reads what the process prints.
    pub stdout: bool,
    /// The client reads errors apart; never with a terminal.
    pub stderr: bool,
    /// The process has a terminal, whose size the client tells.
    pub tty: bool,
}
