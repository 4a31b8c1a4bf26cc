//! Which cgroup hierarchies are mounted, and where.

use std::path::Path;
use std::sync::Arc;

use crate::Result;

/// The generation of the cgroup interface that carries the resource controllers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One or more hierarchies, each with its controllers.
    V1,
    /// One unified hierarchy.
    V2,
}

/// The mounted cgroup hierarchies of the machine. Immutable; cloning is cheap.
#[derive(Debug, Clone)]
pub struct Hierarchy {
    #[expect(dead_code)]
    inner: Arc<()>,
}

impl Hierarchy {
    /// Finds the hierarchies by `/proc/self/mountinfo`.
    pub fn detect() -> Result<Self> {
        unimplemented!()
    }

    /// As [`Hierarchy::detect`], from the text of a mountinfo file. Mount points are used as they
    /// are written there.
    pub fn from_mountinfo(_mountinfo: &str) -> Result<Self> {
        unimplemented!()
    }

    /// A cgroup v2 hierarchy whose root is the directory `root`.
    pub fn v2_at(_root: &Path) -> Self {
        unimplemented!()
    }

    /// Which generation carries the controllers.
    pub fn version(&self) -> Version {
        unimplemented!()
    }
}
