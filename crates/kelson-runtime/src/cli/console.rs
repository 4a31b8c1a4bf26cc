//! Handing the master of a terminal to the engine's console socket.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::error::CliError;

/// Sends `master` to the socket at `path`.
pub(super) fn send(path: &Path, master: &OwnedFd) -> Result<(), CliError> {
    let failed = |e: rustix::io::Errno| CliError::io("use the console socket", path, e);
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(failed)?;
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    rustix::net::connect(&socket, &address).map_err(failed)?;
    kelson_sys::fdpass::send_with_fds(socket.as_fd(), b"/dev/ptmx", &[master.as_fd()])
        .map_err(failed)?;
    Ok(())
}
