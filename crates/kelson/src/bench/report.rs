//! The result of a run: as tables with ratios for people, and as data for programs.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::machine::Machine;
use super::peer::Peer;
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
    machine: Machine,
    runtimes: Vec<Runtime>,
    results: Vec<Row>,
    remarks: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Runtime {
    name: String,
    version: String,
    endpoint: String,
}

#[derive(Debug, Serialize)]
struct Row {
    work: String,
    unit: &'static str,
    better: Better,
    /// In the order of the runtimes; null where a runtime failed.
    values: Vec<Option<Summary>>,
}

impl Report {
    pub(super) fn new(directory: &Path, peers: &[Arc<Peer>]) -> Self {
        let runtimes = peers.iter().map(|peer| Runtime {
            name: peer.name.clone(),
            version: peer.version.clone(),
            endpoint: peer.client.endpoint().to_string(),
        });
        let runtimes = runtimes.collect();
        let machine = Machine::here(directory);
        Self {
            machine,
            runtimes,
            results: Vec::new(),
            remarks: Vec::new(),
        }
    }

    pub(super) fn row(
        &mut self,
        work: String,
        unit: &'static str,
        better: Better,
        values: Vec<Option<Summary>>,
    ) {
        self.results.push(Row {
            work,
            unit,
            better,
            values,
        });
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
            "{}, Kelson {}",
            self.machine.time, self.machine.kelson_version
        )?;
        for Runtime {
            name,
            version,
            endpoint,
        } in &self.runtimes
        {
            writeln!(out, "{name}: {version} at {endpoint}")?;
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
                        let ratio = ratio(row.better, first.p50, value.p50);
                        format!("{} ({ratio}x)", digits(value.p50))
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

/// How many times better the first value is than the other.
fn ratio(better: Better, first: f64, other: f64) -> String {
    let ratio = match better {
        Better::Lower => other / first,
        Better::Higher => first / other,
    };
    if ratio.is_finite() {
        digits(ratio)
    } else {
        "-".into()
    }
}

/// Three digits, or all before the point.
fn digits(value: f64) -> String {
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
        let runtime = |name: &str| Runtime {
            name: name.into(),
            version: "1".into(),
            endpoint: "unix:///x".into(),
        };
        Report {
            machine: Machine::here(Path::new("/tmp")),
            runtimes: vec![runtime("kelson"), runtime("other")],
            results: Vec::new(),
            remarks: Vec::new(),
        }
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
        assert_eq!(ratio(Better::Lower, 0.0, 5.0), "-");
        assert_eq!(ratio(Better::Higher, 5.0, 0.0), "-");
    }
}
