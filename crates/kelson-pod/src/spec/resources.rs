//! The limits of a container in the words of the runtime specification.

use std::collections::HashMap;

use oci_spec::runtime::{
    LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxHugepageLimit, LinuxMemory, LinuxPids,
    LinuxResources,
};

use super::devices::Node;
use crate::config::Resources;

/// Devices that every container may use: kind, major, minor (`None`: all), access.
const DEFAULT_DEVICES: &[(LinuxDeviceType, Option<i64>, Option<i64>, &str)] = &[
    (LinuxDeviceType::C, None, None, "m"),
    (LinuxDeviceType::B, None, None, "m"),
    (LinuxDeviceType::C, Some(1), Some(3), "rwm"),
    (LinuxDeviceType::C, Some(1), Some(5), "rwm"),
    (LinuxDeviceType::C, Some(1), Some(7), "rwm"),
    (LinuxDeviceType::C, Some(1), Some(8), "rwm"),
    (LinuxDeviceType::C, Some(1), Some(9), "rwm"),
    (LinuxDeviceType::C, Some(5), Some(0), "rwm"),
    (LinuxDeviceType::C, Some(5), Some(1), "rwm"),
    (LinuxDeviceType::C, Some(5), Some(2), "rwm"),
    (LinuxDeviceType::C, Some(136), None, "rwm"),
];

/// The limits. `pids` is the node's limit of processes.
pub(crate) fn limits(
    wanted: &Resources,
    pids: Option<i64>,
    privileged: bool,
    devices: &[Node],
) -> LinuxResources {
    let mut all = LinuxResources::default();
    set(&mut all, wanted);
    all.set_pids(pids.map(|limit| {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        pids
    }));
    all.set_devices(Some(device_rules(privileged, devices)));
    all
}

/// Sets the limits that a request can give.
pub(crate) fn set(all: &mut LinuxResources, wanted: &Resources) {
    all.set_cpu(cpu(wanted)).set_memory(memory(wanted));
    if !wanted.hugepages.is_empty() {
        let limit = |(size, bytes): &(String, u64)| {
            let mut limit = LinuxHugepageLimit::default();
            limit
                .set_page_size(size.clone())
                .set_limit(i64::try_from(*bytes).unwrap_or(i64::MAX));
            limit
        };
        all.set_hugepage_limits(Some(wanted.hugepages.iter().map(limit).collect()));
    }
    if !wanted.unified.is_empty() {
        let unified: HashMap<_, _> = wanted.unified.clone().into_iter().collect();
        all.set_unified(Some(unified));
    }
}

/// Raises the limit of processes, if there is one, by one.
pub(crate) fn allow_one_more(all: &mut LinuxResources) {
    if let Some(pids) = all.pids_mut().as_mut().filter(|pids| pids.limit() >= 0) {
        // The least that is set is 1.
        pids.set_limit(pids.limit().max(1).saturating_add(1));
    }
    let unified = all.unified_mut().as_mut();
    if let Some(value) = unified.and_then(|unified| unified.get_mut("pids.max"))
        && let Ok(limit) = value.trim().parse::<u64>()
    {
        *value = limit.saturating_add(1).to_string();
    }
}

fn cpu(wanted: &Resources) -> Option<LinuxCpu> {
    let mut cpu = LinuxCpu::default();
    // Zero means "not given"; a negative number passed validation only where it means "no limit".
    cpu.set_shares(
        u64::try_from(wanted.cpu_shares)
            .ok()
            .filter(|shares| *shares != 0),
    )
    .set_quota((wanted.cpu_quota != 0).then_some(wanted.cpu_quota))
    .set_period(
        u64::try_from(wanted.cpu_period)
            .ok()
            .filter(|period| *period != 0),
    )
    .set_cpus(Some(wanted.cpuset_cpus.clone()).filter(|list| !list.is_empty()))
    .set_mems(Some(wanted.cpuset_mems.clone()).filter(|list| !list.is_empty()));
    (cpu != LinuxCpu::default()).then_some(cpu)
}

fn memory(wanted: &Resources) -> Option<LinuxMemory> {
    let mut memory = LinuxMemory::default();
    memory
        .set_limit((wanted.memory_limit != 0).then_some(wanted.memory_limit))
        .set_swap((wanted.memory_swap_limit != 0).then_some(wanted.memory_swap_limit));
    (memory != LinuxMemory::default()).then_some(memory)
}

fn device_rules(privileged: bool, devices: &[Node]) -> Vec<LinuxDeviceCgroup> {
    let rule = |allow: bool, kind, major, minor, access: &str| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(allow)
            .set_typ(Some(kind))
            .set_major(major)
            .set_minor(minor)
            .set_access(Some(access.to_owned()));
        rule
    };
    if privileged {
        return vec![rule(true, LinuxDeviceType::A, None, None, "rwm")];
    }
    let mut rules = vec![rule(false, LinuxDeviceType::A, None, None, "rwm")];
    let defaults = DEFAULT_DEVICES.iter();
    rules.extend(
        defaults.map(|(kind, major, minor, access)| rule(true, *kind, *major, *minor, access)),
    );
    let asked = devices.iter();
    rules.extend(asked.map(|node| {
        rule(
            true,
            node.kind,
            Some(node.major),
            Some(node.minor),
            &node.access,
        )
    }));
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_is_not_set() {
        let all = limits(&Resources::default(), None, false, &[]);
        assert!(all.cpu().is_none() && all.memory().is_none() && all.pids().is_none());
        assert!(all.hugepage_limits().is_none() && all.unified().is_none());
        let rules = all.devices().as_ref().unwrap();
        assert!(!rules[0].allow() && rules[1..].iter().all(LinuxDeviceCgroup::allow));
    }

    #[test]
    fn one_more_process() {
        for (limit, expected) in [(-1, -1), (0, 2), (1, 2), (i64::MAX, i64::MAX)] {
            let mut all = limits(&Resources::default(), Some(limit), false, &[]);
            allow_one_more(&mut all);
            assert_eq!(all.pids().as_ref().unwrap().limit(), expected);
        }
        for (limit, expected) in [("1", "2"), ("max", "max")] {
            let wanted = Resources {
                unified: [("pids.max".to_owned(), limit.to_owned())].into(),
                ..Resources::default()
            };
            let mut all = limits(&wanted, None, false, &[]);
            allow_one_more(&mut all);
            assert_eq!(all.unified().as_ref().unwrap()["pids.max"], expected);
        }
    }

    #[test]
    fn what_is_given_is_set() {
        let wanted = Resources {
            cpu_period: 100_000,
            cpu_quota: -1,
            cpu_shares: 512,
            memory_limit: 64 << 20,
            memory_swap_limit: 128 << 20,
            cpuset_cpus: "0-1".into(),
            hugepages: vec![("2MB".into(), 4 << 20)],
            unified: [("memory.high".to_owned(), "1".to_owned())].into(),
            ..Resources::default()
        };
        let all = limits(&wanted, Some(100), false, &[]);
        let cpu = all.cpu().as_ref().unwrap();
        assert_eq!(
            (cpu.shares(), cpu.quota(), cpu.period()),
            (Some(512), Some(-1), Some(100_000))
        );
        assert_eq!(
            (cpu.cpus().as_deref(), cpu.mems().as_deref()),
            (Some("0-1"), None)
        );
        let memory = all.memory().as_ref().unwrap();
        assert_eq!(
            (memory.limit(), memory.swap()),
            (Some(64 << 20), Some(128 << 20))
        );
        assert_eq!(all.pids().as_ref().unwrap().limit(), 100);
        assert_eq!(
            all.hugepage_limits().as_ref().unwrap()[0].page_size(),
            "2MB"
        );
        assert_eq!(all.unified().as_ref().unwrap()["memory.high"], "1");
    }

    #[test]
    fn devices() {
        let fuse = Node {
            path: "/dev/fuse".into(),
            kind: LinuxDeviceType::C,
            major: 10,
            minor: 229,
            mode: 0o666,
            uid: 0,
            gid: 0,
            access: "rw".into(),
        };
        let all = limits(&Resources::default(), None, false, &[fuse]);
        let last = all.devices().as_ref().unwrap().last().unwrap().clone();
        assert_eq!((last.major(), last.minor()), (Some(10), Some(229)));
        assert_eq!(last.access().as_deref(), Some("rw"));
        let privileged = limits(&Resources::default(), None, true, &[]);
        assert_eq!(privileged.devices().as_ref().unwrap().len(), 1);
    }
}
