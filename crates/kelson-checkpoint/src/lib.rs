//! Checkpoints of containers: the archive in the form of Podman and CRI-O, and CRIU, which writes
//! and reads the images of processes in it.
//!
//! An archive is outside data: nothing of it becomes a path, a mount or a name on the host. The
//! crate is synchronous, and knows neither pods nor image stores.

pub mod archive;
mod criu;
pub mod diff;
mod images;
mod log;
mod rpc;
pub mod tar;

pub use criu::{Criu, CriuError, Dump};
pub use images::first_filters;
pub use log::reason;

/// The directory of CRIU's images in an archive.
pub const IMAGES: &str = "checkpoint";
/// The log of a dump, in an archive and in CRIU's working directory.
pub const DUMP_LOG: &str = "dump.log";
/// The log of a restore, in CRIU's working directory.
pub const RESTORE_LOG: &str = "restore.log";
