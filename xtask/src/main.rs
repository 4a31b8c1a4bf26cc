//! Developer commands, run as `cargo xtask <command>`. Never part of what is installed.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool"
)]

mod bench;
mod conformance;
mod criu;
mod deny;
mod kubelet;
mod machine;
mod mirror;
mod node;
mod proto;
mod setup;
mod test;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "\
Usage: cargo xtask <command>

Commands:
  test [name]       install what tests need, run them all, count passed, failed and skipped
  conformance       run the CRI's validation suite, critest, on a private daemon
      [--program PATH]    the daemon's program (else it is built now)
      [--focus REGEX]     only specs whose name matches
      [--keep]            leave the logs there
      [--endpoint SOCKET --certs-dir DIR]
                          run it on another runtime, which reads its registry hosts from DIR
  kubelet           run static pods by a real kubelet on a private daemon
      [--program PATH]    the daemon's program (else it is built now)
      [--keep]            leave the logs there
  machine [filter]  run the system tests and the validation suite in a virtual machine
      [--suite system|critest]  only one of them
      [--subset ci]             what is run for every change
      [--release NAME]          the Debian in it: trixie (default) or bookworm
      [--shell]                 a shell there instead
  bench             measure Kelson beside containerd with runc, and its runtime beside runc and crun
      [--quick]           a smoke run: its figures say nothing
      [--program PATH]    the program (else it is built now, optimised)
      [--only SECTIONS]   as kelson bench --only, or runtime
      [--write]           put the figures into docs/benchmarks.md and the report into docs/benchmarks.html
  tidy              rules of the code that the compiler does not know
  deny              licences, sources and bans of dependencies
  proto [--check]   generate the CRI bindings from proto/ (--check: only see whether they are current)
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args.as_slice() {
        ["test", filter @ ..] => test::run(&root(), filter),
        ["conformance", options @ ..] if conformance::Options::parse(options).is_some() => {
            let options = conformance::Options::parse(options).unwrap_or_default();
            conformance::run(&root(), &options)
        }
        ["kubelet", options @ ..] if kubelet::Options::parse(options).is_some() => {
            let options = kubelet::Options::parse(options).unwrap_or_default();
            kubelet::run(&root(), &options)
        }
        ["machine", "--inside", options @ ..] if machine::Options::parse(options).is_some() => {
            let options = machine::Options::parse(options).unwrap_or_default();
            machine::inside(&root(), &options)
        }
        ["machine", options @ ..] if machine::Options::parse(options).is_some() => {
            let options = machine::Options::parse(options).unwrap_or_default();
            machine::run(&root(), &options)
        }
        ["bench", options @ ..] if bench::Options::parse(options).is_some() => {
            let options = bench::Options::parse(options).unwrap_or_default();
            bench::run(&root(), &options)
        }
        ["tidy"] => tidy::run(&root()),
        ["deny"] => deny::run(&root()),
        ["proto"] => proto::run(&root(), proto::Mode::Write),
        ["proto", "--check"] => proto::run(&root(), proto::Mode::Check),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the workspace: the parent of this crate's directory.
fn root() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.parent().map_or(own.clone(), PathBuf::from)
}
