//! The result of a run: as tables with ratios for people, and as data for programs.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use super::machine::Machine;
use super::samples::Summary;
use crate::ui::table::Table;
use crate::ui::text;

/// Which values are good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Better {
    Lower,
    Higher,
}

/// All that was measured.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) runtimes: Vec<Contender>,
    pub(super) results: Vec<Row>,
    /// How something was measured.
    pub(super) notes: Vec<String>,
    /// What could not be measured.
    pub(super) remarks: Vec<String>,
    #[serde(skip)]
    section: String,
}

/// A runtime in the comparison.
#[derive(Debug, Serialize)]
pub(super) struct Contender {
    pub(super) name: String,
    pub(super) version: String,
    /// Its socket, or its program.
    pub(super) place: String,
}

/// One thing that was measured.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) section: String,
    pub(super) work: String,
    pub(super) unit: &'static str,
    pub(super) better: Better,
    /// In the order of the runtimes; null where a runtime failed.
    pub(super) values: Vec<Option<Summary>>,
}

impl Report {
    pub(super) fn new(directory: &Path, runtimes: Vec<Contender>) -> Self {
        Self {
            machine: Machine::here(directory),
            runtimes,
            results: Vec::new(),
            notes: Vec::new(),
            remarks: Vec::new(),
            section: String::new(),
        }
    }

    /// Begins a section: rows that follow belong to it.
    pub(super) fn section(&mut self, title: &str) {
        title.clone_into(&mut self.section);
    }

    pub(super) fn row(
        &mut self,
        work: String,
        unit: &'static str,
        better: Better,
        values: Vec<Option<Summary>>,
    ) {
        if values.iter().all(Option::is_none) {
            // A remark says why.
            return;
        }
        self.results.push(Row {
            section: self.section.clone(),
            work,
            unit,
            better,
            values,
        });
    }

    /// Says how something was measured, once.
    pub(super) fn note(&mut self, text: String) {
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    /// Says that a peer could not be measured, and why.
    pub(super) fn remark(&mut self, peer: &str, what: &str, error: &anyhow::Error) {
        self.remarks.push(format!("{peer}: {what}: {error:#}"));
    }

    /// The machine, a table of all values, and a table that compares medians.
    pub(super) fn write_tables(&self, out: &mut dyn Write) -> io::Result<()> {
        let Machine {
            processor,
            processors,
            memory_bytes,
            kernel,
            cgroup_version,
            ..
        } = &self.machine;
        let memory = text::memory(*memory_bytes);
        writeln!(
            out,
            "{processors} x {processor}, {memory}, Linux {kernel}, cgroup v{cgroup_version}"
        )?;
        writeln!(
            out,
            "{}, Kelson {}, load {} before",
            self.machine.time, self.machine.kelson_version, self.machine.load
        )?;
        for Contender {
            name,
            version,
            place,
        } in &self.runtimes
        {
            writeln!(out, "{name}: {version} at {place}")?;
        }
        writeln!(out)?;
        self.details().write(out)?;
        if self.runtimes.len() > 1 {
            writeln!(
                out,
                "\nMedians; (x) is how many times better {} is:",
                self.runtimes[0].name
            )?;
            self.comparison().write(out)?;
        }
        for note in &self.notes {
            writeln!(out, "note: {note}")?;
        }
        for remark in &self.remarks {
            writeln!(out, "not measured: {remark}")?;
        }
        Ok(())
    }

    fn details(&self) -> Table {
        let headings = [
            "WORK", "RUNTIME", ">P50", ">P95", ">P99", ">MIN", ">MAX", ">COUNT", "UNIT",
        ];
        let mut table = Table::new(&headings);
        for row in &self.results {
            for (runtime, value) in self.runtimes.iter().zip(&row.values) {
                let Some(v) = value else { continue };
                let number = |value: f64| {
                    if v.count == 1 {
                        String::new()
                    } else {
                        digits(value)
                    }
                };
                table.row([
                    row.work.clone(),
                    runtime.name.clone(),
                    digits(v.p50),
                    number(v.p95),
                    number(v.p99),
                    number(v.min),
                    number(v.max),
                    v.count.to_string(),
                    row.unit.to_owned(),
                ]);
            }
        }
        table
    }

    fn comparison(&self) -> Table {
        let mut headings = vec!["WORK".to_owned()];
        headings.extend(
            self.runtimes
                .iter()
                .map(|runtime| format!(">{}", runtime.name)),
        );
        headings.push("UNIT".to_owned());
        let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
        let mut table = Table::new(&headings);
        for row in &self.results {
            let first = row.values.first().copied().flatten();
            let mut cells = vec![row.work.clone()];
            for (index, value) in row.values.iter().enumerate() {
                cells.push(match (value, first) {
                    (None, _) => "-".into(),
                    (Some(value), Some(first)) if index > 0 => {
                        match ratio(row.better, first.p50, value.p50) {
                            Some(ratio) => format!("{} ({ratio}x)", digits(value.p50)),
                            None => digits(value.p50),
                        }
                    }
                    (Some(value), _) => digits(value.p50),
                });
            }
            cells.push(row.unit.to_owned());
            table.row(cells);
        }
        table
    }
}

/// How many times better the first value is than the other; nothing where one is 0.
pub(super) fn ratio(better: Better, first: f64, other: f64) -> Option<String> {
    let ratio = match better {
        Better::Lower => other / first,
        Better::Higher => first / other,
    };
    (ratio.is_finite() && ratio > 0.0).then(|| digits(ratio))
}

/// Three digits, or all before the point.
pub(super) fn digits(value: f64) -> String {
    match value.abs() {
        ..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let runtime = |name: &str| Contender {
            name: name.into(),
            version: "1".into(),
            place: "unix:///x".into(),
        };
        Report::new(Path::new("/tmp"), vec![runtime("kelson"), runtime("other")])
    }

    #[test]
    fn medians_are_compared_with_those_of_the_first_runtime() {
        let mut report = report();
        let summary = |values: &[f64]| Summary::of(values);
        let times = vec![
            summary(&[10.0, 12.0, 11.0]),
            summary(&[150.0, 120.0, 165.0]),
        ];
        report.row("pod up".into(), "ms", Better::Lower, times);
        report.row(
            "up".into(),
            "pods/s",
            Better::Higher,
            vec![summary(&[250.0]), summary(&[20.0])],
        );
        report.row(
            "log".into(),
            "MiB/s",
            Better::Higher,
            vec![summary(&[5.0]), None],
        );
        report.remark("other", "log", &anyhow::anyhow!("no log"));
        let mut out = Vec::new();
        report.write_tables(&mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        let table = out.split("better kelson is:\n").nth(1).unwrap();
        let expected = "\
WORK    kelson        other  UNIT
pod up    11.0  150 (13.6x)  ms
up         250  20.0 (12.5x)  pods/s
log       5.00            -  MiB/s
not measured: other: log: no log
";
        let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeeze(table), squeeze(expected));
        assert!(out.contains("pod up  other"), "{out}");
    }

    #[test]
    fn nothing_is_divided_by_nothing() {
        assert_eq!(ratio(Better::Lower, 0.0, 5.0), None);
        assert_eq!(ratio(Better::Higher, 5.0, 0.0), None);
        assert_eq!(ratio(Better::Lower, 5.0, 0.0), None);
    }
}
