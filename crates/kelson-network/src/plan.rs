//! Decides whether a network's plugins can all run inside this process, and reads their keys.
//!
//! Every key either has its effect here or makes the chain external, with a reason that names the
//! key: nothing that an administrator wrote is passed over silently.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::conf::{NetworkConf, Plugin};
use crate::native::ranges::{RangeConf, RangeSet, range_sets};
use crate::netlink::route::RouteSpec;
use crate::pod::Dns;

/// How a network's plugins run.
#[derive(Debug)]
pub(crate) enum Chain {
    /// All of them in this process.
    Native(Box<Native>),
    /// All of them as programs, because of `why`.
    External { why: String },
}

/// A chain of bridge with host-local, and perhaps portmap.
#[derive(Debug)]
pub(crate) struct Native {
    pub(crate) bridge: Bridge,
    pub(crate) ipam: Ipam,
    pub(crate) portmap: Option<Portmap>,
    /// Whether the bridge takes the `mac` and the IPAM the `ips` capability.
    pub(crate) takes_mac: bool,
    pub(crate) takes_ips: bool,
}

/// The keys of type `bridge`.
#[derive(Debug)]
pub(crate) struct Bridge {
    pub(crate) name: String,
    pub(crate) gateway: bool,
    pub(crate) default_gateway: bool,
    pub(crate) force_address: bool,
    pub(crate) masquerade: bool,
    pub(crate) mtu: Option<u32>,
    pub(crate) hairpin: bool,
    pub(crate) promiscuous: bool,
    pub(crate) isolated: bool,
    pub(crate) dns: Dns,
}

/// The keys of IPAM type `host-local`.
#[derive(Debug)]
pub(crate) struct Ipam {
    /// The network's own directory.
    pub(crate) dir: PathBuf,
    pub(crate) sets: Vec<RangeSet>,
    pub(crate) routes: Vec<RouteSpec>,
    pub(crate) resolv_conf: Option<PathBuf>,
}

/// The keys of type `portmap`.
#[derive(Debug)]
pub(crate) struct Portmap {
    pub(crate) snat: bool,
    pub(crate) masquerade_all: bool,
    pub(crate) mark: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BridgeKeys {
    #[serde(default = "default_bridge")]
    bridge: String,
    #[serde(default)]
    is_gateway: bool,
    #[serde(default)]
    is_default_gateway: bool,
    #[serde(default)]
    force_address: bool,
    #[serde(default)]
    ip_masq: bool,
    ip_masq_backend: Option<String>,
    #[serde(default)]
    mtu: u32,
    #[serde(default)]
    hairpin_mode: bool,
    #[serde(default)]
    promisc_mode: bool,
    #[serde(default)]
    port_isolation: bool,
    #[serde(default)]
    vlan: u32,
    #[serde(default)]
    macspoofchk: bool,
    #[serde(default)]
    enabledad: bool,
    #[serde(default)]
    disable_container_interface: bool,
    #[serde(default)]
    dns: Dns,
    ipam: Map<String, Value>,
}

fn default_bridge() -> String {
    "cni0".into()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct IpamKeys {
    #[serde(rename = "type")]
    kind: String,
    data_dir: Option<PathBuf>,
    resolv_conf: Option<PathBuf>,
    #[serde(default)]
    routes: Vec<RouteKeys>,
    #[serde(default)]
    ranges: Vec<Vec<RangeConf>>,
    subnet: Option<IpNet>,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
    gateway: Option<IpAddr>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteKeys {
    dst: IpNet,
    gw: Option<IpAddr>,
    mtu: Option<u32>,
    advmss: Option<u32>,
    priority: Option<u32>,
    table: Option<u32>,
    scope: Option<u8>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PortmapKeys {
    #[serde(default = "yes")]
    snat: bool,
    #[serde(default)]
    masq_all: bool,
    #[serde(default = "default_mark_bit")]
    mark_masq_bit: u32,
    backend: Option<String>,
}

fn yes() -> bool {
    true
}

fn default_mark_bit() -> u32 {
    13
}

/// Chooses how the network runs. `ipam_dir` is host-local's directory when none is configured.
pub(crate) fn plan(conf: &NetworkConf, native: bool, ipam_dir: &Path) -> Chain {
    if !native {
        return Chain::External {
            why: "network.native is off".into(),
        };
    }
    match native_plan(conf, ipam_dir) {
        Ok(native) => Chain::Native(Box::new(native)),
        Err(why) => Chain::External { why },
    }
}

fn native_plan(conf: &NetworkConf, ipam_dir: &Path) -> Result<Native, String> {
    let mut plugins = conf
        .plugins
        .iter()
        .filter(|plugin| plugin.kind != "loopback");
    let first = plugins.next().filter(|plugin| plugin.kind == "bridge");
    let first = first.ok_or("only chains that begin with type bridge are built in")?;
    let (bridge, ipam) = bridge(conf, first, ipam_dir)?;
    let mut portmap = None;
    for plugin in plugins {
        match plugin.kind.as_str() {
            "portmap" if portmap.is_none() => portmap = portmap_of(plugin)?,
            other => return Err(format!("type {other} is not built in at its place")),
        }
    }
    Ok(Native {
        bridge,
        ipam,
        portmap,
        takes_mac: first.wants("mac"),
        takes_ips: first.wants("ips"),
    })
}

/// A plugin's own keys: those that CNI gives to every plugin are taken away.
fn own_keys(plugin: &Plugin) -> Value {
    let mut keys = plugin.object.clone();
    for common in ["type", "name", "cniVersion", "capabilities"] {
        keys.remove(common);
    }
    Value::Object(keys)
}

fn bridge(conf: &NetworkConf, plugin: &Plugin, ipam_dir: &Path) -> Result<(Bridge, Ipam), String> {
    let keys = BridgeKeys::deserialize(own_keys(plugin)).map_err(|e| format!("bridge: {e}"))?;
    let refused = [
        ("vlan", keys.vlan != 0),
        ("macspoofchk", keys.macspoofchk),
        ("enabledad", keys.enabledad),
        (
            "disableContainerInterface",
            keys.disable_container_interface,
        ),
        (
            "ipMasqBackend",
            !matches!(
                keys.ip_masq_backend.as_deref(),
                None | Some("" | "nftables")
            ),
        ),
    ];
    if let Some((key, _)) = refused.iter().find(|(_, used)| *used) {
        return Err(format!("bridge: this value of `{key}` is not built in"));
    }
    if !is_interface_name(&keys.bridge) {
        return Err(format!(
            "bridge: {:?} is not an interface name",
            keys.bridge
        ));
    }
    if keys.hairpin_mode && keys.promisc_mode {
        return Err("bridge: `hairpinMode` and `promiscMode` exclude each other".into());
    }
    let ipam = ipam(conf, keys.ipam, ipam_dir)?;
    let bridge = Bridge {
        name: keys.bridge,
        gateway: keys.is_gateway || keys.is_default_gateway,
        default_gateway: keys.is_default_gateway,
        force_address: keys.force_address,
        masquerade: keys.ip_masq,
        mtu: (keys.mtu != 0).then_some(keys.mtu),
        hairpin: keys.hairpin_mode,
        promiscuous: keys.promisc_mode,
        isolated: keys.port_isolation,
        dns: keys.dns,
    };
    Ok((bridge, ipam))
}

fn ipam(conf: &NetworkConf, keys: Map<String, Value>, ipam_dir: &Path) -> Result<Ipam, String> {
    match keys.get("type").and_then(Value::as_str) {
        Some("host-local") => {}
        Some(other) => return Err(format!("ipam type {other} is not built in")),
        None => return Err("a bridge without ipam is not built in".into()),
    }
    let keys = IpamKeys::deserialize(Value::Object(keys)).map_err(|e| format!("ipam: {e}"))?;
    debug_assert_eq!(keys.kind, "host-local");
    let mut ranges = keys.ranges;
    if let Some(subnet) = keys.subnet {
        let (range_start, range_end, gateway) = (keys.range_start, keys.range_end, keys.gateway);
        ranges.insert(
            0,
            vec![RangeConf {
                subnet,
                range_start,
                range_end,
                gateway,
            }],
        );
    } else if keys
        .range_start
        .or(keys.range_end)
        .or(keys.gateway)
        .is_some()
    {
        return Err("ipam: `rangeStart`, `rangeEnd` and `gateway` need `subnet`".into());
    }
    let routes = keys.routes.into_iter().map(|route| RouteSpec {
        destination: route.dst,
        gateway: route.gw,
        mtu: route.mtu,
        advmss: route.advmss,
        priority: route.priority,
        table: route.table,
        scope: route.scope,
    });
    Ok(Ipam {
        dir: keys
            .data_dir
            .unwrap_or_else(|| ipam_dir.to_owned())
            .join(&conf.name),
        sets: range_sets(&ranges).map_err(|mistake| format!("ipam: {mistake}"))?,
        routes: routes.collect(),
        resolv_conf: keys.resolv_conf.filter(|path| !path.as_os_str().is_empty()),
    })
}

/// `None` for a portmap that does not ask for port mappings: it would never get any.
fn portmap_of(plugin: &Plugin) -> Result<Option<Portmap>, String> {
    let keys = PortmapKeys::deserialize(own_keys(plugin)).map_err(|e| format!("portmap: {e}"))?;
    if !matches!(keys.backend.as_deref(), None | Some("" | "nftables")) {
        return Err("portmap: this value of `backend` is not built in".into());
    }
    let mark = 1_u32.checked_shl(keys.mark_masq_bit);
    let mark = mark.ok_or("portmap: `markMasqBit` must be 0 to 31")?;
    let portmap = Portmap {
        snat: keys.snat,
        masquerade_all: keys.masq_all,
        mark,
    };
    Ok(plugin.wants("portMappings").then_some(portmap))
}

/// What the kernel takes as the name of an interface.
pub(crate) fn is_interface_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && name
            .chars()
            .all(|c| c.is_ascii_graphic() && c != '/' && c != ':')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn plan_of(plugins: Value) -> Result<Native, String> {
        let list = json!({ "name": "n", "cniVersion": "1.0.0", "plugins": plugins });
        native_plan(&NetworkConf::from_json(list).unwrap(), Path::new("/ipam"))
    }

    fn bridge_with(extra: Value) -> Value {
        let mut bridge = json!({
            "type": "bridge", "bridge": "b0",
            "ipam": { "type": "host-local", "subnet": "10.1.0.0/24" },
        });
        for (key, value) in extra.as_object().unwrap() {
            bridge[key] = value.clone();
        }
        bridge
    }

    #[test]
    fn the_usual_chain_is_native() {
        let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
        let extra = json!({ "isDefaultGateway": true, "ipMasq": true, "mtu": 1400, "vlan": 0 });
        let plan = plan_of(json!([{ "type": "loopback" }, bridge_with(extra), portmap])).unwrap();
        assert!(plan.bridge.gateway && plan.bridge.masquerade);
        assert_eq!(plan.bridge.mtu, Some(1400));
        assert_eq!(plan.ipam.dir, Path::new("/ipam/n"));
        assert_eq!(plan.portmap.map(|p| (p.snat, p.mark)), Some((true, 0x2000)));
    }

    #[test]
    fn whatever_is_not_built_in_is_named() {
        let cases = [
            (json!([{ "type": "macvlan" }]), "type bridge"),
            (
                json!([bridge_with(json!({})), { "type": "tuning" }]),
                "type tuning",
            ),
            (json!([bridge_with(json!({ "vlan": 7 }))]), "`vlan`"),
            (
                json!([bridge_with(json!({ "macspoofchk": true }))]),
                "`macspoofchk`",
            ),
            (
                json!([bridge_with(json!({ "ipMasqBackend": "iptables" }))]),
                "`ipMasqBackend`",
            ),
            (json!([bridge_with(json!({ "surprise": 1 }))]), "`surprise`"),
            (
                json!([bridge_with(json!({ "bridge": "far-too-long-a-name" }))]),
                "interface name",
            ),
            (
                json!([bridge_with(json!({ "ipam": { "type": "dhcp" } }))]),
                "ipam type dhcp",
            ),
            (json!([bridge_with(json!({ "ipam": {} }))]), "without ipam"),
            (
                json!([bridge_with(
                    json!({ "hairpinMode": true, "promiscMode": true })
                )]),
                "`promiscMode`",
            ),
            (
                json!([bridge_with(json!({})), { "type": "portmap", "conditionsV4": ["-i", "x"] }]),
                "`conditionsV4`",
            ),
        ];
        for (plugins, named) in cases {
            let why = plan_of(plugins).unwrap_err();
            assert!(why.contains(named), "{why} does not name {named}");
        }
    }
}
