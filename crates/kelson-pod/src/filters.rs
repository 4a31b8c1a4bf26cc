//! Compiled seccomp filters: the default one is compiled once for each set of capabilities.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use kelson_runtime::seccomp::{self, SeccompError};
use kelson_shim::proto::SeccompFilter;
use kelson_sys::root::{Root, RootError};
use oci_spec::runtime::{Capability, LinuxSeccomp};

use crate::spec::capabilities;

/// Largest profile file, in bytes.
const MAX_PROFILE: u64 = 1 << 20;
/// Most sets of capabilities remembered; a node has a handful.
const MAX_REMEMBERED: usize = 64;

/// Why there is no filter.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum FilterError {
    #[error("cannot read the seccomp profile")]
    Read(#[source] Arc<RootError>),
    #[error("seccomp profile {path:?} is not a profile")]
    Parse {
        path: String,
        #[source]
        source: Arc<serde_json::Error>,
    },
    #[error("cannot compile the seccomp profile")]
    Compile(#[source] Arc<SeccompError>),
}

/// The default filters that were compiled, by the mask of the capabilities.
#[derive(Debug, Default)]
pub(crate) struct Filters(Mutex<HashMap<u64, SeccompFilter>>);

impl Filters {
    /// The default filter for a process with these capabilities. Takes milliseconds the first time.
    pub(crate) fn default_for(
        &self,
        capabilities: &HashSet<Capability>,
    ) -> Result<SeccompFilter, FilterError> {
        let key = capabilities::to_mask(capabilities);
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(filter) = lock().get(&key) {
            return Ok(filter.clone());
        }
        let filter = compile(&seccomp::default_profile(capabilities))?;
        let mut known = lock();
        if known.len() >= MAX_REMEMBERED {
            known.clear();
        }
        known.insert(key, filter.clone());
        Ok(filter)
    }
}

/// The filter of a profile file of the machine.
pub(crate) fn of_file(path: &str) -> Result<SeccompFilter, FilterError> {
    let root = Root::open(Path::new("/")).map_err(|error| FilterError::Read(Arc::new(error)))?;
    let json = root
        .read_capped(Path::new(path), MAX_PROFILE)
        .map_err(|error| FilterError::Read(Arc::new(error)))?;
    let profile: LinuxSeccomp =
        serde_json::from_slice(&json).map_err(|source| FilterError::Parse {
            path: path.to_owned(),
            source: Arc::new(source),
        })?;
    compile(&profile)
}

fn compile(profile: &LinuxSeccomp) -> Result<SeccompFilter, FilterError> {
    let program =
        seccomp::compile(profile).map_err(|error| FilterError::Compile(Arc::new(error)))?;
    Ok(SeccompFilter(program.to_bytes()))
}
