//! Notices a client that is gone although nobody reads from its connection.
//!
//! While a process does not take its input, its connection is not read, so the end of it would not be
//! seen. The kernel tells of it all the same; data that arrives wakes nobody here.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::sleep;

/// A connection that is watched.
#[derive(Debug)]
pub(super) struct HangUp(TcpStream);

impl HangUp {
    /// Watches a connection; it is kept open until the watch is dropped too.
    pub(super) fn watch(connection: &TcpStream) -> io::Result<Self> {
        let same = connection.as_fd().try_clone_to_owned()?;
        TcpStream::from_std(same.into()).map(Self)
    }

    /// Waits until the client is gone and for `limit` nothing of what it sent has been taken.
    pub(super) async fn abandoned(&self, limit: Duration) -> io::Result<()> {
        // That the other side is done is told with what is urgent; there is nothing of the latter.
        while !self.0.ready(Interest::PRIORITY).await?.is_read_closed() {
            let _ = self.0.try_io(Interest::PRIORITY, || {
                Err::<(), _>(io::ErrorKind::WouldBlock.into())
            });
        }
        let mut before = rustix::io::ioctl_fionread(&self.0)?;
        loop {
            sleep(limit).await;
            let now = rustix::io::ioctl_fionread(&self.0)?;
            if now == before {
                return Ok(());
            }
            before = now;
        }
    }
}
