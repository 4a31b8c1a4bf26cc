//! CRIU for the tests: the machine's own where it works, else that of a later Debian release, unpacked
//! beneath `target/tools` with the libraries that it was built for.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The release whose CRIU knows current kernels (4.1 is needed from Linux 6.13 on).
const RELEASE: &str = "trixie";
/// Debian's keys.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The machine's own CRIU if it works on this kernel.
pub(crate) fn installed() -> Option<PathBuf> {
    Some(PathBuf::from("/usr/sbin/criu")).filter(|criu| works(criu))
}

/// A CRIU that works on this kernel; the error says why there is none.
pub(crate) fn find(root: &Path) -> Result<PathBuf> {
    if let Some(criu) = installed() {
        return Ok(criu);
    }
    let folder = root.join("target/tools/criu");
    let wanted = folder.join("criu");
    if !works(&wanted) {
        println!("unpacking CRIU from Debian {RELEASE}");
        unpack(&folder, &wanted)?;
    }
    if works(&wanted) {
        return Ok(wanted);
    }
    let output = Command::new(&wanted).arg("check").output();
    let output = output.context("cannot run CRIU")?;
    let text = String::from_utf8_lossy(&output.stderr);
    bail!("CRIU does not work on this kernel: {}", text.trim());
}

fn works(criu: &Path) -> bool {
    let checked = Command::new(criu).arg("check").output();
    checked.is_ok_and(|output| output.status.success())
}

/// Downloads CRIU and all that it needs with an apt of its own, which knows one release and no installed
/// package, and unpacks them beside a script that runs it with its own libraries.
fn unpack(folder: &Path, wanted: &Path) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("CRIU needs root");
    }
    let (lists, cache, tree) = (
        folder.join("lists"),
        folder.join("cache"),
        folder.join("root"),
    );
    for dir in [
        &lists.join("partial"),
        &cache.join("archives/partial"),
        &tree,
    ] {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let (sources, status) = (folder.join("sources.list"), folder.join("status"));
    let archive = archive()?;
    fs::write(
        &sources,
        format!("deb [signed-by={KEYS}] {archive} {RELEASE} main\n"),
    )?;
    fs::write(&status, "")?;
    let options = [
        format!("Dir::Etc::sourcelist={}", sources.display()),
        "Dir::Etc::sourceparts=-".to_owned(),
        format!("Dir::State::lists={}", lists.display()),
        format!("Dir::State::status={}", status.display()),
        format!("Dir::Cache={}", cache.display()),
        "APT::Install-Recommends=false".to_owned(),
        "APT::Sandbox::User=root".to_owned(),
    ];
    let apt = |words: &[&str]| {
        let mut command = Command::new("/usr/bin/apt-get");
        for option in &options {
            command.args(["-o", option]);
        }
        run(command.args(words))
    };
    apt(&["update", "-qq"])?;
    apt(&["install", "-y", "-qq", "--download-only", "criu"])?;
    for entry in fs::read_dir(cache.join("archives"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "deb") {
            run(Command::new("dpkg-deb").arg("-x").arg(path).arg(&tree))?;
        }
    }
    let machine = std::env::consts::ARCH;
    let libraries = tree.join(format!("usr/lib/{machine}-linux-gnu"));
    let mut loaders = fs::read_dir(&libraries)?.filter_map(|entry| Some(entry.ok()?.path()));
    let loader = loaders.find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("ld-linux-")
    });
    let loader = loader.context("the packages have no dynamic loader")?;
    let script = format!(
        "#!/bin/sh\nexec {} --library-path {} {} \"$@\"\n",
        loader.display(),
        libraries.display(),
        tree.join("usr/sbin/criu").display()
    );
    fs::write(wanted, script)?;
    fs::set_permissions(wanted, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Where this machine's apt finds Debian.
fn archive() -> Result<String> {
    let output = Command::new("/usr/bin/apt-get")
        .args(["indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)"])
        .output()
        .context("cannot run apt-get")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text
        .lines()
        .find_map(|line| line.strip_prefix("Debian Debian "));
    found
        .map(str::to_owned)
        .context("apt-get knows no archive of Debian")
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_owned();
    let output = command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed: {}", program.display(), text.trim());
    }
    Ok(())
}
