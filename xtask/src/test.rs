//! `cargo xtask test`: sets up, runs every test of the workspace, and counts.
//!
//! A test that cannot run on this machine prints a line `skipped: <reason>`; such tests are
//! counted as skipped, never as passed.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{criu, setup};

/// What the test programs said.
#[derive(Default)]
pub(crate) struct Tally {
    passed: usize,
    pub(crate) failed: usize,
    skipped: BTreeMap<String, usize>,
}

impl Tally {
    fn skipped(&self) -> usize {
        self.skipped.values().sum()
    }

    /// Takes in one line of a test program's output.
    pub(crate) fn take(&mut self, line: &str) {
        if let Some(reason) = line.trim_start().strip_prefix("skipped: ") {
            *self.skipped.entry(reason.to_owned()).or_default() += 1;
            self.passed = self.passed.saturating_sub(1);
        } else if let Some(reason) = line.strip_prefix("not run: ") {
            // The system tests tell it before they run, and do not count it as passed.
            *self.skipped.entry(without_case(reason)).or_default() += 1;
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            self.passed += number_before(counts, " passed");
            self.failed += number_before(counts, " failed");
        }
    }

    /// Prints what was skipped and why, and the counts.
    pub(crate) fn print(&self) {
        println!("\nskipped:");
        for (reason, count) in &self.skipped {
            println!("  {count} x {reason}");
        }
        if self.skipped.is_empty() {
            println!("  nothing");
        }
        println!(
            "\n{} passed, {} failed, {} skipped",
            self.passed,
            self.failed,
            self.skipped()
        );
    }
}

/// A reason without the name of the case that follows it in parentheses.
fn without_case(reason: &str) -> String {
    reason
        .rsplit_once(" (")
        .map_or(reason, |(reason, _)| reason)
        .to_owned()
}

fn number_before(text: &str, word: &str) -> usize {
    let end = text.find(word).unwrap_or(0);
    let digits = text[..end]
        .rsplit(|c: char| !c.is_ascii_digit())
        .next()
        .unwrap_or("");
    digits.parse().unwrap_or(0)
}

/// Runs everything; `filter` is passed to the test programs.
pub(crate) fn run(root: &Path, filter: &[&str]) -> Result<()> {
    for problem in setup::packages() {
        println!("not installed: {problem}");
    }
    let crictl = setup::crictl(root);
    if let Err(reason) = &crictl {
        println!("no crictl: {reason:#}");
    }
    let criu = criu::find(root);
    if let Err(reason) = &criu {
        println!("no CRIU: {reason:#}");
    }
    let mut tally = Tally::default();
    let mut tests = Command::new(env!("CARGO"));
    tests
        .current_dir(root)
        .args(["test", "--workspace", "--no-fail-fast", "--"]);
    tests.args(filter).arg("--show-output");
    if let Ok(path) = &crictl {
        tests.env("KELSON_TEST_CRICTL", path);
    }
    if let Ok(path) = &criu {
        tests.env("KELSON_TEST_CRIU", path);
    }
    let mut child = tests
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    let output = child.stdout.take().context("cargo's output is not piped")?;
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read cargo's output")?;
        println!("{line}");
        tally.take(&line);
    }
    let status = child.wait().context("cannot wait for cargo")?;

    tally.print();
    if !status.success() || tally.failed > 0 {
        bail!("some tests failed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skipped_test_is_not_a_passed_one() {
        let mut tally = Tally::default();
        tally.take("test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
        tally.take("skipped: needs root");
        tally.take("test result: FAILED. 1 passed; 2 failed; 0 ignored");
        assert_eq!((tally.passed, tally.failed, tally.skipped()), (3, 2, 1));
        tally.take("not run: needs /bin/x (Debian package x) (a_case)");
        tally.take("not run: needs /bin/x (Debian package x) (another)");
        assert_eq!((tally.passed, tally.skipped()), (3, 3));
        assert_eq!(tally.skipped["needs /bin/x (Debian package x)"], 2);
    }
}
