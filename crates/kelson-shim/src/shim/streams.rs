//! Standard streams of containers and exec'd processes, and the buffer they are read into.

use std::os::fd::OwnedFd;

use kelson_runtime::Stdio;
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result};
use rustix::pipe::PipeFlags;

use super::poll::{Poll, Token};
use crate::log::Stream;
use rustix::event::epoll::EventFlags;

/// How much a pipe of a container may hold: the more, the fewer times the shim has to be woken.
/// More than 1 MiB needs a privilege.
pub(super) const PIPE_SIZE: usize = 1 << 20;

/// How much is read at once.
const INPUT_SIZE: usize = 256 << 10;

/// The buffer for reading, shared by everything in a shim.
#[derive(Debug)]
pub(super) struct Input {
    buffer: Vec<u8>,
}

impl Input {
    pub(super) const fn new() -> Self {
        Self { buffer: Vec::new() }
    }

    /// The buffer, with stale contents.
    pub(super) fn buffer(&mut self) -> &mut [u8] {
        if self.buffer.is_empty() {
            // Zero pages of the kernel: only what is read into takes memory.
            self.buffer = vec![0; INPUT_SIZE];
        }
        &mut self.buffer
    }

    /// Gives the buffer back to the system until it is needed again.
    pub(super) fn release(&mut self) {
        self.buffer = Vec::new();
    }
}

/// What a read has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// That many bytes.
    Bytes(usize),
    /// Nothing for now.
    Nothing,
    /// The end.
    End,
}

/// Reads once. A terminal whose other side is closed everywhere is at its end.
pub(super) fn read(fd: &OwnedFd, buffer: &mut [u8]) -> Read {
    match rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut *buffer)) {
        Ok(0) => Read::End,
        Ok(count) => Read::Bytes(count),
        Err(Errno::AGAIN) => Read::Nothing,
        Err(_) => Read::End,
    }
}

/// The shim's ends of what a process writes to; a terminal is its standard output.
#[derive(Debug, Default)]
pub(super) struct Outputs {
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Outputs {
    pub(super) fn get(&self, stream: Stream) -> Option<&OwnedFd> {
        match stream {
            Stream::Stdout => self.stdout.as_ref(),
            Stream::Stderr => self.stderr.as_ref(),
        }
    }

    /// Closes an output, which also ends the waiting for it.
    pub(super) fn close(&mut self, stream: Stream) {
        match stream {
            Stream::Stdout => self.stdout = None,
            Stream::Stderr => self.stderr = None,
        }
    }

    pub(super) fn set_terminal(&mut self, master: OwnedFd) {
        self.stdout = Some(master);
    }

    pub(super) fn all_ended(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none()
    }

    /// Waits for what is open.
    pub(super) fn watch(&self, poll: &Poll, token: impl Fn(Stream) -> Token) -> Result<()> {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Some(fd) = self.get(stream) {
                poll.add(fd, token(stream), EventFlags::IN)?;
            }
        }
        Ok(())
    }

    /// Stops waiting.
    pub(super) fn unwatch(&self, poll: &Poll) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Some(fd) = self.get(stream) {
                poll.remove(fd);
            }
        }
    }
}

/// The streams of a new process: what it gets, and what the shim keeps.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) theirs: Stdio,
    pub(super) stdin: Option<OwnedFd>,
    pub(super) outputs: Outputs,
}

impl Streams {
    /// Makes pipes, or leaves everything to a terminal of the process's own.
    pub(super) fn new(terminal: bool, stdin: bool) -> Result<Self> {
        if terminal {
            return Ok(Self {
                theirs: Stdio::Terminal,
                stdin: None,
                outputs: Outputs::default(),
            });
        }
        let (their_stdin, stdin) = if stdin {
            let (theirs, ours) = pipe()?;
            rustix::io::ioctl_fionbio(&ours, true)?;
            (theirs, Some(ours))
        } else {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            (rustix::fs::open(c"/dev/null", flags, Mode::empty())?, None)
        };
        let (stdout, their_stdout) = output()?;
        let (stderr, their_stderr) = output()?;
        Ok(Self {
            theirs: Stdio::Files {
                stdin: their_stdin,
                stdout: their_stdout,
                stderr: their_stderr,
            },
            stdin,
            outputs: Outputs {
                stdout: Some(stdout),
                stderr: Some(stderr),
            },
        })
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
}

/// A pipe of which the shim reads.
fn output() -> Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = pipe()?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    // Beyond the limits of the machine, the usual size has to do.
    let _ = rustix::pipe::fcntl_setpipe_size(&ours, PIPE_SIZE);
    Ok((ours, theirs))
}
