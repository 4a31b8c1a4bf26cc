//! Exec and attach: gathers a client's streams, runs the backend, tells how it ended.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::backend::{Attach, Backend, BackendError, Exec, Io, chain};
use super::http::Agreed;
use super::{LAST_INPUT, Shared};
use crate::connection::Transport;
use crate::outbox::Writer;
use crate::pipe::{Feeder, Reader};
use crate::protocol::{STREAM_TYPE, Streams, channel};
use crate::resize::Sizes;
use crate::spdy::{Duplex, Incoming, Role, Session, value};
use crate::status::Outcome;
use crate::ws::{Channels, Side};

/// A client with all of its streams.
struct Client {
    carrier: Carrier,
    io: Io,
    stdin: Option<Feeder>,
    error: Writer,
    /// Whether the end is told as JSON.
    json: bool,
    /// Kept open until the end: a reader or writer that goes resets its stream.
    _rest: Vec<(Option<Reader>, Option<Writer>)>,
}

enum Carrier {
    Spdy(Session),
    WebSocket(Channels),
}

impl Carrier {
    fn closed(&self) -> CancellationToken {
        match self {
            Self::Spdy(session) => session.closed(),
            Self::WebSocket(channels) => channels.closed(),
        }
    }

    async fn close(self) {
        match self {
            Self::Spdy(session) => session.close().await,
            Self::WebSocket(channels) => channels.close().await,
        }
    }
}

/// Runs a command for a client.
pub(super) async fn exec(
    io: impl Transport,
    agreed: Agreed,
    exec: Exec,
    backend: &impl Backend,
    shared: &Shared,
) {
    if let Some(mut client) = gather(io, agreed, exec.streams, shared).await {
        let work = backend.exec(&exec, &mut client.io);
        let outcome = follow(work, &client.carrier, client.stdin.as_ref(), shared).await;
        finish(client, outcome, "error executing command in container").await;
    }
}

/// Attaches a client to a container.
pub(super) async fn attach(
    io: impl Transport,
    agreed: Agreed,
    attach: Attach,
    backend: &impl Backend,
    shared: &Shared,
) {
    if let Some(mut client) = gather(io, agreed, attach.streams, shared).await {
        let work = backend.attach(&attach, &mut client.io);
        let work = async { work.await.map(|()| 0) };
        let outcome = follow(work, &client.carrier, client.stdin.as_ref(), shared).await;
        finish(client, outcome, "error attaching to container").await;
    }
}

/// Runs a backend until it is done, its client is gone (`None`) or the server ends.
async fn follow(
    work: impl Future<Output = Result<i32, BackendError>>,
    carrier: &Carrier,
    stdin: Option<&Feeder>,
    shared: &Shared,
) -> Option<Result<i32, BackendError>> {
    let closed = carrier.closed();
    let gone = async {
        closed.cancelled().await;
        if let Some(stdin) = stdin {
            // What it sent before is still input; one that nobody reads is given up.
            let _ = timeout(LAST_INPUT, stdin.drained()).await;
        }
    };
    tokio::select! {
        outcome = work => Some(outcome),
        () = gone => None,
        () = shared.stop.cancelled() => Some(Err("the runtime is ending; connect again".into())),
    }
}

async fn finish(mut client: Client, outcome: Option<Result<i32, BackendError>>, failed: &str) {
    let outcome = match outcome {
        Some(Ok(code)) => Outcome::Exited(code),
        Some(Err(error)) => {
            let text = format!("{failed}: {}", chain(&error));
            info!("{text}");
            Outcome::Failed(text)
        }
        None => {
            debug!("the client went away");
            return;
        }
    };
    let last = async {
        let outputs = [&mut client.io.stdout, &mut client.io.stderr];
        for writer in outputs.into_iter().flatten() {
            writer.shutdown().await?;
        }
        client
            .error
            .write_all(&outcome.to_wire(client.json))
            .await?;
        client.error.shutdown().await
    };
    // A client that goes away now has nobody to tell.
    if let Err(error) = last.await {
        debug!(%error, "the client went away before the end was told");
    }
    client.carrier.close().await;
}

async fn gather(
    io: impl Transport,
    agreed: Agreed,
    streams: Streams,
    shared: &Shared,
) -> Option<Client> {
    match agreed {
        Agreed::WebSocket(_) => by_websocket(io, agreed, streams, shared).await,
        Agreed::Spdy(version) => {
            let session = Session::start(io, Role::Server, shared.idle);
            let (session, incoming) = session
                .inspect_err(|error| debug!(%error, "no SPDY session"))
                .ok()?;
            let gathering = by_spdy(session, incoming, version, streams, shared.creation);
            tokio::select! {
                client = gathering => client,
                () = shared.stop.cancelled() => None,
            }
        }
    }
}

async fn by_websocket(
    io: impl Transport,
    agreed: Agreed,
    streams: Streams,
    shared: &Shared,
) -> Option<Client> {
    let codec = agreed.codec();
    let (channels, readers) = Channels::start(io, Side::Server, codec, channel::COUNT, shared.idle);
    let mut readers: Vec<_> = readers.into_iter().map(Some).collect();
    let mut reader = |wanted: bool, number: u32| {
        let place = readers.get_mut(number as usize).filter(|_| wanted)?;
        place.take()
    };
    let io = Io {
        stdin: reader(streams.stdin, channel::STDIN),
        stdout: streams.stdout.then(|| channels.writer(channel::STDOUT)),
        stderr: streams.stderr.then(|| channels.writer(channel::STDERR)),
        sizes: reader(streams.tty, channel::RESIZE).map(Sizes::new),
    };
    let stdin = io.stdin.as_ref().and_then(|_| channels.feeder(0));
    let mut client = Client {
        error: channels.writer(channel::ERROR),
        carrier: Carrier::WebSocket(channels),
        io,
        stdin,
        json: agreed.version().starts_with("v4.") || agreed.version().starts_with("v5."),
        _rest: Vec::new(),
    };
    let first = match (&mut client.io.stdout, &mut client.io.stderr) {
        (Some(first), _) | (None, Some(first)) => first,
        (None, None) => &mut client.error,
    };
    first.touch().await.ok()?;
    Some(client)
}

async fn by_spdy(
    session: Session,
    mut incoming: mpsc::Receiver<Incoming>,
    version: &str,
    streams: Streams,
    limit: Duration,
) -> Option<Client> {
    let sizes = streams.tty && !matches!(version, "channel.k8s.io" | "v2.channel.k8s.io");
    let wanted = [
        ("error", true),
        ("stdin", streams.stdin),
        ("stdout", streams.stdout),
        ("stderr", streams.stderr),
        ("resize", sizes),
    ];
    let mut found: [Option<Duplex>; 5] = Default::default();
    let end = Instant::now() + limit;
    let missing = |found: &[Option<Duplex>; 5]| {
        let pairs = wanted.iter().zip(found);
        pairs
            .filter(|((_, wanted), found)| *wanted && found.is_none())
            .map(|((name, _), _)| *name)
            .next()
    };
    while let Some(name) = missing(&found) {
        let next = match timeout_at(end, incoming.recv()).await {
            Ok(Some(next)) => next,
            Ok(None) => return None,
            Err(_) => {
                debug!(missing = name, "the client does not ask for its streams");
                return None;
            }
        };
        let kind = value(&next.headers, STREAM_TYPE).unwrap_or_default();
        let place = wanted.iter().zip(&mut found);
        let place = place
            .filter(|((name, wanted), found)| *name == kind && *wanted && found.is_none())
            .map(|(_, found)| found)
            .next();
        // A stream of another kind is reset by being dropped.
        if let Some(place) = place {
            *place = Some(next.accept().await.ok()?);
        }
    }
    let [error, stdin, stdout, stderr, resize] = found;
    let feeder = stdin.as_ref().and_then(|stream| session.feeder(stream.id));
    let mut rest = Vec::new();
    let mut reader = |stream: Option<Duplex>| {
        stream.map(|Duplex { reader, writer, .. }| {
            rest.push((None, Some(writer)));
            reader
        })
    };
    let (stdin, resize) = (reader(stdin), reader(resize));
    let mut writer = |stream: Option<Duplex>| {
        stream.map(|Duplex { reader, writer, .. }| {
            rest.push((Some(reader), None));
            writer
        })
    };
    let io = Io {
        stdin,
        stdout: writer(stdout),
        stderr: writer(stderr),
        sizes: resize.map(Sizes::new),
    };
    let error = writer(error)?;
    Some(Client {
        carrier: Carrier::Spdy(session),
        io,
        stdin: feeder,
        error,
        json: version == crate::protocol::V4 || version == crate::protocol::V5,
        _rest: rest,
    })
}
