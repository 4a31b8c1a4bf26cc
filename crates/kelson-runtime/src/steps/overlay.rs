//! Overlays of directories of the host: a container's root, and the trees of other images.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use kelson_sys::mount::{self, Filesystem};
use kelson_sys::root::Root;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::{Failure, OrFail};

/// Longest value that fsconfig(2) takes.
const MAX_OPTION: usize = 255;
/// Longest option string that mount(2) takes.
const MAX_OPTIONS: usize = 4095;

/// The merged tree of `lower`, or the file or directory `subdir` of it, resolved as if the tree were the
/// root. Where it has to be mounted for a moment, only this mount namespace sees it.
pub(super) fn read_only(
    lower: &[PathBuf],
    subdir: Option<&Path>,
    in_user_ns: bool,
) -> Result<OwnedFd, Failure> {
    let place = lower
        .first()
        .ok_or_else(|| Failure::new("there are no layers to mount"))?;
    let layers = Layers {
        lower,
        writable: None,
        in_user_ns,
    };
    let tree = match (layers.by_context()?, subdir) {
        (Some(tree), None) => return Ok(tree),
        (Some(tree), Some(_)) => {
            // A part of a tree can only be cloned from where the tree is mounted.
            mount::attach_at(tree.as_fd(), place)
                .or_fail(|| format!("cannot mount on {}", place.display()))?;
            tree
        }
        (None, _) => layers.by_option_string(place)?,
    };
    let part = match subdir {
        Some(path) => Root::from_fd(tree, "the image").open_path(path)?,
        None => tree,
    };
    let clone = mount::clone_tree(part.as_fd(), false)
        .or_fail(|| "cannot clone the tree of an image".into())?;
    mount::detach(place).or_fail(|| format!("cannot unmount {}", place.display()))?;
    Ok(clone)
}

/// The directories of an overlay.
pub(super) struct Layers<'a> {
    pub(super) lower: &'a [PathBuf],
    /// The upper and the work directory.
    pub(super) writable: Option<(&'a Path, &'a Path)>,
    pub(super) in_user_ns: bool,
}

impl Layers<'_> {
    /// Mounts with one option per layer, as kernels from 6.5 on can: there is no limit to how many.
    /// `None` when the kernel cannot, or a path is too long for it.
    pub(super) fn by_context(&self) -> Result<Option<OwnedFd>, Failure> {
        let long = |path: &Path| path.as_os_str().len() > MAX_OPTION;
        let writable = self.writable.map(|(upper, work)| [upper, work]);
        let mut paths = self.lower.iter().map(PathBuf::as_path);
        if paths.any(long) || writable.iter().flatten().any(|path| long(path)) {
            return Ok(None);
        }
        let fs = Filesystem::open(c"overlay").or_fail(|| "cannot make an overlay".into())?;
        for path in self.lower {
            match fs.set(c"lowerdir+", &c_path(path)?) {
                Ok(()) => {}
                Err(Errno::INVAL) => return Ok(None),
                Err(e) => return Err(explained(&fs, "add a layer to the overlay", e)),
            }
        }
        fs.set(c"source", c"overlay")
            .map_err(|e| explained(&fs, "configure the overlay", e))?;
        if let Some((upper, work)) = self.writable {
            for (key, path) in [(c"upperdir", upper), (c"workdir", work)] {
                fs.set(key, &c_path(path)?)
                    .map_err(|e| explained(&fs, "configure the overlay", e))?;
            }
        }
        // Indexing would refuse layers that another overlay uses too.
        let _ = fs.set(c"index", c"off");
        if self.in_user_ns {
            fs.flag(c"userxattr")
                .map_err(|e| explained(&fs, "configure the overlay", e))?;
        }
        fs.mount(0)
            .map(Some)
            .map_err(|e| explained(&fs, "mount the overlay", e))
    }

    /// Mounts on `target`, with all options in one string.
    pub(super) fn by_option_string(&self, target: &Path) -> Result<OwnedFd, Failure> {
        let mut options = b"index=off,lowerdir=".to_vec();
        for (i, path) in self.lower.iter().enumerate() {
            if i > 0 {
                options.push(b':');
            }
            options.extend(escaped(path, b":,\\"));
        }
        if let Some((upper, work)) = self.writable {
            options.extend_from_slice(b",upperdir=");
            options.extend(escaped(upper, b",\\"));
            options.extend_from_slice(b",workdir=");
            options.extend(escaped(work, b",\\"));
        }
        if self.in_user_ns {
            options.extend_from_slice(b",userxattr");
        }
        if options.len() > MAX_OPTIONS {
            return Err(Failure::new(format!(
                "the {} layers need {} bytes of mount options, this kernel takes \
                 {MAX_OPTIONS}; use kernel 6.5 or later, or fewer layers",
                self.lower.len(),
                options.len(),
            )));
        }
        let options = CString::new(options)
            .map_err(|_| Failure::new("there is a NUL byte in a path of a layer"))?;
        rustix::mount::mount(
            c"overlay",
            target,
            c"overlay",
            MountFlags::empty(),
            options.as_c_str(),
        )
        .or_fail(|| "cannot mount the overlay".into())?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(target, flags, Mode::empty()).or_fail(|| "cannot open the overlay".into())
    }
}

/// A path with the characters that separate options escaped.
fn escaped(path: &Path, special: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        if special.contains(&byte) {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out
}

fn c_path(path: &Path) -> Result<CString, Failure> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Failure::new("there is a NUL byte in a path of a layer"))
}

/// A failure with the kernel's own explanation, where it gives one.
pub(super) fn explained(fs: &Filesystem, what: &str, errno: Errno) -> Failure {
    match fs.explanation() {
        Some(text) => Failure::errno(format!("cannot {what} (the kernel says: {text})"), errno),
        None => Failure::errno(format!("cannot {what}"), errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_in_paths_are_escaped() {
        assert_eq!(escaped(Path::new("/a:b,c\\d"), b":,\\"), b"/a\\:b\\,c\\\\d");
    }
}
