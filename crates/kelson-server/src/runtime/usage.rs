//! What pods and containers use, in the CRI's messages.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use kelson_cgroup::Stats;
use kelson_cri::v1;
use kelson_network::InterfaceStats;
use kelson_pod::{ContainerStats, PodStats};

use super::container_list::metadata;
use super::to_map;
use crate::translate::pod_metadata;

/// Now, in nanoseconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn value(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

/// One container; `root` names the file system of its writable layer.
pub(super) fn container_stats(stats: &ContainerStats, root: &Path) -> v1::ContainerStats {
    let container = &stats.container;
    let cgroup = stats.cgroup.as_ref();
    v1::ContainerStats {
        attributes: Some(v1::ContainerAttributes {
            id: container.id.to_string(),
            metadata: Some(metadata(container)),
            labels: to_map(&container.config.labels),
            annotations: to_map(&container.config.annotations),
        }),
        cpu: cgroup.map(|cgroup| cpu(stats.at, cgroup, stats.usage_nano_cores)),
        memory: cgroup.map(|cgroup| memory(stats.at, cgroup)),
        writable_layer: stats.writable.as_ref().map(|writable| v1::FilesystemUsage {
            timestamp: writable.at,
            fs_id: Some(v1::FilesystemIdentifier {
                mountpoint: root.display().to_string(),
            }),
            used_bytes: value(writable.usage.bytes),
            inodes_used: value(writable.usage.inodes),
        }),
        swap: cgroup.map(|cgroup| v1::SwapUsage {
            timestamp: stats.at,
            swap_available_bytes: cgroup
                .memory
                .swap_limit
                .and_then(|limit| value(limit.saturating_sub(cgroup.memory.swap))),
            swap_usage_bytes: value(cgroup.memory.swap),
        }),
        io: cgroup.and_then(|cgroup| io(stats.at, cgroup)),
    }
}

/// One pod with its containers.
pub(super) fn pod_stats(stats: &PodStats, root: &Path) -> v1::PodSandboxStats {
    let pod = &stats.pod;
    let cgroup = stats.cgroup.as_ref();
    let mut interfaces = stats.network.iter().map(interface);
    v1::PodSandboxStats {
        attributes: Some(v1::PodSandboxAttributes {
            id: pod.id.to_string(),
            metadata: Some(pod_metadata(&pod.config.metadata)),
            labels: to_map(&pod.config.labels),
            annotations: to_map(&pod.config.annotations),
        }),
        linux: Some(v1::LinuxPodSandboxStats {
            cpu: cgroup.map(|cgroup| cpu(stats.at, cgroup, stats.usage_nano_cores)),
            memory: cgroup.map(|cgroup| memory(stats.at, cgroup)),
            network: (!stats.network.is_empty()).then(|| v1::NetworkUsage {
                timestamp: stats.at,
                default_interface: interfaces.next(),
                interfaces: interfaces.collect(),
            }),
            process: cgroup.map(|cgroup| v1::ProcessUsage {
                timestamp: stats.at,
                process_count: value(cgroup.pids.current),
            }),
            containers: stats
                .containers
                .iter()
                .map(|one| container_stats(one, root))
                .collect(),
            io: cgroup.and_then(|cgroup| io(stats.at, cgroup)),
        }),
        windows: None,
    }
}

fn cpu(at: i64, cgroup: &Stats, usage_nano_cores: Option<u64>) -> v1::CpuUsage {
    v1::CpuUsage {
        timestamp: at,
        usage_core_nano_seconds: value(cgroup.cpu.usage_ns),
        usage_nano_cores: usage_nano_cores.and_then(value),
        psi: cgroup.psi.as_ref().map(|psi| pressure(&psi.cpu)),
    }
}

fn memory(at: i64, cgroup: &Stats) -> v1::MemoryUsage {
    let memory = &cgroup.memory;
    v1::MemoryUsage {
        timestamp: at,
        working_set_bytes: value(memory.working_set),
        available_bytes: memory
            .limit
            .and_then(|limit| value(limit.saturating_sub(memory.working_set))),
        usage_bytes: value(memory.usage),
        rss_bytes: value(memory.rss),
        page_faults: value(memory.page_faults),
        major_page_faults: value(memory.major_page_faults),
        psi: cgroup.psi.as_ref().map(|psi| pressure(&psi.memory)),
    }
}

fn io(at: i64, cgroup: &Stats) -> Option<v1::IoUsage> {
    let psi = cgroup.psi.as_ref()?;
    Some(v1::IoUsage {
        timestamp: at,
        psi: Some(pressure(&psi.io)),
    })
}

fn pressure(psi: &kelson_cgroup::Psi) -> v1::PsiStats {
    let line = |line: &kelson_cgroup::Pressure| v1::PsiData {
        total: line.total_us,
        avg10: line.avg10,
        avg60: line.avg60,
        avg300: line.avg300,
    };
    v1::PsiStats {
        full: Some(line(&psi.full)),
        some: Some(line(&psi.some)),
    }
}

fn interface(stats: &InterfaceStats) -> v1::NetworkInterfaceUsage {
    v1::NetworkInterfaceUsage {
        name: stats.name.clone(),
        rx_bytes: value(stats.rx_bytes),
        rx_errors: value(stats.rx_errors),
        tx_bytes: value(stats.tx_bytes),
        tx_errors: value(stats.tx_errors),
    }
}
