//! When a failed request is tried again: exponential pauses with jitter, bounded in number, and
//! never for a failure that will not go away.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use super::error::RequestError;
use crate::config::NetworkConfig;

/// The pauses of one request at one host.
pub(super) struct Backoff<'a> {
    network: &'a NetworkConfig,
    attempts: u32,
    left: u32,
    next: Duration,
}

impl<'a> Backoff<'a> {
    /// At most `attempts` attempts, the first one included.
    pub(super) fn new(network: &'a NetworkConfig, attempts: u32) -> Self {
        Self {
            network,
            attempts,
            left: attempts,
            next: network.backoff,
        }
    }

    /// Starts the count anew, after an attempt that made progress.
    pub(super) fn reset(&mut self) {
        self.left = self.attempts;
        self.next = self.network.backoff;
    }

    /// Waits until the next attempt, or gives the error back if there shall be none.
    pub(super) async fn pause(&mut self, error: RequestError) -> Result<(), RequestError> {
        let Some(pause) = self.after(&error) else {
            return Err(error);
        };
        tracing::debug!(%error, ?pause, "a request failed and will be repeated");
        tokio::time::sleep(pause).await;
        Ok(())
    }

    fn after(&mut self, error: &RequestError) -> Option<Duration> {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 || !error.is_transient() {
            return None;
        }
        let full = self.next;
        self.next = (self.next * 2).min(self.network.backoff_max);
        let asked = error
            .retry_after()
            .unwrap_or_default()
            .min(self.network.retry_after_max);
        Some(jittered(full).max(asked))
    }
}

/// Between half of the pause and all of it, so that many clients do not come back together.
fn jittered(pause: Duration) -> Duration {
    // Each RandomState has keys of its own: a source of randomness without a dependency.
    let random = RandomState::new().hash_one(0_u8) as u32;
    pause / 2 + (pause / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    fn answer(status: u16, retry_after: Option<u64>) -> RequestError {
        RequestError::Status {
            url: String::new(),
            status: StatusCode::from_u16(status).unwrap(),
            message: String::new(),
            retry_after: retry_after.map(Duration::from_secs),
        }
    }

    #[test]
    fn pauses_grow_and_end() {
        let network = NetworkConfig {
            attempts: 4,
            ..NetworkConfig::default()
        };
        let mut backoff = Backoff::new(&network, network.attempts);
        for factor in [1, 2, 4] {
            let pause = backoff.after(&answer(503, None)).unwrap();
            let full = network.backoff * factor;
            assert!(pause >= full / 2 && pause <= full, "{pause:?}");
        }
        assert_eq!(backoff.after(&answer(503, None)), None);
        backoff.reset();
        assert!(backoff.after(&answer(408, None)).is_some());
    }

    #[test]
    fn servers_may_ask_for_a_pause_within_limits() {
        let network = NetworkConfig::default();
        let pause = |error| Backoff::new(&network, 5).after(&error);
        assert_eq!(pause(answer(429, Some(20))), Some(Duration::from_secs(20)));
        assert_eq!(
            pause(answer(429, Some(86_400))),
            Some(network.retry_after_max)
        );
        for status in [400, 401, 403, 404, 416] {
            assert_eq!(pause(answer(status, None)), None, "{status}");
        }
    }
}
