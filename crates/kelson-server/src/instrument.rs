//! The one wrapper around every verb: span, log line, deadline, counters and status code.
//!
//! Handlers return their own errors; here they become gRPC statuses, are logged once with their
//! whole chain of causes, and are counted. Nothing here knows what a verb does.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tonic::{Code, Response, Status};
use tracing::{Instrument as _, debug, info_span, warn};

use crate::error::VerbError;
use crate::rest::Rest;

/// How long a verb may take when the client sets no deadline of its own.
///
/// The kubelet's own limits are 2 minutes for most verbs and longer for pulls; this one only
/// keeps a forgotten call from living for ever.
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// What is counted of one verb.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct VerbCount {
    /// Calls that were answered, well or not.
    pub calls: u64,
    /// Calls that were answered with an error.
    pub errors: u64,
    /// Time spent in all of them together.
    pub time: Duration,
}

/// Counters of all verbs; a clone counts into the same place.
#[derive(Debug, Clone)]
pub struct Instrument {
    rest: Rest,
    counts: Arc<Mutex<BTreeMap<&'static str, VerbCount>>>,
}

impl Instrument {
    /// No calls yet.
    pub(crate) fn new(rest: Rest) -> Self {
        Self {
            rest,
            counts: Arc::default(),
        }
    }

    /// Runs one verb. `subject` is the id or name it is about, for the span.
    pub(crate) async fn verb<T>(
        &self,
        name: &'static str,
        subject: &str,
        work: impl Future<Output = Result<T, VerbError>>,
    ) -> Result<Response<T>, Status> {
        let begin = Instant::now();
        let span = info_span!("cri", verb = name, subject);
        let outcome = async {
            let outcome = match tokio::time::timeout(LONGEST, work).await {
                Ok(outcome) => outcome,
                Err(_) => Err(VerbError::deadline(LONGEST)),
            };
            let took = begin.elapsed();
            match &outcome {
                Ok(_) => debug!(?took, "done"),
                Err(error) if error.code == Code::NotFound => debug!(?took, "{error}"),
                Err(error) => warn!(?took, code = ?error.code, "{error}"),
            }
            outcome
        }
        .instrument(span)
        .await;
        self.count(name, begin.elapsed(), outcome.is_err());
        outcome.map(Response::new).map_err(Status::from)
    }

    fn count(&self, name: &'static str, took: Duration, failed: bool) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(name).or_default();
        count.calls += 1;
        count.errors += u64::from(failed);
        count.time += took;
        drop(counts);
        self.rest.worked();
    }

    /// The counters so far, by verb.
    pub fn counts(&self) -> BTreeMap<&'static str, VerbCount> {
        self.counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_verb_is_counted_and_its_error_becomes_a_status() {
        let instrument = Instrument::new(Rest::start());
        let good = instrument.verb("Version", "", async { Ok(1) }).await;
        assert_eq!(good.unwrap().into_inner(), 1);
        let bad = instrument
            .verb("Version", "", async {
                Err::<(), _>(VerbError::invalid("no name"))
            })
            .await;
        assert_eq!(bad.unwrap_err().code(), Code::InvalidArgument);
        let count = instrument.counts()["Version"];
        assert_eq!((count.calls, count.errors), (2, 1));
    }
}
