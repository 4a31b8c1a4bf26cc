//! What the checks said, printed as they end and counted at the end.

use std::time::Instant;

use anyhow::Result;

/// How a check ended when it did not fail.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    Passed,
    /// Why it cannot be told here.
    Skipped(String),
}

/// All checks so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    passed: usize,
    skipped: Vec<(String, String)>,
    failed: Vec<(String, String)>,
}

impl Report {
    /// Runs one check and takes in what it says.
    pub(crate) fn check(&mut self, name: &str, run: impl FnOnce() -> Result<Verdict>) {
        let begin = Instant::now();
        let verdict = run();
        let seconds = begin.elapsed().as_secs_f64();
        match verdict {
            Ok(Verdict::Passed) => {
                println!("passed  {name} ({seconds:.1} s)");
                self.passed += 1;
            }
            Ok(Verdict::Skipped(reason)) => {
                println!("skipped {name}: {reason}");
                self.skipped.push((name.to_owned(), reason));
            }
            Err(error) => {
                println!("FAILED  {name} ({seconds:.1} s)\n        {error:#}");
                self.failed.push((name.to_owned(), format!("{error:#}")));
            }
        }
    }

    /// A check of which only the problems are known.
    pub(crate) fn note(&mut self, name: &str, problems: Vec<String>) {
        self.check(name, || {
            anyhow::ensure!(problems.is_empty(), "{}", problems.join("\n        "));
            Ok(Verdict::Passed)
        });
    }

    /// The checks that failed, each with what it said.
    pub(crate) fn failed(&self) -> &[(String, String)] {
        &self.failed
    }

    /// Prints what did not pass, and the counts.
    pub(crate) fn print(&self) {
        for (title, checks) in [("skipped", &self.skipped), ("failed", &self.failed)] {
            if !checks.is_empty() {
                println!("\n{title}:");
            }
            for (name, said) in checks {
                println!("  {name}\n      {}", said.replace('\n', "\n      "));
            }
        }
        println!(
            "\n{} passed, {} failed, {} skipped",
            self.passed,
            self.failed.len(),
            self.skipped.len()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_is_in_one_heap() {
        let mut report = Report::default();
        report.check("floats", || Ok(Verdict::Passed));
        report.check("dives", || Ok(Verdict::Skipped("no submarine".to_owned())));
        report.check("sinks", || anyhow::bail!("a hole"));
        report.note("tidy", Vec::new());
        report.note("dry", vec!["water".to_owned()]);
        assert_eq!((report.passed, report.skipped.len()), (2, 1));
        let names: Vec<&str> = report
            .failed()
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(names, ["sinks", "dry"]);
    }
}
