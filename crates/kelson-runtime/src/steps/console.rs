//! Standard streams and terminals.
//!
//! A terminal comes from the container's own devpts, which is verified to be one; its master goes
//! to the maker, and its slave becomes `/dev/console`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use kelson_sys::mount;
use kelson_sys::process;
use kelson_sys::root::{Root, kind_and_device};
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid, makedev};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::{Container, Failure, NewProcess, OrFail, label};
use crate::Stdio;
use crate::progress::Message;

/// The type of a devpts, as fstatfs(2) has it.
const DEVPTS_MAGIC: i64 = 0x1cd1;

/// Makes the terminal of a container's first process.
pub(super) fn container_terminal(container: &mut Container<'_>) -> Result<(), Failure> {
    if !matches!(container.process.stdio, Stdio::Terminal) {
        return Ok(());
    }
    let slave = make_terminal(container.root()?, &container.process)?;
    let console = Path::new("/dev/console");
    let target = container
        .root()?
        .create_file(console, Mode::from_raw_mode(0o600))?;
    let tree =
        mount::clone_tree(slave.as_fd(), false).or_fail(|| "cannot bind the terminal".into())?;
    mount::attach(tree.as_fd(), target.as_fd())
        .or_fail(|| "cannot mount the terminal on /dev/console".into())?;
    use_terminal(&mut container.process, slave)
}

/// Makes the terminal of a further process.
pub(super) fn further_terminal(process: &mut NewProcess<'_>) -> Result<(), Failure> {
    if !matches!(process.stdio, Stdio::Terminal) {
        return Ok(());
    }
    let root = Root::open(Path::new("/"))?;
    let slave = make_terminal(&root, process)?;
    use_terminal(process, slave)
}

/// Makes a terminal, tells its master, and returns its slave.
fn make_terminal(root: &Root, process: &NewProcess<'_>) -> Result<OwnedFd, Failure> {
    let path = Path::new("/dev/pts/ptmx");
    let what = || format!("cannot make a terminal in {}/dev/pts", label().display());
    let master = root.open_file(path, OFlags::RDWR)?;
    let is_ptmx = kind_and_device(master.as_fd()).or_fail(what)?
        == (FileType::CharacterDevice, makedev(5, 2));
    let on_devpts = rustix::fs::fstatfs(&master).or_fail(what)?.f_type == DEVPTS_MAGIC;
    if !is_ptmx || !on_devpts {
        let text = "/dev/pts of the container is no devpts; mount one to have a terminal";
        return Err(Failure::new(text));
    }
    rustix::pty::unlockpt(&master).or_fail(what)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).or_fail(what)?;
    if let Some((rows, columns)) = process.plan.terminal_size {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&master, size)
            .or_fail(|| "cannot set the size of the terminal".into())?;
    }
    process
        .channel
        .tell_with(&Message::Terminal, &[master.as_fd()]);
    Ok(slave)
}

/// Makes the terminal the standard streams and the controlling terminal.
fn use_terminal(process: &mut NewProcess<'_>, slave: OwnedFd) -> Result<(), Failure> {
    process::set_controlling_terminal(slave.as_fd())
        .or_fail(|| "cannot control the terminal".into())?;
    give_to_user(slave.as_fd(), process)?;
    replace([slave.as_fd(); 3])
}

/// Puts the standard streams in place.
pub(super) fn streams(process: &mut NewProcess<'_>) -> Result<(), Failure> {
    if let Stdio::Files {
        stdin,
        stdout,
        stderr,
    } = &process.stdio
    {
        // Numbers below 3 would be overwritten while they are still needed.
        let high = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 3);
        let copies = [high(stdin), high(stdout), high(stderr)];
        let [Ok(stdin), Ok(stdout), Ok(stderr)] = copies else {
            return Err(Failure::new("cannot copy the standard streams"));
        };
        replace([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])?;
    }
    for number in 0..3 {
        // SAFETY: the number is only borrowed here; if it is closed, the calls fail with EBADF.
        let stream = unsafe { BorrowedFd::borrow_raw(number) };
        let kind = rustix::fs::fstat(stream).map(|stat| FileType::from_raw_mode(stat.st_mode));
        // So that the user can open /dev/stdout again.
        if kind == Ok(FileType::Fifo) {
            give_to_user(stream, process)?;
        }
    }
    Ok(())
}

fn replace(streams: [BorrowedFd<'_>; 3]) -> Result<(), Failure> {
    for (number, stream) in (0..).zip(streams) {
        // SAFETY: nothing in the new process owns the standard streams.
        unsafe { process::replace_fd(stream, number) }
            .or_fail(|| format!("cannot put stream {number} in place"))?;
    }
    Ok(())
}

/// Makes the user the owner, as far as the file system lets it.
fn give_to_user(file: BorrowedFd<'_>, process: &NewProcess<'_>) -> Result<(), Failure> {
    let uid = process.plan.uid;
    let stat = rustix::fs::fstat(file).or_fail(|| "cannot look at a stream".into())?;
    if stat.st_uid == uid {
        return Ok(());
    }
    match rustix::fs::fchown(file, Some(Uid::from_raw(uid)), None::<Gid>) {
        Ok(()) | Err(Errno::PERM | Errno::ROFS | Errno::INVAL) => Ok(()),
        Err(e) => Err(Failure::errno("cannot give a stream to the user", e)),
    }
}
