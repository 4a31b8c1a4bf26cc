//! Gives memory back to the system when work pauses: the allocator would keep what a burst of calls or
//! sessions needed, split over the heaps of all threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

/// How long nothing has to be finished for work to pause.
const PAUSE: Duration = Duration::from_millis(100);
/// The least time from one giving back to the next.
const SPACING: Duration = Duration::from_secs(3);

/// Hears of finished work; a clone tells the same one. It sleeps while there is none.
#[derive(Debug, Clone)]
pub struct Rest(Arc<Work>);

#[derive(Debug, Default)]
struct Work {
    finished: AtomicU64,
    begun: Notify,
}

impl Rest {
    /// Begins to give back memory, for as long as the event loop runs.
    pub fn start() -> Self {
        let work = Arc::<Work>::default();
        tokio::spawn(give_back(Arc::clone(&work), || {
            drop(tokio::task::spawn_blocking(kelson_sys::memory::trim));
        }));
        Self(work)
    }

    /// Something is finished.
    pub(crate) fn worked(&self) {
        self.0.finished.fetch_add(1, Ordering::Relaxed);
        self.0.begun.notify_one();
    }
}

async fn give_back(work: Arc<Work>, trim: impl Fn()) {
    loop {
        work.begun.notified().await;
        loop {
            let before = work.finished.load(Ordering::Relaxed);
            sleep(PAUSE).await;
            if work.finished.load(Ordering::Relaxed) == before {
                break;
            }
        }
        trim();
        sleep(SPACING).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn memory_is_given_back_once_after_a_burst_and_not_in_it() {
        let rest = Rest(Arc::default());
        let trims = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&trims);
        let trimming = tokio::spawn(give_back(Arc::clone(&rest.0), move || {
            count.fetch_add(1, Ordering::Relaxed);
        }));
        let trims = || trims.load(Ordering::Relaxed);
        for _ in 0..100 {
            rest.worked();
            sleep(PAUSE / 2).await;
        }
        assert_eq!(trims(), 0);
        sleep(PAUSE * 2).await;
        assert_eq!(trims(), 1);
        rest.worked();
        sleep(SPACING / 2).await;
        assert_eq!(trims(), 1);
        sleep(SPACING).await;
        assert_eq!(trims(), 2);
        sleep(SPACING * 1000).await;
        assert_eq!(trims(), 2);
        trimming.abort();
    }
}
