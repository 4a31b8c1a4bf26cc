//! A synchronous netlink socket: send a batch, take the answers.
//!
//! The kernel queues its answers before the send returns, so nothing here ever waits.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::message::{Batch, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, Reply, replies, u32_at};

/// A datagram of a dump is at most this long (the kernel's own limit).
const RECEIVE_BUFFER: usize = 64 * 1024;
/// A dump that is disturbed by changes is started again this often.
const DUMP_ATTEMPTS: usize = 16;

/// Which message of a batch the kernel refused, and why.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// Position in the batch, from 0.
    pub(crate) index: usize,
    pub(crate) source: io::Error,
}

/// A netlink socket of the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// For links, addresses and routes.
    pub(crate) fn route() -> io::Result<Self> {
        // Protocol 0, which is that of an unspecified one.
        Self::open(None)
    }

    /// For nftables and connection tracking.
    pub(crate) fn netfilter() -> io::Result<Self> {
        Self::open(Some(rustix::net::netlink::NETFILTER))
    }

    fn open(protocol: Option<rustix::net::Protocol>) -> io::Result<Self> {
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        Ok(Self { fd })
    }

    /// Sends the batch and returns the first refusal. Answers of every kind but errors go to
    /// `each`.
    pub(crate) fn run(
        &self,
        batch: &Batch,
        mut each: impl FnMut(&Reply<'_>),
    ) -> Result<(), Refusal> {
        let first = |source: Errno| Refusal {
            index: 0,
            source: source.into(),
        };
        self.send(batch).map_err(first)?;
        let mut waiting = batch.expected.iter().filter(|acked| **acked).count();
        let mut refusal: Option<Refusal> = None;
        let mut buffer = vec![0; RECEIVE_BUFFER];
        while waiting > 0 {
            let len = match self.receive(&mut buffer) {
                Ok(len) => len,
                // A refused batch may be answered for its first message only.
                Err(Errno::AGAIN) => return Err(refusal.unwrap_or_else(|| first(Errno::PROTO))),
                Err(source) => return Err(first(source)),
            };
            for reply in replies(&buffer[..len]) {
                if reply.kind != NLMSG_ERROR {
                    each(&reply);
                    continue;
                }
                let index = (reply.sequence as usize).saturating_sub(1);
                if batch.expected.get(index) == Some(&true) {
                    waiting -= 1;
                }
                if let Some(source) = error_of(&reply) {
                    refusal.get_or_insert(Refusal { index, source });
                }
            }
        }
        refusal.map_or(Ok(()), Err)
    }

    /// Sends the one dump request in `batch`, and maps its answers. A dump during which the
    /// kernel's tables changed is repeated.
    pub(crate) fn dump<T>(
        &self,
        batch: &Batch,
        mut map: impl FnMut(&Reply<'_>) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        let mut buffer = vec![0; RECEIVE_BUFFER];
        for _ in 0..DUMP_ATTEMPTS {
            let mut found = Vec::new();
            let mut disturbed = false;
            self.send(batch)?;
            let mut done = false;
            while !done {
                let len = self.receive(&mut buffer)?;
                for reply in replies(&buffer[..len]) {
                    disturbed |= reply.flags & NLM_F_DUMP_INTR != 0;
                    match reply.kind {
                        NLMSG_DONE => done = true,
                        NLMSG_ERROR => match error_of(&reply) {
                            Some(source) => return Err(source),
                            None => done = true,
                        },
                        _ => found.extend(map(&reply)),
                    }
                }
            }
            if !disturbed {
                return Ok(found);
            }
        }
        Err(Errno::INTR.into())
    }

    fn send(&self, batch: &Batch) -> rustix::io::Result<()> {
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&self.fd, &batch.bytes, SendFlags::empty(), &kernel)?;
        Ok(())
    }

    fn receive(&self, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        loop {
            match rustix::net::recv(&self.fd, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((len, _)) => return Ok(len),
                Err(Errno::INTR) => {}
                Err(source) => return Err(source),
            }
        }
    }
}

/// The error in an `NLMSG_ERROR`; `None` for an acknowledgement.
fn error_of(reply: &Reply<'_>) -> Option<io::Error> {
    let code = u32_at(reply.body, 0)?.cast_signed();
    (code != 0).then(|| io::Error::from_raw_os_error(code.wrapping_neg()))
}
