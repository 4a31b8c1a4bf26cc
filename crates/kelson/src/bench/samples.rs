//! Measured values and what is said about them.

use std::time::{Duration, Instant};

use serde::Serialize;

/// How long a future takes, and what it results in if that is no error.
pub(super) async fn timed<T, E>(
    work: impl Future<Output = Result<T, E>>,
) -> Result<(Duration, T), E> {
    let begin = Instant::now();
    let result = work.await?;
    Ok((begin.elapsed(), result))
}

/// A measured step: its name and how long it took.
pub(super) type Step = (&'static str, Duration);

/// What is said about many values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Summary {
    pub(super) count: usize,
    pub(super) p50: f64,
    pub(super) p95: f64,
    pub(super) p99: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Summary {
    /// Percentiles by the nearest rank; nothing of nothing.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let rank = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1];
        Some(Self {
            count: sorted.len(),
            p50: rank(50),
            p95: rank(95),
            p99: rank(99),
            min,
            max,
        })
    }
}

/// Times of named steps for each peer, in the order in which the steps came first.
#[derive(Debug)]
pub(super) struct Steps {
    peers: usize,
    steps: Vec<(&'static str, Vec<Vec<f64>>)>,
}

impl Steps {
    pub(super) fn new(peers: usize) -> Self {
        Self {
            peers,
            steps: Vec::new(),
        }
    }

    /// Adds the times that one round took for a peer.
    pub(super) fn add(&mut self, peer: usize, times: Vec<Step>) {
        for (name, time) in times {
            let index = self.steps.iter().position(|(known, _)| *known == name);
            let index = index.unwrap_or_else(|| {
                self.steps.push((name, vec![Vec::new(); self.peers]));
                self.steps.len() - 1
            });
            self.steps[index].1[peer].push(milliseconds(time));
        }
    }

    /// Each step with a summary for each peer, in milliseconds.
    pub(super) fn summaries(&self) -> impl Iterator<Item = (&'static str, Vec<Option<Summary>>)> {
        self.steps
            .iter()
            .map(|(name, peers)| (*name, peers.iter().map(|v| Summary::of(v)).collect()))
    }
}

/// A duration as milliseconds.
pub(super) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let summary = Summary::of(&values).unwrap();
        let expected = Summary {
            count: 100,
            p50: 50.0,
            p95: 95.0,
            p99: 99.0,
            min: 1.0,
            max: 100.0,
        };
        assert_eq!(summary, expected);
        let one = Summary::of(&[7.0]).unwrap();
        assert_eq!((one.p50, one.p99, one.min, one.max), (7.0, 7.0, 7.0, 7.0));
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn steps_keep_their_order_and_their_peers() {
        let ms = Duration::from_millis;
        let mut steps = Steps::new(2);
        steps.add(1, vec![("b", ms(2)), ("a", ms(1))]);
        steps.add(0, vec![("a", ms(3))]);
        let names: Vec<_> = steps.summaries().collect();
        assert_eq!(names[0].0, "b");
        assert!(names[0].1[0].is_none());
        assert!((names[1].1[0].unwrap().p50 - 3.0).abs() < 1e-9);
        assert!((names[1].1[1].unwrap().p50 - 1.0).abs() < 1e-9);
    }
}
