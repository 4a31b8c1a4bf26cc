//! `cargo xtask conformance`: runs critest, the CRI's validation suite, on a private daemon or on
//! any runtime.
//!
//! Nothing is pulled from a network: the suite's images are made here and served on loopback under
//! their real names, as a mirror of every registry.

pub(crate) mod images;
mod report;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::mirror::Mirror;
use crate::node::Node;
use crate::setup;
use report::{Excluded, Report};

/// A range for tests (RFC 2544) that no pod network of a real node has.
const SUBNET: &str = "198.19.0.0/16";

/// What the image that the suite pulls by digest is called in the suite.
const PUBLISHED_DIGEST: &str = "9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf";

/// Specs that Kelson does not claim to pass yet.
const EXCLUDED: &Excluded = &[];

/// The specs that are run a second time, with WebSocket instead of SPDY.
const STREAMING: &str = "Streaming runtime should support streaming interfaces";
const WEBSOCKET: [&str; 3] = [
    "-websocket-exec",
    "-websocket-attach",
    "-websocket-portforward",
];

/// What to run and on what.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Options {
    endpoint: Option<String>,
    certs_dir: Option<PathBuf>,
    focus: Option<String>,
    program: Option<PathBuf>,
    keep: bool,
}

impl Options {
    /// Reads the arguments; `None` if they are wrong.
    pub(crate) fn parse(arguments: &[&str]) -> Option<Self> {
        let mut options = Self::default();
        let mut arguments = arguments.iter();
        while let Some(option) = arguments.next() {
            if *option == "--keep" {
                options.keep = true;
                continue;
            }
            let value = *arguments.next()?;
            match *option {
                "--endpoint" => options.endpoint = Some(value.to_owned()),
                "--certs-dir" => options.certs_dir = Some(value.into()),
                "--focus" => options.focus = Some(value.to_owned()),
                "--program" => options.program = Some(value.into()),
                _ => return None,
            }
        }
        // A runtime that runs already has to be told where the images are, and is no program of ours.
        let peer = options.endpoint.is_some();
        (peer == options.certs_dir.is_some() && !(peer && options.program.is_some()))
            .then_some(options)
    }
}

/// Builds, runs, prints, cleans up; an error if a spec failed.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    for problem in setup::packages() {
        println!("not installed: {problem}");
    }
    let suite = setup::critest(root)?;
    let dir = tempfile::Builder::new()
        .prefix("kelson-conformance-")
        .tempdir()
        .context("cannot make a directory for the run")?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the registry")?;
    let (content, digest) = images::registry(&setup::busybox(root)?)?;
    let suite = with_digest(&suite, &digest.hex(), dir.path())?;

    let certs_dir = options
        .certs_dir
        .clone()
        .unwrap_or_else(|| dir.path().join("certs.d"));
    let _mirror = Mirror::serve(&runtime, content, &certs_dir)?;
    let node = match &options.endpoint {
        Some(_) => None,
        None => {
            let name = format!("kconf{}", std::process::id() % 1_000_000);
            let program = setup::program(root, options.program.as_deref())?;
            Some(Node::start(&program, dir.path(), name, SUBNET)?)
        }
    };
    let endpoint = options
        .endpoint
        .clone()
        .or_else(|| node.as_ref().map(Node::endpoint));
    let endpoint = endpoint.context("no endpoint")?;
    let outcome = both(&suite, &endpoint, options, dir.path());
    let ended = node.map(Node::end).transpose();
    if options.keep {
        println!("logs are in {}", dir.keep().display());
    }
    let report = outcome?;
    report.print();
    if let Some(pods) = ended?.filter(|pods| *pods > 0) {
        println!("{pods} pods were left by failed specs and removed");
    }
    if !report.failed.is_empty() {
        bail!("some specs failed");
    }
    if report.passed == 0 {
        bail!("no spec was run");
    }
    Ok(())
}

/// Runs the suite, and its streaming specs again over WebSocket.
fn both(suite: &Path, endpoint: &str, options: &Options, dir: &Path) -> Result<Report> {
    let mut report = specs(suite, endpoint, options, dir, &[])?;
    let focus = options.focus.as_deref().unwrap_or(STREAMING);
    if options.focus.is_none() || focus.to_lowercase().contains("streaming") {
        println!("the streaming specs again, over WebSocket");
        let again = Options {
            focus: Some(STREAMING.to_owned()),
            ..options.clone()
        };
        report.add(
            "over WebSocket",
            specs(suite, endpoint, &again, dir, &WEBSOCKET)?,
        );
    }
    Ok(report)
}

/// Runs the suite. Specs are excluded only on Kelson: a peer is shown as it is.
fn specs(
    suite: &Path,
    endpoint: &str,
    options: &Options,
    dir: &Path,
    flags: &[&str],
) -> Result<Report> {
    let file = dir.join("report.json");
    let log_path = dir.join("critest.log");
    let log = File::create(&log_path).context("cannot make the suite's log")?;
    let excluded = if options.endpoint.is_some() {
        &[]
    } else {
        EXCLUDED
    };
    let mut command = Command::new(suite);
    command
        .arg(format!("-runtime-endpoint={endpoint}"))
        .arg(format!("-ginkgo.json-report={}", file.display()))
        .args(["-ginkgo.no-color", "-ginkgo.timeout=2h"])
        .args(flags)
        .args(
            excluded
                .iter()
                .map(|(name, _)| format!("-ginkgo.skip={name}")),
        )
        .args(
            options
                .focus
                .iter()
                .map(|regex| format!("-ginkgo.focus={regex}")),
        )
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("cannot share the suite's log")?)
        .stderr(log);
    println!("running the suite on {endpoint}");
    // Its exit code says less than its report.
    command.status().context("cannot run the suite")?;
    Report::read(&file, excluded).with_context(|| {
        let text = std::fs::read_to_string(&log_path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    })
}

/// A copy of the suite that expects `digest` of the image that it pulls by digest: the published one
/// is of an image that cannot be made here.
fn with_digest(suite: &Path, digest: &str, dir: &Path) -> Result<PathBuf> {
    let mut bytes = std::fs::read(suite).context("cannot read the suite")?;
    let places: Vec<usize> = bytes
        .windows(PUBLISHED_DIGEST.len())
        .enumerate()
        .filter(|(_, window)| *window == PUBLISHED_DIGEST.as_bytes())
        .map(|(at, _)| at)
        .collect();
    if places.is_empty() {
        bail!("the suite has no longer the digest {PUBLISHED_DIGEST}; look up the new one");
    }
    for at in places {
        bytes[at..at + digest.len()].copy_from_slice(digest.as_bytes());
    }
    let copy = dir.join("critest");
    std::fs::write(&copy, bytes).context("cannot write the suite")?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&copy, mode).context("cannot make the suite executable")?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_needs_to_know_the_images() {
        let peer = [
            "--endpoint",
            "unix:///x.sock",
            "--certs-dir",
            "/certs.d",
            "--focus",
            "exec",
        ];
        let options = Options::parse(&peer).unwrap();
        assert_eq!(options.focus.as_deref(), Some("exec"));
        assert!(Options::parse(&[]).is_some());
        assert_eq!(Options::parse(&peer[..2]), None);
        assert_eq!(Options::parse(&["--focus"]), None);
        assert_eq!(Options::parse(&["--speed", "9"]), None);
    }

    #[test]
    fn the_suite_is_told_another_digest() {
        let dir = tempfile::tempdir().unwrap();
        let suite = dir.path().join("suite");
        std::fs::write(&suite, format!("<{PUBLISHED_DIGEST}>")).unwrap();
        let digest = "a".repeat(64);
        let copy = with_digest(&suite, &digest, dir.path()).unwrap();
        assert_eq!(
            std::fs::read_to_string(copy).unwrap(),
            format!("<{digest}>")
        );
        std::fs::write(&suite, "nothing").unwrap();
        assert!(with_digest(&suite, &digest, dir.path()).is_err());
    }
}
