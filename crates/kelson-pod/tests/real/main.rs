//! Pods that really run: namespaces, cgroups, an image pulled from a registry in this process, and the real
//! zygote and shims. Needs root and Debian's static busybox; without them every test says so and passes.
//!
//! This program is also its own zygote.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a program of tests"
)]

mod cases;
mod node;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use node::Node;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("zygote") {
        return kelson_shim::zygote::main();
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(2));
    let trials = cases::ALL.iter().map(|(name, case)| {
        Trial::test(*name, move || {
            if let Some(reason) = missing() {
                eprintln!("{name} skipped: {reason}");
                return Ok(());
            }
            run(*case)
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root");
    }
    let busybox = std::path::Path::new("/bin/busybox").exists();
    (!busybox).then_some("needs /bin/busybox, from Debian's busybox-static")
}

fn run(case: cases::Case) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        // A case panics when it fails; its node cleans up all the same.
        let node = Node::start().await;
        case(node).await;
    });
    Ok(())
}
