//! Volumes that an image declares: writable copies of its directories, one set per container.
//!
//! The image is hostile. Its tree is walked by descriptors, no link of it is followed on the way down, and
//! a path that it declares is resolved as if the image were the root.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;

use kelson_sys::root::Root;
use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::{Errno, Result};

use super::graft::{copy, resemble};
use crate::error::on;
use crate::limits::DEPTH;
use crate::{SnapshotError, tree};

/// Mode of a volume whose directory the image does not have.
const MODE: Mode = Mode::from_raw_mode(0o755);

/// Makes a copy of every one of `volumes` below `dir`, named by its number; at most `limit` files in all.
pub(super) fn make_all(
    image: &Root,
    volumes: &[String],
    dir: &Path,
    limit: u64,
) -> std::result::Result<(), SnapshotError> {
    rustix::fs::mkdir(dir, Mode::RWXU).map_err(on("create", dir))?;
    let mut walk = Walk { left: limit };
    for (n, volume) in volumes.iter().enumerate() {
        let to = dir.join(n.to_string());
        rustix::fs::mkdir(&to, MODE).map_err(on("create", &to))?;
        let to_fd = tree::open_dir(&to).map_err(on("open", &to))?;
        match image.open_dir(Path::new(volume)) {
            Ok(from) => {
                let mut links = HashMap::new();
                let copied = walk
                    .directory(&from, &to_fd, &to_fd, &mut links, &mut Vec::new())
                    .and_then(|()| resemble(&to_fd, &from));
                copied.map_err(|errno| match errno {
                    Errno::OVERFLOW => SnapshotError::Limit {
                        path: to,
                        what: "files and depth of an image's volumes",
                        limit,
                    },
                    errno => on("copy the image's files to", to)(errno),
                })?;
            }
            Err(error) if error.errno() == Some(Errno::NOENT) => {
                rustix::fs::fchmod(&to_fd, MODE).map_err(on("set the mode of", to))?;
            }
            Err(source) => {
                let volume = volume.chars().take(256).collect();
                return Err(SnapshotError::Volume { volume, source });
            }
        }
    }
    Ok(())
}

struct Walk {
    /// How many more files may be copied.
    left: u64,
}

impl Walk {
    /// Copies what is in `from` to `to`. `links` holds where files with several names are below `top`, and
    /// `path` the way from `top` to `to`.
    fn directory(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        top: &OwnedFd,
        links: &mut HashMap<(u64, u64), Vec<u8>>,
        path: &mut Vec<u8>,
    ) -> Result<()> {
        let mut names = Vec::new();
        tree::for_each(from, |name, _| {
            self.left = self.left.checked_sub(1).ok_or(Errno::OVERFLOW)?;
            names.push(name.to_owned());
            Ok(())
        })?;
        for name in names {
            let name = name.to_bytes();
            let stat = tree::stat(from, name)?;
            // A single layer shows what it hides of others.
            if tree::is_whiteout(&stat) {
                continue;
            }
            let length = path.len();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                if path.split(|byte| *byte == b'/').count() as u64 > DEPTH.limit {
                    return Err(Errno::OVERFLOW);
                }
                rustix::fs::mkdirat(to, name, Mode::RWXU)?;
                let (from, to) = (tree::open_child(from, name)?, tree::open_child(to, name)?);
                self.directory(&from, &to, top, links, path)?;
                resemble(&to, &from)?;
            } else if let Some(first) = links.get(&(stat.st_dev, stat.st_ino)) {
                rustix::fs::linkat(top, first.as_slice(), to, name, AtFlags::empty())?;
            } else {
                copy(from, to, name, &stat)?;
                if stat.st_nlink > 1 {
                    links.insert((stat.st_dev, stat.st_ino), path.clone());
                }
            }
            path.truncate(length);
        }
        Ok(())
    }
}
