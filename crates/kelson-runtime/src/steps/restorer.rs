//! Becoming CRIU: the root is mounted, the streams are where CRIU is told, and it is executed.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use kelson_sys::process::{self, ns};
use rustix::fs::{CWD, FileType, Mode, OFlags};

use super::{Container, Failure, OrFail};
use crate::progress::Message;
use crate::restore::{PID_NAMESPACE, Restore};
use crate::{Stdio, plan::MountKind};

const DIR: Mode = Mode::from_raw_mode(0o755);
const FILE: Mode = Mode::from_raw_mode(0o644);
/// The least number of a descriptor that is handed over.
const FIRST: i32 = 10;

/// Makes what is mounted on where it is missing: by the images it was there.
pub(super) fn make_targets(container: &mut Container<'_>) -> Result<(), Failure> {
    let root = container.root()?;
    for mount in &container.plan.mounts {
        let directory = match &mount.kind {
            MountKind::Bind { source, .. } => {
                let stat = rustix::fs::statat(CWD, source, rustix::fs::AtFlags::empty())
                    .or_fail(|| format!("cannot look at {}", source.display()))?;
                FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            }
            // They are made beneath /proc, /dev or /sys, which are not mounted yet.
            _ => mount.target.components().count() == 2,
        };
        let beneath = ["/proc", "/sys", "/dev"]
            .iter()
            .any(|top| mount.target.starts_with(top) && mount.target != std::path::Path::new(top));
        match (beneath, directory) {
            (true, _) => {}
            (false, true) => drop(root.mkdir_all(&mount.target, DIR)?),
            (false, false) => drop(root.create_file(&mount.target, FILE)?),
        }
    }
    Ok(())
}

/// Executes CRIU with what is handed over.
pub(super) fn execute(
    container: &mut Container<'_>,
    mut words: Vec<CString>,
    restore: &Restore<'_>,
) -> Result<(), Failure> {
    let mut kept: Vec<OwnedFd> = Vec::new();
    let mut hand = |fd: &OwnedFd, key: &str| -> Result<(), Failure> {
        let copy = rustix::io::fcntl_dupfd_cloexec(fd, FIRST)
            .or_fail(|| "cannot hand a descriptor over".into())?;
        rustix::io::fcntl_setfd(&copy, rustix::io::FdFlags::empty())
            .or_fail(|| "cannot hand a descriptor over".into())?;
        let word = format!("fd[{}]:{key}", copy.as_raw_fd());
        let word = CString::new(word).map_err(|_| Failure::new("a stream has a NUL byte"))?;
        words.extend([c"--inherit-fd".to_owned(), word]);
        kept.push(copy);
        Ok(())
    };
    let inherit = std::mem::replace(&mut container.process.stdio, Stdio::Inherit);
    if let Stdio::Files {
        stdin,
        stdout,
        stderr,
    } = &inherit
    {
        for (fd, key) in [stdin, stdout, stderr].into_iter().zip(restore.streams) {
            if let Some(key) = key {
                hand(fd, key)?;
            }
        }
    }
    let joined = container.plan.namespaces.path_of(ns::PID);
    if let Some(path) = joined {
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .or_fail(|| format!("cannot open the namespace {}", path.display()))?;
        hand(&fd, PID_NAMESPACE)?;
    }
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let null = rustix::fs::open(c"/dev/null", flags, Mode::empty())
        .or_fail(|| "cannot open /dev/null".into())?;
    rustix::stdio::dup2_stdin(&null)
        .and_then(|()| rustix::stdio::dup2_stdout(&null))
        .and_then(|()| rustix::stdio::dup2_stderr(null.as_fd()))
        .or_fail(|| "cannot set the standard streams of CRIU".into())?;
    container.process.channel.tell(&Message::Executing);
    let args: Vec<&CStr> = words.iter().map(CString::as_c_str).collect();
    let env: Vec<&CStr> = container
        .process
        .extra_env
        .iter()
        .map(AsRef::as_ref)
        .collect();
    let program = args.first().copied().unwrap_or_default();
    let errno = process::execve(program, &args, &env);
    Err(Failure::errno(
        format!("cannot execute {}", program.to_string_lossy()),
        errno,
    ))
}
