//! A person at a terminal: a program under test with a pseudo terminal of its own.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::pty::OpenptFlags;
use rustix::termios::{Termios, Winsize};
use tokio::process::{Child, Command};

use crate::node::{Node, PATIENCE, program};

/// A program at a terminal.
pub(crate) struct Screen {
    master: std::fs::File,
    /// Kept, so that the terminal outlives the program and can be looked at.
    slave: OwnedFd,
    child: Child,
    pieces: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Screen {
    /// Starts a client command of a node at a terminal of 30 rows and 100 columns.
    pub(crate) fn start(node: &Node, arguments: &[&str]) -> anyhow::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags)?;
        rustix::pty::unlockpt(&master)?;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        let master = std::fs::File::from(master);
        set_size(&master, 30, 100)?;
        let stream = || slave.try_clone().map(Stdio::from);
        // The terminal becomes the controlling one, so that its signals come.
        let child = Command::new("setsid")
            .arg("--ctty")
            .arg(program())
            .args(["--runtime-endpoint", &node.endpoint()])
            .args(arguments)
            .stdin(stream()?)
            .stdout(stream()?)
            .stderr(stream()?)
            .kill_on_drop(true)
            .spawn()
            .context("cannot run setsid")?;
        let (sender, pieces) = mpsc::channel();
        let mut reader = master.try_clone()?;
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            master,
            slave,
            child,
            pieces,
            seen: String::new(),
        })
    }

    /// Types.
    pub(crate) fn type_in(&mut self, text: &str) -> anyhow::Result<()> {
        Ok(self.master.write_all(text.as_bytes())?)
    }

    /// Waits until the text has come; returns what came up to its end.
    pub(crate) fn expect(&mut self, text: &str) -> anyhow::Result<String> {
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return Ok(std::mem::replace(&mut self.seen, rest));
            }
            match self.pieces.recv_timeout(PATIENCE) {
                Ok(piece) => self.seen.push_str(&String::from_utf8_lossy(&piece)),
                Err(_) => bail!("{text:?} does not come, only {:?}", self.seen),
            }
        }
    }

    /// Changes the size of the terminal.
    pub(crate) fn resize(&self, rows: u16, columns: u16) -> anyhow::Result<()> {
        set_size(&self.master, rows, columns)
    }

    /// The terminal's modes.
    pub(crate) fn modes(&self) -> anyhow::Result<Termios> {
        Ok(rustix::termios::tcgetattr(&self.slave)?)
    }

    /// Sends a signal to the program.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) -> anyhow::Result<()> {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok());
        let pid = pid.and_then(rustix::process::Pid::from_raw);
        Ok(rustix::process::kill_process(
            pid.context("it has ended")?,
            signal,
        )?)
    }

    /// Waits for the end of the program.
    pub(crate) async fn end(&mut self) -> anyhow::Result<ExitStatus> {
        let end = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        end.with_context(|| format!("it does not end, after {:?}", self.seen))?
            .map_err(Into::into)
    }
}

fn set_size(master: &std::fs::File, rows: u16, columns: u16) -> anyhow::Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(master, size)?)
}

/// Whether two terminals work alike, as far as people notice.
pub(crate) fn same_modes(one: &Termios, other: &Termios) -> bool {
    (one.local_modes, one.input_modes, one.output_modes)
        == (other.local_modes, other.input_modes, other.output_modes)
}

/// A moment for what must not happen.
pub(crate) async fn moment() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}
