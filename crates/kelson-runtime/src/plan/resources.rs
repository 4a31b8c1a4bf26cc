//! Limits: from the runtime specification to the cgroup crate's own terms.

use kelson_cgroup::{
    Access, DeviceKind, DeviceRule, HugepageLimit, IoThrottle, IoWeight, Resources,
};
use oci_spec::runtime::{
    LinuxBlockIo, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxResources,
    LinuxThrottleDevice,
};

/// Character devices that every container may use: `/dev/null` and its like, terminals, and pty.
const ALWAYS: [(u32, Option<u32>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// The limits of `linux.resources`. Where it restricts devices, those that the runtime makes
/// itself (the usual ones and `linux.devices`) stay usable.
pub(crate) fn from_spec(spec: &LinuxResources, made: &[LinuxDevice]) -> Resources {
    let mut resources = Resources::default();
    if let Some(cpu) = spec.cpu() {
        resources.cpu_shares = cpu.shares().filter(|n| *n != 0);
        resources.cpu_quota = cpu.quota().filter(|n| *n != 0);
        resources.cpu_period = cpu.period().filter(|n| *n != 0);
        resources.cpu_burst = cpu.burst();
        resources.cpu_idle = cpu.idle();
        resources.cpuset_cpus = cpu.cpus().clone().filter(|text| !text.is_empty());
        resources.cpuset_mems = cpu.mems().clone().filter(|text| !text.is_empty());
    }
    if let Some(memory) = spec.memory() {
        resources.memory_limit = memory.limit().filter(|n| *n != 0);
        resources.memory_swap = memory.swap().filter(|n| *n != 0);
        resources.memory_reservation = memory.reservation().filter(|n| *n != 0);
        resources.memory_swappiness = memory.swappiness();
        resources.oom_kill_disable = memory.disable_oom_killer();
    }
    resources.pids_limit = spec
        .pids()
        .as_ref()
        .map(|pids| pids.limit())
        .filter(|n| *n != 0);
    if let Some(io) = spec.block_io() {
        block_io(io, &mut resources);
    }
    for limit in spec.hugepage_limits().iter().flatten() {
        resources.hugepages.push(HugepageLimit {
            page_size: limit.page_size().clone(),
            limit: limit.limit().max(0).cast_unsigned(),
        });
    }
    resources.unified = spec
        .unified()
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let rules = spec.devices().as_deref().unwrap_or_default();
    if !rules.is_empty() {
        resources.devices = rules.iter().map(rule).collect();
        resources.devices.extend(always());
        resources
            .devices
            .extend(made.iter().map(|d| rule(&LinuxDeviceCgroup::from(d))));
    }
    resources
}

fn block_io(io: &LinuxBlockIo, resources: &mut Resources) {
    resources.io_weight = io.weight().filter(|n| *n != 0);
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = device.weight() {
            let (major, minor) = (number(device.major()), number(device.minor()));
            resources.io_device_weights.push(IoWeight {
                major,
                minor,
                weight,
            });
        }
    }
    resources.io_read_bps = throttles(io.throttle_read_bps_device());
    resources.io_write_bps = throttles(io.throttle_write_bps_device());
    resources.io_read_iops = throttles(io.throttle_read_iops_device());
    resources.io_write_iops = throttles(io.throttle_write_iops_device());
}

fn throttles(list: &Option<Vec<LinuxThrottleDevice>>) -> Vec<IoThrottle> {
    let throttle = |device: &LinuxThrottleDevice| IoThrottle {
        major: number(device.major()),
        minor: number(device.minor()),
        rate: device.rate(),
    };
    list.iter().flatten().map(throttle).collect()
}

/// What is always allowed: making any node (the rule is about using it), and the usual devices.
fn always() -> impl Iterator<Item = DeviceRule> {
    let mknod = Access {
        read: false,
        write: false,
        mknod: true,
    };
    let make = [DeviceKind::Char, DeviceKind::Block].map(|kind| DeviceRule {
        allow: true,
        kind,
        major: None,
        minor: None,
        access: mknod,
    });
    let usual = ALWAYS.map(|(major, minor)| DeviceRule {
        allow: true,
        kind: DeviceKind::Char,
        major: Some(major),
        minor,
        access: Access::ALL,
    });
    make.into_iter().chain(usual)
}

fn rule(rule: &LinuxDeviceCgroup) -> DeviceRule {
    let wanted = |n: Option<i64>| n.and_then(|n| u32::try_from(n).ok());
    let access = rule
        .access()
        .as_deref()
        .filter(|text| !text.is_empty())
        .unwrap_or("rwm");
    DeviceRule {
        allow: rule.allow(),
        kind: match rule.typ() {
            None | Some(LinuxDeviceType::A) => DeviceKind::All,
            Some(LinuxDeviceType::B) => DeviceKind::Block,
            Some(_) => DeviceKind::Char,
        },
        major: wanted(rule.major()),
        minor: wanted(rule.minor()),
        access: Access {
            read: access.contains('r'),
            write: access.contains('w'),
            mknod: access.contains('m'),
        },
    }
}

fn number(n: i64) -> u32 {
    u32::try_from(n).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(json: serde_json::Value) -> Resources {
        from_spec(&serde_json::from_value(json).unwrap(), &[])
    }

    #[test]
    fn zero_means_not_given() {
        let resources = parse(
            json!({"cpu": {"shares": 0, "quota": 0}, "memory": {"limit": 0},
            "pids": {"limit": 0}}),
        );
        assert_eq!(resources, Resources::default());
    }

    #[test]
    fn limits_are_taken_over() {
        let resources = parse(json!({"cpu": {"shares": 512, "cpus": "0-1"},
            "memory": {"limit": 1024, "swap": -1}, "pids": {"limit": 7},
            "unified": {"memory.high": "5"}}));
        assert_eq!(resources.cpu_shares, Some(512));
        assert_eq!(resources.cpuset_cpus.as_deref(), Some("0-1"));
        assert_eq!(
            (resources.memory_limit, resources.memory_swap),
            (Some(1024), Some(-1))
        );
        assert_eq!(resources.pids_limit, Some(7));
        assert_eq!(resources.unified["memory.high"], "5");
    }

    #[test]
    fn a_deny_of_all_leaves_the_usual_devices() {
        let resources = parse(json!({"devices": [{"allow": false, "access": "rwm"}]}));
        assert!(!resources.devices[0].allow);
        assert_eq!(resources.devices[0].kind, DeviceKind::All);
        assert!(
            resources
                .devices
                .iter()
                .any(|d| d.allow && d.major == Some(1))
        );
    }

    #[test]
    fn no_rule_leaves_devices_alone() {
        assert!(parse(json!({"devices": []})).devices.is_empty());
    }
}
