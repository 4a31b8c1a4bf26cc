//! The families of metrics: name, meaning, labels of their own, and where the value comes from. One table
//! for the descriptors and the samples, so that neither can have what the other lacks.

use std::path::Path;

use kelson_cgroup::{IoDevice, PsiSet};
use kelson_cri::v1::{self, MetricType};
use kelson_network::InterfaceStats;
use kelson_pod::ContainerMetrics;

/// Names of the labels that a family has besides those that all have.
pub(super) type Labels = &'static [&'static str];

const NS: u64 = 1_000_000_000;
const US: u64 = 1_000_000;

/// One family over a source of values.
pub(super) struct Family<S: 'static> {
    name: &'static str,
    help: &'static str,
    labels: Labels,
    kind: MetricType,
    values: fn(&S, &mut Values),
}

/// The values of one family with their own labels.
#[derive(Default)]
struct Values(Vec<(Vec<String>, u64)>);

impl Values {
    fn one(&mut self, value: u64) {
        self.0.push((Vec::new(), value));
    }

    fn with<const N: usize>(&mut self, labels: [&str; N], value: u64) {
        self.0.push((labels.map(str::to_owned).into(), value));
    }
}

/// The metrics of one pod or container as they are gathered.
pub(super) struct Samples {
    at: i64,
    labels: Vec<String>,
    metrics: Vec<v1::Metric>,
}

impl Samples {
    /// None yet; `at` is their time, `labels` are those that all have.
    pub(super) fn new(at: i64, labels: [&str; super::LABELS.len()]) -> Self {
        Self {
            at,
            labels: labels.map(str::to_owned).into(),
            metrics: Vec::new(),
        }
    }

    /// All that were gathered.
    pub(super) fn done(self) -> Vec<v1::Metric> {
        self.metrics
    }
}

impl<S> Family<S> {
    /// Name, meaning, and labels of its own.
    pub(super) fn about(&self) -> (&'static str, &'static str, Labels) {
        (self.name, self.help, self.labels)
    }

    /// Adds its samples.
    pub(super) fn sample(&self, source: &S, samples: &mut Samples) {
        let mut values = Values::default();
        (self.values)(source, &mut values);
        for (own, value) in values.0 {
            samples.metrics.push(v1::Metric {
                name: self.name.to_owned(),
                timestamp: samples.at,
                metric_type: self.kind.into(),
                label_values: samples.labels.iter().cloned().chain(own).collect(),
                value: Some(v1::UInt64Value { value }),
            });
        }
    }
}

/// A container, and the file system that its writable directory is on.
pub(super) struct Source {
    pub(super) metrics: ContainerMetrics,
    pub(super) disk: Disk,
}

/// Size of a file system.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Disk {
    bytes: u64,
    inodes: u64,
    free_inodes: u64,
}

impl Disk {
    /// That of this directory; all 0 where the kernel does not tell.
    pub(super) fn of(directory: &Path) -> Self {
        rustix::fs::statvfs(directory).map_or_else(
            |_| Self::default(),
            |fs| Self {
                bytes: fs.f_blocks * fs.f_frsize,
                inodes: fs.f_files,
                free_inodes: fs.f_ffree,
            },
        )
    }
}

/// A table of families: kind, name, labels, meaning, value.
macro_rules! families {
    ($source:ty: $($kind:ident $name:literal [$($label:literal),*] $help:literal = $values:expr;)*) => {
        &[$(Family::<$source> {
            name: $name,
            help: $help,
            labels: &[$($label),*],
            kind: MetricType::$kind,
            values: $values,
        }),*]
    };
}

/// Families of a pod's network, by interface.
pub(super) const NETWORK: &[Family<InterfaceStats>] = families! { InterfaceStats:
    Counter "container_network_receive_bytes_total" ["interface"] "Bytes received." = |i, v| v.with([&i.name], i.rx_bytes);
    Counter "container_network_receive_packets_total" ["interface"] "Packets received." = |i, v| v.with([&i.name], i.rx_packets);
    Counter "container_network_receive_packets_dropped_total" ["interface"] "Packets dropped on receipt." = |i, v| v.with([&i.name], i.rx_dropped);
    Counter "container_network_receive_errors_total" ["interface"] "Errors on receipt." = |i, v| v.with([&i.name], i.rx_errors);
    Counter "container_network_transmit_bytes_total" ["interface"] "Bytes sent." = |i, v| v.with([&i.name], i.tx_bytes);
    Counter "container_network_transmit_packets_total" ["interface"] "Packets sent." = |i, v| v.with([&i.name], i.tx_packets);
    Counter "container_network_transmit_packets_dropped_total" ["interface"] "Packets dropped on sending." = |i, v| v.with([&i.name], i.tx_dropped);
    Counter "container_network_transmit_errors_total" ["interface"] "Errors on sending." = |i, v| v.with([&i.name], i.tx_errors);
};

/// Families of a container.
pub(super) const CONTAINER: &[Family<Source>] = families! { Source:
    Gauge "container_last_seen" [] "When the container was last looked at, in seconds since 1970." = |s, v| v.one(seconds(s.metrics.at));
    Gauge "container_start_time_seconds" [] "When the container was started, in seconds since 1970." = |s, v| v.one(seconds(s.metrics.started_at));

    Counter "container_cpu_usage_seconds_total" [] "CPU time used." = |s, v| v.one(s.metrics.cgroup.cpu.usage_ns / NS);
    Counter "container_cpu_user_seconds_total" [] "CPU time used in user mode." = |s, v| v.one(s.metrics.cgroup.cpu.user_ns / NS);
    Counter "container_cpu_system_seconds_total" [] "CPU time used in the kernel." = |s, v| v.one(s.metrics.cgroup.cpu.system_ns / NS);
    Counter "container_cpu_cfs_periods_total" [] "Periods in which the CPU quota was enforced." = |s, v| v.one(s.metrics.cgroup.cpu.periods);
    Counter "container_cpu_cfs_throttled_periods_total" [] "Periods in which the CPU quota ran out." = |s, v| v.one(s.metrics.cgroup.cpu.throttled_periods);
    Counter "container_cpu_cfs_throttled_seconds_total" [] "Time spent throttled." = |s, v| v.one(s.metrics.cgroup.cpu.throttled_ns / NS);

    Gauge "container_memory_usage_bytes" [] "All memory charged." = |s, v| v.one(s.metrics.cgroup.memory.usage);
    Gauge "container_memory_working_set_bytes" [] "Memory charged without the inactive page cache." = |s, v| v.one(s.metrics.cgroup.memory.working_set);
    Gauge "container_memory_max_usage_bytes" [] "Highest memory charged, where the kernel records it." = |s, v| if let Some(most) = s.metrics.cgroup.memory.max_usage { v.one(most) };
    Gauge "container_memory_rss" [] "Anonymous memory in bytes." = |s, v| v.one(s.metrics.cgroup.memory.rss);
    Gauge "container_memory_cache" [] "Page cache in bytes." = |s, v| v.one(s.metrics.cgroup.memory.cache);
    Gauge "container_memory_mapped_file" [] "Memory-mapped files in bytes." = |s, v| v.one(s.metrics.cgroup.memory.mapped_file);
    Gauge "container_memory_kernel_usage" [] "Memory of the kernel in bytes." = |s, v| v.one(s.metrics.cgroup.memory.kernel);
    Gauge "container_memory_swap" [] "Swap in bytes." = |s, v| v.one(s.metrics.cgroup.memory.swap);
    Gauge "container_memory_total_active_file_bytes" [] "Active page cache." = |s, v| v.one(s.metrics.cgroup.memory.active_file);
    Gauge "container_memory_total_inactive_file_bytes" [] "Inactive page cache." = |s, v| v.one(s.metrics.cgroup.memory.inactive_file);
    Counter "container_memory_failcnt" [] "How often the memory limit was hit." = |s, v| v.one(s.metrics.cgroup.memory.failcnt);
    Counter "container_memory_failures_total" ["failure_type", "scope"] "Page faults (pgfault), and those that had to read from a device (pgmajfault)." = |s, v| {
        v.with(["pgfault", "container"], s.metrics.cgroup.memory.page_faults);
        v.with(["pgmajfault", "container"], s.metrics.cgroup.memory.major_page_faults);
    };
    Counter "container_oom_events_total" [] "Processes killed for lack of memory." = |s, v| v.one(s.metrics.oom_kills);

    Gauge "container_hugetlb_usage_bytes" ["pagesize"] "Huge pages in use." = |s, v| for pages in &s.metrics.cgroup.hugepages { v.with([&pages.page_size], pages.usage) };
    Gauge "container_hugetlb_max_usage_bytes" ["pagesize"] "Most huge pages in use, where the kernel records it." = |s, v| for pages in &s.metrics.cgroup.hugepages {
        if let Some(most) = pages.max_usage { v.with([&pages.page_size], most) }
    };

    Gauge "container_fs_usage_bytes" ["device"] "Space that the writable directory takes." = |s, v| if let Some(writable) = &s.metrics.writable { v.with(["/"], writable.usage.bytes) };
    Gauge "container_fs_limit_bytes" ["device"] "Size of the file system that the writable directory is on." = |s, v| v.with(["/"], s.disk.bytes);
    Gauge "container_fs_inodes_total" ["device"] "Inodes of the file system that the writable directory is on." = |s, v| v.with(["/"], s.disk.inodes);
    Gauge "container_fs_inodes_free" ["device"] "Free inodes of the file system that the writable directory is on." = |s, v| v.with(["/"], s.disk.free_inodes);
    Counter "container_fs_reads_bytes_total" ["device"] "Bytes read." = |s, v| each_device(s, |name, io| v.with([name], io.read_bytes));
    Counter "container_fs_reads_total" ["device"] "Reads completed." = |s, v| each_device(s, |name, io| v.with([name], io.read_ops));
    Counter "container_fs_writes_bytes_total" ["device"] "Bytes written." = |s, v| each_device(s, |name, io| v.with([name], io.write_bytes));
    Counter "container_fs_writes_total" ["device"] "Writes completed." = |s, v| each_device(s, |name, io| v.with([name], io.write_ops));
    Counter "container_blkio_device_usage_total" ["device", "major", "minor", "operation"] "Bytes by device and operation." = |s, v| each_device(s, |name, io| {
        let (major, minor) = (io.major.to_string(), io.minor.to_string());
        v.with([name, &major, &minor, "Read"], io.read_bytes);
        v.with([name, &major, &minor, "Write"], io.write_bytes);
    });

    Gauge "container_processes" [] "Processes." = |s, v| v.one(s.metrics.processes.count);
    Gauge "container_threads" [] "Threads." = |s, v| v.one(s.metrics.cgroup.pids.current);
    Gauge "container_threads_max" [] "Most threads there may be; 0: no limit." = |s, v| v.one(s.metrics.cgroup.pids.limit.unwrap_or(0));
    Gauge "container_file_descriptors" [] "Open descriptors." = |s, v| v.one(s.metrics.processes.descriptors);
    Gauge "container_sockets" [] "Open sockets." = |s, v| v.one(s.metrics.processes.sockets);
    Gauge "container_ulimits_soft" ["ulimit"] "Soft limits of the first process, where there are some." = |s, v| if let Some(limit) = s.metrics.processes.open_files_limit { v.with(["max_open_files"], limit) };

    Gauge "container_spec_cpu_period" [] "Period of the CPU quota in µs, if it is set." = |s, v| positive(s.metrics.container.resolved.resources.cpu_period, v);
    Gauge "container_spec_cpu_quota" [] "CPU quota in µs, if there is one." = |s, v| positive(s.metrics.container.resolved.resources.cpu_quota, v);
    Gauge "container_spec_cpu_shares" [] "CPU shares, if they are set." = |s, v| positive(s.metrics.container.resolved.resources.cpu_shares, v);
    Gauge "container_spec_memory_limit_bytes" [] "Memory limit; 0: none." = |s, v| v.one(limit(s.metrics.container.resolved.resources.memory_limit));
    Gauge "container_spec_memory_swap_limit_bytes" [] "Limit of memory and swap together; 0: none." = |s, v| v.one(limit(s.metrics.container.resolved.resources.memory_swap_limit));
    Gauge "container_spec_memory_reservation_limit_bytes" [] "Soft memory limit, which the CRI cannot set: 0." = |_, v| v.one(0);

    Counter "container_pressure_cpu_waiting_seconds_total" [] "Time in which some task waited for a CPU." = |s, v| pressure(s, |psi| psi.cpu.some.total_us, v);
    Counter "container_pressure_cpu_stalled_seconds_total" [] "Time in which all tasks waited for a CPU." = |s, v| pressure(s, |psi| psi.cpu.full.total_us, v);
    Counter "container_pressure_memory_waiting_seconds_total" [] "Time in which some task waited for memory." = |s, v| pressure(s, |psi| psi.memory.some.total_us, v);
    Counter "container_pressure_memory_stalled_seconds_total" [] "Time in which all tasks waited for memory." = |s, v| pressure(s, |psi| psi.memory.full.total_us, v);
    Counter "container_pressure_io_waiting_seconds_total" [] "Time in which some task waited for I/O." = |s, v| pressure(s, |psi| psi.io.some.total_us, v);
    Counter "container_pressure_io_stalled_seconds_total" [] "Time in which all tasks waited for I/O." = |s, v| pressure(s, |psi| psi.io.full.total_us, v);
};

fn seconds(nanoseconds: i64) -> u64 {
    u64::try_from(nanoseconds).unwrap_or(0) / NS
}

/// A limit of the request, where 0 and negative numbers are none.
fn limit(asked: i64) -> u64 {
    u64::try_from(asked).unwrap_or(0)
}

fn positive(asked: i64, values: &mut Values) {
    if asked > 0 {
        values.one(limit(asked));
    }
}

fn pressure(source: &Source, total_us: fn(&PsiSet) -> u64, values: &mut Values) {
    if let Some(psi) = &source.metrics.cgroup.psi {
        values.one(total_us(psi) / US);
    }
}

fn each_device(source: &Source, mut each: impl FnMut(&str, &IoDevice)) {
    for io in &source.metrics.cgroup.io.devices {
        each(&device_name(Path::new("/sys"), io), io);
    }
}

/// The device's name beneath `/dev`, or its numbers where the kernel has none for it.
fn device_name(sys_root: &Path, io: &IoDevice) -> String {
    let numbers = format!("{}:{}", io.major, io.minor);
    let link = std::fs::read_link(sys_root.join("dev/block").join(&numbers));
    match link.as_deref().map(Path::file_name) {
        Ok(Some(name)) => format!("/dev/{}", name.to_string_lossy()),
        _ => numbers,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn samples_have_the_labels_of_their_descriptor() {
        let interface = InterfaceStats {
            name: "eth0".into(),
            rx_bytes: 7,
            ..Default::default()
        };
        let mut samples = Samples::new(5, ["p", "n", "", "id", ""]);
        for family in NETWORK {
            family.sample(&interface, &mut samples);
        }
        let metrics = samples.done();
        assert_eq!(metrics.len(), NETWORK.len());
        assert_eq!(metrics[0].label_values, ["p", "n", "", "id", "", "eth0"]);
        assert_eq!(metrics[0].value, Some(v1::UInt64Value { value: 7 }));
        assert_eq!(metrics[0].metric_type(), MetricType::Counter);
        assert_eq!(metrics[0].timestamp, 5);
    }

    #[test]
    fn no_family_is_there_twice_and_counters_are_named_so() {
        let of_pods = NETWORK.iter().map(|one| (one.name, one.kind));
        let all: Vec<_> = of_pods
            .chain(CONTAINER.iter().map(|one| (one.name, one.kind)))
            .collect();
        let names: BTreeSet<_> = all.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), all.len());
        for (name, kind) in all {
            let counter = name.ends_with("_total") || name == "container_memory_failcnt";
            let total = name == "container_fs_inodes_total";
            assert_eq!(kind == MetricType::Counter, counter && !total, "{name}");
        }
    }

    #[test]
    fn a_device_without_a_name_has_numbers() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("dev/block")).unwrap();
        std::os::unix::fs::symlink("../../block/vda", dir.path().join("dev/block/253:0")).unwrap();
        let name = |minor| {
            let io = IoDevice {
                major: 253,
                minor,
                ..Default::default()
            };
            device_name(dir.path(), &io)
        };
        assert_eq!((name(0), name(1)), ("/dev/vda".into(), "253:1".into()));
    }
}
