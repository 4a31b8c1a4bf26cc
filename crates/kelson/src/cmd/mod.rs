//! The subcommands, one file each. They parse, call and print; what they call lives in the crates below.

pub(crate) mod client;
pub(crate) mod config;
pub(crate) mod enter;
pub(crate) mod serve;
