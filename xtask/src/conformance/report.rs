//! What the suite found out: its JSON report in Ginkgo's form, counted and printed.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// Specs that are left out on purpose, by a part of their name, each with its reason.
pub(crate) type Excluded = [(&'static str, &'static str)];

/// The outcome of a run; the maps are from a spec's name to what it said.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Report {
    pub(crate) passed: usize,
    pub(crate) failed: BTreeMap<String, String>,
    pub(crate) skipped: BTreeMap<String, String>,
    pub(crate) excluded: BTreeMap<String, String>,
}

impl Report {
    /// Reads the file that the suite has written.
    pub(crate) fn read(path: &Path, excluded: &Excluded) -> Result<Self> {
        let text = std::fs::read(path)
            .with_context(|| format!("the suite left no report in {}", path.display()))?;
        let suites = serde_json::from_slice(&text)
            .with_context(|| format!("{} is no report", path.display()))?;
        Ok(Self::from_suites(&suites, excluded))
    }

    fn from_suites(suites: &Value, excluded: &Excluded) -> Self {
        let mut report = Self::default();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        for spec in list(suites)
            .iter()
            .flat_map(|suite| list(&suite["SpecReports"]))
        {
            let mut name: Vec<String> = list(&spec["ContainerHierarchyTexts"])
                .iter()
                .map(|part| part.as_str().unwrap_or_default().to_owned())
                .collect();
            name.push(spec["LeafNodeText"].as_str().unwrap_or_default().to_owned());
            report.take(&spec, name.join(" "), excluded);
        }
        report
    }

    fn take(&mut self, spec: &Value, name: String, excluded: &Excluded) {
        let kind = spec["LeafNodeType"].as_str().unwrap_or_default();
        let said = spec["Failure"]["Message"]
            .as_str()
            .unwrap_or_default()
            .trim();
        let by_list = excluded.iter().find(|(part, _)| name.contains(part));
        match spec["State"].as_str().unwrap_or_default() {
            // Steps around the specs count only when they fail.
            "passed" => self.passed += usize::from(kind == "It"),
            "skipped" | "pending" if !said.is_empty() => {
                self.skipped.insert(name, said.to_owned());
            }
            // What a filter leaves out has no message; without a reason of ours it was not chosen.
            "skipped" | "pending" => {
                self.excluded
                    .extend(by_list.map(|(_, reason)| (name, (*reason).to_owned())));
            }
            state => {
                let name = if kind == "It" {
                    name
                } else {
                    format!("{kind} {name}")
                };
                self.failed.insert(name, format!("{state}: {said}"));
            }
        }
    }

    /// Adds another run, whose specs are told by `note`.
    pub(crate) fn add(&mut self, note: &str, other: Self) {
        let named = |specs: BTreeMap<String, String>| {
            specs
                .into_iter()
                .map(|(name, said)| (format!("{name} ({note})"), said))
                .collect::<Vec<_>>()
        };
        self.passed += other.passed;
        self.failed.extend(named(other.failed));
        self.skipped.extend(named(other.skipped));
        self.excluded.extend(named(other.excluded));
    }

    /// Prints every spec that did not pass, and the counts.
    pub(crate) fn print(&self) {
        for (title, specs) in [
            ("excluded", &self.excluded),
            ("skipped", &self.skipped),
            ("failed", &self.failed),
        ] {
            if !specs.is_empty() {
                println!("\n{title}:");
            }
            for (name, said) in specs {
                println!("  {name}\n      {}", said.replace('\n', "\n      "));
            }
        }
        println!(
            "\n{} passed, {} failed, {} skipped, {} excluded",
            self.passed,
            self.failed.len(),
            self.skipped.len(),
            self.excluded.len()
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_spec_is_in_one_heap() {
        let spec = |name: &str, state: &str, message: &str| {
            json!({ "ContainerHierarchyTexts": ["Deck"], "LeafNodeText": name,
                "LeafNodeType": "It", "State": state, "Failure": { "Message": message } })
        };
        let suites = json!([{ "SpecReports": [
            { "LeafNodeType": "BeforeSuite", "State": "passed" },
            spec("floats", "passed", ""),
            spec("sinks", "failed", "no water"),
            spec("dives", "skipped", "not a submarine"),
            spec("sings", "skipped", ""),
            spec("flies", "skipped", ""),
            { "LeafNodeType": "AfterSuite", "State": "panicked", "LeafNodeText": "" },
        ] }]);
        let report = Report::from_suites(&suites, &[("sings", "later")]);
        let heap = |name: &str, said: &str| BTreeMap::from([(name.to_owned(), said.to_owned())]);
        let mut failed = heap("Deck sinks", "failed: no water");
        failed.insert("AfterSuite ".to_owned(), "panicked: ".to_owned());
        let expected = Report {
            passed: 1,
            failed,
            skipped: heap("Deck dives", "not a submarine"),
            excluded: heap("Deck sings", "later"),
        };
        assert_eq!(report, expected);
        let mut twice = Report::default();
        twice.add("again", report);
        assert_eq!(twice.passed, 1);
        assert_eq!(twice.failed.keys().next().unwrap(), "AfterSuite  (again)");
    }
}
