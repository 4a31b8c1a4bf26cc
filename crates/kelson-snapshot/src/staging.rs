//! A layer that is unpacked but not committed.

use crate::{DiffId, Usage};

/// An unpacked layer whose digests are right. Dropping it discards it.
#[derive(Debug)]
pub struct Staging {
    diff_id: DiffId,
    usage: Usage,
}

impl Staging {
    /// The layer's diff id.
    pub fn diff_id(&self) -> &DiffId {
        &self.diff_id
    }

    /// Space that the layer takes.
    pub fn usage(&self) -> Usage {
        self.usage
    }
}
