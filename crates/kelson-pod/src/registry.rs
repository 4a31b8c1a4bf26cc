//! Which pod tasks there are, by id and by name. The lock is held for a map operation, never longer.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kelson_shim::ids::PodId;
use tokio::sync::mpsc;
use tracing::Span;

use crate::config::PodMetadata;
use crate::task::Message;

/// The way to a pod's task. A message brings the span in which it was sent, so that what is done because of
/// it is known to belong there.
#[derive(Debug, Clone)]
pub(crate) struct Inbox(mpsc::UnboundedSender<(Span, Message)>);

/// The task's end of its [`Inbox`].
pub(crate) type Messages = mpsc::UnboundedReceiver<(Span, Message)>;

impl Inbox {
    /// A new one.
    pub(crate) fn new() -> (Self, Messages) {
        let (sender, messages) = mpsc::unbounded_channel();
        (Self(sender), messages)
    }

    /// Sends; fails when the task has ended, which drops the message.
    pub(crate) fn send(&self, message: Message) -> Result<(), Ended> {
        let sent = self.0.send((Span::current(), message));
        sent.map_err(|_| Ended)
    }
}

/// The task of a pod has ended.
#[derive(Debug)]
pub(crate) struct Ended;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Registry(Mutex<Tables>);

#[derive(Debug, Default)]
struct Tables {
    tasks: HashMap<PodId, Inbox>,
    names: HashMap<PodMetadata, PodId>,
}

impl Registry {
    /// The task that has this name; when nobody has, `new` becomes it. Says which, and whether it is new.
    pub(crate) fn claim(
        &self,
        name: &PodMetadata,
        new: impl FnOnce() -> (PodId, Inbox),
    ) -> (Inbox, bool) {
        let mut tables = self.lock();
        if let Some(id) = tables.names.get(name)
            && let Some(inbox) = tables.tasks.get(id)
        {
            return (inbox.clone(), false);
        }
        let (id, inbox) = new();
        tables.names.insert(name.clone(), id);
        tables.tasks.insert(id, inbox.clone());
        (inbox, true)
    }

    /// Takes over the pod of an earlier daemon.
    pub(crate) fn adopt(&self, name: &PodMetadata, id: PodId, inbox: Inbox) {
        let mut tables = self.lock();
        tables.names.entry(name.clone()).or_insert(id);
        tables.tasks.insert(id, inbox);
    }

    /// The task with this id.
    pub(crate) fn find(&self, id: &PodId) -> Option<Inbox> {
        self.lock().tasks.get(id).cloned()
    }

    /// Takes a task and its name away. A name that another pod has by now stays.
    pub(crate) fn remove(&self, id: &PodId, name: &PodMetadata) {
        let mut tables = self.lock();
        tables.tasks.remove(id);
        if let Entry::Occupied(entry) = tables.names.entry(name.clone())
            && entry.get() == id
        {
            entry.remove();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbox() -> (PodId, Inbox) {
        (PodId::random().unwrap(), Inbox::new().0)
    }

    #[test]
    fn a_name_belongs_to_one_pod_until_it_is_removed() {
        let registry = Registry::default();
        let name = PodMetadata {
            name: "a".into(),
            ..PodMetadata::default()
        };
        let (id, first) = inbox();
        assert!(registry.claim(&name, || (id, first)).1);
        assert!(!registry.claim(&name, inbox).1);
        assert!(registry.find(&id).is_some());
        registry.remove(&id, &name);
        assert!(registry.find(&id).is_none());
        let (other, second) = inbox();
        assert!(registry.claim(&name, || (other, second)).1);
        // The first pod's late removal does not take the second one's name.
        registry.remove(&id, &name);
        assert!(!registry.claim(&name, inbox).1);
    }
}
