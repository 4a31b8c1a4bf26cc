//! `kelson cp`: copies files and directories between this machine and a container, by the container's own
//! `tar` at the other end of an exec.
//!
//! The container is not trusted: what it sends is unpacked beneath the target and nowhere else.

mod pack;
mod tar;
mod unpack;

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use kelson_client::Client;
use kelson_streaming::client::{Process, Waiting};
use kelson_streaming::{Outcome, Reader, Streams};
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, oneshot};

use super::stream;
use super::target::Inventory;
use crate::ui::Io;

/// Pieces of an archive that wait between the connection and the files.
const PIECES: usize = 8;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to copy: a path here, or CONTAINER:PATH
    source: String,
    /// Where to: an existing directory, or the new name; a path here, or CONTAINER:PATH
    target: String,
}

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side {
    Here(PathBuf),
    There { container: String, path: String },
}

impl Side {
    /// A path with a colon behind its first name is one in a container, unless it begins with `.` or `/`.
    fn parse(text: &str) -> Self {
        match text.split_once(':') {
            Some((container, path)) if !text.starts_with(['.', '/']) && !container.is_empty() => {
                let (container, path) = (container.to_owned(), path.to_owned());
                Self::There { container, path }
            }
            _ => Self::Here(text.into()),
        }
    }
}

pub(crate) async fn run(args: Args, client: &Client, io: &mut Io<'_>) -> Result<u8> {
    match (Side::parse(&args.source), Side::parse(&args.target)) {
        (Side::There { container, path }, Side::Here(target)) => {
            let id = Inventory::take(client).await?.container(&container)?.id;
            download(client, &id, &path, &target, io).await?;
        }
        (Side::Here(source), Side::There { container, path }) => {
            let id = Inventory::take(client).await?.container(&container)?.id;
            upload(client, &id, &source, &path, io).await?;
        }
        (Side::Here(_), Side::Here(_)) => bail!(
            "neither path is in a container: write one as CONTAINER:PATH, or use cp to copy here"
        ),
        (Side::There { .. }, Side::There { .. }) => {
            bail!("both paths are in containers: copy to a directory here first")
        }
    }
    Ok(0)
}

/// The directory and the name of a path in a container, both fit to be arguments of `tar`.
fn split(path: &str) -> Result<(String, String)> {
    let path = path.trim_end_matches('/');
    let (directory, name) = path.rsplit_once('/').unwrap_or((".", path));
    if matches!(name, "" | "." | "..") {
        bail!("{path:?} has no name at its end: name a file or a directory of the container");
    }
    let directory = if directory.is_empty() { "/" } else { directory };
    Ok((directory.to_owned(), name.to_owned()))
}

async fn download(
    client: &Client,
    container: &str,
    path: &str,
    target: &Path,
    io: &mut Io<'_>,
) -> Result<()> {
    let (directory, name) = split(path)?;
    let (parent, new_name) = match target.is_dir() {
        true => (target.to_owned(), OsString::from(&name)),
        false => {
            let new_name = target.file_name().map(OsString::from);
            let new_name =
                new_name.with_context(|| format!("{} has no name at its end", target.display()))?;
            let parent = target.parent().filter(|parent| *parent != Path::new(""));
            (parent.unwrap_or(Path::new(".")).to_owned(), new_name)
        }
    };
    let unpacker = unpack::Unpacker::new(&parent, &name, &new_name)?;
    let cmd = ["tar", "cf", "-", "-C", &directory, &format!("./{name}")].map(str::to_owned);
    let streams = Streams {
        stdin: false,
        stdout: true,
        stderr: true,
        tty: false,
    };
    let process = stream::exec(client, container, &cmd, streams).await?;
    let (sender, receiver) = mpsc::channel(PIECES);
    let unpacked = on_thread(move || unpacker.unpack(Pieces::new(receiver)));
    let Process {
        stdout,
        stderr,
        waiting,
        ..
    } = process;
    let pass_on = async {
        let mut stdout = stdout.unwrap_or_else(Reader::empty);
        // When the unpacker has stopped, the rest is read for the end that comes behind it.
        while let Ok(Some(piece)) = stdout.next().await {
            let _ = sender.send(piece).await;
        }
        drop(sender);
    };
    let (unpacked, told, ()) = tokio::join!(unpacked, finish(stderr, waiting, io), pass_on);
    // An archive that ends too early is explained by the end of what made it.
    let skipped = match (unpacked, told) {
        (Err(error), Ok(())) => return Err(error),
        (_, Err(error)) => return Err(error),
        (Ok(skipped), Ok(())) => skipped,
    };
    tell_skipped(&skipped, io)
}

fn tell_skipped(skipped: &[String], io: &mut Io<'_>) -> Result<()> {
    for name in skipped {
        writeln!(
            io.err,
            "skipped {name}: neither a file, a directory nor a link"
        )?;
    }
    Ok(())
}

async fn upload(
    client: &Client,
    container: &str,
    source: &Path,
    path: &str,
    io: &mut Io<'_>,
) -> Result<()> {
    std::fs::symlink_metadata(source).with_context(|| format!("copy {}", source.display()))?;
    let (directory, name) = if is_directory(client, container, path).await? {
        let name = source.file_name();
        let name = name.with_context(|| format!("{} has no name at its end", source.display()))?;
        (path.to_owned(), name.to_owned())
    } else {
        let (directory, name) = split(path)?;
        (directory, name.into())
    };
    let cmd = ["tar", "xof", "-", "-C", &directory].map(str::to_owned);
    let streams = Streams {
        stdin: true,
        stdout: false,
        stderr: true,
        tty: false,
    };
    let process = stream::exec(client, container, &cmd, streams).await?;
    let (sender, mut receiver) = mpsc::channel(PIECES);
    let source = source.to_owned();
    let packed = on_thread(move || pack::pack(&source, &name, Sink(sender)));
    let Process {
        stdin,
        stderr,
        waiting,
        ..
    } = process;
    let send = async {
        let Some(mut stdin) = stdin else { return };
        while let Some(piece) = receiver.recv().await {
            if stdin.write_all(&piece).await.is_err() {
                // It has ended, and its end says why. What is packed has no reader any more.
                return receiver.close();
            }
        }
        // As above.
        let _ = stdin.shutdown().await;
    };
    let (packed, told, ()) = tokio::join!(packed, finish(stderr, waiting, io), send);
    // Where there is nobody any more to send to, the end of tar says why.
    let unread = |error: &anyhow::Error| {
        let cause = error
            .chain()
            .find_map(|cause| cause.downcast_ref::<io::Error>());
        cause.is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
    };
    match (packed, told) {
        (Err(error), Err(told)) if unread(&error) => Err(told),
        (Err(error), _) => Err(error),
        (Ok(skipped), told) => told.and_then(|()| tell_skipped(&skipped, io)),
    }
}

/// Whether a path in a container is a directory, as far as the container can tell.
async fn is_directory(client: &Client, container: &str, path: &str) -> Result<bool> {
    let cmd = ["test", "-d", path].map(str::to_owned);
    let streams = Streams {
        stdin: false,
        stdout: false,
        stderr: true,
        tty: false,
    };
    let process = stream::exec(client, container, &cmd, streams).await?;
    let Process {
        stderr, waiting, ..
    } = process;
    let mut stderr = stderr.unwrap_or_else(Reader::empty);
    let read = async { while let Ok(Some(_)) = stderr.next().await {} };
    let ((), outcome) = tokio::join!(read, waiting.outcome());
    Ok(outcome? == Outcome::Exited(0))
}

/// Prints what `tar` says until it has ended; anything but success is an error.
async fn finish(stderr: Option<Reader>, waiting: Waiting, io: &mut Io<'_>) -> Result<()> {
    let said = async {
        let mut stderr = stderr.unwrap_or_else(Reader::empty);
        while let Some(piece) = stderr.next().await? {
            io.err.write_all(&piece)?;
        }
        anyhow::Ok(())
    };
    let (said, outcome) = tokio::join!(said, waiting.outcome());
    match outcome? {
        Outcome::Exited(0) => said,
        Outcome::Exited(code) => bail!("tar in the container ended with code {code}"),
        Outcome::Failed(why) => bail!("cannot run tar in the container, which cp needs: {why}"),
    }
}

/// Does blocking work on a thread of its own, while the connection is served here.
fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> impl Future<Output = Result<T>> {
    let (sender, receiver) = oneshot::channel();
    std::thread::spawn(move || {
        // Who does not wait any more has another error to tell.
        let _ = sender.send(work());
    });
    async { receiver.await.context("copy files")? }
}

/// What comes through the connection, for a reader that blocks.
struct Pieces {
    receiver: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Pieces {
    fn new(receiver: mpsc::Receiver<Bytes>) -> Self {
        let piece = Bytes::new();
        Self { receiver, piece }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let piece = self.piece.split_to(self.piece.len().min(buffer.len()));
        buffer[..piece.len()].copy_from_slice(&piece);
        Ok(piece.len())
    }
}

/// What goes to the connection, for a writer that blocks.
struct Sink(mpsc::Sender<Vec<u8>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(bytes.to_vec());
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_told_apart() {
        let there = |container: &str, path: &str| Side::There {
            container: container.into(),
            path: path.into(),
        };
        assert_eq!(Side::parse("web:/etc"), there("web", "/etc"));
        assert_eq!(Side::parse("ns/web/app:a:b"), there("ns/web/app", "a:b"));
        for here in ["file", "./a:b", "/a:b", ":x", "../x:y"] {
            assert_eq!(Side::parse(here), Side::Here(here.into()), "{here}");
        }
    }

    #[test]
    fn paths_of_a_container_are_split() {
        let split = |path| split(path).unwrap();
        assert_eq!(split("/etc/hosts"), ("/etc".into(), "hosts".into()));
        assert_eq!(split("/etc/"), ("/".into(), "etc".into()));
        assert_eq!(split("a"), (".".into(), "a".into()));
        for bad in ["", "/", ".", "a/..", "a/."] {
            assert!(super::split(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn pieces_are_read_in_order() {
        let (sender, receiver) = mpsc::channel(3);
        for piece in ["one", "", "two"] {
            sender.try_send(Bytes::from(piece)).unwrap();
        }
        drop(sender);
        let mut text = String::new();
        Pieces::new(receiver).read_to_string(&mut text).unwrap();
        assert_eq!(text, "onetwo");
    }
}
