//! Limits, in the units of the OCI runtime specification (those of cgroup v1).

use std::collections::BTreeMap;

/// Limits to apply to a cgroup. `None` and empty collections leave what is set untouched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Relative share of CPU time, 2 to 262144 (v1 `cpu.shares`).
    pub cpu_shares: Option<u64>,
    /// CPU time in µs that may be used in a period; negative: no limit.
    pub cpu_quota: Option<i64>,
    /// Length of the period in µs.
    pub cpu_period: Option<u64>,
    /// Unused quota in µs that may be accumulated.
    pub cpu_burst: Option<u64>,
    /// 1 makes the whole cgroup run only when nothing else wants the CPU.
    pub cpu_idle: Option<i64>,
    /// CPUs in list format, such as `0-3,7`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes in list format.
    pub cpuset_mems: Option<String>,
    /// Limit of memory in bytes; -1: no limit.
    pub memory_limit: Option<i64>,
    /// Limit of memory and swap together in bytes; -1: no limit. When it is unset and
    /// `memory_limit` is set, it is taken to be equal to `memory_limit` (no swap).
    pub memory_swap: Option<i64>,
    /// Soft limit of memory in bytes; -1: none.
    pub memory_reservation: Option<i64>,
    /// 0 to 100 (v1 only).
    pub memory_swappiness: Option<u64>,
    /// Disables the OOM killer (v1 only).
    pub oom_kill_disable: Option<bool>,
    /// Largest number of processes and threads; -1: no limit.
    pub pids_limit: Option<i64>,
    /// Limits of huge pages by page size.
    pub hugepages: Vec<HugepageLimit>,
    /// Relative share of block I/O, 10 to 1000 (v1 `blkio.weight`).
    pub io_weight: Option<u16>,
    /// As `io_weight`, for single devices.
    pub io_device_weights: Vec<IoWeight>,
    /// Bytes a second read, by device.
    pub io_read_bps: Vec<IoThrottle>,
    /// Bytes a second written, by device.
    pub io_write_bps: Vec<IoThrottle>,
    /// Operations a second read, by device.
    pub io_read_iops: Vec<IoThrottle>,
    /// Operations a second written, by device.
    pub io_write_iops: Vec<IoThrottle>,
    /// cgroup v2 files and what to write to them, applied last. Refused on v1.
    pub unified: BTreeMap<String, String>,
    /// Device access in order, later rules win; what no rule allows is denied. Empty: untouched.
    pub devices: Vec<DeviceRule>,
}

/// A limit for huge pages of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HugepageLimit {
    /// Size as the kernel writes it: `2MB`, `1GB`.
    pub page_size: String,
    /// Limit in bytes.
    pub limit: u64,
}

/// A rate for one block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoThrottle {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Bytes or operations a second; 0: no limit.
    pub rate: u64,
}

/// A weight for one block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoWeight {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// 10 to 1000.
    pub weight: u16,
}

/// One rule of device access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRule {
    /// Allows or denies.
    pub allow: bool,
    /// What kind of device it is about.
    pub kind: DeviceKind,
    /// Major number; `None`: all.
    pub major: Option<u32>,
    /// Minor number; `None`: all.
    pub minor: Option<u32>,
    /// The kinds of access.
    pub access: Access,
}

/// The kind of device that a [`DeviceRule`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// Character and block devices (`a`).
    All,
    /// Character devices (`c`).
    Char,
    /// Block devices (`b`).
    Block,
}

/// Kinds of access to a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Access {
    /// `r`
    pub read: bool,
    /// `w`
    pub write: bool,
    /// `m`
    pub mknod: bool,
}

impl Access {
    /// All three.
    pub const ALL: Access = Access {
        read: true,
        write: true,
        mknod: true,
    };
}
