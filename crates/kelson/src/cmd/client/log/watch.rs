//! Tells when something happens in the directory of a log file, by inotify.

use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::net::unix::pipe::Receiver;

/// A watch on a directory; without inotify (too many watches, another kind of file system) it never fires,
/// and the caller's own clock has to do.
#[derive(Debug)]
pub(crate) struct Watch(Option<Receiver>);

impl Watch {
    /// Watches the directory of `path`: a log that is renamed and made anew is seen, too.
    pub(crate) fn new(path: &Path) -> Self {
        let watched = || {
            let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
            let directory = path.parent().unwrap_or(Path::new("/"));
            let flags = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO;
            inotify::add_watch(&fd, directory, flags)?;
            // An inotify descriptor is read and waited for like the end of a pipe.
            Receiver::from_owned_fd_unchecked(fd)
        };
        let watched: std::io::Result<_> = watched();
        Self(watched.ok())
    }

    /// Waits for the next change, whatever it is.
    pub(crate) async fn changed(&mut self) {
        let Some(events) = &self.0 else {
            return std::future::pending().await;
        };
        match events.readable().await {
            // What happened is found by looking at the file; here the queue is only emptied.
            Ok(()) => while events.try_read(&mut [0; 4096]).is_ok_and(|count| count > 0) {},
            Err(_) => self.0 = None,
        }
    }
}
