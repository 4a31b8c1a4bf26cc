//! Descriptors over unix sockets (`SCM_RIGHTS`).
//!
//! Received descriptors are close-on-exec, and never more than the caller asks for are accepted.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::{Errno, Result, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// Most descriptors that one message can carry.
pub const MAX_FDS: usize = 16;

/// Room for one `SCM_RIGHTS` message with [`MAX_FDS`] descriptors.
const SPACE: usize = rustix::cmsg_space!(ScmRights(MAX_FDS));

/// Sends `bytes` (at least one) with copies of `fds`, at most [`MAX_FDS`]. Returns how many bytes
/// were taken; on a stream socket that may be fewer, and the descriptors go with the first.
pub fn send_with_fds(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<usize> {
    if fds.len() > MAX_FDS {
        return Err(Errno::TOOBIG);
    }
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOBIG);
    }
    let data = [IoSlice::new(bytes)];
    retry_on_intr(|| rustix::net::sendmsg(socket, &data, &mut ancillary, SendFlags::NOSIGNAL))
}

/// Receives into `buffer`; returns the number of bytes (0: the peer has closed) and the
/// descriptors that came with them. Fails with `EMSGSIZE` when a datagram or its descriptors did
/// not fit; descriptors already received are closed then.
pub fn recv_with_fds(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = retry_on_intr(|| {
        let mut data = [IoSliceMut::new(buffer)];
        rustix::net::recvmsg(socket, &mut data, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut fds = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            fds.extend(received);
        }
    }
    if message
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(Errno::MSGSIZE);
    }
    Ok((message.bytes, fds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::os::fd::AsFd;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap()
    }

    #[test]
    fn a_descriptor_travels_and_is_close_on_exec() {
        let (a, b) = pair();
        let (read, write) = rustix::pipe::pipe().unwrap();
        assert_eq!(send_with_fds(a.as_fd(), b"x", &[write.as_fd()]).unwrap(), 1);
        drop(write);
        let mut buffer = [0; 8];
        let (n, fds) = recv_with_fds(b.as_fd(), &mut buffer).unwrap();
        assert_eq!((n, fds.len(), buffer[0]), (1, 1, b'x'));
        let flags = rustix::io::fcntl_getfd(&fds[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        rustix::io::write(&fds[0], b"hi").unwrap();
        assert_eq!(rustix::io::read(&read, &mut buffer).unwrap(), 2);
    }

    #[test]
    fn too_many_descriptors_are_refused() {
        let (a, _b) = pair();
        let fds = [a.as_fd(); MAX_FDS + 1];
        assert_eq!(
            send_with_fds(a.as_fd(), b"x", &fds).unwrap_err(),
            Errno::TOOBIG
        );
    }

    #[test]
    fn a_datagram_that_does_not_fit_is_an_error() {
        let (a, b) = pair();
        send_with_fds(a.as_fd(), b"0123456789", &[]).unwrap();
        assert_eq!(
            recv_with_fds(b.as_fd(), &mut [0; 4]).unwrap_err(),
            Errno::MSGSIZE
        );
    }

    #[test]
    fn the_end_is_zero_bytes() {
        let (a, b) = pair();
        drop(a);
        assert_eq!(recv_with_fds(b.as_fd(), &mut [0; 4]).unwrap().0, 0);
    }
}
