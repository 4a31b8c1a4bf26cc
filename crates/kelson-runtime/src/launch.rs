//! Making a container.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use kelson_cgroup::Cgroup;
use oci_spec::runtime::Spec;

use crate::{LaunchError, Progress, seccomp};

/// What becomes the root of a container.
#[derive(Debug, Clone)]
pub enum Rootfs {
    /// A directory, bound with the mounts beneath it.
    Path(PathBuf),
    /// An overlay, mounted in the container's mount namespace only.
    Overlay {
        /// The lower directories, the topmost first.
        lower: Vec<PathBuf>,
        /// The upper directory.
        upper: PathBuf,
        /// The work directory, on the file system of the upper one.
        work: PathBuf,
    },
}

/// The standard streams of a new process.
#[derive(Debug)]
pub enum Stdio {
    /// Those of the caller.
    Inherit,
    /// These; the caller's copies are closed when [`launch`] or [`crate::exec`] returns.
    Files {
        /// Standard input.
        stdin: OwnedFd,
        /// Standard output.
        stdout: OwnedFd,
        /// Standard error.
        stderr: OwnedFd,
    },
    /// A terminal of the container's own devpts, with the size in `process.consoleSize`. Its master
    /// comes as [`crate::Event::Terminal`].
    Terminal,
}

/// What only some callers want. The default is right for a shim.
#[derive(Debug, Default)]
pub struct Options {
    /// A listening unix socket of packets: the process accepts one connection when it is ready,
    /// and reports what happens afterwards there instead of on its [`Progress`].
    pub gate: Option<OwnedFd>,
    /// Run the hooks of the specification that belong into the container, and stop at
    /// [`crate::Event::HooksDue`] for those that belong outside.
    pub hooks: Option<HookContext>,
    /// How many descriptors from 3 on the program inherits.
    pub preserve_fds: u32,
    /// Move the root over `/` and chroot instead of pivot_root, for a root on a ramfs.
    pub no_pivot: bool,
    /// Stay in the caller's session keyring.
    pub no_new_keyring: bool,
}

/// What a hook is told about its container.
#[derive(Debug, Clone)]
pub struct HookContext {
    /// The id of the container.
    pub id: String,
    /// Its bundle directory.
    pub bundle: PathBuf,
}

/// A container to make.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The runtime specification. Namespaces without a path are made, those with one joined, and
    /// types that it does not name are the caller's. `root.path` and `linux.seccomp` are not read.
    pub spec: &'a Spec,
    /// Its root.
    pub rootfs: &'a Rootfs,
    /// Its cgroup: made here, limited by `linux.resources`. The caller removes it when the
    /// container is gone.
    pub cgroup: &'a Cgroup,
    /// Its standard streams.
    pub stdio: Stdio,
    /// Its seccomp filter.
    pub seccomp: Option<&'a seccomp::Program>,
    /// The rest.
    pub options: Options,
}

/// A process on its way to its program. The caller reaps it, also when it fails.
#[derive(Debug)]
pub struct Launched {
    /// Its number in the caller's PID namespace.
    pub pid: u32,
    /// Its pidfd: readable when it has ended.
    pub pidfd: OwnedFd,
    /// What it tells until it executes its program.
    pub progress: Progress,
}

/// Makes a container. Returns as soon as its process exists; [`Launched::progress`] tells the rest.
/// On an error nothing is left: no process, and no cgroup that was not there before.
pub fn launch(_launch: Launch<'_>) -> Result<Launched, LaunchError> {
    unimplemented!()
}
