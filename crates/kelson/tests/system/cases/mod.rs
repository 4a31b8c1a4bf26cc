//! The cases, by what they are about.

mod bad_input;
mod containers;
mod crash;
mod crictl;
mod logs;
mod network;
mod pods;
mod security;
mod stats;

use crate::case::Case;

/// All of them.
pub(crate) fn all() -> Vec<Case> {
    [
        bad_input::cases(),
        containers::cases(),
        crash::cases(),
        crictl::cases(),
        logs::cases(),
        network::cases(),
        pods::cases(),
        security::cases(),
        stats::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
