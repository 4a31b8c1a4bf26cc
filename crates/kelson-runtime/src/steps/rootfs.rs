//! The root file system: a bound directory or an overlay, attached where only this mount namespace
//! sees it.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kelson_sys::mount::{self, Attributes, Filesystem, Propagation};
use kelson_sys::process::ns;
use kelson_sys::root::Root;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::{Container, Failure, OrFail, label};
use crate::Rootfs;

/// Longest value that fsconfig(2) takes.
const MAX_OPTION: usize = 255;
/// Longest option string that mount(2) takes.
const MAX_OPTIONS: usize = 4095;

/// Mounts the root and keeps it open; everything in the container is found beneath it.
pub(super) fn mount(container: &mut Container<'_>) -> Result<(), Failure> {
    let source = match container.rootfs {
        Rootfs::Path(path) => Some(
            mount::clone_tree_at(CWD, path, true)
                .or_fail(|| format!("cannot bind the root {}", path.display()))?,
        ),
        Rootfs::Overlay { .. } => None,
    };
    // From here on nothing that is mounted in this namespace reaches the host.
    let root = rustix::fs::open(c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .or_fail(|| "cannot open /".into())?;
    let slave = Attributes {
        propagation: Some(Propagation::Slave),
        ..Attributes::default()
    };
    mount::set_attributes(root.as_fd(), &slave, true)
        .or_fail(|| "cannot make the mounts of the host slaves".into())?;
    let in_user_ns = container.plan.namespaces.has(ns::USER);
    let tree = match (container.rootfs, source) {
        (Rootfs::Path(path), Some(tree)) => {
            // A shared root could not be pivoted to; it is made shared afterwards.
            let propagation = match container.plan.root_propagation {
                Some(Propagation::Slave) => Propagation::Slave,
                _ => Propagation::Private,
            };
            let change = Attributes {
                propagation: Some(propagation),
                ..Attributes::default()
            };
            mount::set_attributes(tree.as_fd(), &change, true)
                .or_fail(|| "cannot set the propagation of the root".into())?;
            attach(&tree, path)?;
            tree
        }
        (Rootfs::Overlay { lower, upper, work }, _) => {
            let layers = Layers {
                lower,
                upper,
                work,
                in_user_ns,
            };
            match layers.by_context()? {
                Some(tree) => {
                    attach(&tree, upper)?;
                    tree
                }
                None => layers.by_option_string()?,
            }
        }
        (Rootfs::Path(path), None) => {
            return Err(Failure::new(format!(
                "the root {} was not opened",
                path.display()
            )));
        }
    };
    container.root = Some(Root::from_fd(tree, label()));
    Ok(())
}

fn attach(tree: &OwnedFd, target: &Path) -> Result<(), Failure> {
    mount::attach_at(tree.as_fd(), target)
        .or_fail(|| format!("cannot mount the root on {}", target.display()))
}

/// The directories of an overlay.
struct Layers<'a> {
    lower: &'a [std::path::PathBuf],
    upper: &'a Path,
    work: &'a Path,
    in_user_ns: bool,
}

impl Layers<'_> {
    /// Mounts with one option per layer, as kernels from 6.5 on can: there is no limit to how many.
    /// `None` when the kernel cannot, or a path is too long for it.
    fn by_context(&self) -> Result<Option<OwnedFd>, Failure> {
        let long = |path: &Path| path.as_os_str().len() > MAX_OPTION;
        if self.lower.iter().any(|path| long(path)) || long(self.upper) || long(self.work) {
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
        let configured = fs
            .set(c"upperdir", &c_path(self.upper)?)
            .and_then(|()| fs.set(c"source", c"overlay"));
        configured.map_err(|e| explained(&fs, "configure the overlay", e))?;
        fs.set(c"workdir", &c_path(self.work)?)
            .map_err(|e| explained(&fs, "configure the overlay", e))?;
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

    /// Mounts with all options in one string.
    fn by_option_string(&self) -> Result<OwnedFd, Failure> {
        let mut options = b"index=off,lowerdir=".to_vec();
        for (i, path) in self.lower.iter().enumerate() {
            if i > 0 {
                options.push(b':');
            }
            options.extend(escaped(path, b":,\\"));
        }
        options.extend_from_slice(b",upperdir=");
        options.extend(escaped(self.upper, b",\\"));
        options.extend_from_slice(b",workdir=");
        options.extend(escaped(self.work, b",\\"));
        if self.in_user_ns {
            options.extend_from_slice(b",userxattr");
        }
        if options.len() > MAX_OPTIONS {
            return Err(Failure::new(format!(
                "the {} layers of the root need {} bytes of mount options, this kernel takes \
                 {MAX_OPTIONS}; use kernel 6.5 or later, or fewer layers",
                self.lower.len(),
                options.len(),
            )));
        }
        let options = CString::new(options)
            .map_err(|_| Failure::new("there is a NUL byte in a path of the root"))?;
        rustix::mount::mount(
            c"overlay",
            self.upper,
            c"overlay",
            MountFlags::empty(),
            options.as_c_str(),
        )
        .or_fail(|| "cannot mount the overlay".into())?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(self.upper, flags, Mode::empty())
            .or_fail(|| "cannot open the overlay".into())
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
        .map_err(|_| Failure::new("there is a NUL byte in a path of the root"))
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
