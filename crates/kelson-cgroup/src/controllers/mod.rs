//! The controllers: one file each, with its limits and its statistics on v1 and v2.

pub(crate) mod cpu;
pub(crate) mod cpuset;
mod device_program;
mod device_set;
mod devices;
mod hugetlb;
mod io;
pub(crate) mod memory;
mod pids;
mod pressure;
mod unified;

use rustix::io::Errno;

use crate::dir::Dir;
use crate::hierarchy::Controller;
use crate::{Cgroup, Error, Resources, Result, Stats, Version};

/// Sets all limits of `resources`.
pub(crate) fn apply(cgroup: &Cgroup, resources: &Resources) -> Result<()> {
    match cgroup.hierarchy().version() {
        Version::V1 => apply_v1(cgroup, resources),
        Version::V2 => {
            let dir = cgroup.main_dir();
            cpu::apply_v2(&dir, resources)?;
            cpuset::apply(&dir, resources)?;
            memory::apply_v2(&dir, resources)?;
            pids::apply(&dir, resources)?;
            hugetlb::apply(&dir, Version::V2, resources)?;
            io::apply_v2(&dir, resources)?;
            devices::apply_v2(&dir, resources)?;
            unified::apply(&dir, resources)
        }
    }
}

fn apply_v1(cgroup: &Cgroup, resources: &Resources) -> Result<()> {
    unified::refuse_on_v1(resources)?;
    let with = |controller, wanted: bool, apply: &dyn Fn(&Dir) -> Result<()>| match cgroup
        .dir(controller)
    {
        _ if !wanted => Ok(()),
        Some(dir) => apply(&dir),
        None => {
            cgroup.hierarchy().report_missing(controller);
            Ok(())
        }
    };
    let r = resources;
    with(Controller::Cpu, cpu::wanted(r), &|dir| {
        cpu::apply_v1(dir, r)
    })?;
    with(Controller::Cpuset, cpuset::wanted(r), &|dir| {
        cpuset::apply(dir, r)
    })?;
    with(Controller::Memory, memory::wanted(r), &|dir| {
        memory::apply_v1(dir, r)
    })?;
    with(Controller::Pids, r.pids_limit.is_some(), &|dir| {
        pids::apply(dir, r)
    })?;
    with(Controller::Hugetlb, !r.hugepages.is_empty(), &|dir| {
        hugetlb::apply(dir, Version::V1, r)
    })?;
    with(Controller::Io, io::wanted(r), &|dir| io::apply_v1(dir, r))?;
    match cgroup.dir(Controller::Devices) {
        Some(dir) => devices::apply_v1(&dir, r),
        None => devices::refuse_without(r),
    }
}

/// How much is read: opening and reading a file costs about 8 µs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detail {
    /// All there is.
    All,
    /// CPU time in all, memory without the rarer counters, and pressure.
    Usage,
}

/// Reads statistics.
pub(crate) fn stats(cgroup: &Cgroup, detail: Detail) -> Result<Stats> {
    let mut buf = Vec::with_capacity(4096);
    let mut stats = Stats::default();
    match cgroup.hierarchy().version() {
        Version::V1 => stats_v1(cgroup, detail, &mut stats, &mut buf)?,
        Version::V2 => stats_v2(cgroup, detail, &mut stats, &mut buf)?,
    }
    // A cgroup that is there uses or has used something; all zero may mean that it is gone.
    if stats.cpu.usage_ns == 0 && stats.memory.usage == 0 && !cgroup.exists() {
        return Err(Error::io("read", cgroup.main_dir().path(), Errno::NOENT));
    }
    Ok(stats)
}

fn stats_v1(cgroup: &Cgroup, detail: Detail, to: &mut Stats, buf: &mut Vec<u8>) -> Result<()> {
    let dir = |controller| cgroup.dir(controller);
    if let Some(dir) = dir(Controller::Cpuacct) {
        cpu::stats_cpuacct(&dir, detail, &mut to.cpu, buf)?;
    }
    if let Some(dir) = dir(Controller::Memory) {
        to.memory = memory::stats_v1(&dir, detail, buf)?;
    }
    if detail == Detail::Usage {
        return Ok(());
    }
    if let Some(dir) = dir(Controller::Cpu) {
        cpu::throttling_v1(&dir, &mut to.cpu, buf)?;
    }
    if let Some(dir) = dir(Controller::Pids) {
        to.pids = pids::stats(&dir, buf)?;
    }
    if let Some(dir) = dir(Controller::Io) {
        to.io = io::stats_v1(&dir, buf)?;
    }
    if let Some(dir) = dir(Controller::Hugetlb) {
        let sizes = cgroup.hierarchy().page_sizes();
        to.hugepages = hugetlb::stats(&dir, Version::V1, sizes, buf)?;
    }
    Ok(())
}

fn stats_v2(cgroup: &Cgroup, detail: Detail, to: &mut Stats, buf: &mut Vec<u8>) -> Result<()> {
    let dir = cgroup.main_dir();
    to.cpu = cpu::stats_v2(&dir, buf)?;
    to.memory = memory::stats_v2(&dir, detail, buf)?;
    to.psi = pressure::read(&dir, buf)?;
    if detail == Detail::All {
        to.pids = pids::stats(&dir, buf)?;
        to.io = io::stats_v2(&dir, buf)?;
        to.hugepages = hugetlb::stats(&dir, Version::V2, cgroup.hierarchy().page_sizes(), buf)?;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod testing {
    //! A directory of plain files in place of a cgroup.

    use crate::dir::Dir;

    pub(crate) struct Files {
        // Held for its removal at the end.
        _temporary: tempfile::TempDir,
        pub(crate) dir: Dir,
    }

    impl Files {
        /// With empty files of these names.
        pub(crate) fn new(names: &[&str]) -> Self {
            let temporary = tempfile::tempdir().unwrap();
            let dir = Dir::new(temporary.path().to_owned());
            let files = Self {
                _temporary: temporary,
                dir,
            };
            for name in names {
                files.set(name, "");
            }
            files
        }

        pub(crate) fn set(&self, name: &str, content: &str) {
            std::fs::write(self.dir.file(name), content).unwrap();
        }

        pub(crate) fn get(&self, name: &str) -> String {
            std::fs::read_to_string(self.dir.file(name)).unwrap()
        }
    }
}
