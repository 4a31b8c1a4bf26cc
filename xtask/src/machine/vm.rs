//! One virtual machine: QEMU, what it says, and its end.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::io::{FdFlags, fcntl_setfd};
use tempfile::TempDir;

use super::image::Image;
use super::payload::Payload;

/// Runs a program that is killed when this one dies, however that happens.
const GUARD: [&str; 2] = ["/usr/bin/setpriv", "--pdeathsig=KILL"];
/// How long a machine under KVM may take to get to the end of its kernel's boot.
const PROBE: Duration = Duration::from_secs(20);
/// By how much software emulation is slower than the processor, for the time limits of tests.
const SLOWNESS: u32 = 10;

/// Of the kernel's command line: nobody attacks this machine, and waiting for each other is what its
/// processors do most.
const QUICK: &str = "mitigations=off init_on_alloc=0 audit=0 nowatchdog rcupdate.rcu_expedited=1";

/// A running machine; dropping it kills it.
pub(crate) struct Vm {
    qemu: Child,
    begin: Instant,
    dir: TempDir,
}

impl Vm {
    /// Starts it; the images stay as they are.
    pub(crate) fn boot(image: &Image, payload: &Payload, shell: bool) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("kelson-machine-")
            .tempdir()
            .context("cannot make a directory for the machine")?;
        let kvm = kvm_works(&image.kernel)?;
        let slow = if kvm { 1 } else { SLOWNESS };
        println!(
            "booting it ({})",
            if kvm { "KVM" } else { "software emulation" }
        );
        let mut command = qemu(kvm, &image.kernel);
        let mut line = format!(
            "console=ttyS0 root=/dev/nvme0n1 rw rootfstype=ext4 quiet panic=-1 {QUICK} \
             kelson.root={} kelson.slow={slow}",
            payload.root.display()
        );
        if shell {
            line.push_str(" kelson.shell=1");
        }
        command.args(["-m", "3G", "-append", &line]);
        fcntl_setfd(&payload.disk, FdFlags::empty()).context("cannot pass the disk on")?;
        let tests = format!("/proc/self/fd/{}", payload.disk.as_raw_fd());
        // The kernel knows NVMe without help; which of two such disks is the first is chance.
        let disks = [
            ("root", image.disk.as_path(), "nvme,serial=root"),
            ("tests", Path::new(&tests), "virtio-blk-pci"),
        ];
        for (id, disk, device) in disks {
            // Two cores are busy enough without waiting for the host's disk.
            let options = "format=raw,if=none,snapshot=on,cache=unsafe";
            command
                .arg("-drive")
                .arg(format!("id={id},file={},{options}", disk.display()));
            command.arg("-device").arg(format!("{device},drive={id}"));
        }
        let errors = File::create(dir.path().join("qemu.log")).context("cannot make a log")?;
        if shell {
            command.args(["-serial", "stdio"]);
        } else {
            let console = dir.path().join("console");
            command
                .arg("-serial")
                .arg(format!("file:{}", console.display()));
            command.args([
                "-chardev",
                "stdio,id=out,signal=off",
                "-serial",
                "chardev:out",
            ]);
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(errors);
        }
        let qemu = command.spawn().context("cannot run setpriv")?;
        Ok(Self {
            qemu,
            begin: Instant::now(),
            dir,
        })
    }

    /// Prints what the tests say until the machine ends; the exit code of the tests, `None` if they
    /// did not come to one.
    pub(crate) fn watch(&mut self, limit: Option<Duration>) -> Result<Option<i32>> {
        let output = self
            .qemu
            .stdout
            .take()
            .context("the machine's output is not piped")?;
        let lines = lines(output);
        let deadline = limit.map(|limit| self.begin + limit);
        let mut code = None;
        let mut first = true;
        loop {
            let left = deadline.map_or(Duration::MAX, |deadline| {
                deadline.saturating_duration_since(Instant::now())
            });
            match lines.recv_timeout(left.min(Duration::from_secs(3600))) {
                Ok(line) => {
                    if std::mem::take(&mut first) {
                        println!("booted in {} s", self.begin.elapsed().as_secs());
                    }
                    match line.strip_prefix("machine: ended with ") {
                        Some(number) => code = number.trim().parse().ok(),
                        None => println!("{line}"),
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if left > Duration::ZERO => {}
                Err(RecvTimeoutError::Timeout) => bail!(
                    "the machine was still at it after {} minutes and was killed; its console said:\n{}",
                    limit.unwrap_or_default().as_secs() / 60,
                    self.console()
                ),
            }
        }
        self.wait()?;
        println!("the machine ran for {} s", self.begin.elapsed().as_secs());
        Ok(code)
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> Result<()> {
        let status = self.qemu.wait().context("cannot wait for QEMU")?;
        if !status.success() {
            let log = fs::read_to_string(self.dir.path().join("qemu.log")).unwrap_or_default();
            bail!("QEMU ended with {status}: {}", log.trim());
        }
        Ok(())
    }

    /// The end of what kernel and systemd said.
    pub(crate) fn console(&self) -> String {
        let text = fs::read(self.dir.path().join("console")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It has ended already unless something went wrong.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// QEMU with what every machine here has.
fn qemu(kvm: bool, kernel: &Path) -> Command {
    let mut command = Command::new(GUARD[0]);
    command.args([GUARD[1], "--", "/usr/bin/qemu-system-x86_64"]);
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    command.args(["-machine", "q35"]);
    if kvm {
        command.args(["-accel", "kvm", "-cpu", "host", "-smp", "2"]);
    } else {
        // One processor: the kernel changes its own code while it runs, which emulated processors do
        // not always see in time. Page tables of five levels only take longer to walk.
        command.args(["-accel", "tcg", "-cpu", "max,la57=off", "-smp", "1"]);
    }
    command.arg("-kernel").arg(kernel);
    command
}

/// Whether KVM runs the kernel of a stock guest: some hosts have a device that does not. Seen by a
/// machine without a disk, whose kernel gives up at once.
fn kvm_works(kernel: &Path) -> Result<bool> {
    if !Path::new("/dev/kvm").exists() {
        return Ok(false);
    }
    let mut command = qemu(true, kernel);
    command.args([
        "-m",
        "512M",
        "-append",
        "console=ttyS0 panic=-1",
        "-serial",
        "stdio",
    ]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut probe = command.spawn().context("cannot run setpriv")?;
    let output = probe
        .stdout
        .take()
        .context("the probe's output is not piped")?;
    let lines = lines(output);
    let deadline = Instant::now() + PROBE;
    let mut works = false;
    while let Ok(line) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        // It came to looking for a root file system.
        works |= line.contains("Kernel panic - not syncing: VFS");
    }
    let _ = probe.kill();
    probe.wait().context("cannot wait for QEMU")?;
    Ok(works)
}

/// The lines of a pipe, read by a thread that ends with it.
fn lines(pipe: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        while reader
            .read_until(b'\n', &mut line)
            .is_ok_and(|read| read > 0)
        {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if sender.send(text).is_err() {
                return;
            }
        }
    });
    receiver
}
