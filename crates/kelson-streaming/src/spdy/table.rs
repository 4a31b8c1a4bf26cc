//! The streams of one session: who may send, who has ended, and what is left to be reset.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, oneshot};

use crate::outbox::{Ending, Out, Writer};
use crate::pipe::{Feeder, Reader, pipe};

/// One stream, both ways.
#[derive(Debug)]
pub(crate) struct Duplex {
    pub(crate) id: u32,
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
}

#[derive(Debug)]
struct Entry {
    feeder: Feeder,
    reset: Arc<AtomicBool>,
    /// This side has sent everything.
    sent: bool,
    /// The other side has.
    received: bool,
    /// Who waits for the other side to take the stream.
    reply: Option<oneshot::Sender<()>>,
}

/// All streams of a session.
#[derive(Debug)]
pub(super) struct Table {
    entries: Mutex<HashMap<u32, Entry>>,
    resets: mpsc::UnboundedSender<u32>,
}

impl Table {
    /// An empty table; `resets` gets streams whose writer went away early, once each.
    pub(super) fn new(resets: mpsc::UnboundedSender<u32>) -> Arc<Self> {
        Arc::new(Self {
            entries: Mutex::default(),
            resets,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// A new stream; `fin` says that the other side will send nothing.
    pub(super) fn add(
        self: &Arc<Self>,
        id: u32,
        fin: bool,
        reply: Option<oneshot::Sender<()>>,
        outbox: mpsc::Sender<Out>,
    ) -> Duplex {
        let (feeder, reader) = pipe();
        if fin {
            feeder.end(Ok(()));
        }
        let reset = Arc::new(AtomicBool::new(false));
        let entry = Entry {
            feeder,
            reset: Arc::clone(&reset),
            sent: false,
            received: fin,
            reply,
        };
        self.lock().insert(id, entry);
        let ending: Arc<dyn Ending> = Arc::clone(self) as Arc<dyn Ending>;
        Duplex {
            id,
            reader,
            writer: Writer::new(id, outbox, reset, ending),
        }
    }

    pub(super) fn feeder(&self, id: u32) -> Option<Feeder> {
        self.lock().get(&id).map(|entry| entry.feeder.clone())
    }

    /// The other side has sent everything.
    pub(super) fn received(&self, id: u32) {
        self.done(id, |entry| {
            entry.received = true;
            entry.feeder.end(Ok(()));
        });
    }

    /// The other side takes the stream.
    pub(super) fn replied(&self, id: u32) {
        let reply = self
            .lock()
            .get_mut(&id)
            .and_then(|entry| entry.reply.take());
        if let Some(reply) = reply {
            // Whoever asked may have given up.
            let _ = reply.send(());
        }
    }

    /// The other side has reset the stream.
    pub(super) fn was_reset(&self, id: u32) {
        if let Some(entry) = self.lock().remove(&id) {
            entry.cut(io::ErrorKind::ConnectionReset);
        }
    }

    /// The connection is over.
    pub(super) fn end(&self) {
        for (_, entry) in self.lock().drain() {
            entry.cut(io::ErrorKind::ConnectionAborted);
        }
    }

    fn done(&self, id: u32, what: impl FnOnce(&mut Entry)) {
        let mut entries = self.lock();
        if let Some(entry) = entries.get_mut(&id) {
            what(entry);
            if entry.sent && entry.received {
                entries.remove(&id);
            }
        }
    }

    /// Ends a stream that is not over at both sides.
    pub(super) fn reset(&self, id: u32) {
        if let Some(entry) = self.lock().remove(&id) {
            entry.cut(io::ErrorKind::ConnectionReset);
            // An error says that the connection is over, and its streams with it.
            let _ = self.resets.send(id);
        }
    }
}

impl Entry {
    fn cut(self, why: io::ErrorKind) {
        self.reset.store(true, Ordering::Release);
        self.feeder.end(Err(why));
    }
}

impl Ending for Table {
    fn finished(&self, stream: u32) {
        self.done(stream, |entry| entry.sent = true);
    }

    fn abandoned(&self, stream: u32) {
        self.reset(stream);
    }
}
