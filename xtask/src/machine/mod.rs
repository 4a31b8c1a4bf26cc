//! `cargo xtask machine`: the system tests and the validation suite in a virtual machine, for what the
//! machine at hand may lack: cgroup v2 alone, systemd, AppArmor, every capability.
//!
//! The machine is a Debian under QEMU. Its image is built once from Debian's packages and used
//! read-only; what is tested comes on a disk of its own, built here and found under the same path
//! there. Nothing is left running and nothing outside `target` and the temporary directory is
//! written.

mod guest;
mod image;
mod payload;
mod vm;

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use vm::Vm;

/// What to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Suite {
    /// The test programs that drive real kernels: cgroups, the OCI runtime, the shim, the daemon.
    System,
    /// The CRI's validation suite.
    Critest,
}

/// What to run, and where.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Options {
    /// Only cases whose name contains it, or specs whose name matches.
    filter: Option<String>,
    /// One suite instead of both.
    suite: Option<Suite>,
    /// The cases that are chosen for every change.
    chosen: bool,
    /// A shell for a person instead of tests.
    shell: bool,
    /// Which Debian, and with it which kernel.
    release: image::Release,
}

impl Options {
    /// Reads the arguments; `None` if they are wrong.
    pub(crate) fn parse(arguments: &[&str]) -> Option<Self> {
        let mut options = Self::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match *argument {
                "--shell" => options.shell = true,
                "--suite" => {
                    options.suite = Some(match *arguments.next()? {
                        "system" => Suite::System,
                        "critest" => Suite::Critest,
                        _ => return None,
                    });
                }
                "--subset" if *arguments.next()? == "ci" => options.chosen = true,
                "--release" => options.release = image::Release::parse(arguments.next()?)?,
                filter if !filter.starts_with('-') && options.filter.is_none() => {
                    options.filter = Some(filter.to_owned());
                }
                _ => return None,
            }
        }
        let alone = options.shell || options.chosen;
        let tests = options.filter.is_some() || options.suite.is_some();
        (!(alone && tests || options.shell && options.chosen)).then_some(options)
    }

    /// How long the machine may run: emulated, everything takes some 15 times longer.
    fn limit(&self) -> Option<Duration> {
        let minutes = match (self.shell, self.chosen) {
            (true, _) => return None,
            (false, true) => 12,
            (false, false) => 120,
        };
        Some(Duration::from_secs(60 * minutes))
    }

    /// The same for the program in the machine.
    fn arguments(&self) -> Vec<String> {
        let mut all = vec!["machine".to_owned(), "--inside".to_owned()];
        all.extend(self.filter.clone());
        if let Some(suite) = self.suite {
            let name = match suite {
                Suite::System => "system",
                Suite::Critest => "critest",
            };
            all.extend(["--suite".to_owned(), name.to_owned()]);
        }
        if self.chosen {
            all.extend(["--subset".to_owned(), "ci".to_owned()]);
        }
        all
    }

    fn has(&self, suite: Suite) -> bool {
        self.suite.is_none_or(|only| only == suite)
    }
}

/// Builds image and tests, boots, shows what the machine says; an error if a test failed.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let image = image::make(root, options.release)?;
    let payload = payload::make(root, options)?;
    let mut vm = Vm::boot(&image, &payload, options.shell)?;
    if options.shell {
        return vm.wait();
    }
    match vm.watch(options.limit())? {
        Some(0) => Ok(()),
        Some(_) => bail!("some tests failed in the machine"),
        None => bail!(
            "the machine ended before its tests; its console said:\n{}",
            vm.console()
        ),
    }
}

/// The part of the command that runs in the machine.
pub(crate) fn inside(root: &Path, options: &Options) -> Result<()> {
    guest::run(root, options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_come_through() {
        let options = Options::parse(&["oom", "--suite", "system"]).unwrap();
        assert_eq!(
            options.arguments(),
            ["machine", "--inside", "oom", "--suite", "system"]
        );
        assert!(options.has(Suite::System) && !options.has(Suite::Critest));
        let all = Options::parse(&[]).unwrap();
        assert!(all.has(Suite::System) && all.has(Suite::Critest));
        assert!(Options::parse(&["--subset", "ci"]).unwrap().chosen);
        for wrong in [
            &["--suite"][..],
            &["--suite", "all"],
            &["--subset", "all"],
            &["--shell", "oom"],
            &["--release", "sid"],
            &["a", "b"],
        ] {
            assert_eq!(Options::parse(wrong), None, "{wrong:?}");
        }
    }
}
