//! A real zygote, real shims and real containers, as root. The test program is the zygote's program
//! too, which is why it has a `main` of its own.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

mod attach;
mod bench;
mod exec;
mod life;
mod logs;
mod pods;
mod sockets;
mod world;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("zygote") {
        return kelson_shim::zygote::main();
    }
    let arguments = Arguments::from_args();
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return ExitCode::SUCCESS;
    }
    let mut trials: Vec<Trial> = Vec::new();
    trials.extend(life::trials());
    trials.extend(logs::trials());
    trials.extend(exec::trials());
    trials.extend(attach::trials());
    trials.extend(sockets::trials());
    trials.extend(pods::trials());
    trials.extend(bench::trials());
    let conclusion = libtest_mimic::run(&arguments, trials);
    world::remove_rootfs();
    conclusion.exit_code()
}
