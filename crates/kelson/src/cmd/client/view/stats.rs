//! Resource use.

use std::collections::BTreeMap;

use kelson_cri::v1;
use serde::Serialize;

use super::container::ContainerMetadataView;

/// What a container uses. A number that the runtime does not know is null.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ContainerStatsView {
    attributes: Attributes,
    cpu: Option<Cpu>,
    memory: Option<Memory>,
    writable_layer: Option<Filesystem>,
    swap: Option<Swap>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Attributes {
    id: String,
    metadata: ContainerMetadataView,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
struct Number {
    value: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cpu {
    timestamp: String,
    usage_core_nano_seconds: Option<Number>,
    usage_nano_cores: Option<Number>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Memory {
    timestamp: String,
    working_set_bytes: Option<Number>,
    available_bytes: Option<Number>,
    usage_bytes: Option<Number>,
    rss_bytes: Option<Number>,
    page_faults: Option<Number>,
    major_page_faults: Option<Number>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Filesystem {
    timestamp: String,
    fs_id: FilesystemId,
    used_bytes: Option<Number>,
    inodes_used: Option<Number>,
}

#[derive(Debug, Serialize)]
struct FilesystemId {
    mountpoint: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Swap {
    timestamp: String,
    swap_available_bytes: Option<Number>,
    swap_usage_bytes: Option<Number>,
}

fn number(value: Option<v1::UInt64Value>) -> Option<Number> {
    value.map(|number| Number {
        value: number.value.to_string(),
    })
}

impl From<v1::ContainerStats> for ContainerStatsView {
    fn from(stats: v1::ContainerStats) -> Self {
        let attributes = stats.attributes.unwrap_or_default();
        Self {
            attributes: Attributes {
                id: attributes.id,
                metadata: attributes.metadata.into(),
                labels: attributes.labels,
                annotations: attributes.annotations,
            },
            cpu: stats.cpu.map(|cpu| Cpu {
                timestamp: cpu.timestamp.to_string(),
                usage_core_nano_seconds: number(cpu.usage_core_nano_seconds),
                usage_nano_cores: number(cpu.usage_nano_cores),
            }),
            memory: stats.memory.map(|memory| Memory {
                timestamp: memory.timestamp.to_string(),
                working_set_bytes: number(memory.working_set_bytes),
                available_bytes: number(memory.available_bytes),
                usage_bytes: number(memory.usage_bytes),
                rss_bytes: number(memory.rss_bytes),
                page_faults: number(memory.page_faults),
                major_page_faults: number(memory.major_page_faults),
            }),
            writable_layer: stats.writable_layer.map(|layer| Filesystem {
                timestamp: layer.timestamp.to_string(),
                fs_id: FilesystemId {
                    mountpoint: layer.fs_id.unwrap_or_default().mountpoint,
                },
                used_bytes: number(layer.used_bytes),
                inodes_used: number(layer.inodes_used),
            }),
            swap: stats.swap.map(|swap| Swap {
                timestamp: swap.timestamp.to_string(),
                swap_available_bytes: number(swap.swap_available_bytes),
                swap_usage_bytes: number(swap.swap_usage_bytes),
            }),
        }
    }
}
