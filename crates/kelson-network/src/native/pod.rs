//! The pod's side of an attachment: its addresses, routes, hardware address, resolver settings.

use std::fs;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use super::hostlocal::Lease;
use super::{INTERFACE, route_socket, sysctl};
use crate::error::Error;
use crate::netlink::route::{self, RouteSpec};
use crate::netlink::{Batch, Socket};
use crate::plan::Native;
use crate::pod::{Dns, Pod};

/// A resolver configuration is read up to this length.
const MAX_RESOLV_CONF: u64 = 64 * 1024;

/// Brings an interface of the calling thread's namespace up.
pub(super) fn bring_up(name: &str, socket: &Socket) -> Result<(), Error> {
    let failed = |source| Error::kernel(format!("bring up {name} of the pod"), source);
    let link = route::link(socket, name).map_err(failed)?;
    let link = link.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    if link.up {
        Ok(())
    } else {
        route::set_up(socket, link.index, false).map_err(failed)
    }
}

/// Inside the pod's namespace: `lo` up, addresses, routes.
pub(super) fn set_up(proc_root: &Path, plan: &Native, leases: &[Lease]) -> Result<(), Error> {
    let socket = route_socket()?;
    bring_up("lo", &socket)?;
    let failed = |source| Error::kernel("set up eth0 of the pod", source);
    let link = route::link(&socket, INTERFACE).map_err(failed)?;
    let link = link.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    if leases.iter().any(|lease| lease.address.addr().is_ipv6()) {
        sysctl::ensure(proc_root, "ipv6/conf/eth0/disable_ipv6", "0")?;
    }
    let mut batch = Batch::new();
    for lease in leases {
        route::push_address(&mut batch, link.index, lease.address);
    }
    route::push_up(&mut batch, link.index, 0);
    for route in routes(plan, leases) {
        route::push_route(&mut batch, link.index, &route);
    }
    socket.run(&batch, |_| {}).map_err(|refusal| {
        let routes = routes(plan, leases);
        let index = refusal.index;
        let what = match (leases.get(index), index.checked_sub(leases.len() + 1)) {
            (Some(lease), _) => format!("add address {}", lease.address),
            (None, None) => "bring up".into(),
            (None, Some(index)) => {
                let route = routes.get(index).map(|route| route.destination.to_string());
                format!("add the route to {}", route.unwrap_or_default())
            }
        };
        Error::kernel(format!("{what}: eth0 of the pod"), refusal.source)
    })
}

/// The configured routes, each by its gateway or else by that of its family, and the default
/// routes that `isDefaultGateway` adds.
fn routes(plan: &Native, leases: &[Lease]) -> Vec<RouteSpec> {
    let gateway = |v4: bool| {
        leases
            .iter()
            .map(|l| l.gateway)
            .find(|gw| gw.is_ipv4() == v4)
    };
    let mut routes: Vec<RouteSpec> = plan.ipam.routes.clone();
    if plan.bridge.default_gateway {
        for (zero, v4) in [("0.0.0.0/0", true), ("::/0", false)] {
            let Ok(destination) = zero.parse::<IpNet>() else {
                continue;
            };
            let known = routes.iter().any(|route| route.destination == destination);
            if let Some(gateway) = gateway(v4).filter(|_| !known) {
                routes.push(RouteSpec {
                    destination,
                    gateway: Some(gateway),
                    mtu: None,
                    advmss: None,
                    priority: None,
                    table: None,
                    scope: None,
                });
            }
        }
    }
    for route in &mut routes {
        let on_link = route.scope == Some(253);
        if route.gateway.is_none() && !on_link {
            route.gateway = gateway(route.destination.addr().is_ipv4());
        }
    }
    routes
}

/// The hardware address asked for, or one that follows from the first address: whoever remembers
/// an earlier pod with the same address then still reaches the new one.
pub(super) fn mac_for(plan: &Native, pod: &Pod, leases: &[Lease]) -> Result<[u8; 6], Error> {
    if let Some(text) = pod.mac.as_deref().filter(|_| plan.takes_mac) {
        return parse_mac(text).ok_or_else(|| Error::Value {
            what: "hardware address",
            value: text.to_owned(),
        });
    }
    let [a, b, c, d] = match leases.first().map(|lease| lease.address.addr()) {
        Some(IpAddr::V4(v4)) => v4.octets(),
        Some(IpAddr::V6(v6)) => fnv(&v6.octets()).to_be_bytes(),
        None => [0; 4],
    };
    Ok([0x0a, 0x58, a, b, c, d])
}

fn fnv(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let octets: Option<Vec<u8>> = text
        .split([':', '-'])
        .map(|octet| u8::from_str_radix(octet, 16).ok())
        .collect();
    octets?.try_into().ok()
}

/// As people write it.
pub(super) fn format_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The resolver settings of the IPAM's file, or else those of the bridge.
pub(super) fn dns(plan: &Native) -> Result<Dns, Error> {
    let Some(path) = &plan.ipam.resolv_conf else {
        return Ok(plan.bridge.dns.clone());
    };
    let mut text = String::new();
    let file = fs::File::open(path).map_err(Error::io("open", path))?;
    file.take(MAX_RESOLV_CONF)
        .read_to_string(&mut text)
        .map_err(Error::io("read", path))?;
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.servers.extend(words.next()),
            Some("search") => dns.searches.extend(words),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    Ok(dns)
}
