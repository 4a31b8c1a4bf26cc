//! Port-forward: pairs of streams, each one connection into the pod.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use tokio::io::{AsyncWriteExt, BufReader, copy_buf};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::Shared;
use super::backend::{Backend, chain};
use super::http::Agreed;
use super::tokens::Forward;
use crate::connection::Transport;
use crate::outbox::{MAX_MESSAGE, Writer};
use crate::pipe::Reader;
use crate::protocol::{PORT, REQUEST_ID, STREAM_TYPE};
use crate::spdy::{Duplex, Incoming, Role, Session, value};
use crate::ws::{Channels, Codec, Side, tunnel};

/// Both streams of a forwarded connection, as far as they are there.
struct Pair {
    port: u16,
    data: Option<Duplex>,
    error: Option<Duplex>,
    end: Instant,
}

/// Serves one client to its end.
pub(super) async fn serve(
    io: impl Transport,
    agreed: Agreed,
    wanted: Forward,
    backend: Arc<impl Backend>,
    shared: &Shared,
) {
    match agreed {
        Agreed::Spdy(_) => by_spdy(io, wanted, backend, shared).await,
        Agreed::WebSocket(_) if agreed.codec() == Codec::Tunnel => {
            let (channels, io) = tunnel(io, Side::Server, shared.idle);
            by_spdy(io, wanted, backend, shared).await;
            channels.close().await;
        }
        Agreed::WebSocket(_) => by_channels(io, agreed.codec(), wanted, backend, shared).await,
    }
}

/// Any number of connections, each a pair of streams with the same request id.
async fn by_spdy(io: impl Transport, wanted: Forward, backend: Arc<impl Backend>, shared: &Shared) {
    let (session, mut incoming) = match Session::start(io, Role::Server, shared.idle) {
        Ok((session, incoming)) => (Arc::new(session), incoming),
        Err(error) => return debug!(%error, "no SPDY session"),
    };
    let mut pairs: HashMap<String, Pair> = HashMap::new();
    let mut connections = JoinSet::new();
    loop {
        let oldest = pairs.values().map(|pair| pair.end).min();
        let late = async {
            match oldest {
                Some(end) => sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            next = incoming.recv() => match next {
                Some(next) => {
                    if let Some((port, data, error)) = add(next, &mut pairs, shared).await {
                        let (backend, session) = (Arc::clone(&backend), Arc::clone(&session));
                        let pod = wanted.pod.clone();
                        connections.spawn(async move {
                            let id = data.id;
                            let (reader, words) = (data.reader, error.writer);
                            // What the client says on the error stream has no meaning.
                            let _silent = error.reader;
                            forward(&*backend, &pod, port, reader, data.writer, words).await;
                            session.reset(id);
                        });
                    }
                }
                // The connection is over, and with it what was forwarded.
                None => return,
            },
            Some(_) = connections.join_next() => {}
            () = late => pairs.retain(|_, pair| pair.end > Instant::now()),
            () = shared.stop.cancelled() => break,
        }
    }
    drop(pairs);
    connections.shutdown().await;
    session.close().await;
}

/// Puts a stream to its pair; gives the pair when it is whole.
async fn add(
    next: Incoming,
    pairs: &mut HashMap<String, Pair>,
    shared: &Shared,
) -> Option<(u16, Duplex, Duplex)> {
    // A stream without a port or a known type is reset by being dropped.
    let port: u16 = value(&next.headers, PORT)?.parse().ok()?;
    let is_data = match value(&next.headers, STREAM_TYPE)? {
        "data" => true,
        "error" => false,
        _ => return None,
    };
    if port == 0 {
        return None;
    }
    // The oldest clients name no request: their data stream follows their error stream.
    let request = value(&next.headers, REQUEST_ID).filter(|request| !request.is_empty());
    let request = request.map_or_else(
        || {
            let first = next.id().saturating_sub(if is_data { 2 } else { 0 });
            format!("stream {first}")
        },
        |request| format!("request {request}"),
    );
    let pair = pairs.entry(request.clone()).or_insert_with(|| Pair {
        port,
        data: None,
        error: None,
        end: Instant::now() + shared.creation,
    });
    let place = if is_data {
        pair.port = port;
        &mut pair.data
    } else {
        &mut pair.error
    };
    if place.is_some() {
        return None;
    }
    *place = Some(next.accept().await.ok()?);
    if pair.data.is_none() || pair.error.is_none() {
        return None;
    }
    let pair = pairs.remove(&request)?;
    Some((pair.port, pair.data?, pair.error?))
}

/// One connection for each port of the request: data on an even channel, errors on the next.
async fn by_channels(
    io: impl Transport,
    codec: Codec,
    wanted: Forward,
    backend: Arc<impl Backend>,
    shared: &Shared,
) {
    let count = wanted.ports.len() * 2;
    let (channels, readers) = Channels::start(io, Side::Server, codec, count, shared.idle);
    let mut connections = JoinSet::new();
    let numbers = (0_u32..).step_by(2);
    let mut readers = readers.into_iter().step_by(2);
    for (number, port) in numbers.zip(wanted.ports) {
        let reader = readers.next().unwrap_or_else(Reader::empty);
        let mut data = channels.writer(number);
        let mut words = channels.writer(number + 1);
        let (backend, pod) = (Arc::clone(&backend), wanted.pod.clone());
        connections.spawn(async move {
            // Each channel begins with its port, so that the client can tell them apart.
            for writer in [&mut data, &mut words] {
                writer.write_all(&port.to_le_bytes()).await?;
            }
            forward(&*backend, &pod, port, reader, data, words).await;
            io::Result::Ok(())
        });
    }
    let closed = channels.closed();
    let all = async { while connections.join_next().await.is_some() {} };
    tokio::select! {
        () = all => {}
        () = closed.cancelled() => {}
        () = shared.stop.cancelled() => {}
    }
    connections.shutdown().await;
    channels.close().await;
}

/// One forwarded connection from its beginning to the end of both directions.
async fn forward(
    backend: &impl Backend,
    pod: &str,
    port: u16,
    mut reader: Reader,
    mut writer: Writer,
    mut words: Writer,
) {
    let outcome = async {
        let socket = backend.dial(pod, port).await?;
        let (from, mut to) = tokio::io::split(socket);
        let mut from = BufReader::with_capacity(MAX_MESSAGE, from);
        let up = async {
            while let Some(piece) = reader.next().await? {
                to.write_all(&piece).await?;
            }
            // A target that has closed already needs not be told.
            match to.shutdown().await {
                Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
                other => other,
            }
        };
        let down = async {
            copy_buf(&mut from, &mut writer).await?;
            writer.shutdown().await
        };
        tokio::try_join!(up, down)?;
        Ok(())
    };
    let told = match outcome.await {
        Ok(()) => words.shutdown().await,
        Err(error) => {
            let text = format!(
                "error forwarding port {port} to pod {pod}: {}",
                chain(&error)
            );
            debug!("{text}");
            // Whoever waits for data must not take its end for a good one: it is reset.
            drop(writer);
            match words.write_all(text.as_bytes()).await {
                Ok(()) => words.shutdown().await,
                gone => gone,
            }
        }
    };
    if let Err(error) = told {
        debug!(%error, "the client went away");
    }
}
