//! The levels of pods: two categories each, and no two pods with the same two unless they ask for that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many categories the policies of the field have.
const CATEGORIES: u16 = 1024;
/// How often two categories are drawn. With every tenth pair in use, one in 10^100 pods would get none.
const DRAWS: usize = 100;

/// The levels that are in use, and by how many pods.
#[derive(Clone, Debug, Default)]
pub(super) struct Levels(Arc<Mutex<HashMap<String, usize>>>);

/// A level that is in use.
#[derive(Debug)]
pub(crate) struct Held {
    levels: Levels,
    level: String,
}

impl Levels {
    /// A level that nobody has.
    pub(super) fn fresh(&self, sensitivity: &str) -> Option<Held> {
        let mut used = self.lock();
        let mut draws = (0..DRAWS).filter_map(|_| pair());
        let level = draws.find_map(|(low, high)| {
            let level = format!("{sensitivity}:c{low},c{high}");
            (!used.contains_key(&level)).then_some(level)
        })?;
        used.insert(level.clone(), 1);
        drop(used);
        let levels = self.clone();
        Some(Held { levels, level })
    }

    /// A level that somebody may have.
    pub(super) fn hold(&self, level: &str) -> Held {
        *self.lock().entry(level.to_owned()).or_default() += 1;
        Held {
            levels: self.clone(),
            level: level.to_owned(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn in_use(&self) -> usize {
        self.lock().len()
    }
}

/// Two different categories, the smaller one first; none when the draw was no such pair.
fn pair() -> Option<(u16, u16)> {
    let mut raw = [0; 4];
    rustix::rand::getrandom(&mut raw, rustix::rand::GetRandomFlags::empty()).ok()?;
    let [a, b, c, d] = raw;
    let (one, other) = (
        u16::from_le_bytes([a, b]) % CATEGORIES,
        u16::from_le_bytes([c, d]) % CATEGORIES,
    );
    (one != other).then(|| (one.min(other), one.max(other)))
}

impl Held {
    pub(crate) fn level(&self) -> &str {
        &self.level
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut used = self.levels.lock();
        if let Some(count) = used.get_mut(&self.level) {
            *count -= 1;
            if *count == 0 {
                used.remove(&self.level);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_one_pods_until_it_is_given_back() {
        let levels = Levels::default();
        let all: Vec<Held> = (0..500).filter_map(|_| levels.fresh("s0")).collect();
        assert_eq!((all.len(), levels.in_use()), (500, 500));
        for held in &all {
            let categories = held.level().strip_prefix("s0:c").unwrap();
            let (low, high) = categories.split_once(",c").unwrap();
            let number = |text: &str| text.parse::<u16>().unwrap();
            assert!(number(low) < number(high) && number(high) < CATEGORIES);
        }
        let again = levels.hold(all[0].level());
        drop(all);
        assert_eq!(levels.in_use(), 1);
        drop(again);
        assert_eq!(levels.in_use(), 0);
    }
}
