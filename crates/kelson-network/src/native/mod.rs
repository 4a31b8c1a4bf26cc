//! The standard plugins inside this process: loopback, bridge, host-local, portmap.
//!
//! Synchronous, over netlink; runs no program. `attach` may stop anywhere: `detach` undoes it
//! from the record alone.

pub(crate) mod bridge;
pub(crate) mod hostlocal;
mod pod;
pub(crate) mod ranges;
mod reaper;
pub(crate) mod rules;
mod sysctl;

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
use crate::netlink::Socket;
use crate::netlink::route::{self, Veth};
use crate::netns;
use crate::plan::Native;
use crate::pod::{Attachment, Interface, Pod, PortMapping};

/// The pod's interface.
pub(crate) const INTERFACE: &str = "eth0";

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
    netns::inside(netns, || pod::bring_up("lo", &route_socket()?))
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

    let mac = pod::mac_for(plan, pod, &leases)?;
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

    netns::inside(namespace.as_fd(), || pod::set_up(proc_root, plan, &leases))?;
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
            interface(INTERFACE, pod::format_mac(mac), true),
        ],
        dns: pod::dns(plan)?,
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
