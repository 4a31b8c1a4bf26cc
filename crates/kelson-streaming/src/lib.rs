//! Exec, attach and port-forward over SPDY/3.1 and WebSocket, both sides.
//!
//! # The client
//!
//! ```no_run
//! # use kelson_streaming::client::{Forwarder, Options, Process, SourceError};
//! # use kelson_streaming::{Outcome, Size, Streams};
//! # async fn ask_the_cri() -> Result<String, SourceError> { Ok(String::new()) }
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! // The same streams as in the CRI request. The closure asks the CRI for an address; it is
//! // called once for each protocol that is tried, because runtimes use tokens up.
//! let streams = Streams { stdin: true, stdout: true, stderr: false, tty: true };
//! let mut process = Process::connect(ask_the_cri, streams, &Options::default()).await?;
//! if let Some(resizer) = &mut process.resizer {
//!     resizer.resize(Size { columns: 80, rows: 24 }).await?;
//! }
//! // `stdin` is an AsyncWrite: shut it down to close it. `stdout` and `stderr` are AsyncRead.
//! // Copy all of them at the same time, each until its end, while waiting for the outcome.
//! match process.waiting.outcome().await? {
//!     Outcome::Exited(code) => println!("exit code {code}"),
//!     Outcome::Failed(why) => println!("not run: {why}"),
//! }
//!
//! let forwarder = Forwarder::connect(ask_the_cri, &Options::default()).await?;
//! let local = tokio::net::TcpStream::connect("127.0.0.1:8080").await?;
//! forwarder.relay(80, local).await?; // as many at a time as there are connections
//! # Ok(()) }
//! ```
//!
//! # The server
//!
//! A [`Server`] hands out addresses with single-use tokens and serves them from a [`Backend`].
//!
//! # Memory
//!
//! What a stream has received and nobody has read is at most [`STREAM_BUFFER`] (256 KiB) and the
//! piece that filled it (64 KiB). What a connection has to send, over all of its streams, is at
//! most eight messages of 32 KiB and a write buffer of 96 KiB. A reader that is slow makes its
//! writer wait, across the network too.

pub mod client;
mod server;
pub mod spdy;
pub mod ws;

mod connection;
mod outbox;
mod pipe;
mod protocol;
mod resize;
mod status;
mod tls;

pub use outbox::Writer;
pub use pipe::{Reader, STREAM_BUFFER};
pub use protocol::Streams;
pub use resize::{Resizer, Size, Sizes};
pub use server::{
    Attach, Backend, BackendError, BindError, Config, Exec, Io, MAX_CONNECTIONS, MAX_TOKENS,
    Server, TokenError,
};
pub use status::Outcome;
pub use tls::{KeyPair, KeyPairError};

/// Bytes that nobody can guess.
pub(crate) fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(&mut bytes[filled..], flags)?;
    }
    Ok(bytes)
}
