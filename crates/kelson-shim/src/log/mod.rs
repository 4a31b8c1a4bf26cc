//! A container's log file in the CRI format.
//!
//! Output is formatted into one buffer that all logs of a shim share, and written with few large
//! writes. A log that cannot be written (full disk, I/O error) loses lines, counts them, and is
//! tried again with the next output; the container is never stopped for it.

mod lines;
mod stamp;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::time::{ClockId, clock_gettime};

use lines::{LINE_EXTRA, Lines, Sink};
pub(crate) use lines::{MAX_LINE, Stream};
use stamp::Stamp;

/// How much is gathered before it is written.
const WRITE_SIZE: usize = 256 << 10;

/// The most that the shared buffer holds.
const BUFFER_SIZE: usize = WRITE_SIZE + MAX_LINE + LINE_EXTRA;

/// Whether and where a container's output is kept.
#[derive(Debug)]
pub(crate) struct Log {
    file: Option<LogFile>,
    stdout: Lines,
    stderr: Lines,
}

#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    file: OwnedFd,
    bytes_lost: u64,
}

/// What the logs of a shim share.
#[derive(Debug)]
pub(crate) struct Formatter {
    stamp: Stamp,
    buffer: Vec<u8>,
}

impl Formatter {
    pub(crate) const fn new() -> Self {
        Self {
            stamp: Stamp::new(),
            buffer: Vec::new(),
        }
    }

    /// Gives the buffer back to the system until it is needed again.
    pub(crate) fn release(&mut self) {
        self.buffer = Vec::new();
    }
}

/// The shared buffer on its way into one file.
struct Writer<'a> {
    buffer: &'a mut Vec<u8>,
    log: &'a mut LogFile,
}

impl Sink for Writer<'_> {
    fn room(&mut self) -> &mut Vec<u8> {
        if self.buffer.len() >= WRITE_SIZE {
            self.log.write(self.buffer);
            self.buffer.clear();
        }
        self.buffer
    }
}

impl Log {
    /// Opens a log, made with mode 0640 if it is missing; without a path all output is discarded.
    pub(crate) fn open(path: Option<PathBuf>) -> io::Result<Self> {
        let file = match path {
            None => None,
            Some(path) => Some(LogFile {
                file: open(&path)?,
                path,
                bytes_lost: 0,
            }),
        };
        Ok(Self {
            file,
            stdout: Lines::new(Stream::Stdout),
            stderr: Lines::new(Stream::Stderr),
        })
    }

    /// Appends a block of output.
    pub(crate) fn write(&mut self, stream: Stream, block: &[u8], formatter: &mut Formatter) {
        self.format(stream, formatter, |lines, stamp, writer| {
            lines.push(block, stamp, writer)
        });
    }

    /// Appends what is left of a line after the output has ended.
    pub(crate) fn finish(&mut self, stream: Stream, formatter: &mut Formatter) {
        self.format(stream, formatter, |lines, stamp, writer| {
            lines.finish(stamp, writer)
        });
    }

    fn format(
        &mut self,
        stream: Stream,
        formatter: &mut Formatter,
        with: impl FnOnce(&mut Lines, &[u8; stamp::STAMP_LEN], &mut Writer<'_>),
    ) {
        let Some(log) = &mut self.file else { return };
        let lines = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let now = clock_gettime(ClockId::Realtime);
        let stamp = formatter.stamp.at(now.tv_sec, now.tv_nsec as u32);
        if formatter.buffer.capacity() == 0 {
            formatter.buffer.reserve_exact(BUFFER_SIZE);
        }
        let mut writer = Writer {
            buffer: &mut formatter.buffer,
            log,
        };
        with(lines, stamp, &mut writer);
        let Writer { buffer, log } = writer;
        log.write(buffer);
        buffer.clear();
    }

    /// Opens the file by its path again, after it was renamed. On failure the old one stays.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        if let Some(log) = &mut self.file {
            log.file = open(&log.path)?;
        }
        Ok(())
    }

    /// How many bytes could not be written.
    pub(crate) fn bytes_lost(&self) -> u64 {
        self.file.as_ref().map_or(0, |log| log.bytes_lost)
    }
}

impl LogFile {
    /// Writes whole lines; what cannot be written is lost, and no piece of a line stays behind.
    fn write(&mut self, lines: &[u8]) {
        let mut written = 0;
        while written < lines.len() {
            match rustix::io::write(&self.file, &lines[written..]) {
                Ok(0) => break,
                Ok(count) => written += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => break,
            }
        }
        if written == lines.len() {
            return;
        }
        let whole = memchr::memrchr(b'\n', &lines[..written]).map_or(0, |newline| newline + 1);
        if written > whole {
            self.cut_back((written - whole) as u64);
        }
        self.bytes_lost += (lines.len() - whole) as u64;
    }

    /// Takes the last bytes off the file, unless somebody else has written to it.
    fn cut_back(&self, bytes: u64) {
        let size = rustix::fs::fstat(&self.file).map(|stat| stat.st_size.cast_unsigned());
        let position = rustix::fs::tell(&self.file);
        if let (Ok(size), Ok(position)) = (size, position)
            && size == position
            && let Some(shorter) = size.checked_sub(bytes)
        {
            // Failing that, a line is incomplete on a disk that has failed already.
            let _ = rustix::fs::ftruncate(&self.file, shorter);
        }
    }
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    // Not blocking: opening a pipe would wait for a reader.
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o640))?;
    match FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
        FileType::RegularFile => Ok(file),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
        text.lines()
            .map(|line| line[STAMP_BLANK..].to_owned())
            .collect()
    }

    const STAMP_BLANK: usize = stamp::STAMP_LEN + 1;

    #[test]
    fn both_streams_go_into_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut formatter = Formatter::new();
        let mut log = Log::open(Some(path.clone())).unwrap();
        log.write(Stream::Stdout, b"one\ntw", &mut formatter);
        log.write(Stream::Stderr, b"bad\n", &mut formatter);
        log.write(Stream::Stdout, b"o\nend", &mut formatter);
        log.finish(Stream::Stdout, &mut formatter);
        log.finish(Stream::Stderr, &mut formatter);
        assert_eq!(
            texts(&path),
            [
                "stdout F one",
                "stderr F bad",
                "stdout F two",
                "stdout P end"
            ]
        );
        let mode = rustix::fs::stat(&path).unwrap().st_mode & 0o7777;
        assert_eq!(mode & !0o640, 0, "{mode:o}");
    }

    #[test]
    fn the_shared_buffer_does_not_grow() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut formatter = Formatter::new();
        let mut log = Log::open(Some(path.clone())).unwrap();
        let newlines = vec![b'\n'; 300_000];
        log.write(Stream::Stdout, &newlines, &mut formatter);
        assert_eq!(formatter.buffer.capacity(), BUFFER_SIZE);
        assert_eq!(texts(&path).len(), newlines.len());
    }

    #[test]
    fn after_a_rename_a_reopened_log_is_a_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("0.log"), dir.path().join("0.log.1"));
        let mut formatter = Formatter::new();
        let mut log = Log::open(Some(path.clone())).unwrap();
        log.write(Stream::Stdout, b"a\nb", &mut formatter);
        std::fs::rename(&path, &old).unwrap();
        log.write(Stream::Stdout, b"b\nc", &mut formatter);
        log.reopen().unwrap();
        log.write(Stream::Stdout, b"c\n", &mut formatter);
        assert_eq!(texts(&old), ["stdout F a", "stdout F bb"]);
        assert_eq!(texts(&path), ["stdout F cc"]);
    }

    #[test]
    fn links_and_pipes_are_no_logs() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("elsewhere", &link).unwrap();
        assert!(Log::open(Some(link)).is_err());
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(Log::open(Some(pipe)).is_err());
    }

    #[test]
    fn a_full_disk_loses_lines_but_leaves_no_piece_of_one() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let _mounted = Mounted::tmpfs(dir.path());
        let path = dir.path().join("0.log");
        let mut formatter = Formatter::new();
        let mut log = Log::open(Some(path.clone())).unwrap();
        let line = [&[b'x'; 999][..], b"\n"].concat();
        log.write(Stream::Stdout, &line.repeat(200), &mut formatter);
        let kept = texts(&path);
        assert!(!kept.is_empty() && kept.len() < 200, "{}", kept.len());
        assert!(
            kept.iter()
                .all(|text| text.len() == "stdout F ".len() + 999)
        );
        let lost = log.bytes_lost();
        assert_eq!(lost, (200 - kept.len() as u64) * (999 + 41));
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        std::fs::remove_file(dir.path().join("old")).unwrap();
        log.reopen().unwrap();
        log.write(Stream::Stdout, b"again\n", &mut formatter);
        assert_eq!(texts(&path), ["stdout F again"]);
        assert_eq!(log.bytes_lost(), lost);
    }

    struct Mounted(PathBuf);

    impl Mounted {
        fn tmpfs(at: &Path) -> Self {
            rustix::mount::mount(
                "tmpfs",
                at,
                "tmpfs",
                rustix::mount::MountFlags::empty(),
                Some(c"size=65536"),
            )
            .unwrap();
            Self(at.to_owned())
        }
    }

    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
        }
    }
}
