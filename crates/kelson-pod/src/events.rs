//! What happens to pods and containers, told to whoever listens. A slow listener loses the oldest events
//! and is told how many; nobody waits for it.

use std::sync::Arc;

use kelson_shim::ids::{ContainerId, PodId};
use tokio::sync::broadcast;

use crate::view::Pod;

/// How many events a listener may be behind.
pub const BACKLOG: usize = 1024;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Made.
    Created,
    /// Started.
    Started,
    /// Stopped or exited.
    Stopped,
    /// Removed.
    Deleted,
}

/// Something that happened to a pod or a container. Events of one pod come in the order in which they
/// happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// To which pod.
    pub pod: PodId,
    /// To which container of it; `None`: to the pod itself.
    pub container: Option<ContainerId>,
    /// When, in nanoseconds since 1970.
    pub at: i64,
    /// The pod and its containers right after it. A deleted one is shown as it was last.
    pub status: Arc<Pod>,
}

/// What a listener receives.
#[derive(Clone, Debug)]
pub enum Received {
    /// An event.
    Event(Arc<Event>),
    /// So many events were lost because the listener was too slow.
    Missed(u64),
}

/// A listener's end. Hears what happens after it was made.
#[derive(Debug)]
pub struct Events(broadcast::Receiver<Arc<Event>>);

impl Events {
    /// Waits for the next event; `None`: the daemon is ending.
    pub async fn recv(&mut self) -> Option<Received> {
        match self.0.recv().await {
            Ok(event) => Some(Received::Event(event)),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Received::Missed(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// The speaker's end.
#[derive(Debug)]
pub(crate) struct Announcer(broadcast::Sender<Arc<Event>>);

impl Announcer {
    pub(crate) fn new() -> Self {
        Self(broadcast::Sender::new(BACKLOG))
    }

    pub(crate) fn subscribe(&self) -> Events {
        Events(self.0.subscribe())
    }

    pub(crate) fn tell(&self, event: Event) {
        // An error says that nobody listens.
        let _ = self.0.send(Arc::new(event));
    }
}
