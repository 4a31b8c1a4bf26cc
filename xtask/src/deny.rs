//! `cargo xtask deny`: licences, sources and bans of all dependencies, by cargo-deny.
//!
//! Advisories are configured in `deny.toml` too, but need a database that not every machine can
//! reach: `cargo deny check advisories` asks for it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The version that is built when there is none.
const VERSION: &str = "0.20.2";

/// Builds cargo-deny into `target/tools` unless it is there, and runs it.
pub(crate) fn run(root: &Path) -> Result<()> {
    let tools = root.join("target/tools");
    let program = tools.join("bin/cargo-deny");
    if !program.exists() {
        println!("building cargo-deny {VERSION}");
        let built = Command::new(env!("CARGO"))
            .current_dir(root)
            .args([
                "install",
                "--quiet",
                "--locked",
                "--version",
                VERSION,
                "--root",
            ])
            .arg(&tools)
            .arg("cargo-deny")
            .status()
            .context("cannot run cargo")?;
        if !built.success() {
            bail!("cargo-deny does not build");
        }
    }
    let checked = Command::new(&program)
        .current_dir(root)
        .args([
            "check",
            "--hide-inclusion-graph",
            "bans",
            "licenses",
            "sources",
        ])
        .status()
        .context("cannot run cargo-deny")?;
    if !checked.success() {
        bail!("a dependency breaks a rule of deny.toml");
    }
    Ok(())
}
