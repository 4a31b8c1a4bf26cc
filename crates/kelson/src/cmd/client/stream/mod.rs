//! What exec, attach, run and cp share: a process behind a streaming connection, and this program's
//! terminal, input and signals before it.

mod keys;
mod terminal;

use std::io::Write;

use anyhow::{Context, Result, bail};
use kelson_client::Client;
use kelson_cri::v1::{AttachRequest, ExecRequest};
use kelson_streaming::client::{Options, Process, Trust};
use kelson_streaming::{Outcome, Reader, Resizer, Size, Streams, Writer};
use tokio::io::AsyncWriteExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::ui::Io;
pub(super) use keys::Keys;

/// How much of the input is read at once.
const INPUT: usize = 16 << 10;

/// The flags of commands with a terminal.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Flags {
    /// Pass on standard input
    #[arg(short = 'i', long = "stdin")]
    pub(super) stdin: bool,
    /// Use a terminal
    #[arg(short = 't', long)]
    pub(super) tty: bool,
    /// Keys that leave the terminal and let the process run on; empty: none
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q", value_parser = Keys::parse)]
    pub(super) detach_keys: Keys,
}

impl Flags {
    /// The streams that the CRI is asked for.
    ///
    /// # Errors
    /// When a terminal is asked for and there is none.
    pub(super) fn streams(&self) -> Result<Streams> {
        if self.stdin && self.tty && !terminal::is_there() {
            bail!("-t needs a terminal, and standard input is none: leave out -t");
        }
        Ok(Streams {
            stdin: self.stdin,
            stdout: true,
            stderr: !self.tty,
            tty: self.tty,
        })
    }
}

/// How a session ended for this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The process has ended with this code.
    Exited(i32),
    /// The user has left it.
    Detached,
    /// This program was asked to end by this signal.
    Signal(i32),
}

impl End {
    /// The exit code of this program.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Exited(code) => exit_code(code),
            Self::Detached => 0,
            Self::Signal(signal) => exit_code(128 + signal),
        }
    }
}

/// The exit code of this program for that of a process; what does not fit into a byte is 255.
pub(super) fn exit_code(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// Whom to believe: the addresses come from the runtime's own socket, and it serves them on the node.
pub(super) fn options() -> Options {
    Options {
        trust: Trust::Anybody,
        ..Options::default()
    }
}

/// Begins a command in a container.
pub(super) async fn exec(
    client: &Client,
    container: &str,
    cmd: &[String],
    streams: Streams,
) -> Result<Process> {
    let ask = || {
        let request = ExecRequest {
            container_id: container.to_owned(),
            cmd: cmd.to_vec(),
            tty: streams.tty,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
        };
        async move { Ok(client.exec(request).await?.url) }
    };
    Ok(Process::connect(ask, streams, &options()).await?)
}

/// Attaches to a container.
pub(super) async fn attach(client: &Client, container: &str, streams: Streams) -> Result<Process> {
    let ask = || {
        let request = AttachRequest {
            container_id: container.to_owned(),
            tty: streams.tty,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
        };
        async move { Ok(client.attach(request).await?.url) }
    };
    Ok(Process::connect(ask, streams, &options()).await?)
}

/// Joins this program's input, output and terminal to a process until one of both ends. The terminal
/// is as it was before when this returns or is given up.
pub(super) async fn attend(process: Process, keys: &Keys, io: &mut Io<'_>) -> Result<End> {
    let Process {
        stdin,
        stdout,
        stderr,
        resizer,
        waiting,
    } = process;
    let raw = match (&resizer, &stdin) {
        (Some(_), Some(_)) => terminal::Raw::enter().context("put the terminal into raw mode")?,
        _ => None,
    };
    let keys = raw.is_some().then_some(keys);
    let end = async {
        let outcome = async { waiting.outcome().await.map_err(anyhow::Error::from) };
        match tokio::try_join!(print(stdout, stderr, io), outcome)?.1 {
            Outcome::Exited(code) => Ok(End::Exited(code)),
            Outcome::Failed(why) => bail!("{why}"),
        }
    };
    let end = tokio::select! {
        end = end => end,
        () = feed(stdin, keys) => Ok(End::Detached),
        error = follow_size(resizer) => Err(error),
        signal = asked_to_end(raw.is_some()) => signal.map(End::Signal),
    };
    drop(raw);
    end
}

/// Passes on this program's input to a process whose output is read elsewhere. Returns only with an
/// error: the end of the process is seen elsewhere, too.
pub(super) async fn pass_input(process: Process) -> anyhow::Error {
    let Process { stdin, waiting, .. } = process;
    let lost = async {
        match waiting.outcome().await {
            Ok(_) => std::future::pending().await,
            Err(error) => error.into(),
        }
    };
    tokio::select! {
        error = lost => error,
        () = feed(stdin, None) => std::future::pending().await,
    }
}

/// Prints both outputs as they come, until both have ended.
async fn print(stdout: Option<Reader>, stderr: Option<Reader>, io: &mut Io<'_>) -> Result<()> {
    let mut stdout = stdout.unwrap_or_else(Reader::empty);
    let mut stderr = stderr.unwrap_or_else(Reader::empty);
    let (mut out_open, mut err_open) = (true, true);
    while out_open || err_open {
        let (piece, open, to): (_, _, &mut dyn Write) = tokio::select! {
            piece = stdout.next(), if out_open => (piece, &mut out_open, &mut *io.out),
            piece = stderr.next(), if err_open => (piece, &mut err_open, &mut *io.err),
        };
        match piece? {
            Some(piece) => {
                to.write_all(&piece)?;
                to.flush()?;
            }
            None => *open = false,
        }
    }
    Ok(())
}

/// Passes on this program's input. Returns when the user types the keys for leaving, else never.
async fn feed(stdin: Option<Writer>, keys: Option<&Keys>) {
    if let Some(mut stdin) = stdin {
        let mut watch = keys.map(Keys::watch);
        let mut input = read_input();
        let mut open = true;
        while let Some(piece) = input.recv().await {
            let (piece, leave) = match &mut watch {
                Some(watch) => watch.pass(&piece),
                None => (piece, false),
            };
            // A process that reads no more ends by itself or goes on; the keys are for it, too.
            open = open && stdin.write_all(&piece).await.is_ok() && stdin.flush().await.is_ok();
            if leave {
                return;
            }
        }
        // As above.
        let _ = stdin.shutdown().await;
    }
    std::future::pending().await
}

/// Reads standard input in a thread of its own: a read of a terminal cannot be given up, and must not
/// be in the way of this program's end.
fn read_input() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut buffer = vec![0; INPUT];
        // An input that fails has ended.
        while let Ok(count @ 1..) =
            rustix::io::retry_on_intr(|| rustix::io::read(rustix::stdio::stdin(), &mut buffer))
        {
            if sender.blocking_send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Tells the size of this program's terminal now and whenever it changes.
async fn follow_size(resizer: Option<Resizer>) -> anyhow::Error {
    let Some(mut resizer) = resizer else {
        return std::future::pending().await;
    };
    let mut changed = match signal(SignalKind::window_change()) {
        Ok(changed) => changed,
        Err(error) => return anyhow::Error::new(error).context("watch the size of the terminal"),
    };
    loop {
        if let Some((columns, rows)) = terminal::size()
            && resizer.resize(Size { columns, rows }).await.is_err()
        {
            // The session is at its end, and says so elsewhere.
            return std::future::pending().await;
        }
        changed.recv().await;
    }
}

/// Waits for a signal that would end this program before the terminal is restored.
async fn asked_to_end(raw: bool) -> Result<i32> {
    if !raw {
        return std::future::pending().await;
    }
    let install = |kind| signal(kind).context("install a signal handler");
    let mut int = install(SignalKind::interrupt())?;
    let mut term = install(SignalKind::terminate())?;
    let mut hangup = install(SignalKind::hangup())?;
    let mut quit = install(SignalKind::quit())?;
    let kind = tokio::select! {
        _ = int.recv() => SignalKind::interrupt(),
        _ = term.recv() => SignalKind::terminate(),
        _ = hangup.recv() => SignalKind::hangup(),
        _ = quit.recv() => SignalKind::quit(),
    };
    Ok(kind.as_raw_value())
}
