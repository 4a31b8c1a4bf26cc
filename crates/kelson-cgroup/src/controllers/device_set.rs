//! What a list of device rules adds up to.
//!
//! v1 keeps a default and a set of exceptions; v2 runs a program that is made from the same. A rule
//! that takes away only a part of an earlier, wider one has no such form and is refused, rather
//! than left to allow more than was meant.

use std::collections::BTreeMap;

use crate::{Access, DeviceKind, DeviceRule, Error, Result};

/// Most rules in a list. The largest real ones have a few dozen.
const MAX_RULES: usize = 4096;

/// Character or block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Char,
    Block,
}

impl Kind {
    pub(super) fn letter(self) -> char {
        match self {
            Self::Char => 'c',
            Self::Block => 'b',
        }
    }
}

/// Which devices an exception is about; `None` is any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) kind: Kind,
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
}

impl Key {
    /// Whether some device fits both.
    fn overlaps(self, other: Self) -> bool {
        let meet = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        self.kind == other.kind && meet(self.major, other.major) && meet(self.minor, other.minor)
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        write!(
            f,
            "{} {}:{}",
            self.kind.letter(),
            number(self.major),
            number(self.minor)
        )
    }
}

/// A default, and the accesses for which the opposite holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DeviceSet {
    pub(super) allow: bool,
    pub(super) exceptions: BTreeMap<Key, Access>,
}

impl DeviceSet {
    /// Adds up the rules; before the first everything is denied.
    pub(super) fn from_rules(rules: &[DeviceRule]) -> Result<Self> {
        if rules.len() > MAX_RULES {
            let reason = "there are more than 4096 rules";
            return Err(Error::limit("devices", rules.len(), reason));
        }
        let mut set = Self {
            allow: false,
            exceptions: BTreeMap::new(),
        };
        for rule in rules {
            set.add(rule)?;
        }
        Ok(set)
    }

    fn add(&mut self, rule: &DeviceRule) -> Result<()> {
        let everything = rule.kind == DeviceKind::All
            && (rule.major, rule.minor) == (None, None)
            && rule.access == Access::ALL;
        if everything {
            *self = Self {
                allow: rule.allow,
                exceptions: BTreeMap::new(),
            };
            return Ok(());
        }
        let kinds: &[Kind] = match rule.kind {
            DeviceKind::All => &[Kind::Char, Kind::Block],
            DeviceKind::Char => &[Kind::Char],
            DeviceKind::Block => &[Kind::Block],
        };
        for kind in kinds {
            let key = Key {
                kind: *kind,
                major: rule.major,
                minor: rule.minor,
            };
            if rule.allow == self.allow {
                self.take_back(key, rule.access)?;
            } else {
                let access = self.exceptions.entry(key).or_default();
                *access = union(*access, rule.access);
            }
        }
        Ok(())
    }

    /// Removes accesses from the exceptions.
    fn take_back(&mut self, key: Key, access: Access) -> Result<()> {
        for (other, theirs) in &mut self.exceptions {
            if !key.overlaps(*other) || !intersects(*theirs, access) {
                continue;
            }
            let covered = key.major.is_none_or(|n| other.major == Some(n))
                && key.minor.is_none_or(|n| other.minor == Some(n));
            if !covered {
                let reason = "it takes away a part of an earlier rule; \
                              list what is allowed instead";
                return Err(Error::limit("devices", key, reason));
            }
            *theirs = minus(*theirs, access);
        }
        self.exceptions
            .retain(|_, access| *access != Access::default());
        Ok(())
    }
}

pub(super) fn union(a: Access, b: Access) -> Access {
    Access {
        read: a.read | b.read,
        write: a.write | b.write,
        mknod: a.mknod | b.mknod,
    }
}

pub(super) fn minus(a: Access, b: Access) -> Access {
    Access {
        read: a.read & !b.read,
        write: a.write & !b.write,
        mknod: a.mknod & !b.mknod,
    }
}

fn intersects(a: Access, b: Access) -> bool {
    a.read & b.read | a.write & b.write | a.mknod & b.mknod
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::controllers) fn rule(text: &str) -> DeviceRule {
        let mut words = text.split(' ');
        let mut word = || words.next().unwrap();
        let allow = word() == "allow";
        let kind = match word() {
            "c" => DeviceKind::Char,
            "b" => DeviceKind::Block,
            _ => DeviceKind::All,
        };
        let (major, minor) = word().split_once(':').unwrap();
        let access = word();
        DeviceRule {
            allow,
            kind,
            major: major.parse().ok(),
            minor: minor.parse().ok(),
            access: Access {
                read: access.contains('r'),
                write: access.contains('w'),
                mknod: access.contains('m'),
            },
        }
    }

    fn set(rules: &[&str]) -> Result<DeviceSet> {
        DeviceSet::from_rules(&rules.iter().map(|text| rule(text)).collect::<Vec<_>>())
    }

    #[test]
    fn the_usual_list() {
        let sum = set(&[
            "deny a *:* rwm",
            "allow c *:* m",
            "allow c 1:3 rw",
            "allow c 1:3 m",
        ]);
        let sum = sum.unwrap();
        assert!(!sum.allow);
        let list: Vec<_> = sum
            .exceptions
            .iter()
            .map(|(key, a)| (key.to_string(), *a))
            .collect();
        let only_mknod = Access {
            mknod: true,
            ..Access::default()
        };
        assert_eq!(
            list,
            [
                ("c *:*".to_owned(), only_mknod),
                ("c 1:3".to_owned(), Access::ALL)
            ]
        );
    }

    #[test]
    fn everything_and_back() {
        let sum = set(&["allow c 1:3 rw", "allow a *:* rwm", "deny b 8:0 w"]).unwrap();
        assert!(sum.allow);
        assert_eq!(sum.exceptions.len(), 1);
        let sum = set(&["allow a *:* rwm", "deny b 8:0 rw", "allow b 8:0 r"]).unwrap();
        let write = Access {
            write: true,
            ..Access::default()
        };
        assert_eq!(
            sum.exceptions.values().copied().collect::<Vec<_>>(),
            [write]
        );
        assert!(
            set(&["allow c 1:1 r", "deny a *:* rwm"])
                .unwrap()
                .exceptions
                .is_empty()
        );
    }

    #[test]
    fn a_number_with_kind_a_is_not_everything() {
        let sum = set(&["allow a 1:3 rwm"]).unwrap();
        assert!(!sum.allow);
        assert_eq!(sum.exceptions.len(), 2);
    }

    #[test]
    fn holes_are_refused() {
        assert!(set(&["allow c *:* rwm", "deny c 1:3 w"]).is_err());
        assert!(set(&["allow c *:* r", "deny c 1:3 w"]).is_ok());
        assert!(set(&["allow c 1:3 rwm", "deny c 1:* w"]).is_ok());
        assert!(set(&["allow c 1:3 rwm", "deny c 2:* w"]).is_ok());
        let error = DeviceSet::from_rules(&vec![rule("allow c 1:1 r"); 4097]).unwrap_err();
        assert!(error.to_string().contains("4096"));
    }
}
