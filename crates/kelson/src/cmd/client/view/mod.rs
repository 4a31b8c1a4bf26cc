//! What commands print for programs: own structures in the CRI's JSON form, so that scripts written for
//! other CRI tools go on working. 64-bit numbers are texts there, and enumerations are names.

mod container;
mod image;
mod node;
mod pod;
mod stats;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

pub(crate) use container::{ContainerItem, ContainerStatusView};
pub(crate) use image::ImageView;
pub(crate) use node::{EventView, InfoView, VersionView};
pub(crate) use pod::{PodItem, PodStatusView};
pub(crate) use stats::ContainerStatsView;

/// A status with the free-form details of a verbose answer.
#[derive(Debug, Serialize)]
pub(crate) struct Inspected<T> {
    /// What the CRI defines.
    pub(crate) status: T,
    /// What the runtime adds, under its own names.
    #[serde(flatten)]
    pub(crate) info: BTreeMap<String, Value>,
}

/// A list under a name, as the CRI's answers have it.
pub(crate) fn list<T: Serialize>(
    name: &'static str,
    items: Vec<T>,
) -> BTreeMap<&'static str, Vec<T>> {
    BTreeMap::from([(name, items)])
}

/// The details of a verbose answer: those that are JSON become objects.
pub(crate) fn details(info: BTreeMap<String, String>) -> BTreeMap<String, Value> {
    info.into_iter()
        .map(|(key, text)| {
            let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
            (key, value)
        })
        .collect()
}
