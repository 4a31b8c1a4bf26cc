//! What a cgroup uses.

/// What a cgroup uses, itself and its children together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// CPU time.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Processes and threads.
    pub pids: Pids,
    /// Block I/O.
    pub io: Io,
    /// Huge pages, one entry for each size the machine has.
    pub hugepages: Vec<Hugepages>,
    /// Pressure stall information (v2 only).
    pub psi: Option<PsiSet>,
}

/// CPU time, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cpu {
    /// Time used in all.
    pub usage_ns: u64,
    /// Part of it in user mode.
    pub user_ns: u64,
    /// Part of it in the kernel.
    pub system_ns: u64,
    /// Periods in which the quota was enforced.
    pub periods: u64,
    /// Periods in which the quota ran out.
    pub throttled_periods: u64,
    /// Time spent throttled.
    pub throttled_ns: u64,
}

/// Memory, in bytes where not said otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// All memory charged.
    pub usage: u64,
    /// `usage` without the inactive page cache, not below 0.
    pub working_set: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// Page cache.
    pub cache: u64,
    /// The limit; `None`: none.
    pub limit: Option<u64>,
    /// Highest usage seen; `None` where the kernel does not record it.
    pub max_usage: Option<u64>,
    /// Number of page faults.
    pub page_faults: u64,
    /// Number of page faults that had to read from a device.
    pub major_page_faults: u64,
    /// Swap used.
    pub swap: u64,
    /// The limit of swap alone; `None`: none or not accounted.
    pub swap_limit: Option<u64>,
    /// How often the limit was hit.
    pub failcnt: u64,
    /// Memory of the kernel charged here.
    pub kernel: u64,
    /// Memory-mapped files.
    pub mapped_file: u64,
    /// Active anonymous memory.
    pub active_anon: u64,
    /// Inactive anonymous memory.
    pub inactive_anon: u64,
    /// Active page cache.
    pub active_file: u64,
    /// Inactive page cache.
    pub inactive_file: u64,
}

/// Processes and threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pids {
    /// How many there are.
    pub current: u64,
    /// How many there may be; `None`: no limit.
    pub limit: Option<u64>,
}

/// Block I/O.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Io {
    /// By device.
    pub devices: Vec<IoDevice>,
}

/// Block I/O of one device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoDevice {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Operations read.
    pub read_ops: u64,
    /// Operations written.
    pub write_ops: u64,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hugepages {
    /// Size as the kernel writes it.
    pub page_size: String,
    /// Bytes used.
    pub usage: u64,
    /// Highest usage seen, where the kernel records it.
    pub max_usage: Option<u64>,
    /// How often the limit was hit.
    pub failcnt: u64,
}

/// Pressure of the three resources.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PsiSet {
    /// CPU.
    pub cpu: Psi,
    /// Memory.
    pub memory: Psi,
    /// Block I/O.
    pub io: Psi,
}

/// Pressure of one resource.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Psi {
    /// Some task was stalled.
    pub some: Pressure,
    /// All tasks were stalled.
    pub full: Pressure,
}

/// One line of a pressure file.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// Per cent of the last 10 s.
    pub avg10: f64,
    /// Per cent of the last 60 s.
    pub avg60: f64,
    /// Per cent of the last 300 s.
    pub avg300: f64,
    /// µs in all.
    pub total_us: u64,
}
