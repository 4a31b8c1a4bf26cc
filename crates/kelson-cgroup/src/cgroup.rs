//! One cgroup: making it, limits, statistics, and letting processes in.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::controllers::Detail;
use crate::dir::{Dir, push_word};
use crate::hierarchy::Controller;
use crate::{Error, Hierarchy, Resources, Result, Stats, Version, controllers, path};

/// Where the kernel names the files of a cgroup that go with it to another user.
const DELEGATE: &str = "/sys/kernel/cgroup/delegate";
/// Those that it had before it named them.
const DELEGATED: &str = "cgroup.procs cgroup.subtree_control cgroup.threads";

/// A path in a [`Hierarchy`]. Making one does no I/O, and it need not exist.
#[derive(Debug, Clone)]
pub struct Cgroup {
    hierarchy: Hierarchy,
    path: String,
}

impl Cgroup {
    /// The cgroup at `path` beneath the mounted root; a leading slash makes no difference.
    /// Refuses the root, empty components, `.` and `..`, control characters, components above 255
    /// bytes and paths above 3072 bytes.
    pub fn new(hierarchy: &Hierarchy, path: &str) -> Result<Self> {
        Ok(Self {
            hierarchy: hierarchy.clone(),
            path: path::checked(path)?,
        })
    }

    /// The cgroup `name` beneath this one.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::new(&self.hierarchy, &format!("{}/{name}", self.path))
    }

    /// Its path from the root of the hierarchy, with a leading slash.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The hierarchy it is in.
    pub fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// Where each hierarchy in use is mounted, with the cgroup's directory in it: what a container
    /// is shown as its cgroups. On v2 there is one.
    pub fn directories(&self) -> Vec<(PathBuf, PathBuf)> {
        let mounts = self.hierarchy.mounts().iter();
        mounts
            .map(|mount| (mount.clone(), self.beneath(mount).path().to_owned()))
            .collect()
    }

    /// Makes the cgroup and its parents. Succeeds when it is there already. On v1 an empty cpuset
    /// takes over its parent's; on v2 the parents hand their controllers down.
    pub fn create(&self) -> Result<()> {
        self.create_group()?;
        match self.hierarchy.version() {
            Version::V1 => Ok(()),
            Version::V2 => self.enable_controllers(),
        }
    }

    /// Makes the cgroup and its parents as a mere group of processes, without limits of its own: on
    /// v2 this is what can be made beneath a cgroup that has processes.
    pub fn create_group(&self) -> Result<()> {
        self.make_dirs()?;
        match self.dir(Controller::Cpuset) {
            Some(dir) if self.hierarchy.version() == Version::V1 => {
                controllers::cpuset::inherit(&dir, self.root(Controller::Cpuset))
            }
            _ => Ok(()),
        }
    }

    /// Sets limits. A limit whose controller the machine lacks is skipped, except in
    /// [`Resources::unified`] and [`Resources::devices`].
    pub fn apply(&self, resources: &Resources) -> Result<()> {
        controllers::apply(self, resources)
    }

    /// v2: gives a user of the host the cgroup to make others in it, as the runtime specification wants it for
    /// a user namespace: the directory, and the files that the kernel names for this (or the three that it has
    /// always had). The files of limits stay with their owner. v1 has no safe way to give a cgroup away.
    pub fn delegate(&self, uid: u32) -> Result<()> {
        self.delegate_by(uid, Path::new(DELEGATE))
    }

    fn delegate_by(&self, uid: u32, names: &Path) -> Result<()> {
        if self.hierarchy.version() == Version::V1 {
            return Ok(());
        }
        let names = std::fs::read_to_string(names).unwrap_or_else(|_| DELEGATED.to_owned());
        let dir = self.main_dir();
        let plain = |name: &&str| !name.contains('/') && *name != "..";
        let files = names
            .split_whitespace()
            .filter(plain)
            .map(|name| dir.file(name));
        for path in [dir.path().to_owned()].into_iter().chain(files) {
            match std::os::unix::fs::lchown(&path, Some(uid), None) {
                // Files of controllers that the cgroup does not have.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                given => given.map_err(|error| Error::io("give away", &path, error))?,
            }
        }
        Ok(())
    }

    /// Moves the process `pid` (as the caller's pid namespace numbers it) into the cgroup. On v1
    /// this waits for an RCU grace period (about 10 ms): where the process is the caller's own
    /// fresh child, use [`Cgroup::entry`].
    pub fn add(&self, pid: u32) -> Result<()> {
        let pid = pid.to_string();
        self.dirs()
            .try_for_each(|dir| dir.write("cgroup.procs", &pid))
    }

    /// The way in for a child process that is about to be cloned.
    pub fn entry(&self) -> Result<Entry> {
        let own_thread = match self.hierarchy.version() {
            Version::V1 => "tasks",
            Version::V2 => "cgroup.procs",
        };
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let files = self.dirs().map(|dir| open(&dir.file(own_thread), flags));
        Ok(Entry {
            files: files.collect::<Result<_>>()?,
            dir: self.clone_fd()?,
        })
    }

    /// v2: the directory, for `CLONE_INTO_CGROUP`. v1: `None`.
    pub fn clone_fd(&self) -> Result<Option<OwnedFd>> {
        if self.hierarchy.version() == Version::V1 {
            return Ok(None);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        open(self.main_dir().path(), flags).map(Some)
    }

    /// What the cgroup uses: everything that is counted. Files of controllers that the machine
    /// lacks read as zero. Fails with an error that [`Error::is_not_found`] when the cgroup does
    /// not exist.
    pub fn stats(&self) -> Result<Stats> {
        controllers::stats(self, Detail::All)
    }

    /// The part of [`Cgroup::stats`] that is asked for often, for less than half of the cost: CPU
    /// time in all, memory and swap in use with their limits, page faults, and pressure. Everything
    /// else is zero.
    pub fn usage(&self) -> Result<Stats> {
        controllers::stats(self, Detail::Usage)
    }

    /// Whether it exists, in every hierarchy.
    pub fn exists(&self) -> bool {
        self.dirs().all(|dir| dir.exists())
    }

    /// Its directory in each hierarchy.
    pub(crate) fn dirs(&self) -> impl Iterator<Item = Dir> {
        self.hierarchy
            .mounts()
            .iter()
            .map(|mount| self.beneath(mount))
    }

    /// Its directory in the hierarchy of a controller.
    pub(crate) fn dir(&self, controller: Controller) -> Option<Dir> {
        self.hierarchy
            .mount(controller)
            .map(|mount| self.beneath(mount))
    }

    /// The directory whose processes are taken for the cgroup's. On v1 the freezer's where there is
    /// one, so that what is frozen and what is killed are the same.
    pub(crate) fn main_dir(&self) -> Dir {
        match self.dir(Controller::Freezer) {
            Some(dir) => dir,
            None => self.beneath(&self.hierarchy.mounts()[0]),
        }
    }

    fn root(&self, controller: Controller) -> &Path {
        self.hierarchy.mount(controller).unwrap_or(Path::new("/"))
    }

    fn beneath(&self, mount: &Path) -> Dir {
        Dir::new(mount.join(&self.path[1..]))
    }

    /// Makes the directories alone.
    pub(crate) fn make_dirs(&self) -> Result<()> {
        self.dirs().try_for_each(|dir| make_dir(dir.path()))
    }

    /// v2: lets every cgroup above this one hand its controllers down.
    fn enable_controllers(&self) -> Result<()> {
        let root = Dir::new(self.hierarchy.mounts()[0].clone());
        let mut buf = Vec::new();
        let available = root
            .read("cgroup.controllers", &mut buf)?
            .unwrap_or_default()
            .to_owned();
        let wanted: Vec<&str> = ["cpu", "cpuset", "memory", "pids", "io", "hugetlb"]
            .into_iter()
            .filter(|name| available.split_ascii_whitespace().any(|word| word == *name))
            .collect();
        let mut missing_in = |dir: &Dir, file: &str| -> Result<String> {
            let enabled = dir.read(file, &mut buf)?.unwrap_or_default();
            let mut missing = String::new();
            for name in &wanted {
                if !enabled.split_ascii_whitespace().any(|word| word == *name) {
                    push_word(&mut missing, format_args!("+{name}"));
                }
            }
            Ok(missing)
        };
        if missing_in(&self.main_dir(), "cgroup.controllers")?.is_empty() {
            return Ok(());
        }
        let inner = &self.path[1..];
        let parents = inner
            .match_indices('/')
            .map(|(at, _)| root.path().join(&inner[..at]));
        for parent in std::iter::once(root.path().to_owned()).chain(parents) {
            let parent = Dir::new(parent);
            let missing = missing_in(&parent, "cgroup.subtree_control")?;
            if missing.is_empty() {
                continue;
            }
            enable(&parent, &missing)?;
        }
        Ok(())
    }
}

/// Open descriptors by which a cloned child puts itself into a cgroup, without allocation and
/// without waiting.
///
/// On v1 the child calls [`Entry::enter`] first thing after clone, while it has one thread: only a
/// thread that moves itself is spared the lock that costs an RCU grace period. On v2 the parent
/// passes [`Entry::clone_into`] to clone3 with `CLONE_INTO_CGROUP`; where it forks otherwise, the
/// child calls `enter` too.
#[derive(Debug)]
pub struct Entry {
    files: Vec<OwnedFd>,
    dir: Option<OwnedFd>,
}

impl Entry {
    /// v2: the descriptor for `CLONE_INTO_CGROUP`; the child need not call `enter` then.
    pub fn clone_into(&self) -> Option<BorrowedFd<'_>> {
        self.dir.as_ref().map(|dir| dir.as_fd())
    }

    /// Moves the calling thread, which must be its process's only one, into the cgroup. Only
    /// write(2) is called: safe between fork and exec.
    pub fn enter(&self) -> io::Result<()> {
        for file in &self.files {
            rustix::io::retry_on_intr(|| rustix::io::write(file, b"0"))?;
        }
        Ok(())
    }
}

/// v2: hands controllers, written as `+cpu +memory`, down to the children of a cgroup. One that the
/// kernel refuses (such as cpu where a real-time process runs) is left out.
fn enable(parent: &Dir, controllers: &str) -> Result<()> {
    let Err(error) = parent.write("cgroup.subtree_control", controllers) else {
        return Ok(());
    };
    match error {
        Error::Io { ref source, .. }
            if source.raw_os_error() == Some(Errno::BUSY.raw_os_error()) =>
        {
            return Err(Error::Occupied {
                path: parent.path().to_owned(),
            });
        }
        error if error.is_not_found() && !parent.exists() => return Err(error),
        _ => {}
    }
    for one in controllers.split(' ') {
        if let Err(error) = parent.write("cgroup.subtree_control", one) {
            tracing::debug!(
                controller = one,
                error = &error as &dyn std::error::Error,
                "not enabled"
            );
        }
    }
    Ok(())
}

fn open(path: &Path, flags: OFlags) -> Result<OwnedFd> {
    rustix::fs::open(path, flags, Mode::empty()).map_err(|error| Error::io("open", path, error))
}

/// Makes a directory and those above it. Components are checked, and cgroup file systems have no
/// symbolic links.
fn make_dir(path: &Path) -> Result<()> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(Errno::NOENT) => {
            let parent = path
                .parent()
                .ok_or_else(|| Error::io("create", path, Errno::NOENT))?;
            make_dir(parent)?;
            match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => Ok(()),
                Err(error) => Err(Error::io("create", path, error)),
            }
        }
        Err(error) => Err(Error::io("create", path, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of plain files in place of a v2 root with these controllers.
    fn v2(controllers: &str) -> (tempfile::TempDir, Hierarchy) {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("cgroup.controllers"), controllers).unwrap();
        for dir in [root.path().to_owned(), root.path().join("pods")] {
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("cgroup.subtree_control"), "").unwrap();
        }
        let hierarchy = Hierarchy::v2_at(root.path());
        (root, hierarchy)
    }

    #[test]
    fn controllers_are_handed_down() {
        let (root, hierarchy) = v2("cpuset cpu io memory pids rdma\n");
        let cgroup = Cgroup::new(&hierarchy, "/pods/one").unwrap();
        cgroup.create().unwrap();
        let read = |file: &str| std::fs::read_to_string(root.path().join(file)).unwrap();
        assert_eq!(
            read("cgroup.subtree_control"),
            "+cpu +cpuset +memory +pids +io"
        );
        assert_eq!(
            read("pods/cgroup.subtree_control"),
            "+cpu +cpuset +memory +pids +io"
        );
        assert!(cgroup.exists());
        assert_eq!(cgroup.child("x").unwrap().path(), "/pods/one/x");
        assert!(cgroup.child("../x").is_err());
        // What has all of them is left alone.
        let own = root.path().join("pods/one/cgroup.controllers");
        std::fs::write(own, "cpuset cpu io memory pids\n").unwrap();
        std::fs::remove_file(root.path().join("cgroup.subtree_control")).unwrap();
        cgroup.create().unwrap();
    }

    #[test]
    fn a_cgroup_is_given_away_without_its_limits() {
        use std::os::unix::fs::MetadataExt as _;
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root gives files away");
            return;
        }
        let (root, hierarchy) = v2("");
        let at = |name: &str| root.path().join("pods").join(name);
        let all = [
            "cgroup.procs",
            "cgroup.threads",
            "memory.max",
            "memory.oom.group",
        ];
        for name in all {
            std::fs::write(at(name), "").unwrap();
        }
        let owner = |name: &str| std::fs::metadata(at(name)).unwrap().uid();
        let cgroup = Cgroup::new(&hierarchy, "/pods").unwrap();
        cgroup.delegate_by(7, Path::new("/nonexistent")).unwrap();
        assert_eq!(owner("."), 7);
        assert_eq!(all.map(owner), [7, 7, 0, 0]);
        assert_eq!(owner("cgroup.subtree_control"), 7);
        let names = root.path().join("names");
        std::fs::write(&names, "memory.oom.group\nio.missing\n../names\n").unwrap();
        cgroup.delegate_by(8, &names).unwrap();
        assert_eq!(all.map(owner), [7, 7, 0, 8]);
        assert_eq!(std::fs::metadata(&names).unwrap().uid(), 0);
    }

    #[test]
    fn a_child_is_cloned_into_v2_and_enters_v1() {
        let (root, hierarchy) = v2("");
        let cgroup = Cgroup::new(&hierarchy, "pods").unwrap();
        std::fs::write(root.path().join("pods/cgroup.procs"), "").unwrap();
        let entry = cgroup.entry().unwrap();
        assert!(entry.clone_into().is_some());
        entry.enter().unwrap();
        let procs = std::fs::read_to_string(root.path().join("pods/cgroup.procs")).unwrap();
        assert_eq!(procs, "0");
    }
}
