//! What the run must show, in order: all pods are there before the first check, and the last checks
//! take them away.

mod deletion;
mod events;
mod http;
mod namespaces;
mod order;
mod probes;
mod pull;
mod restarts;
mod security;
mod settings;
mod stream;
mod survive;

use anyhow::Result;
use serde_json::Value;

use super::report::{Report, Verdict};
use super::world::{World, is_interrupted};

/// A check: what holds, and the function that finds out.
type Check = (&'static str, fn(&mut World) -> Result<Verdict>);

/// A subject: the pods it needs, and its checks.
type Subject = (fn(&World) -> Result<Vec<Value>>, &'static [Check]);

const SUBJECTS: &[Subject] = &[
    (order::pods, order::CHECKS),
    (settings::pods, settings::CHECKS),
    (security::pods, security::CHECKS),
    (namespaces::pods, namespaces::CHECKS),
    (restarts::pods, restarts::CHECKS),
    (probes::pods, probes::CHECKS),
    (pull::pods, pull::CHECKS),
    (http::pods, http::CHECKS),
    (stream::pods, stream::CHECKS),
    (survive::pods, survive::CHECKS),
    (events::pods, events::CHECKS),
    (deletion::pods, deletion::CHECKS),
];

/// Runs all checks; a check that fails does not keep the next from running.
pub(super) fn run(world: &mut World, report: &mut Report) -> Result<()> {
    for (pods, _) in SUBJECTS {
        for pod in pods(world)? {
            world.apply(&pod)?;
        }
    }
    for (name, check) in SUBJECTS.iter().flat_map(|(_, checks)| *checks) {
        if is_interrupted() {
            break;
        }
        report.check(name, || check(world));
    }
    Ok(())
}

/// The check holds.
fn passed() -> Result<Verdict> {
    Ok(Verdict::Passed)
}
