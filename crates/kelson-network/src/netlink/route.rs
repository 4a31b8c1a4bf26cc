//! rtnetlink: links, addresses, routes, in the namespace of the socket that is given.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use rustix::io::Errno;

use super::message::{
    Attrs, Batch, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, Reply, attribute, u32_at,
};
use super::socket::{Refusal, Socket};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_LINKINFO: u16 = 18;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_STATE: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const RTEXT_FILTER_SKIP_STATS: u32 = 8;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 2;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_METRICS: u16 = 8;
const RTA_TABLE: u16 = 15;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;
const RT_TABLE_MAIN: u32 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;
const RT_SCOPE_LINK: u8 = 253;

const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;
const AF_INET6: u8 = 10;
const IFF_UP: u32 = 0x1;
const IFF_PROMISC: u32 = 0x100;

/// An interface as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) mac: String,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) promiscuous: bool,
    /// `bridge`, `veth` …; empty for hardware.
    pub(crate) kind: String,
}

/// A pair of interfaces: one on a bridge here, its peer in another namespace.
#[derive(Debug)]
pub(crate) struct Veth<'a> {
    pub(crate) host_name: &'a str,
    pub(crate) peer_name: &'a str,
    pub(crate) peer_netns: BorrowedFd<'a>,
    pub(crate) peer_mac: [u8; 6],
    pub(crate) bridge: u32,
    pub(crate) mtu: Option<u32>,
}

/// A route to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RouteSpec {
    pub(crate) destination: IpNet,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) mtu: Option<u32>,
    pub(crate) advmss: Option<u32>,
    pub(crate) priority: Option<u32>,
    pub(crate) table: Option<u32>,
    pub(crate) scope: Option<u8>,
}

fn ifinfo(family: u8, index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[0] = family;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn put_address(attrs: &mut Attrs<'_>, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => attrs.bytes(kind, &v4.octets()),
        IpAddr::V6(v6) => attrs.bytes(kind, &v6.octets()),
    }
}

/// The interface of this name, if there is one.
pub(crate) fn link(socket: &Socket, name: &str) -> io::Result<Option<Link>> {
    let mut batch = Batch::new();
    batch.push(RTM_GETLINK, NLM_F_ACK, &ifinfo(0, 0, 0, 0), |a| {
        a.str(IFLA_IFNAME, name);
        a.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    });
    let mut found = None;
    match socket.run(&batch, |reply| found = parse_link(reply)) {
        Ok(()) => Ok(found),
        Err(refusal) if is(&refusal.source, Errno::NODEV) => Ok(None),
        Err(refusal) => Err(refusal.source),
    }
}

fn parse_link(reply: &Reply<'_>) -> Option<Link> {
    let flags = u32_at(reply.body, 8)?;
    let attrs = reply.body.get(16..)?;
    let kind = attribute(attrs, IFLA_LINKINFO).and_then(|info| attribute(info, IFLA_INFO_KIND));
    Some(Link {
        index: u32_at(reply.body, 4)?,
        mac: attribute(attrs, IFLA_ADDRESS)
            .map(format_mac)
            .unwrap_or_default(),
        mtu: attribute(attrs, IFLA_MTU).and_then(|mtu| u32_at(mtu, 0))?,
        up: flags & IFF_UP != 0,
        promiscuous: flags & IFF_PROMISC != 0,
        kind: String::from_utf8_lossy(kind.unwrap_or_default())
            .trim_end_matches('\0')
            .to_owned(),
    })
}

fn format_mac(bytes: &[u8]) -> String {
    let octets: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    octets.join(":")
}

/// Makes a bridge and brings it up. Its hardware address is fixed, because a bridge without one
/// takes the lowest of its ports and changes with them. An existing one is `AlreadyExists`.
pub(crate) fn create_bridge(
    socket: &Socket,
    name: &str,
    mac: [u8; 6],
    mtu: Option<u32>,
) -> io::Result<()> {
    let mut batch = Batch::new();
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    batch.push(RTM_NEWLINK, flags, &ifinfo(0, 0, IFF_UP, IFF_UP), |a| {
        a.str(IFLA_IFNAME, name);
        a.bytes(IFLA_ADDRESS, &mac);
        if let Some(mtu) = mtu {
            a.u32(IFLA_MTU, mtu);
        }
        a.nest(IFLA_LINKINFO, |a| a.str(IFLA_INFO_KIND, "bridge"));
    });
    Ok(socket.run(&batch, |_| {})?)
}

/// Brings an interface up, and into promiscuous mode if asked.
pub(crate) fn set_up(socket: &Socket, index: u32, promiscuous: bool) -> io::Result<()> {
    let mut batch = Batch::new();
    push_up(&mut batch, index, if promiscuous { IFF_PROMISC } else { 0 });
    Ok(socket.run(&batch, |_| {})?)
}

/// Appends a request to bring an interface up with these further flags.
pub(crate) fn push_up(batch: &mut Batch, index: u32, flags: u32) {
    let flags = IFF_UP | flags;
    batch.push(
        RTM_NEWLINK,
        NLM_F_ACK,
        &ifinfo(0, index, flags, flags),
        |_| {},
    );
}

/// Makes a veth pair in one request: the host's end on the bridge and up, the peer in its
/// namespace. The kernel cannot bring the peer up before the pair is complete.
pub(crate) fn create_veth(socket: &Socket, veth: &Veth<'_>) -> io::Result<()> {
    let up = ifinfo(0, 0, IFF_UP, IFF_UP);
    let mut batch = Batch::new();
    batch.push(
        RTM_NEWLINK,
        NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
        &up,
        |a| {
            a.str(IFLA_IFNAME, veth.host_name);
            a.u32(IFLA_MASTER, veth.bridge);
            if let Some(mtu) = veth.mtu {
                a.u32(IFLA_MTU, mtu);
            }
            a.nest(IFLA_LINKINFO, |a| {
                a.str(IFLA_INFO_KIND, "veth");
                a.nest(IFLA_INFO_DATA, |a| {
                    a.nest(VETH_INFO_PEER, |a| {
                        a.raw(&ifinfo(0, 0, 0, 0));
                        a.str(IFLA_IFNAME, veth.peer_name);
                        a.bytes(IFLA_ADDRESS, &veth.peer_mac);
                        a.u32(IFLA_NET_NS_FD, veth.peer_netns.as_raw_fd().cast_unsigned());
                        if let Some(mtu) = veth.mtu {
                            a.u32(IFLA_MTU, mtu);
                        }
                    });
                });
            });
        },
    );
    Ok(socket.run(&batch, |_| {})?)
}

/// Sets hairpin mode and isolation of a bridge port.
pub(crate) fn set_port(
    socket: &Socket,
    index: u32,
    hairpin: bool,
    isolated: bool,
) -> io::Result<()> {
    let mut batch = Batch::new();
    batch.push(
        RTM_SETLINK,
        NLM_F_ACK,
        &ifinfo(AF_BRIDGE, index, 0, 0),
        |a| {
            a.nest(IFLA_PROTINFO, |a| {
                a.bytes(IFLA_BRPORT_MODE, &[u8::from(hairpin)]);
                a.bytes(IFLA_BRPORT_ISOLATED, &[u8::from(isolated)]);
            });
        },
    );
    Ok(socket.run(&batch, |_| {})?)
}

/// Makes a bridge port deaf and mute at once.
pub(crate) fn disable_port(socket: &Socket, index: u32) -> io::Result<()> {
    const BR_STATE_DISABLED: u8 = 0;
    let mut batch = Batch::new();
    batch.push(
        RTM_SETLINK,
        NLM_F_ACK,
        &ifinfo(AF_BRIDGE, index, 0, 0),
        |a| {
            a.nest(IFLA_PROTINFO, |a| {
                a.bytes(IFLA_BRPORT_STATE, &[BR_STATE_DISABLED])
            });
        },
    );
    Ok(socket.run(&batch, |_| {})?)
}

/// Puts these interfaces into a group and removes the group. Those that do not exist are passed
/// over; an error says that some may be left.
pub(crate) fn delete_group(socket: &Socket, names: &[String], group: u32) -> io::Result<()> {
    let mut batch = Batch::new();
    for name in names {
        batch.push(RTM_NEWLINK, NLM_F_ACK, &ifinfo(0, 0, 0, 0), |a| {
            a.str(IFLA_IFNAME, name);
            a.u32(IFLA_GROUP, group);
        });
    }
    ignore_missing(socket.run(&batch, |_| {}))?;
    let mut batch = Batch::new();
    batch.push(RTM_DELLINK, NLM_F_ACK, &ifinfo(0, 0, 0, 0), |a| {
        a.u32(IFLA_GROUP, group)
    });
    ignore_missing(socket.run(&batch, |_| {}))
}

fn ignore_missing(outcome: Result<(), Refusal>) -> io::Result<()> {
    match outcome {
        Err(refusal) if !is(&refusal.source, Errno::NODEV) => Err(refusal.source),
        _ => Ok(()),
    }
}

/// Removes an interface; fine when there is none.
pub(crate) fn delete_link(socket: &Socket, name: &str) -> io::Result<()> {
    let mut batch = Batch::new();
    batch.push(RTM_DELLINK, NLM_F_ACK, &ifinfo(0, 0, 0, 0), |a| {
        a.str(IFLA_IFNAME, name)
    });
    ignore_missing(socket.run(&batch, |_| {}))
}

/// Appends a request for an address to a batch. It is usable at once: duplicate address
/// detection, which would delay an IPv6 address by a second, is off for it.
pub(crate) fn push_address(batch: &mut Batch, index: u32, address: IpNet) {
    push_address_request(
        batch,
        RTM_NEWADDR,
        NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
        index,
        address,
    );
}

/// Appends a request that takes an address away.
pub(crate) fn push_delete_address(batch: &mut Batch, index: u32, address: IpNet) {
    push_address_request(batch, RTM_DELADDR, NLM_F_ACK, index, address);
}

fn push_address_request(batch: &mut Batch, kind: u16, flags: u16, index: u32, address: IpNet) {
    let mut header = [0; 8];
    header[0] = family(address.addr());
    header[1] = address.prefix_len();
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    batch.push(kind, flags, &header, |a| {
        put_address(a, IFA_LOCAL, address.addr());
        put_address(a, IFA_ADDRESS, address.addr());
        match address {
            IpNet::V4(v4) if v4.prefix_len() < 31 => {
                put_address(a, IFA_BROADCAST, v4.broadcast().into());
            }
            IpNet::V4(_) => {}
            IpNet::V6(_) => a.u32(IFA_FLAGS, IFA_F_NODAD),
        }
    });
}

/// The addresses of an interface, link-local IPv6 ones left out.
pub(crate) fn addresses(socket: &Socket, index: u32) -> io::Result<Vec<IpNet>> {
    let mut batch = Batch::new();
    batch.push(RTM_GETADDR, NLM_F_DUMP, &[0; 8], |_| {});
    socket.dump(&batch, |reply| {
        if u32_at(reply.body, 4)? != index {
            return None;
        }
        let attrs = reply.body.get(8..)?;
        let local = attribute(attrs, IFA_LOCAL).or_else(|| attribute(attrs, IFA_ADDRESS))?;
        let address = parse_address(local)?;
        let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let net = IpNet::new(address, *reply.body.get(1)?).ok()?;
        (!link_local).then_some(net)
    })
}

fn parse_address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(v4));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// Appends a request for a route to a batch.
pub(crate) fn push_route(batch: &mut Batch, index: u32, route: &RouteSpec) {
    let mut header = [0; 12];
    header[0] = family(route.destination.addr());
    header[1] = route.destination.prefix_len();
    header[5] = RTPROT_BOOT;
    let on_link = if route.gateway.is_none() {
        RT_SCOPE_LINK
    } else {
        0
    };
    header[6] = route.scope.unwrap_or(on_link);
    header[7] = RTN_UNICAST;
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    batch.push(RTM_NEWROUTE, flags, &header, |a| {
        if route.destination.prefix_len() > 0 {
            put_address(a, RTA_DST, route.destination.network());
        }
        if let Some(gateway) = route.gateway {
            put_address(a, RTA_GATEWAY, gateway);
        }
        a.u32(RTA_OIF, index);
        a.u32(RTA_TABLE, route.table.unwrap_or(RT_TABLE_MAIN));
        if let Some(priority) = route.priority {
            a.u32(RTA_PRIORITY, priority);
        }
        if route.mtu.is_some() || route.advmss.is_some() {
            a.nest(RTA_METRICS, |a| {
                if let Some(mtu) = route.mtu {
                    a.u32(RTAX_MTU, mtu);
                }
                if let Some(advmss) = route.advmss {
                    a.u32(RTAX_ADVMSS, advmss);
                }
            });
        }
    });
}

/// Whether an error is this one.
pub(crate) fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}
