//! `kelson demo`: the whole chain on one machine, from an image to nothing left.
//!
//! A private daemon runs in directories, a cgroup and a bridge of its own; a registry inside this
//! program serves an image made of the program itself. Everything goes over CRI, as the kubelet
//! would do it. Whatever happens, the demo cleans up behind itself, and then looks whether it did.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the output of a command"
)]

pub(crate) mod guest;
mod image;
mod leftovers;
mod node;
mod steps;

use std::process::ExitCode;

use anyhow::{Context, bail};

use leftovers::Machine;
use node::Node;

/// Shows a pod with two containers being pulled, started, used and removed.
#[derive(Debug, clap::Args)]
pub(crate) struct Demo {
    /// Keep the directory of the demo, with the daemon's log, and say where it is
    #[arg(long)]
    keep: bool,
}

/// Runs the demo.
pub(crate) fn run(arguments: &Demo) -> anyhow::Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "the demo makes namespaces, mounts and cgroups, which needs root; run it as root, for example with\n  \
             sudo env \"PATH=$PATH\" cargo run --release -- demo"
        );
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the threads of the demo")?;
    runtime.block_on(demo(arguments))
}

async fn demo(arguments: &Demo) -> anyhow::Result<ExitCode> {
    println!(
        "Kelson {}: one pod from image to nothing left\n",
        env!("CARGO_PKG_VERSION")
    );
    let before = Machine::look()?;
    let mark = format!("kelson-demo-{}", std::process::id());
    let mut node = Node::start(&mark).await?;
    let outcome = steps::run(&node).await;
    if outcome.is_err() {
        steps::clean(&node).await;
    }
    let ended = node.end().await;
    let log = node.log();
    if arguments.keep {
        println!("\nkept: {}", node.keep().display());
    }
    drop(node);
    if let Err(error) = outcome.and(ended) {
        eprintln!("\nthe daemon's log ends with:\n{log}");
        return Err(error);
    }
    println!(
        "\nLooking for what is left: processes, mounts, cgroups, interfaces, network namespaces"
    );
    let left = before.left(&mark)?;
    if left.is_empty() {
        println!("  nothing: the machine is as it was before");
        return Ok(ExitCode::SUCCESS);
    }
    for thing in &left {
        println!("  LEFT: {thing}");
    }
    bail!(
        "the demo left {} things behind; please report this",
        left.len()
    );
}
