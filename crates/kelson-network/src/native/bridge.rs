//! The bridge itself: made when missing, given the gateway addresses, never removed by a pod.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use ipnet::IpNet;
use rustix::io::Errno;

use crate::error::Error;
use crate::netlink::route::{self, Link, is};
use crate::netlink::{Batch, Socket};
use crate::plan::Bridge;

/// The gateway addresses that were seen to fit their bridge, by the bridge's index.
#[derive(Debug, Default)]
pub(crate) struct Gateways(Mutex<HashSet<(u32, IpNet)>>);

/// Makes sure of the bridge, up.
pub(crate) fn ensure(socket: &Socket, bridge: &Bridge) -> Result<Link, Error> {
    let name = &bridge.name;
    let failed = |step: &str| {
        let step = format!("{step} bridge {name}");
        move |source| Error::kernel(step, source)
    };
    let mut found = route::link(socket, name).map_err(failed("look for"))?;
    if found.is_none() {
        match route::create_bridge(socket, name, random_mac()?, bridge.mtu) {
            Err(source) if !is(&source, Errno::EXIST) => return Err(failed("create")(source)),
            _ => found = route::link(socket, name).map_err(failed("look for"))?,
        }
    }
    let link = found.ok_or_else(|| failed("find")(Errno::NODEV.into()))?;
    if link.kind != "bridge" {
        return Err(Error::NotABridge { name: name.clone() });
    }
    if !link.up || (bridge.promiscuous && !link.promiscuous) {
        route::set_up(socket, link.index, bridge.promiscuous).map_err(failed("bring up"))?;
    }
    Ok(link)
}

impl Gateways {
    /// Makes sure that the bridge has a gateway's address. Another IPv4 address, or an IPv6
    /// address of an overlapping subnet, is an error, or is removed with `forceAddress`; except
    /// the network's other `gateways`.
    pub(crate) fn ensure(
        &self,
        socket: &Socket,
        network: &str,
        bridge: &Bridge,
        index: u32,
        wanted: IpNet,
        gateways: &[IpNet],
    ) -> Result<(), Error> {
        let failed = |step: &str| {
            let step = format!("{step} {wanted} of bridge {}", bridge.name);
            move |source| Error::kernel(step, source)
        };
        let known = |set: &HashSet<_>| set.contains(&(index, wanted));
        if !known(&self.0.lock().unwrap_or_else(PoisonError::into_inner)) {
            let all = route::addresses(socket, index).map_err(failed("compare with address"))?;
            for found in all
                .into_iter()
                .filter(|found| is_foreign(found, &wanted, gateways))
            {
                if !bridge.force_address {
                    let (bridge, network) = (bridge.name.clone(), network.to_owned());
                    return Err(Error::BridgeAddress {
                        bridge,
                        network,
                        found,
                        wanted,
                    });
                }
                let mut batch = Batch::new();
                route::push_delete_address(&mut batch, index, found);
                socket
                    .run(&batch, |_| {})
                    .map_err(|r| failed("make place for")(r.source))?;
            }
        }
        let mut batch = Batch::new();
        route::push_address(&mut batch, index, wanted);
        match socket.run(&batch, |_| {}) {
            Err(refusal) if !is(&refusal.source, Errno::EXIST) => {
                return Err(failed("add address")(refusal.source));
            }
            _ => {}
        }
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert((index, wanted));
        Ok(())
    }
}

/// Whether an address on the bridge is in the way: any other IPv4 address, or an IPv6 address of
/// an overlapping subnet, unless it is a gateway of the same network.
fn is_foreign(found: &IpNet, wanted: &IpNet, gateways: &[IpNet]) -> bool {
    let overlaps = found.contains(&wanted.trunc()) || wanted.contains(&found.trunc());
    let same_family = found.addr().is_ipv4() == wanted.addr().is_ipv4();
    same_family && (found.addr().is_ipv4() || overlaps) && !gateways.contains(found)
}

/// A random, locally administered, unicast address.
fn random_mac() -> Result<[u8; 6], Error> {
    let mut mac = [0; 6];
    rustix::rand::getrandom(&mut mac, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| Error::kernel("get random bytes", errno.into()))?;
    mac[0] = (mac[0] & 0xfe) | 0x02;
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_way_of_a_gateway() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let foreign = |found: &str, wanted: &str, gateways: &[&str]| {
            let gateways: Vec<IpNet> = gateways.iter().map(|text| net(text)).collect();
            is_foreign(&net(found), &net(wanted), &gateways)
        };
        assert!(!foreign("10.0.0.1/24", "10.0.0.1/24", &["10.0.0.1/24"]));
        assert!(foreign("10.0.0.1/16", "10.0.0.1/24", &["10.0.0.1/24"]));
        assert!(foreign("10.7.0.1/24", "10.0.0.1/24", &["10.0.0.1/24"]));
        assert!(!foreign(
            "10.7.0.1/24",
            "10.0.0.1/24",
            &["10.0.0.1/24", "10.7.0.1/24"]
        ));
        assert!(foreign("fd00::2/64", "fd00::1/64", &["fd00::1/64"]));
        assert!(!foreign("fd07::1/64", "fd00::1/64", &["fd00::1/64"]));
        assert!(!foreign("fd00::1/64", "10.0.0.1/24", &["10.0.0.1/24"]));
    }
}
