//! System tests: the built program over its socket, with real containers, networks and registries.
//!
//! Each case has a daemon of its own in directories, a cgroup and a bridge of its own, so that cases
//! run side by side and two runs on one machine do not meet. Dropping a case's node removes all of
//! it, also when the case failed, and fails the case if something is left. What a case needs and the
//! machine lacks is told before it would run; it then counts as skipped.

mod bad_registry;
mod case;
mod cases;
mod debian_registry;
mod image;
mod node;
mod pod;
mod screen;
mod tool;
mod tree;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Every case has a daemon and containers: more than this at once only measures the machine.
    arguments.test_threads = arguments.test_threads.or(Some(2));
    // What a case lacks is told only of those that were asked for.
    let asked = |case: &case::Case| {
        let filter = arguments.filter.as_ref();
        filter.is_none_or(|filter| case.name().contains(filter.as_str()))
    };
    let cases = cases::all().into_iter().filter(asked);
    let trials: Vec<Trial> = cases.map(case::Case::trial).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
