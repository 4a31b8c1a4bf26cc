//! Tools that tests drive: Debian packages, and Go programs built from their modules.
//!
//! What cannot be had (no root, no apt-get, no Go) is reported and left out: the tests that need
//! it are counted as skipped with the reason.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A program that tests use, and the Debian package it comes from.
const PACKAGES: &[(&str, &str)] = &[
    ("/bin/busybox", "busybox-static"),
    ("/usr/sbin/criu", "criu"),
    ("/usr/bin/docker-registry", "docker-registry"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/usr/bin/curl", "curl"),
    ("/usr/bin/openssl", "openssl"),
    ("/usr/sbin/nft", "nftables"),
    ("/sbin/ip", "iproute2"),
    ("/usr/bin/ipcs", "util-linux"),
    ("/usr/bin/pgrep", "procps"),
    ("/usr/bin/skopeo", "skopeo"),
    ("/usr/bin/umoci", "umoci"),
];

/// The names of the packages that tests use.
pub(crate) fn packages_of_tests() -> impl Iterator<Item = &'static str> {
    PACKAGES.iter().map(|(_, package)| *package)
}

/// Installs those of `tools` that are missing; an error if one is still missing then.
pub(crate) fn need(tools: &[(&str, &str)]) -> Result<()> {
    match install_missing(tools).first() {
        Some(problem) => bail!("not installed: {problem}"),
        None => Ok(()),
    }
}

/// Installs the packages that are missing; returns what is still missing and why.
pub(crate) fn packages() -> Vec<String> {
    install_missing(PACKAGES)
}

fn install_missing(tools: &[(&str, &str)]) -> Vec<String> {
    let missing: Vec<_> = tools
        .iter()
        .filter(|(path, _)| !Path::new(path).exists())
        .collect();
    if missing.is_empty() {
        return Vec::new();
    }
    let names: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    println!("installing {}", names.join(", "));
    let reason = match install(&names) {
        Ok(()) => return Vec::new(),
        Err(error) => format!("{error:#}"),
    };
    names
        .iter()
        .map(|name| format!("{name}: {reason}"))
        .collect()
}

fn install(names: &[&str]) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("installing packages needs root");
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("there is no apt-get here");
    }
    let apt = |arguments: &[&str]| -> Result<()> {
        let output = Command::new("/usr/bin/apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(arguments)
            .output()
            .context("cannot run apt-get")?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            bail!("apt-get {} failed: {}", arguments.join(" "), text.trim());
        }
        Ok(())
    };
    apt(&["update", "-qq"])?;
    let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
    arguments.extend(names);
    apt(&arguments)
}

/// Builds crictl from its Go module into `target/tools`; the error says why it could not be.
pub(crate) fn crictl(root: &Path) -> Result<PathBuf> {
    let package = "sigs.k8s.io/cri-tools/cmd/crictl";
    go_program(root, "tests/tools", package, &["build", "-trimpath"])
}

/// As [`crictl`], the validation suite critest, which is a test program.
pub(crate) fn critest(root: &Path) -> Result<PathBuf> {
    let package = "sigs.k8s.io/cri-tools/cmd/critest";
    go_program(root, "tests/tools", package, &["test", "-c", "-trimpath"])
}

/// As [`crictl`], the kubelet, which has a Go module of its own here.
pub(crate) fn kubelet(root: &Path) -> Result<PathBuf> {
    let how = ["build", "-trimpath", "-ldflags=-s -w"];
    go_program(root, "tests/kubelet", "k8s.io/kubernetes/cmd/kubelet", &how)
}

/// Builds the peers of the benchmark, containerd with its shim and runc, as their projects do; the directory
/// that they are in.
pub(crate) fn peers(root: &Path) -> Result<PathBuf> {
    let module = root.join("tests/bench");
    let tools = root.join("target/tools");
    let containerd = "github.com/containerd/containerd/v2";
    for (name, package, cgo, tags) in [
        (
            "containerd",
            format!("{containerd}/cmd/containerd"),
            "1",
            "",
        ),
        (
            "containerd-shim-runc-v2",
            format!("{containerd}/cmd/containerd-shim-runc-v2"),
            "0",
            "no_grpc",
        ),
        (
            "runc",
            "github.com/opencontainers/runc".to_owned(),
            "1",
            "seccomp",
        ),
    ] {
        let wanted = tools.join(name);
        if is_newer(&wanted, &module.join("go.sum")) {
            continue;
        }
        println!("building {name} from its Go module");
        let output = Command::new("go")
            .current_dir(&module)
            .env("CGO_ENABLED", cgo)
            .args(["build", "-trimpath", "-ldflags=-s -w", "-tags", tags, "-o"])
            .arg(&wanted)
            .arg(package)
            .output()
            .context("cannot run go; install Go 1.21 or newer")?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            bail!("building {name} failed: {}", text.trim());
        }
    }
    Ok(tools)
}

/// Builds `package`, whose last part is the program's name, as the module in `folder` pins it.
fn go_program(root: &Path, folder: &str, package: &str, how: &[&str]) -> Result<PathBuf> {
    let name = package.rsplit('/').next().unwrap_or(package);
    let module = root.join(folder);
    let wanted = root.join("target/tools").join(name);
    if is_newer(&wanted, &module.join("go.sum")) {
        return Ok(wanted);
    }
    println!("building {name} from its Go module");
    let output = Command::new("go")
        .current_dir(&module)
        .env("CGO_ENABLED", "0")
        .args(how)
        .arg("-o")
        .arg(&wanted)
        .arg(package)
        .output()
        .context("cannot run go; install Go 1.21 or newer")?;
    if !output.status.success() {
        bail!(
            "go {} failed: {}",
            how[0],
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(wanted)
}

/// Debian's ordinary busybox, taken out of its package: it cannot be installed beside the static
/// one, whose shell runs its own programs without executing them.
pub(crate) fn busybox(root: &Path) -> Result<PathBuf> {
    let folder = root.join("target/tools/busybox");
    let wanted = folder.join("bin/busybox");
    if wanted.exists() {
        return Ok(wanted);
    }
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    let script = "apt-get download -qq busybox && dpkg-deb -x busybox_*.deb . && rm busybox_*.deb";
    let output = Command::new("sh")
        .current_dir(&folder)
        .args(["-c", script])
        .output()
        .context("cannot run sh")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("cannot get Debian's busybox package: {}", text.trim());
    }
    Ok(wanted)
}

/// The daemon's program: the one named, or the one built now.
pub(crate) fn program(root: &Path, named: Option<&Path>) -> Result<PathBuf> {
    match named {
        Some(program) => program
            .canonicalize()
            .with_context(|| format!("no {}", program.display())),
        None => kelson(root),
    }
}

/// Builds the program, as `cargo test` does.
pub(crate) fn kelson(root: &Path) -> Result<PathBuf> {
    build_kelson(root, &[])
}

/// Builds the program as it is released.
pub(crate) fn released_kelson(root: &Path) -> Result<PathBuf> {
    build_kelson(root, &["--release"])
}

fn build_kelson(root: &Path, how: &[&str]) -> Result<PathBuf> {
    let output = Command::new(env!("CARGO"))
        .current_dir(root)
        .args(["build", "--quiet", "--bin", "kelson"])
        .arg("--message-format=json-render-diagnostics")
        .args(how)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the program does not build");
    }
    // Cargo says where it put it.
    let messages = String::from_utf8_lossy(&output.stdout);
    let mut programs = messages.lines().filter_map(|line| {
        let message = serde_json::from_str::<serde_json::Value>(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    programs
        .next_back()
        .context("cargo does not say where the program is")
}

fn is_newer(built: &Path, source: &Path) -> bool {
    let modified = |path: &Path| path.metadata().and_then(|data| data.modified());
    matches!((modified(built), modified(source)), (Ok(built), Ok(source)) if built >= source)
}
