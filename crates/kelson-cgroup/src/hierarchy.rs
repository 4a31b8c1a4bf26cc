//! Which cgroup hierarchies are mounted, and where.
//!
//! On cgroup v1 every writable hierarchy is used: those with controllers, and named ones such as
//! `name=systemd`, so that who asks there sees where a process belongs. A cgroup2 hierarchy without
//! controllers beside them (the "hybrid" layout) is left alone: it would add a directory to each
//! container for nothing, as limits and counters are in v1, and killing needs the freezer anyway
//! where a process was not cloned straight into it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::dir::Dir;
use crate::{Error, Result, mountinfo};

/// The generation of the cgroup interface that carries the resource controllers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One or more hierarchies, each with its controllers.
    V1,
    /// One unified hierarchy.
    V2,
}

/// The controllers that this crate knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Controller {
    Cpu,
    Cpuacct,
    Cpuset,
    Memory,
    Pids,
    Hugetlb,
    Devices,
    Freezer,
    Io,
}

impl Controller {
    pub(crate) const ALL: [Self; 9] = [
        Self::Cpu,
        Self::Cpuacct,
        Self::Cpuset,
        Self::Memory,
        Self::Pids,
        Self::Hugetlb,
        Self::Devices,
        Self::Freezer,
        Self::Io,
    ];

    /// The name among the mount options of a v1 hierarchy.
    pub(crate) fn v1_name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Cpuset => "cpuset",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Hugetlb => "hugetlb",
            Self::Devices => "devices",
            Self::Freezer => "freezer",
            Self::Io => "blkio",
        }
    }
}

/// The mounted cgroup hierarchies of the machine. Immutable; cloning is cheap.
#[derive(Debug, Clone)]
pub struct Hierarchy {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    version: Version,
    /// Where the hierarchies in use are mounted; exactly one on v2.
    mounts: Vec<PathBuf>,
    /// v1: which mount has the controller. Unused on v2.
    of: [Option<usize>; Controller::ALL.len()],
    /// The sizes of huge pages, as the kernel's file names have them (`2MB`).
    page_sizes: Vec<String>,
    /// Which controllers have been reported as missing, one bit each.
    reported: AtomicU32,
}

impl Hierarchy {
    /// Finds the hierarchies by `/proc/self/mountinfo`. In a container these are the parts of the
    /// hierarchies that are mounted there.
    pub fn detect() -> Result<Self> {
        let path = Path::new("/proc/self/mountinfo");
        let text = std::fs::read_to_string(path).map_err(|error| Error::io("read", path, error))?;
        Self::from_mountinfo(&text)
    }

    /// As [`Hierarchy::detect`], from the text of a mountinfo file (proc(5)). Mount points are used
    /// as they are written there.
    pub fn from_mountinfo(mountinfo: &str) -> Result<Self> {
        let found = mountinfo::cgroups(mountinfo);
        let mut mounts = Vec::new();
        let mut of = [None; Controller::ALL.len()];
        for mount in found.v1 {
            let controllers: Vec<_> = Controller::ALL
                .into_iter()
                .filter(|c| mount.options.iter().any(|option| *option == c.v1_name()))
                .collect();
            let named = mount
                .options
                .iter()
                .any(|option| option.starts_with("name="));
            if controllers.is_empty() && (!named || !mount.writable) {
                continue;
            }
            for controller in controllers {
                of[controller as usize] = Some(mounts.len());
            }
            mounts.push(mount.dir);
        }
        if of.iter().any(Option::is_some) {
            return Ok(Self::new(Version::V1, mounts, of));
        }
        match found.v2 {
            Some(dir) => Ok(Self::v2_at(&dir)),
            None => Err(Error::NotMounted),
        }
    }

    /// A cgroup v2 hierarchy whose root is the directory `root`.
    pub fn v2_at(root: &Path) -> Self {
        Self::new(
            Version::V2,
            vec![root.to_owned()],
            [None; Controller::ALL.len()],
        )
    }

    fn new(
        version: Version,
        mounts: Vec<PathBuf>,
        of: [Option<usize>; Controller::ALL.len()],
    ) -> Self {
        let hugetlb = version == Version::V2 || of[Controller::Hugetlb as usize].is_some();
        let page_sizes = if hugetlb { page_sizes() } else { Vec::new() };
        let reported = AtomicU32::new(0);
        Self {
            inner: Arc::new(Inner {
                version,
                mounts,
                of,
                page_sizes,
                reported,
            }),
        }
    }

    /// Which generation carries the controllers.
    pub fn version(&self) -> Version {
        self.inner.version
    }

    /// v2, and Kelson itself runs in a container: moves the processes out of the root that is seen
    /// there into a cgroup `kelson-init` beneath it. Without that the kernel hands no controllers
    /// on ([`Error::Occupied`]). Does nothing anywhere else. `proc` is where proc is mounted.
    /// Returns whether something was moved.
    pub fn vacate_root(&self, proc: &Path) -> Result<bool> {
        if self.version() != Version::V2 {
            return Ok(false);
        }
        let root = Dir::new(self.inner.mounts[0].clone());
        let own = proc.join("self/cgroup");
        let own = std::fs::read_to_string(&own).map_err(|error| Error::io("read", &own, error))?;
        // The machine's own root has no cgroup.events, and may have processes and controllers.
        let real_root = !root.file("cgroup.events").exists();
        if real_root || mountinfo::own_v2_path(&own) != Some("/") {
            return Ok(false);
        }
        let init = crate::Cgroup::new(self, "kelson-init")?;
        init.make_dirs()?;
        let (mut buf, mut pids) = (Vec::new(), Vec::new());
        root.own_pids(&mut buf, &mut pids)?;
        for pid in pids {
            match init.add(pid) {
                Ok(()) => {}
                Err(Error::Io { source, .. })
                    if source.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// The roots of all hierarchies in use.
    pub(crate) fn mounts(&self) -> &[PathBuf] {
        &self.inner.mounts
    }

    /// The root of the hierarchy with a controller; `None` when the machine lacks it. On v2 that is
    /// always the one root: whether a controller is enabled is seen by its files.
    pub(crate) fn mount(&self, controller: Controller) -> Option<&Path> {
        let index = match self.version() {
            Version::V1 => self.inner.of[controller as usize]?,
            Version::V2 => 0,
        };
        Some(&self.inner.mounts[index])
    }

    pub(crate) fn page_sizes(&self) -> &[String] {
        &self.inner.page_sizes
    }

    /// Says once that limits of a controller are skipped.
    pub(crate) fn report_missing(&self, controller: Controller) {
        let bit = 1 << controller as u32;
        if self.inner.reported.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            tracing::warn!(
                controller = controller.v1_name(),
                "limits of this controller are not set: the machine has not mounted it"
            );
        }
    }
}

/// The sizes of huge pages that the kernel knows, in its cgroup notation.
fn page_sizes() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/kernel/mm/hugepages") else {
        return Vec::new();
    };
    let mut sizes: Vec<u64> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            name.to_str()?
                .strip_prefix("hugepages-")?
                .strip_suffix("kB")?
                .parse()
                .ok()
        })
        .collect();
    sizes.sort_unstable();
    sizes.into_iter().map(page_size_name).collect()
}

fn page_size_name(kib: u64) -> String {
    match kib {
        kib if kib >= 1 << 20 => format!("{}GB", kib >> 20),
        kib if kib >= 1 << 10 => format!("{}MB", kib >> 10),
        kib => format!("{kib}KB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
        30 1 0:1 / /c/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        31 1 0:2 / /c/memory rw - cgroup cgroup rw,memory\n\
        32 1 0:3 / /c/net rw - cgroup cgroup rw,net_cls,net_prio\n\
        33 1 0:4 / /c/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
        34 1 0:5 / /c/other ro - cgroup cgroup rw,name=other\n\
        35 1 0:6 / /c/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn v1_with_controllers_mounted_together() {
        let hierarchy = Hierarchy::from_mountinfo(V1).unwrap();
        assert_eq!(hierarchy.version(), Version::V1);
        let mounts: Vec<_> = hierarchy
            .mounts()
            .iter()
            .map(|m| m.to_str().unwrap())
            .collect();
        assert_eq!(mounts, ["/c/cpu,cpuacct", "/c/memory", "/c/systemd"]);
        let mount = |controller| {
            hierarchy
                .mount(controller)
                .map(|path| path.to_str().unwrap())
        };
        assert_eq!(mount(Controller::Cpu), Some("/c/cpu,cpuacct"));
        assert_eq!(mount(Controller::Cpuacct), Some("/c/cpu,cpuacct"));
        assert_eq!(mount(Controller::Memory), Some("/c/memory"));
        assert_eq!(mount(Controller::Pids), None);
    }

    #[test]
    fn v2_and_nothing() {
        let only_v2 = "35 1 0:6 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n\
                       33 1 0:4 / /c/systemd rw - cgroup cgroup rw,name=systemd\n";
        let hierarchy = Hierarchy::from_mountinfo(only_v2).unwrap();
        assert_eq!(hierarchy.version(), Version::V2);
        assert_eq!(hierarchy.mounts(), [Path::new("/sys/fs/cgroup")]);
        assert!(matches!(
            Hierarchy::from_mountinfo(""),
            Err(Error::NotMounted)
        ));
    }

    #[test]
    fn the_root_of_a_container_is_vacated() {
        let root = tempfile::tempdir().unwrap();
        let file = |name: &str| root.path().join(name);
        std::fs::create_dir_all(file("proc/self")).unwrap();
        std::fs::create_dir(file("kelson-init")).unwrap();
        for (name, content) in [
            ("proc/self/cgroup", "0::/\n"),
            ("cgroup.procs", "1\n7\n"),
            ("kelson-init/cgroup.procs", ""),
        ] {
            std::fs::write(file(name), content).unwrap();
        }
        let hierarchy = Hierarchy::v2_at(root.path());
        // Without cgroup.events it is the machine's own root.
        assert!(!hierarchy.vacate_root(&file("proc")).unwrap());
        std::fs::write(file("cgroup.events"), "populated 1\n").unwrap();
        assert!(hierarchy.vacate_root(&file("proc")).unwrap());
        assert_eq!(
            std::fs::read_to_string(file("kelson-init/cgroup.procs")).unwrap(),
            "7"
        );
        std::fs::write(file("proc/self/cgroup"), "0::/user\n").unwrap();
        assert!(!hierarchy.vacate_root(&file("proc")).unwrap());
    }

    #[test]
    fn page_sizes_as_the_kernel_writes_them() {
        let names = [64, 2048, 32_768, 1 << 20, 16 << 20].map(page_size_name);
        assert_eq!(names, ["64KB", "2MB", "32MB", "1GB", "16GB"]);
    }
}
