//! `cargo xtask kubelet`: a real kubelet, without a cluster, runs static pods on a private daemon.
//!
//! Everything it does to the machine is in directories, cgroups, ports and interfaces of the run's
//! own; what the kubelet would write to fixed places stays in a mount namespace of its own.

mod agent;
mod checks;
mod image;
mod leftovers;
mod manifests;
mod report;
mod socket;
mod world;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::mirror::Mirror;
use crate::node::Node;
use crate::setup;
use agent::{Agent, Gates};
use leftovers::Machine;
use report::Report;
use world::World;

/// What to run.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Options {
    program: Option<PathBuf>,
    keep: bool,
}

impl Options {
    /// Reads the arguments; `None` if they are wrong.
    pub(crate) fn parse(arguments: &[&str]) -> Option<Self> {
        let mut options = Self::default();
        let mut arguments = arguments.iter();
        while let Some(option) = arguments.next() {
            match *option {
                "--keep" => options.keep = true,
                "--program" => options.program = Some((*arguments.next()?).into()),
                _ => return None,
            }
        }
        Some(options)
    }
}

/// Builds, runs, prints, cleans up; an error if a check failed or something is left.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    for problem in setup::packages() {
        println!("not installed: {problem}");
    }
    let kubelet = setup::kubelet(root)?;
    let program = setup::program(root, options.program.as_deref())?;
    let content = image::registry(&setup::busybox(root)?)?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the registry")?;
    world::watch_signals(&runtime)?;
    let name = format!("kkube{}", std::process::id() % 1_000_000);
    let before = Machine::look()?;

    let dir = tempfile::Builder::new()
        .prefix(&format!("{name}-"))
        .tempdir()
        .context("cannot make a directory for the run")?;
    let mut report = Report::default();
    let outcome = (|| {
        let mirror = Mirror::serve(&runtime, content, &dir.path().join("certs.d"))?;
        let subnet = format!("198.18.{}.0/24", std::process::id() % 256);
        let node = Node::start(&program, dir.path(), name.clone(), &subnet)?;
        let agent = Agent::start(&kubelet, dir.path(), &node, Gates::Default)?;
        let mut world = World::new(dir.path(), node, agent, mirror, subnet);
        let checked = checks::run(&mut world, &mut report);
        if options.keep && (checked.is_err() || !report.failed().is_empty()) {
            print!("{}", world.last_lines());
        }
        let ended = world.end();
        checked.and(ended)
    })();
    if options.keep {
        println!("logs are in {}", dir.keep().display());
    } else {
        dir.close().context("cannot remove the run's directory")?;
    }
    match before.left(&name, options.keep) {
        Ok(left) => report.note("nothing is left on the machine", left),
        Err(error) => report.note("nothing is left on the machine", vec![format!("{error:#}")]),
    }
    report.print();
    outcome?;
    if world::is_interrupted() {
        bail!("interrupted");
    }
    if !report.failed().is_empty() {
        bail!("some checks failed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_arguments_are_refused() {
        let options = Options::parse(&["--keep", "--program", "/k"]).unwrap();
        assert_eq!((options.keep, options.program), (true, Some("/k".into())));
        assert_eq!(Options::parse(&["--program"]), None);
        assert_eq!(Options::parse(&["--speed"]), None);
    }
}
