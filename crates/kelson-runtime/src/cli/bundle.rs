//! Bundles: a directory with `config.json` and a root.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use super::error::CliError;
use super::record::read_json;
use crate::seccomp;

/// A bundle that was read.
pub(super) struct Bundle {
    pub(super) dir: PathBuf,
    pub(super) spec: Spec,
    pub(super) rootfs: PathBuf,
}

impl Bundle {
    /// Reads `config.json` in `dir`.
    pub(super) fn read(dir: &Path) -> Result<Self, CliError> {
        let dir = std::path::absolute(dir).map_err(|e| CliError::io("find", dir, e))?;
        let spec: Spec = read_json(&dir.join("config.json"))?;
        let Some(root) = spec.root() else {
            return Err(CliError::Usage(
                "there is no root in config.json".to_owned(),
            ));
        };
        let rootfs = dir.join(root.path());
        Ok(Self { dir, rootfs, spec })
    }

    /// The path of the cgroup: the specification's, or one named after the container.
    pub(super) fn cgroup_path(&self, id: &str) -> Result<String, CliError> {
        let path = self
            .spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.cgroups_path().as_ref());
        let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else {
            return Ok(format!("/{id}"));
        };
        match path.to_str() {
            Some(text) if text.contains(':') && !text.starts_with('/') => {
                Err(CliError::SystemdCgroup)
            }
            Some(text) => Ok(text.to_owned()),
            None => Err(CliError::Usage("linux.cgroupsPath is not text".to_owned())),
        }
    }
}

/// Compiles the filter of a specification.
pub(super) fn compile_seccomp(spec: &Spec) -> Result<Option<seccomp::Program>, CliError> {
    let Some(filter) = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.seccomp().as_ref())
    else {
        return Ok(None);
    };
    if filter.listener_path().is_some() {
        let text = "linux.seccomp.listenerPath is not supported; leave it out";
        return Err(CliError::Usage(text.to_owned()));
    }
    Ok(Some(seccomp::compile(filter)?))
}

/// Whether the process of a specification wants a terminal.
pub(super) fn wants_terminal(spec: &Spec) -> bool {
    spec.process()
        .as_ref()
        .and_then(|process| process.terminal())
        .unwrap_or(false)
}
