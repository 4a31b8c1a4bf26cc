//! Seccomp: from the OCI runtime specification's filter to the kernel's, without libseccomp.
//!
//! [`compile`] turns a [`LinuxSeccomp`] into a classic BPF [`Program`]; [`default_profile`] is the
//! profile that containers get when they ask for the runtime's default. Nothing here loads a
//! filter: that is the launched process's own last step before it executes.

use std::collections::HashSet;

use oci_spec::runtime::{Capability, LinuxSeccomp};

/// A compiled filter: what `seccomp(SECCOMP_SET_MODE_FILTER)` takes.
#[derive(Debug, Clone)]
pub struct Program {
    filter: Vec<libc::sock_filter>,
    flags: u32,
}

impl Program {
    /// The instructions, at most 4096.
    pub fn filter(&self) -> &[libc::sock_filter] {
        &self.filter
    }

    /// `SECCOMP_FILTER_FLAG_*` to load it with.
    pub fn flags(&self) -> u32 {
        self.flags
    }

    /// The program as bytes, for keeping or passing on.
    pub fn to_bytes(&self) -> Vec<u8> {
        unimplemented!()
    }

    /// Undoes [`Program::to_bytes`]. `None` when the bytes are no program.
    pub fn from_bytes(_bytes: &[u8]) -> Option<Self> {
        unimplemented!()
    }
}

/// Why a filter could not be compiled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SeccompError {
    /// The program would be longer than the kernel takes.
    #[error("the seccomp filter needs {0} instructions, the kernel takes 4096; use fewer rules")]
    TooLong(usize),
}

/// Compiles a filter for this machine's architecture.
pub fn compile(_seccomp: &LinuxSeccomp) -> Result<Program, SeccompError> {
    unimplemented!()
}

/// The default profile, for a process with these (bounding) capabilities.
pub fn default_profile(_capabilities: &HashSet<Capability>) -> LinuxSeccomp {
    unimplemented!()
}
