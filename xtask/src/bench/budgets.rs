//! What Kelson is to be: each budget names a row of `kelson bench` and what it is compared with.

use serde_json::Value;

/// What a value is compared with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Goal {
    /// So many times better than the peer of this name in the same run.
    Times(f64, &'static str),
    /// At most this, in the unit of the row.
    AtMost(f64),
    /// Either so many times better than the peer, or this share of another row of the same run.
    TimesOrShare(f64, &'static str, f64, &'static str),
}

/// A budget: the row, the goal.
pub(crate) type Budget = (&'static str, Goal);

const PEER: &str = "containerd";
const PLAIN_COPY: &str = "plain copy to the same file system";

/// The budgets over the CRI.
pub(crate) const CRI: &[Budget] = &[
    ("pod network: pod up", Goal::Times(12.0, PEER)),
    ("host network: pod up", Goal::Times(15.0, PEER)),
    ("pod network: pod down", Goal::Times(6.0, PEER)),
    ("50 pods, 10 at a time: up", Goal::Times(12.0, PEER)),
    ("ExecSync, 50 pods", Goal::Times(7.0, PEER)),
    ("memory (PSS) that a pod adds, 50 pods", Goal::AtMost(0.3)),
    ("memory (PSS), 50 pods: all", Goal::AtMost(45.0)),
    ("ListContainerStats, 50 pods", Goal::Times(20.0, PEER)),
    ("processor time while idle, 50 pods", Goal::AtMost(1.0)),
    (
        "container output to log",
        Goal::TimesOrShare(15.0, PEER, 0.7, PLAIN_COPY),
    ),
    ("pull gzip: nothing there", Goal::Times(3.0, PEER)),
];

/// The budgets of the runtime alone.
pub(crate) const RUNTIME: &[Budget] = &[(
    "runtime: create, start, exit, delete",
    Goal::Times(2.0, "crun"),
)];

/// How a budget came out.
#[derive(Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) work: &'static str,
    /// Kelson's median with its unit.
    pub(crate) value: String,
    pub(crate) wanted: String,
    pub(crate) found: String,
    /// Nothing if it could not be measured.
    pub(crate) met: Option<bool>,
}

/// Compares each budget with a report; the first runtime in it is Kelson.
pub(crate) fn compare(budgets: &[Budget], report: &Value) -> Vec<Outcome> {
    budgets
        .iter()
        .map(|budget| outcome(budget, report))
        .collect()
}

fn outcome((work, goal): &Budget, report: &Value) -> Outcome {
    let row = row(report, work);
    let unit = row.and_then(|row| row["unit"].as_str()).unwrap_or("");
    let own = row.and_then(|row| median(row, 0));
    let times = |peer: &str| {
        let other = median(row?, index(report, peer)?)?;
        let (own, other) = (own?, other);
        let higher = row?["better"] == "higher";
        Some(if higher { own / other } else { other / own })
    };
    let (wanted, found, met) = match *goal {
        Goal::AtMost(most) => (
            format!("at most {most} {unit}"),
            None,
            own.map(|own| own <= most),
        ),
        Goal::Times(factor, peer) => {
            let times = times(peer);
            (
                format!("{factor}x {peer}"),
                times.map(|times| format!("{times:.1}x")),
                times.map(|times| times >= factor),
            )
        }
        Goal::TimesOrShare(factor, peer, share, floor) => {
            let times = times(peer);
            let floor = self::row(report, floor).and_then(|row| median(row, 0));
            let part = own.zip(floor).map(|(own, floor)| own / floor);
            let found = times.zip(part);
            (
                format!("{factor}x {peer} or {:.0} % of a plain copy", share * 100.0),
                found.map(|(times, part)| format!("{times:.1}x, {:.0} %", part * 100.0)),
                found.map(|(times, part)| times >= factor || part >= share),
            )
        }
    };
    let value = own.map_or_else(
        || "not measured".to_owned(),
        |own| format!("{own:.2} {unit}"),
    );
    Outcome {
        work,
        found: found.unwrap_or_else(|| value.clone()),
        value,
        wanted,
        met,
    }
}

fn row<'a>(report: &'a Value, work: &str) -> Option<&'a Value> {
    let rows = report["results"].as_array()?;
    rows.iter().find(|row| row["work"] == work)
}

fn index(report: &Value, name: &str) -> Option<usize> {
    let runtimes = report["runtimes"].as_array()?;
    runtimes.iter().position(|runtime| runtime["name"] == name)
}

fn median(row: &Value, index: usize) -> Option<f64> {
    row["values"][index]["p50"].as_f64()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(own: f64, other: Value, better: &str) -> Value {
        let value = json!({ "p50": own });
        json!({
            "runtimes": [{ "name": "kelson" }, { "name": "containerd" }],
            "results": [
                { "work": "w", "unit": "u", "better": better, "values": [value, other] },
                { "work": "f", "unit": "u", "better": "higher", "values": [{ "p50": 100.0 }, null] },
            ],
        })
    }

    #[test]
    fn each_kind_of_goal_can_be_met_and_missed() {
        let met = |goal, own: f64, other: f64, better| {
            let report = report(own, json!({ "p50": other }), better);
            outcome(&("w", goal), &report).met
        };
        let times = Goal::Times(10.0, "containerd");
        assert_eq!(met(times, 1.0, 10.0, "lower"), Some(true));
        assert_eq!(met(times, 1.1, 10.0, "lower"), Some(false));
        assert_eq!(met(times, 100.0, 10.0, "higher"), Some(true));
        assert_eq!(met(Goal::AtMost(1.0), 1.0, 0.0, "lower"), Some(true));
        assert_eq!(met(Goal::AtMost(1.0), 1.1, 0.0, "lower"), Some(false));
        let either = Goal::TimesOrShare(10.0, "containerd", 0.7, "f");
        assert_eq!(met(either, 71.0, 70.0, "higher"), Some(true));
        assert_eq!(met(either, 69.0, 6.9, "higher"), Some(true));
        assert_eq!(met(either, 69.0, 7.0, "higher"), Some(false));
    }

    #[test]
    fn what_was_not_measured_is_neither_met_nor_missed() {
        let goal = ("w", Goal::Times(2.0, "containerd"));
        assert_eq!(outcome(&goal, &report(1.0, Value::Null, "lower")).met, None);
        assert_eq!(outcome(&("x", Goal::AtMost(1.0)), &json!({})).met, None);
    }
}
