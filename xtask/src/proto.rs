//! `cargo xtask proto`: the CRI bindings of `kelson-cri`, generated from `proto/` and committed, so that
//! no build needs a protobuf compiler and a change of the interface is seen in a diff.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

const PROTO: &str = "cri/v1/api.proto";
const OUTPUT: &str = "crates/kelson-cri/src/generated/runtime.v1.rs";

/// Messages that hold secrets: their `Debug` is written by hand in `kelson-cri`.
const SECRET: &[&str] = &[".runtime.v1.AuthConfig"];

/// Whether to write the generated file or to compare it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Replace the committed file.
    Write,
    /// Fail if the committed file is not what would be written.
    Check,
}

/// Generates the bindings below `root`, the workspace.
pub(crate) fn run(root: &Path, mode: Mode) -> Result<()> {
    let generated = generate(root)?;
    let output = root.join(OUTPUT);
    match mode {
        Mode::Write => {
            fs::write(&output, generated).with_context(|| format!("write {}", output.display()))?;
            println!("wrote {OUTPUT}");
        }
        Mode::Check => {
            let committed = fs::read_to_string(&output)
                .with_context(|| format!("read {}", output.display()))?;
            if committed != generated {
                bail!("{OUTPUT} is not what proto/{PROTO} generates: run `cargo xtask proto`");
            }
            println!("{OUTPUT} is current");
        }
    }
    Ok(())
}

fn generate(root: &Path) -> Result<String> {
    let include = root.join("proto");
    let descriptors = protox::compile([include.join(PROTO)], [&include])
        .with_context(|| format!("compile proto/{PROTO}"))?;
    let out = tempfile::tempdir().context("make a temporary directory")?;
    tonic_prost_build::configure()
        .build_transport(false)
        .generate_default_stubs(true)
        .btree_map(".")
        .skip_debug(SECRET)
        .out_dir(out.path())
        .compile_fds(descriptors)
        .context("generate Rust")?;
    let file = out.path().join("runtime.v1.rs");
    fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))
}
