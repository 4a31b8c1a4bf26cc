//! The machine's disk: a small Debian with what the tests drive, built by mmdebstrap without booting
//! it, and kept until what it is made of changes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::setup;

/// What building it and running it takes on the host.
const TOOLS: &[(&str, &str)] = &[
    ("/usr/bin/mmdebstrap", "mmdebstrap"),
    ("/usr/bin/qemu-system-x86_64", "qemu-system-x86"),
    ("/usr/sbin/mke2fs", "e2fsprogs"),
    (
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "debian-archive-keyring",
    ),
    ("/usr/bin/setpriv", "util-linux"),
];

/// The machine itself; what tests drive comes from [`setup::packages_of_tests`].
const PACKAGES: &[&str] = &[
    "apparmor",
    "bash",
    "ca-certificates",
    "dbus",
    "iptables",
    "kmod",
    "linux-image-cloud-amd64",
    // critest loads its AppArmor profiles with it.
    "sudo",
    "systemd",
    "systemd-sysv",
    "udev",
];

/// Parts of packages that nobody reads there.
const LEFT_OUT: &[&str] = &[
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
    "/usr/share/info/*",
    // The kernel is started without an initrd.
    "/etc/kernel/postinst.d/initramfs-tools",
];

/// Starts the tests once the machine is up. Its output goes to the second serial port.
const UNIT: &str = "\
[Unit]
Description=What the host wants to be run
After=apparmor.service dbus.socket
[Service]
Type=oneshot
ExecStart=/usr/lib/kelson-tests
TasksMax=infinity
OOMPolicy=continue
LimitNOFILE=1048576
";

/// What that runs.
const START: &str = include_str!("start.sh");

/// A Debian.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Release {
    /// Debian 12: kernel 6.1, systemd 252.
    Bookworm,
    /// Debian 13: kernel 6.12, systemd 257.
    #[default]
    Trixie,
}

impl Release {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        [Self::Bookworm, Self::Trixie]
            .into_iter()
            .find(|release| release.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }
}

/// What the machine is booted from.
pub(crate) struct Image {
    pub(crate) kernel: PathBuf,
    pub(crate) disk: PathBuf,
}

/// The image, built if there is none or what it is made of has changed.
pub(crate) fn make(root: &Path, release: Release) -> Result<Image> {
    setup::need(TOOLS)?;
    let folder = root.join("target/machine").join(release.name());
    let image = Image {
        kernel: folder.join("vmlinuz"),
        disk: folder.join("root.img"),
    };
    let wanted = inputs(release);
    let known = folder.join("inputs");
    if fs::read_to_string(&known).is_ok_and(|inputs| inputs == wanted) {
        return Ok(image);
    }
    println!(
        "building the machine's image from Debian {} packages",
        release.name()
    );
    let begin = Instant::now();
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let _ = fs::remove_file(&known);
    // The tree has to be as its packages made it, so it is made where the machine at hand keeps
    // owners and devices: not in a directory that may be shared.
    let tree = tempfile::tempdir().context("cannot make a temporary directory")?;
    bootstrap(release, tree.path())?;
    configure(tree.path())?;
    forget_profiles(tree.path())?;
    kernel(tree.path(), &image.kernel)?;
    disk(tree.path(), &image.disk, "3G")?;
    fs::write(&known, wanted).with_context(|| format!("cannot write {}", known.display()))?;
    println!("built it in {} s", begin.elapsed().as_secs());
    Ok(image)
}

fn packages() -> String {
    let mut names: Vec<&str> = PACKAGES.to_vec();
    names.extend(setup::packages_of_tests());
    names.sort_unstable();
    names.dedup();
    names.join(",")
}

fn inputs(release: Release) -> String {
    // What is in this file makes the image.
    let how = include_str!("image.rs");
    format!("{}\n{}\n{how}\n{START}", release.name(), packages())
}

fn bootstrap(release: Release, tree: &Path) -> Result<()> {
    // It cleans up when it is told to end, as it is when this program dies.
    let mut command = Command::new("/usr/bin/setpriv");
    command
        .args(["--pdeathsig=TERM", "--", "/usr/bin/mmdebstrap"])
        .args([
            "--quiet",
            "--mode=root",
            "--variant=minbase",
            "--format=directory",
        ])
        .arg(format!("--include={}", packages()))
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .args(
            LEFT_OUT
                .iter()
                .map(|path| format!("--dpkgopt=path-exclude={path}")),
        )
        .arg(release.name())
        .arg(tree);
    run(&mut command)
}

/// Sets the machine up for its one purpose.
fn configure(tree: &Path) -> Result<()> {
    let write = |name: &str, text: &str| {
        let path = tree.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    write("usr/lib/kelson-tests", START)?;
    write("etc/systemd/system/kelson-tests.service", UNIT)?;
    write("etc/hostname", "machine\n")?;
    write("etc/hosts", "127.0.0.1 localhost\n192.0.2.10 machine\n")?;
    write("etc/resolv.conf", "nameserver 192.0.2.1\n")?;
    // Neither a first boot nor one after an update, which would be got ready for.
    write("etc/machine-id", "0123456789abcdef0123456789abcdef\n")?;
    write("etc/.updated", "")?;
    write("var/.updated", "")?;
    let script = tree.join("usr/lib/kelson-tests");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(script, mode).context("cannot make the start script executable")?;
    let units = tree.join("etc/systemd/system");
    fs::create_dir_all(units.join("multi-user.target.wants"))
        .context("cannot make the unit's directory")?;
    let link = |target: &str, name: &str| {
        let name = units.join(name);
        let _ = fs::remove_file(&name);
        symlink(target, &name).with_context(|| format!("cannot make {}", name.display()))
    };
    link(
        "../kelson-tests.service",
        "multi-user.target.wants/kelson-tests.service",
    )?;
    link("/lib/systemd/system/multi-user.target", "default.target")?;
    // Tests write to /tmp what must be on a file system that is like a node's; the rest only takes
    // time.
    for unused in [
        "tmp.mount",
        "getty.target",
        "serial-getty@ttyS0.service",
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
        "dpkg-db-backup.timer",
        "e2scrub_all.timer",
        "fstrim.timer",
        "docker-registry.service",
        "systemd-logind.service",
        "systemd-timesyncd.service",
        "systemd-networkd.service",
        "systemd-pcrphase.service",
        "systemd-user-sessions.service",
    ] {
        link("/dev/null", unused)?;
    }
    Ok(())
}

/// Profiles of programs that are not there: loading them takes a minute under emulation.
fn forget_profiles(tree: &Path) -> Result<()> {
    let folder = tree.join("etc/apparmor.d");
    let entries = fs::read_dir(&folder).context("the tree has no AppArmor")?;
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            fs::remove_file(entry.path())
                .with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Takes the kernel out.
fn kernel(tree: &Path, to: &Path) -> Result<()> {
    let entries = fs::read_dir(tree.join("boot")).context("the tree has no /boot")?;
    let found = entries
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with("vmlinuz-"))
        .context("the kernel's package has no vmlinuz")?;
    fs::copy(found.path(), to).with_context(|| format!("cannot write {}", to.display()))?;
    for entry in fs::read_dir(tree.join("boot"))
        .into_iter()
        .flatten()
        .flatten()
    {
        // Only takes space from here on.
        let _ = fs::remove_file(entry.path());
    }
    Ok(())
}

/// Makes a sparse file with a file system that has the content of `tree`.
pub(crate) fn disk(tree: &Path, to: &Path, size: &str) -> Result<()> {
    let _ = fs::remove_file(to);
    let mut command = Command::new("/usr/sbin/mke2fs");
    command
        .args(["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d"])
        .arg(tree)
        .arg(to)
        .arg(size);
    run(&mut command)
}

/// Runs a program that must succeed.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().display().to_string();
    let output = command
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{program} failed: {}", text.trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_packages_is_a_change_of_the_image() {
        let inputs = inputs(Release::Trixie);
        assert!(inputs.contains("linux-image-cloud-amd64") && inputs.contains("busybox-static"));
        assert_ne!(inputs, super::inputs(Release::Bookworm));
        assert_eq!(Release::parse("bookworm"), Some(Release::Bookworm));
        assert_eq!(Release::parse("sarge"), None);
    }
}
