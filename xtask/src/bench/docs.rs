//! `docs/benchmarks.md`: the figures between two marks; what stands around them is written by hand.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::budgets::Outcome;

const BEGIN: &str = "<!-- figures: begin -->";
const END: &str = "<!-- figures: end -->";

/// The page before anybody has written more.
const TEMPLATE: &str = include_str!("benchmarks.md");

/// Puts the figures into the page.
pub(crate) fn write(path: &Path, reports: &[Value], outcomes: &[Outcome]) -> Result<()> {
    let page = std::fs::read_to_string(path).unwrap_or_else(|_| TEMPLATE.to_owned());
    let page = replace(&page, &figures(reports, outcomes))
        .with_context(|| format!("{} has not both marks of its figures", path.display()))?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).context("cannot make the folder of the page")?;
    }
    std::fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))
}

fn replace(page: &str, figures: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{figures}{END}{after}"))
}

fn figures(reports: &[Value], outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    if let Some(machine) = reports.first().map(|report| &report["machine"]) {
        let gibibytes = machine["memoryBytes"].as_f64().unwrap_or_default() / f64::from(1 << 30);
        let _ = writeln!(
            text,
            "{} x {}, {gibibytes:.1} GiB, Linux {}, cgroup v{}; {}, load {} before.\n",
            machine["processors"],
            word(&machine["processor"]),
            word(&machine["kernel"]),
            machine["cgroupVersion"],
            word(&machine["time"]),
            machine["load"]
        );
    }
    for runtime in reports.iter().flat_map(|report| list(&report["runtimes"])) {
        let _ = writeln!(
            text,
            "- {} {}",
            word(&runtime["name"]),
            word(&runtime["version"])
        );
    }
    let _ = writeln!(
        text,
        "\n## Budgets\n\n| work | Kelson | budget | found | |\n| --- | ---: | --- | --- | --- |"
    );
    for one in outcomes {
        let verdict = match one.met {
            Some(true) => "met",
            Some(false) => "**missed**",
            None => "not measured",
        };
        let Outcome {
            work,
            value,
            wanted,
            found,
            ..
        } = one;
        let _ = writeln!(
            text,
            "| {work} | {value} | {wanted} | {found} | {verdict} |"
        );
    }
    for report in reports {
        let _ = writeln!(text, "\n## All figures\n\n{}", table(report));
        for (what, key) in [("Note", "notes"), ("Not measured", "remarks")] {
            for line in list(&report[key]) {
                let _ = writeln!(text, "{what}: {}\n", word(line));
            }
        }
    }
    text
}

/// Medians with the least and the greatest value of each runtime, and how many times better Kelson is.
pub(crate) fn table(report: &Value) -> String {
    let names: Vec<&str> = list(&report["runtimes"])
        .iter()
        .map(|runtime| word(&runtime["name"]))
        .collect();
    let mut text = String::from("| median (min to max) |");
    for name in &names {
        let _ = write!(text, " {name} |");
    }
    let _ = write!(
        text,
        " unit |\n| --- |{} --- |\n",
        " ---: |".repeat(names.len())
    );
    for row in list(&report["results"]) {
        let _ = write!(text, "| {} |", word(&row["work"]));
        let values = list(&row["values"]);
        let first = values.first().and_then(|value| value["p50"].as_f64());
        for (index, value) in values.iter().enumerate() {
            let _ = write!(
                text,
                " {} |",
                cell(value, first, index, row["better"] == "higher")
            );
        }
        let _ = writeln!(text, " {} |", word(&row["unit"]));
    }
    text
}

fn cell(value: &Value, first: Option<f64>, index: usize, higher: bool) -> String {
    let Some(median) = value["p50"].as_f64() else {
        return "-".to_owned();
    };
    let mut text = digits(median);
    if value["count"].as_u64() > Some(1) {
        let ends = ["min", "max"].map(|end| digits(value[end].as_f64().unwrap_or_default()));
        let _ = write!(text, " ({} to {})", ends[0], ends[1]);
    }
    if let (Some(first), 1..) = (first, index) {
        let times = if higher {
            first / median
        } else {
            median / first
        };
        if times.is_finite() && times > 0.0 {
            let _ = write!(text, ", {}x", digits(times));
        }
    }
    text
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
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
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let once = replace(TEMPLATE, "new\n").unwrap();
        assert!(once.contains("new\n") && once.starts_with("# Benchmarks"));
        assert_eq!(replace(&once, "new\n").unwrap(), once);
        assert_eq!(replace("no marks", "new"), None);
    }

    #[test]
    fn a_table_has_every_value_and_its_ratio() {
        let value =
            |p50: f64, count: u32| json!({ "p50": p50, "min": 1.0, "max": 9.0, "count": count });
        let report = json!({
            "runtimes": [{ "name": "a" }, { "name": "b" }],
            "results": [
                { "work": "w", "unit": "ms", "better": "lower", "values": [value(2.0, 3), value(20.0, 1)] },
                { "work": "v", "unit": "/s", "better": "higher", "values": [value(2.0, 1), null] },
            ],
        });
        let expected = "| median (min to max) | a | b | unit |\n| --- | ---: | ---: | --- |\n\
            | w | 2.00 (1.00 to 9.00) | 20.0, 10.0x | ms |\n| v | 2.00 | - | /s |\n";
        assert_eq!(table(&report), expected);
    }
}
