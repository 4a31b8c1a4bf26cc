//! Overlays of directories of the host: a container's root, and the trees of other images.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use kelson_sys::mount::{self, Filesystem};
use kelson_sys::root::Root;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::mounts::map_ids;
use super::{Failure, OrFail};

/// What is written is not forced to the disk, neither by fsync(2) nor when the overlay is unmounted, which
/// would write everything of its file system when a container ends. A container does not outlive its
/// machine's power, so nobody could read it. Such an overlay can be mounted once.
const VOLATILE: &CStr = c"volatile";

/// Longest value that fsconfig(2) takes.
const MAX_OPTION: usize = 255;
/// Longest option string that mount(2) takes.
const MAX_OPTIONS: usize = 4095;

/// The merged tree of `lower`, or the file or directory `subdir` of it, resolved as if the tree were the
/// root. Where it has to be mounted for a moment, only this mount namespace sees it.
pub(super) fn read_only(
    lower: &[PathBuf],
    subdir: Option<&Path>,
    label: Option<&str>,
) -> Result<OwnedFd, Failure> {
    let place = lower
        .first()
        .ok_or_else(|| Failure::new("there are no layers to mount"))?;
    let layers = Layers {
        lower,
        writable: None,
        label,
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
    /// The SELinux label of everything in it.
    pub(super) label: Option<&'a str>,
}

impl Layers<'_> {
    /// The overlay, attached nowhere; `place` is where it is mounted for a moment if it has to be.
    pub(super) fn detached(&self, place: &Path) -> Result<OwnedFd, Failure> {
        if let Some(tree) = self.by_context()? {
            return Ok(tree);
        }
        let mounted = self.by_option_string(place)?;
        let tree = mount::clone_tree(mounted.as_fd(), false)
            .or_fail(|| "cannot clone the overlay".into())?;
        mount::detach(place).or_fail(|| format!("cannot unmount {}", place.display()))?;
        Ok(tree)
    }

    /// Mounts with one option per layer, as kernels from 6.5 on can: there is no limit to how many.
    /// `None` when the kernel cannot, or a path is too long for it.
    fn by_context(&self) -> Result<Option<OwnedFd>, Failure> {
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
            fs.flag(VOLATILE)
                .map_err(|e| explained(&fs, "make the overlay volatile", e))?;
        }
        if let Some(label) = self.label {
            fs.set(c"context", &c_label(label)?)
                .map_err(|e| explained(&fs, &format!("give the overlay the label {label:?}"), e))?;
        }
        // Indexing would refuse layers that another overlay uses too.
        let _ = fs.set(c"index", c"off");
        match fs.mount(0) {
            Ok(tree) => Ok(Some(tree)),
            Err(e) => match fs.explanation() {
                // Before 6.5 options are only gathered until here, and nothing is explained.
                None if e == Errno::INVAL => Ok(None),
                text => Err(failure("mount the overlay", text, e)),
            },
        }
    }

    /// Mounts on `target`, with all options in one string.
    fn by_option_string(&self, target: &Path) -> Result<OwnedFd, Failure> {
        let mut options = b"index=off,".to_vec();
        if let Some(label) = self.label {
            // Its categories are separated by commas, as options are.
            options.extend_from_slice(format!("context=\"{label}\",").as_bytes());
        }
        options.extend_from_slice(b"lowerdir=");
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
            options.push(b',');
            options.extend_from_slice(VOLATILE.to_bytes());
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

/// Mounts layers over themselves with their ids mapped: all at once by the directory that they have in
/// common, or each by itself where one of `keep` is in that too.
pub(super) fn map_layers(
    mut lower: Vec<PathBuf>,
    keep: &[&Path],
    user_namespace: BorrowedFd<'_>,
) -> Result<(), Failure> {
    let common = common_parent(&lower);
    if keep.iter().any(|path| path.starts_with(&common)) {
        lower.sort_unstable();
        lower.dedup();
    } else {
        lower = vec![common];
    }
    for directory in &lower {
        let tree = mount::clone_tree_at(CWD, directory, false)
            .or_fail(|| format!("cannot bind {}", directory.display()))?;
        map_ids(tree.as_fd(), user_namespace, false, directory)?;
        mount::attach_at(tree.as_fd(), directory)
            .or_fail(|| format!("cannot mount on {}", directory.display()))?;
    }
    Ok(())
}

/// The deepest directory that all paths are in, or are.
fn common_parent(paths: &[PathBuf]) -> PathBuf {
    let Some((first, rest)) = paths.split_first() else {
        return PathBuf::from("/");
    };
    let all = first.ancestors();
    let mut common = all.filter(|parent| rest.iter().all(|path| path.starts_with(parent)));
    common.next().unwrap_or(Path::new("/")).to_owned()
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

fn c_label(label: &str) -> Result<CString, Failure> {
    CString::new(label).map_err(|_| Failure::new("there is a NUL byte in linux.mountLabel"))
}

/// A failure with the kernel's own explanation, where it gives one.
pub(super) fn explained(fs: &Filesystem, what: &str, errno: Errno) -> Failure {
    failure(what, fs.explanation(), errno)
}

fn failure(what: &str, explanation: Option<String>, errno: Errno) -> Failure {
    match explanation {
        Some(text) => Failure::errno(format!("cannot {what} (the kernel says: {text})"), errno),
        None => Failure::errno(format!("cannot {what}"), errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_mapped_by_what_they_have_in_common() {
        let common = |paths: &[&str]| {
            let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
            common_parent(&paths)
        };
        assert_eq!(common(&["/l/1/fs", "/l/2/fs"]), Path::new("/l"));
        assert_eq!(common(&["/l/1/fs"]), Path::new("/l/1/fs"));
        assert_eq!(common(&["/l/1", "/l/10"]), Path::new("/l"));
        assert_eq!(common(&["/a", "/b"]), Path::new("/"));
    }

    #[test]
    fn separators_in_paths_are_escaped() {
        assert_eq!(escaped(Path::new("/a:b,c\\d"), b":,\\"), b"/a\\:b\\,c\\\\d");
    }
}
