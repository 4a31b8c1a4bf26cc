//! One CNI network configuration: a plugin list (`.conflist`) or a single plugin (`.conf`,
//! `.json`), by the CNI specification 0.3.0 to 1.1.0.
//!
//! What the plugins' own keys mean is for `plan` and for the plugins.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::config::Fallback;

/// A configuration longer than this is refused.
pub(crate) const MAX_CONF_BYTES: u64 = 1024 * 1024;
/// A list with more plugins than this is refused.
const MAX_PLUGINS: usize = 32;
/// A network name longer than this is refused.
const MAX_NAME: usize = 128;

/// Why a configuration is not usable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfError {
    #[error("it cannot be read")]
    Read(#[source] std::io::Error),
    #[error("it is longer than {MAX_CONF_BYTES} bytes")]
    TooLong,
    #[error("it is not valid JSON")]
    Json(#[source] serde_json::Error),
    #[error("it has no plugins")]
    NoPlugins,
    #[error("it has {0} plugins, more than {MAX_PLUGINS}")]
    TooManyPlugins(usize),
    #[error("plugin {0} has no type")]
    NoType(usize),
    #[error("plugin type {0:?} is not a plain file name")]
    BadType(String),
    #[error(
        "the name {0:?} is not usable: it begins with a letter or digit, then letters, digits, \
         `_`, `.` or `-`, at most {MAX_NAME}"
    )]
    BadName(String),
    #[error("cniVersion {0:?} is not supported: use one of 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0")]
    BadVersion(String),
    #[error("it only brings the loopback interface up and gives pods no address")]
    OnlyLoopback,
}

/// A version of the CNI specification that is spoken here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    const ALL: [(Self, &'static str); 5] = [
        (Self::V0_3_0, "0.3.0"),
        (Self::V0_3_1, "0.3.1"),
        (Self::V0_4_0, "0.4.0"),
        (Self::V1_0_0, "1.0.0"),
        (Self::V1_1_0, "1.1.0"),
    ];

    fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(_, name)| *name == text)
            .map(|(version, _)| *version)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(version, _)| version == self);
        f.write_str(name.map_or("", |(_, name)| name))
    }
}

/// One plugin of a list.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plugin {
    pub(crate) kind: String,
    pub(crate) capabilities: BTreeMap<String, bool>,
    /// The whole object, as given to external plugins.
    pub(crate) object: Map<String, Value>,
}

impl Plugin {
    /// Whether the plugin asks for this capability's arguments.
    pub(crate) fn wants(&self, capability: &str) -> bool {
        self.capabilities.get(capability).copied().unwrap_or(false)
    }
}

/// A network as configured.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NetworkConf {
    pub(crate) name: String,
    pub(crate) version: Version,
    pub(crate) plugins: Vec<Plugin>,
    /// `disableGC`: the plugins' GC verb must not be called.
    pub(crate) disable_gc: bool,
    /// The list as JSON; what is kept in records and parsed again by `del`.
    pub(crate) json: Value,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct ListFile {
    #[serde(default)]
    name: String,
    cni_version: Option<String>,
    #[serde(default)]
    cni_versions: Vec<String>,
    #[serde(default, rename = "disableGC")]
    disable_gc: bool,
    #[serde(default)]
    plugins: Vec<Map<String, Value>>,
}

impl NetworkConf {
    /// Parses a file's content. A JSON object without `plugins` is a single plugin when its file
    /// is not a `.conflist`.
    pub(crate) fn parse(bytes: &[u8], is_list: bool) -> Result<Self, ConfError> {
        let value: Value = serde_json::from_slice(bytes).map_err(ConfError::Json)?;
        if is_list {
            Self::from_json(value)
        } else {
            Self::from_json(single_to_list(value))
        }
    }

    /// Parses a list.
    pub(crate) fn from_json(json: Value) -> Result<Self, ConfError> {
        let list = ListFile::deserialize(&json).map_err(ConfError::Json)?;
        if !is_identifier(&list.name, MAX_NAME) {
            return Err(ConfError::BadName(list.name));
        }
        let version = choose_version(&list)?;
        if list.plugins.len() > MAX_PLUGINS {
            return Err(ConfError::TooManyPlugins(list.plugins.len()));
        }
        let plugins: Vec<Plugin> = list
            .plugins
            .into_iter()
            .enumerate()
            .map(|(index, object)| parse_plugin(index, object))
            .collect::<Result<_, _>>()?;
        if plugins.is_empty() {
            return Err(ConfError::NoPlugins);
        }
        if plugins.iter().all(|plugin| plugin.kind == "loopback") {
            return Err(ConfError::OnlyLoopback);
        }
        Ok(Self {
            name: list.name,
            version,
            plugins,
            disable_gc: list.disable_gc,
            json,
        })
    }

    /// The built-in network as a list.
    pub(crate) fn from_fallback(fallback: &Fallback) -> Result<Self, ConfError> {
        let ranges: Vec<Value> = fallback
            .subnets
            .iter()
            .map(|net| json!([{ "subnet": net.to_string() }]))
            .collect();
        let routes: Vec<Value> = fallback
            .subnets
            .iter()
            .map(|net| json!({ "dst": if net.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" } }))
            .collect();
        Self::from_json(json!({
            "cniVersion": "1.0.0",
            "name": fallback.name,
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": fallback.bridge,
                    "isGateway": true,
                    "ipMasq": true,
                    "hairpinMode": true,
                    "mtu": fallback.mtu.unwrap_or(0),
                    "ipam": { "type": "host-local", "ranges": ranges, "routes": routes },
                },
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ],
        }))
    }
}

fn single_to_list(value: Value) -> Value {
    if value.get("plugins").is_some() {
        return value;
    }
    let mut list = Map::new();
    for key in ["name", "cniVersion"] {
        if let Some(found) = value.get(key) {
            list.insert(key.into(), found.clone());
        }
    }
    list.insert("plugins".into(), Value::Array(vec![value]));
    Value::Object(list)
}

/// The highest of the versions that the list offers and that is spoken here.
fn choose_version(list: &ListFile) -> Result<Version, ConfError> {
    let offered = list.cni_version.iter().chain(&list.cni_versions);
    offered
        .clone()
        .filter_map(|text| Version::parse(text))
        .max()
        .ok_or_else(|| {
            let offered: Vec<&str> = offered.map(String::as_str).collect();
            ConfError::BadVersion(offered.join(", "))
        })
}

fn parse_plugin(index: usize, object: Map<String, Value>) -> Result<Plugin, ConfError> {
    let kind = object
        .get("type")
        .and_then(Value::as_str)
        .ok_or(ConfError::NoType(index))?;
    if kind.is_empty() || kind.contains('/') || kind == "." || kind == ".." {
        return Err(ConfError::BadType(kind.to_owned()));
    }
    let capabilities = match object.get("capabilities") {
        Some(value) => BTreeMap::deserialize(value).map_err(ConfError::Json)?,
        None => BTreeMap::new(),
    };
    Ok(Plugin {
        kind: kind.to_owned(),
        capabilities,
        object,
    })
}

/// The form that CNI asks of network names and container ids.
pub(crate) fn is_identifier(text: &str, max: usize) -> bool {
    text.len() <= max
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<NetworkConf, ConfError> {
        NetworkConf::parse(text.as_bytes(), true)
    }

    #[test]
    fn a_list_and_a_single_plugin_become_the_same() {
        let list = parse(
            r#"{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"bridge","bridge":"b",
               "name":"n","cniVersion":"1.0.0","capabilities":{"portMappings":true}}]}"#,
        )
        .unwrap();
        let single = NetworkConf::parse(
            br#"{"name":"n","cniVersion":"1.0.0","type":"bridge","bridge":"b",
                "capabilities":{"portMappings":true}}"#,
            false,
        )
        .unwrap();
        assert_eq!(list.plugins, single.plugins);
        assert!(single.plugins[0].wants("portMappings") && !single.plugins[0].wants("dns"));
    }

    #[test]
    fn the_highest_common_version_is_taken() {
        let conf = |versions: &str| {
            parse(&format!(
                r#"{{"name":"n",{versions},"plugins":[{{"type":"x"}}]}}"#
            ))
        };
        let highest = conf(r#""cniVersion":"0.4.0","cniVersions":["0.3.1","1.1.0","9.0.0"]"#);
        assert_eq!(highest.unwrap().version, Version::V1_1_0);
        assert!(matches!(
            conf(r#""cniVersion":"0.2.0""#),
            Err(ConfError::BadVersion(_))
        ));
        assert!(matches!(conf(r#""x":1"#), Err(ConfError::BadVersion(_))));
        assert_eq!(Version::V0_3_1.to_string(), "0.3.1");
    }

    #[test]
    fn every_mistake_has_its_error() {
        let plugins = |list: &str| {
            parse(&format!(
                r#"{{"name":"n","cniVersion":"1.0.0","plugins":[{list}]}}"#
            ))
        };
        assert!(matches!(parse("{"), Err(ConfError::Json(_))));
        assert!(matches!(plugins(""), Err(ConfError::NoPlugins)));
        assert!(matches!(
            plugins(r#"{"bridge":"x"}"#),
            Err(ConfError::NoType(0))
        ));
        assert!(matches!(
            plugins(r#"{"type":"../sh"}"#),
            Err(ConfError::BadType(_))
        ));
        assert!(matches!(
            plugins(r#"{"type":"loopback"}"#),
            Err(ConfError::OnlyLoopback)
        ));
        let many = vec![r#"{"type":"x"}"#; MAX_PLUGINS + 1].join(",");
        let err = plugins(&many).unwrap_err();
        assert!(err.to_string().contains("more than 32"), "{err}");
        let named = |name: &str| {
            parse(&format!(
                r#"{{"name":"{name}","cniVersion":"1.0.0","plugins":[{{"type":"x"}}]}}"#
            ))
        };
        for bad in ["", "../x", "a/b", "-a"] {
            assert!(matches!(named(bad), Err(ConfError::BadName(_))), "{bad}");
        }
        assert!(named(&"n".repeat(MAX_NAME)).is_ok());
        assert!(named(&"n".repeat(MAX_NAME + 1)).is_err());
    }

    #[test]
    fn the_built_in_network_is_a_valid_list() {
        let mut fallback = Fallback::default();
        fallback.subnets.push("fd00:88::/64".parse().unwrap());
        let conf = NetworkConf::from_fallback(&fallback).unwrap();
        assert_eq!((conf.name.as_str(), conf.plugins.len()), ("kelson", 2));
    }
}
