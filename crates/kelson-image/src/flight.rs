//! One piece of work for however many callers ask for it.
//!
//! The first caller's work runs in a task of its own; others join it. It goes on as long as one of
//! them waits, and is dropped with the last of them. What is dropped half-done must clean up after
//! itself.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::task::AbortHandle;

/// The work under way, by what it is for. `D` is what joiners can look at meanwhile, `T` the result.
pub(crate) struct Flights<K, D, T> {
    running: Arc<Mutex<HashMap<K, Running<D, T>>>>,
}

struct Running<D, T> {
    serial: u64,
    waiters: usize,
    data: D,
    result: watch::Receiver<Option<T>>,
    task: AbortHandle,
}

/// A caller's share in some work. Dropping it leaves the work to the others.
pub(crate) struct Ticket<K: Eq + Hash, D, T> {
    running: Arc<Mutex<HashMap<K, Running<D, T>>>>,
    key: K,
    serial: u64,
    result: watch::Receiver<Option<T>>,
    pub(crate) data: D,
    /// Whether this caller started the work.
    pub(crate) started: bool,
}

impl<K, D, T> Default for Flights<K, D, T> {
    fn default() -> Self {
        Self {
            running: Arc::default(),
        }
    }
}

impl<K, D, T> Flights<K, D, T>
where
    K: Eq + Hash + Clone + Send + 'static,
    D: Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Joins the work for `key`, or starts it with `data` and the future that `work` makes of it.
    pub(crate) fn join<F>(&self, key: K, data: D, work: impl FnOnce(D) -> F) -> Ticket<K, D, T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut running = lock(&self.running);
        if let Some(flight) = running.get_mut(&key) {
            flight.waiters += 1;
            let (serial, result) = (flight.serial, flight.result.clone());
            let (data, running) = (flight.data.clone(), Arc::clone(&self.running));
            return Ticket {
                running,
                key,
                serial,
                result,
                data,
                started: false,
            };
        }
        let serial = next_serial();
        let (sender, result) = watch::channel(None);
        let future = work(data.clone());
        let (shared, own_key) = (Arc::clone(&self.running), key.clone());
        let task = tokio::spawn(async move {
            let value = future.await;
            // From here on a new caller starts anew; those who wait get the value.
            let mut running = lock(&shared);
            if running
                .get(&own_key)
                .is_some_and(|flight| flight.serial == serial)
            {
                running.remove(&own_key);
            }
            drop(running);
            sender.send_replace(Some(value));
        });
        let flight = Running {
            serial,
            waiters: 1,
            data: data.clone(),
            result: result.clone(),
            task: task.abort_handle(),
        };
        running.insert(key.clone(), flight);
        drop(running);
        Ticket {
            running: Arc::clone(&self.running),
            key,
            serial,
            result,
            data,
            started: true,
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        lock(&self.running).len()
    }
}

impl<K: Eq + Hash + Clone, D: Clone, T: Clone> Ticket<K, D, T> {
    /// A second share in the same work.
    pub(crate) fn share(&self) -> Self {
        let mut running = lock(&self.running);
        if let Some(flight) = running
            .get_mut(&self.key)
            .filter(|f| f.serial == self.serial)
        {
            flight.waiters += 1;
        }
        drop(running);
        Self {
            running: Arc::clone(&self.running),
            key: self.key.clone(),
            serial: self.serial,
            result: self.result.clone(),
            data: self.data.clone(),
            started: self.started,
        }
    }

    /// The result; `None` if the work ended without one, by a panic.
    pub(crate) async fn wait(&mut self) -> Option<T> {
        let value = self.result.wait_for(Option::is_some).await.ok()?;
        value.clone()
    }
}

impl<K: Eq + Hash, D, T> Drop for Ticket<K, D, T> {
    fn drop(&mut self) {
        let mut running = lock(&self.running);
        let Some(flight) = running.get_mut(&self.key) else {
            return;
        };
        if flight.serial != self.serial {
            return;
        }
        flight.waiters -= 1;
        if flight.waiters == 0 {
            flight.task.abort();
            let flight = running.remove(&self.key);
            drop(running);
            drop(flight);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn next_serial() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    async fn slow(runs: Arc<AtomicU32>) -> u32 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        runs.fetch_add(1, Ordering::Relaxed) + 1
    }

    #[tokio::test]
    async fn callers_share_one_run() {
        let (flights, runs) = (Flights::default(), Arc::new(AtomicU32::new(0)));
        let join = || flights.join("a", (), |()| slow(Arc::clone(&runs)));
        let (mut one, mut two) = (join(), join());
        assert!(one.started && !two.started);
        assert_eq!((one.wait().await, two.wait().await), (Some(1), Some(1)));
        assert_eq!(flights.len(), 0);
        assert_eq!(
            join().wait().await,
            Some(2),
            "work that is over is not joined"
        );
    }

    #[tokio::test]
    async fn work_goes_on_while_one_waits() {
        let (flights, runs) = (Flights::default(), Arc::new(AtomicU32::new(0)));
        let join = || flights.join("a", (), |()| slow(Arc::clone(&runs)));
        let first = join();
        let mut second = first.share();
        drop(first);
        assert_eq!(second.wait().await, Some(1));
        drop(second);
        drop(join());
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(
            runs.load(Ordering::Relaxed),
            1,
            "nobody waited for the last one"
        );
        assert_eq!(flights.len(), 0);
    }

    #[tokio::test]
    async fn a_panic_is_no_hang() {
        let flights: Flights<&str, (), u32> = Flights::default();
        let mut ticket = flights.join("a", (), |()| async { panic!("on purpose") });
        assert_eq!(ticket.wait().await, None);
        drop(ticket);
        assert_eq!(flights.len(), 0);
    }
}
