//! The standard plugins inside this process: loopback, bridge, host-local, portmap.
//!
//! Synchronous, over netlink; runs no program. `attach` may stop anywhere: `detach` undoes it
//! from the record alone.

pub(crate) mod bridge;
pub(crate) mod hostlocal;
pub(crate) mod ranges;
mod reaper;
pub(crate) mod rules;
mod sysctl;

use std::fs;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Instant;

use ipnet::IpNet;

use self::bridge::Gateways;
use self::hostlocal::{Lease, Owner};
use self::reaper::Reaper;
use self::rules::{Needs, Rules};
use crate::error::Error;
use crate::netlink::route::{self, RouteSpec, Veth};
use crate::netlink::{Batch, Socket};
use crate::netns;
use crate::plan::Native;
use crate::pod::{Attachment, Dns, Interface, Pod, PortMapping};

/// The pod's interface.
pub(crate) const INTERFACE: &str = "eth0";
/// A resolver configuration is read up to this length.
const MAX_RESOLV_CONF: u64 = 64 * 1024;

/// What outlives a single attachment.
#[derive(Debug)]
pub(crate) struct Host {
    rules: Rules,
    gateways: Gateways,
    reaper: Reaper,
}

impl Host {
    pub(crate) fn new(nft_table: &str) -> Self {
        let (gateways, reaper) = (Gateways::default(), Reaper::default());
        Self {
            rules: Rules::new(nft_table),
            gateways,
            reaper,
        }
    }
}

/// Brings `lo` up in a namespace.
pub(crate) fn loopback_up(netns: BorrowedFd<'_>) -> Result<(), Error> {
    netns::inside(netns, || bring_up("lo", &route_socket()?))
}

/// Attaches a pod. `veth` is the name for the host's end, `ports` what to publish.
pub(crate) fn attach(
    host: &Host,
    proc_root: &Path,
    network: &str,
    plan: &Native,
    pod: &Pod,
    veth: &str,
    ports: &[PortMapping],
) -> Result<Attachment, Error> {
    let mut watch = Stopwatch::start();
    let namespace = netns::open(proc_root, &pod.netns)?;
    let leases = allocate(network, plan, pod)?;
    watch.lap("addresses");

    let socket = route_socket()?;
    let bridge = bridge::ensure(&socket, &plan.bridge)?;
    if plan.bridge.gateway {
        serve_as_gateway(
            host,
            proc_root,
            &socket,
            network,
            plan,
            bridge.index,
            &leases,
        )?;
    }
    watch.lap("bridge");

    let mac = mac_for(plan, pod, &leases)?;
    let pair = Veth {
        host_name: veth,
        peer_name: INTERFACE,
        peer_netns: namespace.as_fd(),
        peer_mac: mac,
        bridge: bridge.index,
        mtu: plan.bridge.mtu,
    };
    route::create_veth(&socket, &pair)
        .map_err(|e| Error::kernel(format!("create the interface pair {veth}"), e))?;
    if plan.bridge.hairpin || plan.bridge.isolated {
        set_port(&socket, veth, plan)?;
    }
    watch.lap("veth");

    netns::inside(namespace.as_fd(), || address_pod(proc_root, plan, &leases))?;
    watch.lap("pod");

    let portmap = plan.portmap.as_ref().filter(|_| !ports.is_empty());
    if portmap.is_some_and(|portmap| portmap.snat) {
        let name = format!("ipv4/conf/{}/route_localnet", plan.bridge.name);
        sysctl::ensure(proc_root, &name, "1")?;
    }
    let masquerade = plan.bridge.masquerade;
    let ports = portmap.map(|portmap| (portmap, ports));
    host.rules.publish(&Needs {
        pod_id: &pod.id,
        network,
        leases: &leases,
        masquerade,
        ports,
    })?;
    watch.lap("rules");
    watch.report(&pod.id);

    let interface = |name: &str, mac: String, sandbox| Interface {
        name: name.into(),
        mac,
        sandbox,
    };
    Ok(Attachment {
        network: network.to_owned(),
        ips: leases.iter().map(|lease| lease.address.addr()).collect(),
        interfaces: vec![
            interface(&plan.bridge.name, bridge.mac, false),
            interface(veth, String::new(), false),
            interface(INTERFACE, format_mac(mac), true),
        ],
        dns: dns(plan)?,
    })
}

/// What [`detach`] is to undo.
pub(crate) struct Traces<'a> {
    pub(crate) pod_id: &'a str,
    /// The network, whose rules go when nobody uses it any more; `None` leaves them.
    pub(crate) network: Option<&'a str>,
    pub(crate) veth: &'a str,
    /// host-local's directory of the network.
    pub(crate) dir: &'a Path,
    /// Addresses known from the result; without them the directory is searched.
    pub(crate) addresses: Option<&'a [IpAddr]>,
}

/// Undoes [`attach`] as far as it came, but for the interface, which is only cut off from the
/// bridge: [`delete_link`] must follow. Goes on after a failure and returns all of them.
pub(crate) fn detach(
    host: &Host,
    traces: &Traces<'_>,
    in_use: impl Fn(&str) -> bool,
) -> Vec<Error> {
    let mut watch = Stopwatch::start();
    let mut failures = Vec::new();
    failures.extend(
        host.rules
            .withdraw(traces.pod_id, traces.network, in_use)
            .err(),
    );
    watch.lap("rules");
    // The address must not be given to another pod while this one still answers to it.
    match cut_off(traces.veth).or_else(|_| delete_link(host, traces.veth)) {
        Ok(()) => failures.extend(release(traces).err()),
        Err(failure) => failures.push(failure),
    }
    watch.lap("addresses");
    watch.report(traces.pod_id);
    failures
}

fn cut_off(veth: &str) -> Result<(), Error> {
    let failed = |source| Error::kernel(format!("cut off interface {veth}"), source);
    let socket = route_socket()?;
    match route::link(&socket, veth).map_err(failed)? {
        Some(link) => route::disable_port(&socket, link.index).map_err(failed),
        None => Ok(()),
    }
}

/// Removes an interface of the host; fine when there is none. Takes some 20 ms.
pub(crate) fn delete_link(host: &Host, name: &str) -> Result<(), Error> {
    host.reaper.delete(name)
}

/// Removes the rules of a network that nobody uses.
pub(crate) fn remove_rules(
    host: &Host,
    network: &str,
    in_use: impl Fn(&str) -> bool,
) -> Result<(), Error> {
    host.rules.withdraw("", Some(network), in_use)
}

fn release(traces: &Traces<'_>) -> Result<(), Error> {
    if !traces.dir.exists() {
        return Ok(());
    }
    let locked = hostlocal::lock(traces.dir)?;
    match traces.addresses {
        Some(addresses) => locked.release(
            addresses,
            &Owner {
                id: traces.pod_id,
                interface: INTERFACE,
            },
        ),
        None => locked.release_all(|id| id != traces.pod_id).map(|_| ()),
    }
}

fn route_socket() -> Result<Socket, Error> {
    Socket::route().map_err(|source| Error::kernel("open a netlink socket", source))
}

fn allocate(network: &str, plan: &Native, pod: &Pod) -> Result<Vec<Lease>, Error> {
    let wanted: &[IpNet] = if plan.takes_ips { &pod.ips } else { &[] };
    let owner = Owner {
        id: &pod.id,
        interface: INTERFACE,
    };
    hostlocal::lock(&plan.ipam.dir)?.allocate(network, &plan.ipam.sets, wanted, &owner)
}

fn serve_as_gateway(
    host: &Host,
    proc_root: &Path,
    socket: &Socket,
    network: &str,
    plan: &Native,
    index: u32,
    leases: &[Lease],
) -> Result<(), Error> {
    let ranges = plan.ipam.sets.iter().flat_map(|set| &set.0);
    let gateways: Vec<IpNet> = ranges
        .map(|range| range.interface_address(range.gateway))
        .collect();
    for lease in leases {
        if lease.address.addr().is_ipv4() {
            sysctl::ensure(proc_root, "ipv4/ip_forward", "1")?;
        } else {
            let conf = format!("ipv6/conf/{}/disable_ipv6", plan.bridge.name);
            sysctl::ensure(proc_root, &conf, "0")?;
            sysctl::ensure(proc_root, "ipv6/conf/all/forwarding", "1")?;
        }
        let address = IpNet::new_assert(lease.gateway, lease.subnet.prefix_len());
        host.gateways
            .ensure(socket, network, &plan.bridge, index, address, &gateways)?;
    }
    Ok(())
}

fn set_port(socket: &Socket, veth: &str, plan: &Native) -> Result<(), Error> {
    let failed = |source| Error::kernel(format!("set the bridge port {veth}"), source);
    let Some(link) = route::link(socket, veth).map_err(failed)? else {
        return Ok(());
    };
    route::set_port(
        socket,
        link.index,
        plan.bridge.hairpin,
        plan.bridge.isolated,
    )
    .map_err(failed)
}

fn bring_up(name: &str, socket: &Socket) -> Result<(), Error> {
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
fn address_pod(proc_root: &Path, plan: &Native, leases: &[Lease]) -> Result<(), Error> {
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
fn mac_for(plan: &Native, pod: &Pod, leases: &[Lease]) -> Result<[u8; 6], Error> {
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

fn format_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn dns(plan: &Native) -> Result<Dns, Error> {
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

/// How long each step took, for the log at debug level.
struct Stopwatch {
    last: Instant,
    laps: Vec<(&'static str, u128)>,
}

impl Stopwatch {
    fn start() -> Self {
        Self {
            last: Instant::now(),
            laps: Vec::new(),
        }
    }

    fn lap(&mut self, step: &'static str) {
        let now = Instant::now();
        self.laps
            .push((step, now.duration_since(self.last).as_micros()));
        self.last = now;
    }

    fn report(&self, pod_id: &str) {
        tracing::debug!(pod_id, microseconds = ?self.laps, "network steps");
    }
}
