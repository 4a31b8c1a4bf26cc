//! The report as a page with plots: one file that needs nothing else, not even a script.

use std::fmt::Write;

use super::report::{Better, Report, Row, digits, ratio};
use super::samples::Summary;
use crate::ui::text;

/// Colours of the runtimes, in their order; they repeat.
const COLOURS: &[&str] = &["#0b6e99", "#c4602d", "#5a7d2a", "#7d4a94"];
/// Geometry of a plot, in pixels: the bars begin at [`LEFT`] and are at most [`WIDTH`] long.
const LEFT: u32 = 130;
const WIDTH: f64 = 430.0;
const BAR: usize = 16;
const TOTAL: usize = 760;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:820px;margin:2em auto;padding:0 1em;color:#222}\
h1{font-size:1.6em}h2{font-size:1.2em;margin:2em 0 .4em;border-bottom:1px solid #ccc}\
h3{font-size:1em;font-weight:600;margin:1em 0 .1em}h3 small{font-weight:400;color:#666}\
table{border-collapse:collapse;font-size:13px;margin:.5em 0}td,th{padding:1px 9px;text-align:right}\
td:first-child,th:first-child,td:nth-child(2),th:nth-child(2){text-align:left}\
tr:nth-child(even){background:#f4f4f4}svg{display:block}text{font:12px system-ui,sans-serif;fill:#222}\
.key{display:inline-block;width:.8em;height:.8em;margin-right:.4em}";

impl Report {
    /// The whole page.
    pub(super) fn html(&self) -> String {
        let mut page = String::new();
        // Writing to a string does not fail.
        let _ = self.write_page(&mut page);
        page
    }

    fn write_page(&self, out: &mut String) -> std::fmt::Result {
        let names: Vec<String> = self.runtimes.iter().map(|one| escape(&one.name)).collect();
        let title = names.join(" and ");
        write!(
            out,
            "<!DOCTYPE html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>\n\
             <h1>{title}, measured side by side</h1>\n"
        )?;
        self.write_facts(out)?;
        let mut section = "";
        for row in &self.results {
            if row.section != section {
                section = &row.section;
                writeln!(out, "<h2>{}</h2>", escape(section))?;
            }
            self.write_plot(out, row)?;
        }
        writeln!(out, "<h2>All values</h2>")?;
        self.write_values(out)?;
        for (title, lines) in [
            ("How it was measured", &self.notes),
            ("What could not be measured", &self.remarks),
        ] {
            if lines.is_empty() {
                continue;
            }
            writeln!(out, "<h2>{title}</h2><ul>")?;
            for line in lines {
                writeln!(out, "<li>{}</li>", escape(line))?;
            }
            writeln!(out, "</ul>")?;
        }
        writeln!(out, "</html>")
    }

    fn write_facts(&self, out: &mut String) -> std::fmt::Result {
        let machine = &self.machine;
        writeln!(
            out,
            "<p>{} &times; {}, {}, Linux {}, cgroup v{}; {}, load {} before; Kelson {}.</p>\n<ul>",
            machine.processors,
            escape(&machine.processor),
            text::memory(machine.memory_bytes),
            escape(&machine.kernel),
            machine.cgroup_version,
            escape(&machine.time),
            machine.load,
            machine.kelson_version
        )?;
        for (number, runtime) in self.runtimes.iter().enumerate() {
            writeln!(
                out,
                "<li><span class=key style=\"background:{}\"></span>{} {}</li>",
                colour(number),
                escape(&runtime.name),
                escape(&runtime.version)
            )?;
        }
        writeln!(
            out,
            "</ul>\n<p>Bars are medians; the line on a bar reaches from the least to the greatest value that was \
             measured. The runtimes took turns in every round.</p>"
        )
    }

    fn write_plot(&self, out: &mut String, row: &Row) -> std::fmt::Result {
        let longest = row.values.iter().flatten().map(|value| value.max);
        let longest = longest.fold(0.0_f64, f64::max);
        let better = match row.better {
            Better::Lower => "lower is better",
            Better::Higher => "higher is better",
        };
        let work = escape(&row.work);
        writeln!(out, "<h3>{work} <small>{}, {better}</small></h3>", row.unit)?;
        let height = self.runtimes.len() * (BAR + 6) + 4;
        writeln!(
            out,
            "<svg width={TOTAL} height={height} viewBox=\"0 0 {TOTAL} {height}\" role=img aria-label=\"{work}\">"
        )?;
        let first = row.values.first().copied().flatten();
        for (number, value) in row.values.iter().enumerate() {
            let top = number * (BAR + 6) + 2;
            let baseline = top + BAR - 4;
            let name = self
                .runtimes
                .get(number)
                .map_or("", |runtime| &runtime.name);
            let name = escape(name);
            write!(
                out,
                "<text x={} y={baseline} text-anchor=end>{name}</text>",
                LEFT - 8
            )?;
            match value {
                Some(value) => bar(out, number, top, value, longest, row.better, first)?,
                None => write!(out, "<text x={LEFT} y={baseline}>not measured</text>")?,
            }
            writeln!(out)?;
        }
        writeln!(out, "</svg>")
    }

    fn write_values(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "<table><tr><th>work<th>runtime<th>median<th>p95<th>p99<th>min<th>max<th>count<th>unit</tr>"
        )?;
        for row in &self.results {
            for (runtime, value) in self.runtimes.iter().zip(&row.values) {
                let Some(v) = value else { continue };
                write!(
                    out,
                    "<tr><td>{}<td>{}",
                    escape(&row.work),
                    escape(&runtime.name)
                )?;
                for number in [v.p50, v.p95, v.p99, v.min, v.max] {
                    write!(out, "<td>{}", digits(number))?;
                }
                writeln!(out, "<td>{}<td>{}</tr>", v.count, row.unit)?;
            }
        }
        writeln!(out, "</table>")
    }
}

fn bar(
    out: &mut String,
    number: usize,
    top: usize,
    value: &Summary,
    longest: f64,
    better: Better,
    first: Option<Summary>,
) -> std::fmt::Result {
    let scale = |value: f64| {
        if longest > 0.0 {
            value / longest * WIDTH
        } else {
            0.0
        }
    };
    let (length, middle) = (scale(value.p50), top + BAR / 2);
    let [least, greatest] = [value.min, value.max].map(|end| scale(end) + f64::from(LEFT));
    write!(
        out,
        "<rect x={LEFT} y={top} width={length:.1} height={BAR} fill=\"{}\"/>",
        colour(number)
    )?;
    if value.count > 1 {
        write!(
            out,
            "<path d=\"M{least:.1} {middle}H{greatest:.1}M{least:.1} {a}v8M{greatest:.1} {a}v8\" stroke=\"#222\"/>",
            a = middle - 4
        )?;
    }
    let mut label = digits(value.p50);
    if let (Some(first), 1..) = (first, number)
        && let Some(ratio) = ratio(better, first.p50, value.p50)
    {
        let _ = write!(label, " ({ratio}x)");
    }
    write!(
        out,
        "<text x={:.1} y={}>{label}</text>",
        greatest.max(length + f64::from(LEFT)) + 6.0,
        top + BAR - 4
    )
}

fn colour(number: usize) -> &'static str {
    COLOURS[number % COLOURS.len()]
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::report::Contender;
    use super::*;

    #[test]
    fn a_page_has_all_values_and_nothing_from_elsewhere() {
        let contender = |name: &str| Contender {
            name: name.into(),
            version: "1<2".into(),
            place: "unix:///x".into(),
        };
        let mut report = Report::new(
            Path::new("/tmp"),
            vec![contender("kelson"), contender("o&r")],
        );
        report.section("Pods");
        let values = vec![Summary::of(&[1.0, 2.0, 4.0]), Summary::of(&[20.0])];
        report.row("pod up".into(), "ms", Better::Lower, values);
        let values = vec![Summary::of(&[1.0]), None];
        report.row("half".into(), "ms", Better::Lower, values);
        report.note("a note".into());
        let page = report.html();
        for part in [
            "<h2>Pods</h2>",
            "o&amp;r",
            "1&lt;2",
            "20.0 (10.0x)",
            "not measured",
            "a note",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(
            !page.contains("NaN") && !page.contains("<script") && !page.contains("http"),
            "{page}"
        );
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    }
}
