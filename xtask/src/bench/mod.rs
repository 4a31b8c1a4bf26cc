//! `cargo xtask bench`: Kelson beside containerd with runc, both set up here in private directories, and
//! Kelson's OCI runtime beside runc and crun; then the budgets.
//!
//! `kelson bench` measures; this command only sets up, compares, and cleans up.

mod budgets;
mod docs;
mod hierarchies;
mod node;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use kelson_image::layout::ImageBuilder;
use kelson_image::serve::{self, Registry};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::setup;
use budgets::Outcome;
use node::{Kind, Node};

/// A range for tests (RFC 2544), half of it for each daemon; a /20 has room for 4093 pods.
const SUBNETS: [&str; 2] = ["198.19.192.0/20", "198.19.208.0/20"];

/// What is needed of Debian.
const PACKAGES: &[(&str, &str)] = &[
    ("/bin/busybox", "busybox-static"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/usr/sbin/iptables", "iptables"),
    ("/usr/sbin/nft", "nftables"),
    ("/sbin/ip", "iproute2"),
    ("/usr/bin/crun", "crun"),
    ("/usr/bin/cc", "gcc"),
    ("/usr/bin/pkg-config", "pkg-config"),
    ("/usr/include/seccomp.h", "libseccomp-dev"),
];

/// Numbers so small that the run takes a minute.
const QUICK: &[&str] = &[
    "--rounds=3",
    "--pods=1,50",
    "--calls=5",
    "--idle=2",
    "--log-size=32",
    "--stream-size=32",
    "--pulls=1",
    "--pull-size=64",
    "--warm=256",
];

/// What to do.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Options {
    quick: bool,
    write: bool,
    program: Option<PathBuf>,
    only: Option<String>,
}

impl Options {
    /// Reads the arguments; `None` if they are wrong.
    pub(crate) fn parse(arguments: &[&str]) -> Option<Self> {
        let mut options = Self::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match *argument {
                "--quick" => options.quick = true,
                "--write" => options.write = true,
                "--program" => options.program = Some(arguments.next()?.into()),
                "--only" => options.only = Some((*arguments.next()?).to_owned()),
                _ => return None,
            }
        }
        // Figures of a part or of a smoke run are not for publishing.
        let partial = options.quick || options.only.is_some();
        (!(options.write && partial)).then_some(options)
    }

    fn cri(&self) -> bool {
        self.only.as_deref() != Some("runtime")
    }

    fn runtime(&self) -> bool {
        self.only.as_deref().is_none_or(|only| only == "runtime")
    }
}

/// Sets up, measures, compares; that a budget is missed is no error.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the benchmark needs root: it runs container runtimes");
    }
    setup::need(PACKAGES)?;
    let tools = setup::peers(root)?;
    let program = match &options.program {
        Some(program) => program
            .canonicalize()
            .with_context(|| format!("no {}", program.display()))?,
        None => setup::released_kelson(root)?,
    };
    let dir = tempfile::Builder::new()
        .prefix("kelson-xbench-")
        .tempdir_in("/var/tmp")
        .context("cannot make a directory for the run")?;
    let html = root.join("docs/benchmarks.html");
    let html = if options.write {
        html
    } else {
        dir.path().join("report.html")
    };
    let mut reports = Vec::new();
    let mut outcomes = Vec::new();
    if options.cri() {
        let report = cri(root, options, &program, &tools, dir.path(), &html)?;
        outcomes.extend(budgets::compare(budgets::CRI, &report));
        reports.push(report);
    }
    if options.runtime() {
        let report = runtimes(options, &program, &tools, dir.path())?;
        outcomes.extend(budgets::compare(budgets::RUNTIME, &report));
        reports.push(report);
    }
    for report in &reports {
        println!("\n{}", docs::table(report));
    }
    print(&outcomes);
    if options.write {
        docs::write(&root.join("docs/benchmarks.md"), &reports, &outcomes)?;
        println!("\nwritten: docs/benchmarks.md and docs/benchmarks.html");
    }
    Ok(())
}

/// Both daemons, measured over the CRI.
fn cri(
    root: &Path,
    options: &Options,
    program: &Path,
    tools: &Path,
    dir: &Path,
    html: &Path,
) -> Result<Value> {
    hierarchies::wait_for_mounted()?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the registry")?;
    let pause = node::pause(root, tools)?;
    let image = ImageBuilder::new().file("/pause", &pause, 0o755)?;
    let mut content = Registry::new();
    content.add_image("pause", "1", &image.entrypoint(&["/pause"]).build());
    let listener = runtime
        .block_on(TcpListener::bind("127.0.0.1:0"))
        .context("cannot listen on loopback")?;
    let registry = listener
        .local_addr()
        .context("the registry has no address")?;
    runtime.spawn(serve::serve(listener, Arc::new(content)));

    let kinds = [
        Kind::Kelson {
            program: program.to_owned(),
        },
        Kind::Containerd {
            tools: tools.to_owned(),
            pause: format!("{registry}/pause:1"),
        },
    ];
    let mut nodes = Vec::new();
    for (kind, subnet) in kinds.into_iter().zip(SUBNETS) {
        nodes.push(Node::start(kind, program, dir, subnet)?);
    }
    let mut bench = Command::new(program);
    bench.args(["bench", "-o", "json", "--html"]).arg(html);
    bench.arg("--directory").arg(dir);
    for node in &nodes {
        let socket = node.socket().display().to_string();
        bench.args(["--endpoint", &socket, "--restart"]);
        bench.arg(format!("{socket}={}", node.start_command()));
    }
    bench.args(options.only.iter().map(|only| format!("--only={only}")));
    bench.args(if options.quick { QUICK } else { &[] });
    let measured = measure(&mut bench, &dir.join("cri.json"));
    measured.with_context(|| {
        let logs = nodes.iter().map(Node::log).collect::<Vec<_>>();
        format!("the logs of the daemons end with:\n{}", logs.join("\n\n"))
    })
}

/// The OCI runtimes. crun insists on hierarchies that a machine with cgroup v1 may not have mounted; a mount
/// namespace gives it what is missing.
fn runtimes(options: &Options, program: &Path, tools: &Path, dir: &Path) -> Result<Value> {
    let rounds = if options.quick { 3 } else { 100 };
    // Mounted beside the others; a kernel whose cgroup v2 uses it does not give it away.
    let script = "if [ -d /sys/fs/cgroup/cpuacct -a ! -e /sys/fs/cgroup/hugetlb ] && grep -q hugetlb /proc/cgroups; then
        mkdir \"$0/cgroup\" && mount -t tmpfs none \"$0/cgroup\" && mkdir \"$0/cgroup/hugetlb\" &&
        mount -t cgroup -o hugetlb none \"$0/cgroup/hugetlb\" && (
            cd \"$0/cgroup\"
            for one in /sys/fs/cgroup/*; do
                [ -d $one ] && mkdir ${one##*/} && mount --rbind $one ${one##*/}
            done
            mount --rbind . /sys/fs/cgroup
        ) || echo 'hugetlb cannot be mounted: crun may refuse to run' >&2
    fi
    exec \"$@\"";
    let mut bench = Command::new("unshare");
    bench.args(["--mount", "sh", "-c", script]).arg(dir);
    bench.arg(program).args(["bench", "-o", "json"]);
    bench.arg(format!("--rounds={rounds}"));
    bench.arg("--directory").arg(dir);
    for runtime in [
        format!("{} oci", program.display()),
        tools.join("runc").display().to_string(),
        "crun".to_owned(),
    ] {
        bench.args(["--runtime", &runtime]);
    }
    measure(&mut bench, &dir.join("runtime.json"))
}

/// Runs `kelson bench`, whose progress is shown, and reads its report.
fn measure(bench: &mut Command, path: &Path) -> Result<Value> {
    let file = fs::File::create(path).context("cannot make the file of the report")?;
    let status = bench
        .stdin(Stdio::null())
        .stdout(file)
        .status()
        .context("cannot run kelson bench")?;
    if !status.success() {
        bail!("kelson bench failed ({status})");
    }
    let text = fs::read(path).context("cannot read the report")?;
    serde_json::from_slice(&text).context("the report is no JSON")
}

fn print(outcomes: &[Outcome]) {
    println!("\nbudgets:");
    for one in outcomes {
        let verdict = match one.met {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "not measured",
        };
        println!(
            "  {:<12} {:<40} {:>14}  wanted {}, found {}",
            verdict, one.work, one.value, one.wanted, one.found
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_smoke_run_are_not_published() {
        assert!(Options::parse(&["--quick"]).is_some());
        assert!(Options::parse(&["--write", "--program", "/x"]).is_some());
        assert_eq!(Options::parse(&["--quick", "--write"]), None);
        assert_eq!(Options::parse(&["--write", "--only", "pull"]), None);
        assert_eq!(Options::parse(&["--only"]), None);
        let only = |section| Options::parse(&["--only", section]).unwrap();
        assert!(only("runtime").runtime() && !only("runtime").cri());
        assert!(only("pull").cri() && !only("pull").runtime());
    }
}
