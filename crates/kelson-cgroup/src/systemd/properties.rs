//! Limits as properties of a unit (systemd.resource-control(5)), so that systemd keeps them when it
//! writes a unit's cgroup anew. What has no property is only in the cgroup's files.

use super::wire::Writer;
use crate::controllers::{cpu, memory};
use crate::{IoThrottle, Resources, Result};

/// "No limit" as systemd has it.
const INFINITY: u64 = u64::MAX;
/// systemd keeps a quota in whole percents of a second of one CPU.
const PERCENT_US: u64 = 10_000;

/// A value of a property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Bool(bool),
    Text(String),
    Number(u64),
    /// A set as bytes, least first.
    Bits(Vec<u8>),
    Pids(Vec<u32>),
    /// Devices by path, each with a number.
    Devices(Vec<(String, u64)>),
}

/// A property.
pub(super) type Property = (&'static str, Value);

/// Writes properties as `a(sv)`.
pub(super) fn write(to: &mut Writer, properties: &[Property]) {
    to.array(8, |to| {
        for (name, value) in properties {
            to.align(8);
            to.text(name);
            match value {
                Value::Bool(value) => {
                    to.signature("b");
                    to.u32(u32::from(*value));
                }
                Value::Text(value) => {
                    to.signature("s");
                    to.text(value);
                }
                Value::Number(value) => {
                    to.signature("t");
                    to.u64(*value);
                }
                Value::Bits(bits) => {
                    to.signature("ay");
                    to.array(1, |to| to.0.extend(bits));
                }
                Value::Pids(pids) => {
                    to.signature("au");
                    to.array(4, |to| pids.iter().for_each(|pid| to.u32(*pid)));
                }
                Value::Devices(devices) => {
                    to.signature("a(st)");
                    to.array(8, |to| {
                        for (path, number) in devices {
                            to.align(8);
                            to.text(path);
                            to.u64(*number);
                        }
                    });
                }
            }
        }
    });
}

/// The properties of the limits that are set. They go with [`Cgroup::apply`](crate::Cgroup::apply),
/// which refuses the wrong ones and does the rest.
pub(super) fn of(r: &Resources) -> Result<Vec<Property>> {
    let mut all = Vec::new();
    let mut number = |name, value: Option<u64>| {
        all.extend(value.map(|value| (name, Value::Number(value))));
    };
    let shares = r.cpu_shares.filter(|shares| *shares != 0);
    number("CPUWeight", shares.map(cpu::weight));
    let period = r.cpu_period.filter(|period| *period != 0);
    number("CPUQuotaPeriodUSec", period);
    number(
        "CPUQuotaPerSecUSec",
        r.cpu_quota
            .filter(|quota| *quota != 0)
            .map(|quota| quota_per_second(quota, period)),
    );
    let (memory, with_swap) = memory::limits(r)?;
    number("MemoryMax", memory.map(limit));
    number(
        "MemorySwapMax",
        match (memory, with_swap) {
            (_, Some(-1)) => Some(INFINITY),
            (Some(memory), Some(with_swap)) => u64::try_from(with_swap - memory).ok(),
            _ => None,
        },
    );
    let low = r.memory_reservation.filter(|value| *value != 0);
    number("MemoryLow", low.map(limit));
    number(
        "TasksMax",
        r.pids_limit
            .map(|limit| u64::try_from(limit).map_or(INFINITY, |n| n.max(1))),
    );
    number("IOWeight", r.io_weight.map(u64::from));
    for (name, list) in [
        ("AllowedCPUs", &r.cpuset_cpus),
        ("AllowedMemoryNodes", &r.cpuset_mems),
    ] {
        let bits = list.as_deref().and_then(bits);
        all.extend(bits.map(|bits| (name, Value::Bits(bits))));
    }
    for (name, throttles) in [
        ("IOReadBandwidthMax", &r.io_read_bps),
        ("IOWriteBandwidthMax", &r.io_write_bps),
        ("IOReadIOPSMax", &r.io_read_iops),
        ("IOWriteIOPSMax", &r.io_write_iops),
    ] {
        if !throttles.is_empty() {
            all.push((name, Value::Devices(throttles.iter().map(device).collect())));
        }
    }
    unified(r, &mut all);
    Ok(all)
}

fn limit(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(INFINITY)
}

/// Rounded up: a little more is closer to what was asked for than a cgroup that cannot hold the
/// quota of those beneath it.
fn quota_per_second(quota: i64, period: Option<u64>) -> u64 {
    let Ok(quota) = u64::try_from(quota) else {
        return INFINITY;
    };
    // The kernel's own period is 100 ms.
    let period = period.unwrap_or(100_000).max(1);
    let per_second = u128::from(quota) * 1_000_000 / u128::from(period);
    let per_second = u64::try_from(per_second).unwrap_or(INFINITY - PERCENT_US);
    per_second.next_multiple_of(PERCENT_US)
}

fn device(throttle: &IoThrottle) -> (String, u64) {
    let IoThrottle { major, minor, rate } = throttle;
    let rate = if *rate == 0 { INFINITY } else { *rate };
    (format!("/dev/block/{major}:{minor}"), rate)
}

/// A list such as `0-3,7` as a set; `None` when it is none.
fn bits(list: &str) -> Option<Vec<u8>> {
    // More than any kernel's CPUs.
    const MOST: usize = 1 << 16;
    let mut set = Vec::new();
    for range in list.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        if last >= MOST {
            return None;
        }
        for one in first..=last {
            if set.len() <= one / 8 {
                set.resize(one / 8 + 1, 0);
            }
            set[one / 8] |= 1_u8 << (one % 8);
        }
    }
    (!set.is_empty()).then_some(set)
}

/// v2 files that have a property. Others are only written.
fn unified(r: &Resources, all: &mut Vec<Property>) {
    for (file, value) in &r.unified {
        let value = value.trim();
        let number = match value {
            "max" => Some(INFINITY),
            digits => digits.parse().ok(),
        };
        let name = match file.as_str() {
            "cpu.weight" => "CPUWeight",
            "memory.min" => "MemoryMin",
            "memory.low" => "MemoryLow",
            "memory.high" => "MemoryHigh",
            "memory.max" => "MemoryMax",
            "memory.swap.max" => "MemorySwapMax",
            "pids.max" => "TasksMax",
            "cpuset.cpus" | "cpuset.mems" => {
                let name = match file.as_str() {
                    "cpuset.cpus" => "AllowedCPUs",
                    _ => "AllowedMemoryNodes",
                };
                all.extend(bits(value).map(|bits| (name, Value::Bits(bits))));
                continue;
            }
            "cpu.max" => {
                let (quota, period) = value.split_once(' ').unwrap_or((value, "100000"));
                let (quota, Ok(period)) = (quota.parse().unwrap_or(-1), period.trim().parse())
                else {
                    continue;
                };
                let quota = Value::Number(quota_per_second(quota, Some(period)));
                all.push(("CPUQuotaPeriodUSec", Value::Number(period)));
                all.push(("CPUQuotaPerSecUSec", quota));
                continue;
            }
            _ => continue,
        };
        all.extend(number.map(|number| (name, Value::Number(number))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_properties() {
        let r = Resources {
            cpu_shares: Some(1024),
            cpu_quota: Some(12_345),
            cpu_period: Some(100_000),
            cpuset_cpus: Some("0-1,9".into()),
            memory_limit: Some(100),
            memory_swap: Some(150),
            pids_limit: Some(0),
            io_read_bps: vec![IoThrottle {
                major: 8,
                minor: 0,
                rate: 7,
            }],
            ..Resources::default()
        };
        let number = |name, value| (name, Value::Number(value));
        assert_eq!(
            of(&r).unwrap(),
            [
                number("CPUWeight", 100),
                number("CPUQuotaPeriodUSec", 100_000),
                number("CPUQuotaPerSecUSec", 130_000),
                number("MemoryMax", 100),
                number("MemorySwapMax", 50),
                number("TasksMax", 1),
                ("AllowedCPUs", Value::Bits(vec![0b11, 0b10])),
                (
                    "IOReadBandwidthMax",
                    Value::Devices(vec![("/dev/block/8:0".into(), 7)])
                ),
            ]
        );
        assert_eq!(of(&Resources::default()).unwrap(), []);
    }

    #[test]
    fn no_limit_is_infinity() {
        let r = Resources {
            cpu_quota: Some(-1),
            memory_limit: Some(-1),
            pids_limit: Some(-1),
            ..Resources::default()
        };
        let all = of(&r).unwrap();
        assert_eq!(all.len(), 4);
        assert!(
            all.iter()
                .all(|(_, value)| *value == Value::Number(INFINITY)),
            "{all:?}"
        );
        let wrong = Resources {
            memory_limit: Some(100),
            memory_swap: Some(50),
            ..Resources::default()
        };
        assert!(of(&wrong).is_err());
    }

    #[test]
    fn files_that_have_a_property() {
        let pair = |(file, value): (&str, &str)| (file.to_owned(), value.to_owned());
        let unified = [
            ("cpu.max", "max 50000"),
            ("memory.high", "4096"),
            ("memory.oom.group", "1"),
            ("pids.max", "max"),
            ("cpuset.mems", "0"),
        ];
        let r = Resources {
            unified: unified.into_iter().map(pair).collect(),
            ..Resources::default()
        };
        assert_eq!(
            of(&r).unwrap(),
            [
                ("CPUQuotaPeriodUSec", Value::Number(50_000)),
                ("CPUQuotaPerSecUSec", Value::Number(INFINITY)),
                ("AllowedMemoryNodes", Value::Bits(vec![1])),
                ("MemoryHigh", Value::Number(4096)),
                ("TasksMax", Value::Number(INFINITY)),
            ]
        );
    }

    #[test]
    fn properties_on_the_wire() {
        let mut to = Writer::default();
        write(
            &mut to,
            &[("Ab", Value::Bool(true)), ("Cd", Value::Pids(vec![7, 8]))],
        );
        let expected = [
            &b"\x2c\0\0\0\0\0\0\0"[..],
            b"\x02\0\0\0Ab\0\x01b\0\0\0\x01\0\0\0",
            b"\x02\0\0\0Cd\0\x02au\0\0\x08\0\0\0\x07\0\0\0\x08\0\0\0",
        ]
        .concat();
        let length = u32::try_from(expected.len() - 8).unwrap().to_le_bytes();
        assert_eq!(to.0[4..], expected[4..]);
        assert_eq!(to.0[..4], length);
        to = Writer::default();
        write(
            &mut to,
            &[
                ("N", Value::Number(1)),
                ("S", Value::Text("x".into())),
                ("B", Value::Bits(vec![3])),
                ("D", Value::Devices(vec![("p".into(), 2)])),
            ],
        );
        assert_eq!(to.0.len() % 8, 0);
    }

    proptest::proptest! {
        #[test]
        fn any_list_is_read_without_panic(list in "[0-9,-]{0,12}") {
            let _ = bits(&list);
        }
    }
}
