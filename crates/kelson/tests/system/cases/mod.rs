//! The cases, by what they are about.

mod bad_archives;
mod bad_images;
mod bad_input;
mod bad_networks;
mod bench;
mod checkpoint;
mod checkpoint_bad;
mod cli;
mod cli_run;
mod cli_stream;
mod containers;
mod crash;
mod crictl;
mod devices;
mod logs;
mod metrics;
mod network;
mod oci;
mod podman;
mod pods;
mod registry;
mod security;
mod selinux;
mod stats;
mod streams;
mod systemd;
mod targets;
mod updates;
mod userns;
mod volumes;

use crate::case::Case;

/// All of them.
pub(crate) fn all() -> Vec<Case> {
    [
        bad_archives::cases(),
        bad_images::cases(),
        bad_input::cases(),
        bad_networks::cases(),
        bench::cases(),
        checkpoint::cases(),
        checkpoint_bad::cases(),
        cli::cases(),
        cli_run::cases(),
        cli_stream::cases(),
        containers::cases(),
        crash::cases(),
        crictl::cases(),
        devices::cases(),
        logs::cases(),
        metrics::cases(),
        network::cases(),
        oci::cases(),
        podman::cases(),
        pods::cases(),
        registry::cases(),
        security::cases(),
        selinux::cases(),
        stats::cases(),
        streams::cases(),
        systemd::cases(),
        targets::cases(),
        updates::cases(),
        userns::cases(),
        volumes::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
