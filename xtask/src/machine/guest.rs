//! What runs inside: the test programs, then the validation suite, with one count at the end.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::payload::{self, Test};
use super::{Options, Suite};
use crate::test::Tally;
use crate::{conformance, criu, setup};

/// What is run for every change, as test program and filter (empty: all of it): what the machine at
/// hand may not have, in little time.
const CHOSEN: &[(&str, &str)] = &[
    ("kelson-cgroup/real", ""),
    ("kelson/system", "systemd::"),
    ("kelson/system", "updates::"),
    ("kelson/system", "containers::out_of_memory"),
    ("kelson/system", "userns::"),
];
/// The specs of the validation suite for every change: all that need AppArmor.
const CHOSEN_SPECS: &str = "AppArmor";

/// Runs what the options want; an error if something failed.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let mut failed = Vec::new();
    if options.has(Suite::System)
        && let Err(error) = system(root, options)
    {
        failed.push(format!("{error:#}"));
    }
    if options.has(Suite::Critest)
        && let Err(error) = critest(root, options)
    {
        failed.push(format!("{error:#}"));
    }
    if !failed.is_empty() {
        bail!("{}", failed.join("; "));
    }
    Ok(())
}

fn system(root: &Path, options: &Options) -> Result<()> {
    let tests = payload::tests(root)?;
    let runs: Vec<(&Test, Option<&str>)> = if options.chosen {
        let find =
            |(name, filter)| Some((tests.iter().find(|test| test.name == name)?, Some(filter)));
        CHOSEN.iter().copied().filter_map(find).collect()
    } else {
        tests
            .iter()
            .map(|test| (test, options.filter.as_deref()))
            .collect()
    };
    if options.chosen && runs.len() != CHOSEN.len() {
        bail!("a test program of the chosen ones is not there any more");
    }
    let criu = criu::installed();
    let mut tally = Tally::default();
    let mut broken = Vec::new();
    for (test, filter) in runs {
        println!("\n{}", test.name);
        let mut command = Command::new(&test.program);
        command
            .current_dir(&test.dir)
            .env("CARGO_MANIFEST_DIR", &test.dir)
            .env("KELSON_TEST_CRICTL", setup::crictl(root)?)
            .envs(criu.iter().map(|path| ("KELSON_TEST_CRIU", path)))
            .args(filter.filter(|filter| !filter.is_empty()))
            .args(slow().then_some("--test-threads=1"))
            .arg("--show-output");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", test.program.display()))?;
        let output = child
            .stdout
            .take()
            .context("the test's output is not piped")?;
        let mut counted = false;
        for line in BufReader::new(output).split(b'\n') {
            let line = line.context("cannot read the test's output")?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            tally.take(&line);
            counted |= line.starts_with("test result: ");
        }
        let status = child.wait().context("cannot wait for a test")?;
        if !status.success() || !counted {
            broken.push(test.name.as_str());
        }
    }
    tally.print();
    if !broken.is_empty() {
        bail!("failed: {}", broken.join(", "));
    }
    Ok(())
}

/// Whether the machine is emulated: tests side by side would only wait for each other then.
fn slow() -> bool {
    std::env::var("KELSON_TEST_SLOW").is_ok_and(|times| times != "1")
}

fn critest(root: &Path, options: &Options) -> Result<()> {
    let focus = if options.chosen {
        Some(CHOSEN_SPECS)
    } else {
        options.filter.as_deref()
    };
    // Where cargo puts it: beside the folder of the tests.
    let tests = payload::tests(root)?;
    let deps = tests.first().and_then(|test| test.program.parent());
    let program = deps.context("there are no tests")?.with_file_name("kelson");
    let program = program
        .to_str()
        .context("the workspace's path is not UTF-8")?;
    let mut arguments = vec!["--program", program];
    arguments.extend(focus.map(|focus| ["--focus", focus]).into_iter().flatten());
    let options = conformance::Options::parse(&arguments)
        .context("the validation suite takes other options")?;
    conformance::run(root, &options)
}
