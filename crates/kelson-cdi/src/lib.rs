//! The Container Device Interface (specification 1.1.0): devices that files of the host describe by
//! what a container needs to use them — device nodes, mounts, environment, hooks, groups.
//!
//! The files are read when a device is asked for, so a change of them needs no notice. A file that is
//! wrong is logged and its devices are not there; those of other files are. Nothing here is written.

mod edits;
mod file;
mod name;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use edits::EditError;
use edits::Edits;
pub use name::{MAX_NAMES, NameError, from_annotations};

/// Edits for the specification of a container that uses some devices.
#[derive(Debug, Default)]
pub struct Injection {
    edits: Vec<Edits>,
}

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    /// The name is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// No file describes it.
    #[error("no file in {dirs} describes device {name:?}")]
    Unknown {
        /// The device.
        name: String,
        /// Where files are looked for.
        dirs: String,
    },
    /// Several files of the same directory describe it.
    #[error("device {name:?} is described by both {} and {}; remove one", first.display(), second.display())]
    Conflict {
        /// The device.
        name: String,
        /// A file.
        first: PathBuf,
        /// Another one.
        second: PathBuf,
    },
}

/// Finds what `names` (`vendor/class=device`) need, in the files of `dirs`: those of a later directory
/// win. A name that is there twice counts once. All that is wrong is told.
///
/// # Errors
/// One for every device that cannot be used.
pub fn resolve(dirs: &[PathBuf], names: &[String]) -> Result<Injection, Vec<CdiError>> {
    let mut found: BTreeMap<String, file::Found> = BTreeMap::new();
    for dir in dirs {
        let mut here: BTreeMap<String, file::Found> = BTreeMap::new();
        for spec in file::read_dir(dir) {
            spec.devices(&mut here);
        }
        // A later directory has priority.
        found.extend(here);
    }
    let (mut injection, mut errors) = (Injection::default(), Vec::new());
    let (mut seen, mut specs) = (Vec::new(), Vec::new());
    for name in names {
        if seen.contains(&name) {
            continue;
        }
        seen.push(name);
        if let Err(error) = name::check(name) {
            errors.push(error.into());
            continue;
        }
        match found.get(name) {
            None => {
                let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
                errors.push(CdiError::Unknown {
                    name: name.clone(),
                    dirs: dirs.join(", "),
                });
            }
            Some(file::Found {
                path,
                conflict: Some(second),
                ..
            }) => errors.push(CdiError::Conflict {
                name: name.clone(),
                first: path.clone(),
                second: second.clone(),
            }),
            Some(device) => {
                // What is for all devices of a file is done once.
                if !specs.contains(&&device.path) {
                    specs.push(&device.path);
                    injection.edits.push(device.common.clone());
                }
                injection.edits.push(device.edits.clone());
            }
        }
    }
    if errors.is_empty() {
        Ok(injection)
    } else {
        Err(errors)
    }
}

impl Injection {
    /// Changes the specification.
    ///
    /// # Errors
    /// A device node of the host is not there, or a hook is of a kind that is not run.
    pub fn apply(&self, spec: &mut oci_spec::runtime::Spec) -> Result<(), EditError> {
        self.edits.iter().try_for_each(|edits| edits.apply(spec))
    }
}

#[cfg(test)]
mod tests;
