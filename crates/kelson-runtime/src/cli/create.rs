//! `create` and `run`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use kelson_cgroup::Cgroup;
use oci_spec::runtime::Spec;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::args::{CreateArgs, Global, RunArgs};
use super::bundle::{Bundle, compile_seccomp, wants_terminal};
use super::error::CliError;
use super::record::{Container, Init, alive, record};
use super::{console, delete, foreground, start};
use crate::{Event, Launch, LaunchError, Launched, Options, Rootfs, Stdio, hook, launch};

/// How long the processes of a container that failed may take to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// `create`: everything but the program.
pub(super) fn create(global: &Global, args: &CreateArgs) -> Result<u8, CliError> {
    make(global, args, false, true).map(|_| 0)
}

/// `run`: create, start, and unless detached wait and delete.
pub(super) fn run(global: &Global, args: &RunArgs) -> Result<u8, CliError> {
    let started = make(global, &args.create, true, args.detach)?;
    let spec = started.container.spec()?;
    start::poststart(&started.container, &spec)?;
    if args.detach {
        return Ok(0);
    }
    let code = foreground::wait(&started.launched, started.terminal)?;
    if !args.keep {
        delete::clean(&started.container, &spec)?;
    }
    Ok(code)
}

/// A container that was made.
struct Made {
    container: Container,
    launched: Launched,
    /// The master of the terminal, unless it was sent to the console socket.
    terminal: Option<OwnedFd>,
}

fn make(
    global: &Global,
    args: &CreateArgs,
    at_once: bool,
    detached: bool,
) -> Result<Made, CliError> {
    let bundle = Bundle::read(&args.bundle)?;
    let terminal = wants_terminal(&bundle.spec);
    match (&args.console_socket, terminal) {
        (None, true) if detached => {
            let text = "process.terminal needs --console-socket, or run without --detach";
            return Err(CliError::Usage(text.to_owned()));
        }
        (Some(_), false) => {
            let text = "--console-socket is for containers with process.terminal";
            return Err(CliError::Usage(text.to_owned()));
        }
        _ => {}
    }
    let cgroup_path = bundle.cgroup_path(&args.id)?;
    let record = record(
        &args.id,
        bundle.dir.clone(),
        bundle.rootfs.clone(),
        cgroup_path,
    );
    let mut container = Container::create(global, record, &bundle.spec)?;
    let started = start_process(&mut container, &bundle, args, at_once);
    match started {
        Ok((launched, terminal)) => Ok(Made {
            container,
            launched,
            terminal,
        }),
        Err(error) => {
            // The first failure is what is told.
            let _ = container.forget();
            Err(error)
        }
    }
}

fn start_process(
    container: &mut Container,
    bundle: &Bundle,
    args: &CreateArgs,
    at_once: bool,
) -> Result<(Launched, Option<OwnedFd>), CliError> {
    let spec = &bundle.spec;
    let seccomp = compile_seccomp(spec)?;
    let cgroup = container.cgroup()?;
    let gate = if at_once {
        None
    } else {
        Some(listen(&container.gate())?)
    };
    let options = Options {
        gate,
        hooks: spec.hooks().is_some().then(|| container.hook_context(spec)),
        preserve_fds: args.preserve_fds,
        no_pivot: args.no_pivot,
        no_new_keyring: args.no_new_keyring,
    };
    let stdio = if wants_terminal(spec) {
        Stdio::Terminal
    } else {
        Stdio::Inherit
    };
    let rootfs = Rootfs::Path(bundle.rootfs.clone());
    let mut launched = launch(Launch {
        spec,
        user_namespace: None,
        rootfs: &rootfs,
        cgroup: &cgroup,
        stdio,
        seccomp: seccomp.as_ref(),
        options,
    })?;
    let followed = follow(
        container,
        spec,
        &mut launched,
        args.console_socket.as_deref(),
    );
    let finished = followed.and_then(|terminal| {
        if let Some(path) = &args.pid_file {
            write_pid(path, launched.pid)?;
        }
        Ok(terminal)
    });
    match finished {
        Ok(terminal) => Ok((launched, terminal)),
        Err(error) => {
            undo(&launched, &cgroup);
            Err(error)
        }
    }
}

/// Follows a new process until it runs its program or waits at its gate.
fn follow(
    container: &mut Container,
    spec: &Spec,
    launched: &mut Launched,
    console_socket: Option<&Path>,
) -> Result<Option<OwnedFd>, CliError> {
    container.record.init = alive(launched.pid).map(|start_time| Init {
        pid: launched.pid,
        start_time,
    });
    container.save()?;
    let mut terminal = None;
    loop {
        match launched.progress.wait(None)? {
            Event::Note(_) => {}
            Event::Process { pid, pidfd } => {
                // The one that prepared has ended, or is about to.
                foreground::reap(launched).map_err(|e| CliError::io("wait for", "a process", e))?;
                (launched.pid, launched.pidfd) = (pid, pidfd);
                container.record.init = alive(pid).map(|start_time| Init { pid, start_time });
                container.save()?;
            }
            Event::Terminal(master) => match console_socket {
                Some(path) => console::send(path, &master)?,
                None => terminal = Some(master),
            },
            Event::HooksDue => {
                let state = container.hook_context(spec).state("creating", launched.pid);
                for (kind, hook) in hook::for_maker(spec) {
                    hook::run(kind, hook, &state)?;
                }
                launched.progress.resume()?;
            }
            Event::Waiting | Event::Executed => return Ok(terminal),
            Event::Failed(error) => return Err(LaunchError::from(error).into()),
        }
    }
}

/// Ends a process that is not to be, and removes its cgroup; what fails is of no use to the caller.
fn undo(launched: &Launched, cgroup: &Cgroup) {
    let _ = kelson_sys::process::pidfd_send_signal(launched.pidfd.as_fd(), libc::SIGKILL);
    let _ = foreground::reap(launched);
    let _ = cgroup.kill(KILL_TIMEOUT);
    let _ = cgroup.remove();
}

/// Writes the number of a process, so that a reader sees a whole file or none.
pub(super) fn write_pid(path: &Path, pid: u32) -> Result<(), CliError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    std::fs::write(&new, pid.to_string()).map_err(|e| CliError::io("write", &new, e))?;
    std::fs::rename(&new, path).map_err(|e| CliError::io("write", path, e))
}

/// A listening socket of packets at `path`. Paths of sockets are short, so the directory is named
/// by a descriptor.
fn listen(path: &Path) -> Result<OwnedFd, CliError> {
    let failed = |e: rustix::io::Errno| CliError::io("listen on", path, e);
    let socket = packet_socket().map_err(failed)?;
    with_address(path, |address| rustix::net::bind(&socket, address)).map_err(failed)?;
    rustix::net::listen(&socket, 1).map_err(failed)?;
    Ok(socket)
}

/// Connects to the gate at `path`.
pub(super) fn connect(path: &Path) -> rustix::io::Result<OwnedFd> {
    let socket = packet_socket()?;
    with_address(path, |address| rustix::net::connect(&socket, address))?;
    Ok(socket)
}

fn packet_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

fn with_address<T>(
    path: &Path,
    use_it: impl FnOnce(&SocketAddrUnix) -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    use rustix::fs::{Mode, OFlags};
    use std::os::fd::AsRawFd;

    let invalid = rustix::io::Errno::INVAL;
    let (dir, name) = path.parent().zip(path.file_name()).ok_or(invalid)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(dir, flags, Mode::empty())?;
    let short = Path::new("/proc/self/fd")
        .join(dir.as_raw_fd().to_string())
        .join(name);
    use_it(&SocketAddrUnix::new(short)?)
}
