//! Writes to the store from many tasks: one thread, one commit for all that wait at the same time.
//!
//! Batches become durable in the order in which they were handed in. The thread ends when the last
//! [`Journal`] is dropped and everything handed in is written.

use std::sync::{Arc, mpsc};
use std::thread;

use kelson_store::{Batch, Store, StoreError};
use tokio::sync::oneshot;
use tracing::{Instrument as _, debug_span};

/// Most batches that are made into one commit.
const MAX_GROUP: usize = 256;

type Answer = oneshot::Sender<Result<(), Arc<StoreError>>>;

/// The way to the writing thread. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Journal(mpsc::Sender<(Batch, Option<Answer>)>);

impl Journal {
    /// Starts the thread.
    pub(crate) fn start(store: Store) -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        thread::Builder::new()
            .name("pod-journal".into())
            .spawn(move || write(&store, &receiver))?;
        Ok(Self(sender))
    }

    /// Waits until the batch is durable.
    pub(crate) async fn commit(&self, batch: Batch) -> Result<(), Arc<StoreError>> {
        let (answer, answered) = oneshot::channel();
        // The thread lives as long as this sender.
        self.0
            .send((batch, Some(answer)))
            .expect("the journal's thread runs");
        let answered = answered.instrument(debug_span!("commit")).await;
        answered.expect("the journal answers every batch")
    }

    /// Hands the batch in; a failure is logged. For what can be found out again: the shim and its exit
    /// records hold the truth about containers.
    pub(crate) fn note(&self, batch: Batch) {
        self.0
            .send((batch, None))
            .expect("the journal's thread runs");
    }
}

fn write(store: &Store, receiver: &mpsc::Receiver<(Batch, Option<Answer>)>) {
    while let Ok((mut batch, answer)) = receiver.recv() {
        let mut answers = vec![answer];
        while answers.len() < MAX_GROUP
            && let Ok((next, answer)) = receiver.try_recv()
        {
            batch.append(next);
            answers.push(answer);
        }
        let result = store.commit(batch).map_err(Arc::new);
        if let Err(error) = &result {
            tracing::error!(error = %crate::error::chain(&**error), "the state of pods cannot be written");
        }
        for answer in answers.into_iter().flatten() {
            // Whoever asked may have gone.
            let _ = answer.send(result.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::pod_record;

    #[tokio::test]
    async fn everything_handed_in_is_durable_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.redb")).unwrap();
        let journal = Journal::start(store.clone()).unwrap();
        let mut waits = Vec::new();
        for n in 0..100 {
            let journal = journal.clone();
            waits.push(tokio::spawn(async move {
                let mut batch = Batch::new();
                batch.put(&format!("{n:03}"), &pod_record("p")).unwrap();
                journal.commit(batch).await
            }));
        }
        for wait in waits {
            wait.await.unwrap().unwrap();
        }
        assert_eq!(
            store
                .scan::<crate::record::PodRecord>()
                .unwrap()
                .records
                .len(),
            100
        );
        let mut batch = Batch::new();
        batch.delete::<crate::record::PodRecord>("000");
        journal.note(batch);
        journal.commit(Batch::new()).await.unwrap();
        assert_eq!(
            store
                .scan::<crate::record::PodRecord>()
                .unwrap()
                .records
                .len(),
            99
        );
    }
}
