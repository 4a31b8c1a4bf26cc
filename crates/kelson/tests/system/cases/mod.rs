//! The cases, by what they are about.

mod bad_images;
mod bad_input;
mod bad_networks;
mod cli;
mod containers;
mod crash;
mod crictl;
mod logs;
mod metrics;
mod network;
mod oci;
mod pods;
mod registry;
mod security;
mod stats;

use crate::case::Case;

/// All of them.
pub(crate) fn all() -> Vec<Case> {
    [
        bad_images::cases(),
        bad_input::cases(),
        bad_networks::cases(),
        cli::cases(),
        containers::cases(),
        crash::cases(),
        crictl::cases(),
        logs::cases(),
        metrics::cases(),
        network::cases(),
        oci::cases(),
        pods::cases(),
        registry::cases(),
        security::cases(),
        stats::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
