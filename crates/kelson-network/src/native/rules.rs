//! Masquerading and host ports: the rules of one nftables table that belongs to this instance.
//!
//! Rules of a network stand while it has pods; rules of a pod are its published ports. Every rule
//! carries a comment by which it is found again, so removal needs no memory. As long as nobody
//! changes nftables (its generation stays), no rule is looked at again.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use rustix::io::Errno;

use super::hostlocal::Lease;
use crate::error::Error;
use crate::netlink::Socket;
use crate::netlink::expression::{Expressions, Side};
use crate::netlink::nft::{self, Hook, Transaction};
use crate::netlink::route::is;
use crate::plan::Portmap;
use crate::pod::{PortMapping, Protocol};

const PORTS_CHAIN: &str = "host_ports";
const POSTROUTING: &str = "postrouting";

/// The table.
#[derive(Debug)]
pub(crate) struct Rules {
    table: String,
    seen: Mutex<Seen>,
}

/// The socket, and the standing rules that existed at this generation.
///
/// The socket stays open because the kernel, when one is closed, waits for the removal of every
/// rule that is still on its way out.
#[derive(Debug, Default)]
struct Seen {
    socket: Option<Arc<Socket>>,
    generation: Option<u32>,
    comments: HashSet<String>,
}

impl Seen {
    fn socket(&mut self) -> io::Result<Arc<Socket>> {
        if let Some(socket) = &self.socket {
            return Ok(Arc::clone(socket));
        }
        let socket = Arc::new(Socket::netfilter()?);
        self.socket = Some(Arc::clone(&socket));
        Ok(socket)
    }

    fn forget(&mut self) {
        self.generation = None;
        self.comments.clear();
    }

    /// After an error answers may be left in the socket, and what exists is uncertain.
    fn reset_on_error<T>(&mut self, outcome: io::Result<T>) -> io::Result<T> {
        outcome.inspect_err(|_| *self = Self::default())
    }
}

/// A rule that does not belong to one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    /// Packets to the machine itself are looked up among the host ports.
    Lookup(&'static str),
    /// Marked packets get the machine's address, so that the answer comes back through it.
    Hairpin(u32),
    /// What leaves the subnet for anywhere but multicast gets the machine's address.
    Masquerade { network: String, subnet: IpNet },
}

impl Standing {
    fn comment(&self) -> String {
        match self {
            Self::Lookup(chain) => format!("host ports: {chain}"),
            Self::Hairpin(mark) => format!("host ports: mark {mark:#x}"),
            Self::Masquerade { network, subnet } => {
                format!("{}masquerade {subnet}", network_prefix(network))
            }
        }
    }

    fn add(&self, transaction: &mut Transaction<'_>) {
        let comment = self.comment();
        match self {
            Self::Lookup(chain) => transaction.add_rule(chain, &comment, |rule| {
                rule.destination_is_local();
                rule.jump(PORTS_CHAIN);
            }),
            Self::Hairpin(mark) => transaction.add_rule(POSTROUTING, &comment, |rule| {
                rule.has_mark(*mark);
                rule.masquerade();
            }),
            Self::Masquerade { subnet, .. } => {
                transaction.add_rule(POSTROUTING, &comment, |rule| {
                    rule.family_of(subnet.addr());
                    rule.address(Side::Source, *subnet, true);
                    rule.address(Side::Destination, *subnet, false);
                    rule.address(Side::Destination, multicast(subnet), false);
                    rule.masquerade();
                });
            }
        }
    }
}

fn multicast(subnet: &IpNet) -> IpNet {
    match subnet {
        IpNet::V4(_) => IpNet::new_assert([224, 0, 0, 0].into(), 4),
        IpNet::V6(_) => IpNet::new_assert([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8),
    }
}

fn network_prefix(network: &str) -> String {
    format!("network {network} ")
}

fn pod_comment(pod_id: &str) -> String {
    format!("pod {pod_id}")
}

/// What a pod needs of the table.
pub(crate) struct Needs<'a> {
    pub(crate) pod_id: &'a str,
    pub(crate) network: &'a str,
    pub(crate) leases: &'a [Lease],
    pub(crate) masquerade: bool,
    /// Ports to publish, with the keys of the plugin that does it.
    pub(crate) ports: Option<(&'a Portmap, &'a [PortMapping])>,
}

impl Rules {
    pub(crate) fn new(table: &str) -> Self {
        Self {
            table: table.to_owned(),
            seen: Mutex::default(),
        }
    }

    /// Makes sure of the network's rules and adds the pod's.
    pub(crate) fn publish(&self, needs: &Needs<'_>) -> Result<(), Error> {
        let wanted = standing(needs);
        if wanted.is_empty() {
            return Ok(());
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = seen
            .socket()
            .map_err(|e| Error::kernel("reach nftables", e))?;
        let mut outcome = self.add(&socket, &mut seen, needs, &wanted);
        if matches!(&outcome, Err(source) if is(source, Errno::NOENT)) {
            // Somebody removed the table between the look and the change.
            seen.forget();
            outcome = self.add(&socket, &mut seen, needs, &wanted);
        }
        let outcome = seen.reset_on_error(outcome);
        outcome.map_err(|e| Error::kernel(format!("add rules to table inet {}", self.table), e))?;
        if let Some((_, ports)) = needs.ports {
            forget_old_flows(&socket, ports);
        }
        Ok(())
    }

    fn add(
        &self,
        socket: &Socket,
        seen: &mut Seen,
        needs: &Needs<'_>,
        wanted: &[Standing],
    ) -> io::Result<()> {
        let generation = nft::generation(socket)?;
        if seen.generation != Some(generation) {
            let rules = nft::rules(socket, &self.table)?;
            seen.comments = rules.into_iter().map(|rule| rule.comment).collect();
            seen.generation = Some(generation);
        }
        let missing: Vec<&Standing> = wanted
            .iter()
            .filter(|rule| !seen.comments.contains(&rule.comment()))
            .collect();
        if missing.is_empty() && needs.ports.is_none() {
            return Ok(());
        }
        let mut transaction = Transaction::new(&self.table);
        if !missing.is_empty() {
            transaction.add_table();
            transaction.add_chain(POSTROUTING, Some(Hook::Postrouting));
        }
        if missing
            .iter()
            .any(|rule| matches!(rule, Standing::Lookup(_)))
        {
            transaction.add_chain(PORTS_CHAIN, None);
            transaction.add_chain("prerouting", Some(Hook::Prerouting));
            transaction.add_chain("output", Some(Hook::Output));
        }
        for rule in &missing {
            rule.add(&mut transaction);
        }
        if let Some((portmap, ports)) = needs.ports {
            add_ports(&mut transaction, needs, portmap, ports);
        }
        transaction.commit(socket)?;
        seen.comments
            .extend(missing.iter().map(|rule| rule.comment()));
        seen.generation = Some(generation.wrapping_add(1));
        Ok(())
    }

    /// Removes a pod's rules; those of its network, too, unless it is in use; the whole table when
    /// nothing is left in it.
    pub(crate) fn withdraw(
        &self,
        pod_id: &str,
        network: Option<&str>,
        in_use: impl Fn(&str) -> bool,
    ) -> Result<(), Error> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.forget();
        let unused = network
            .filter(|network| !in_use(network))
            .map(network_prefix);
        let gone = |comment: &str| {
            comment == pod_comment(pod_id)
                || unused
                    .as_ref()
                    .is_some_and(|prefix| comment.starts_with(prefix))
        };
        let removed = seen.socket().and_then(|socket| self.remove(&socket, gone));
        let removed = seen.reset_on_error(removed);
        removed.map_err(|source| {
            Error::kernel(
                format!("remove rules from table inet {}", self.table),
                source,
            )
        })
    }

    fn remove(&self, socket: &Socket, gone: impl Fn(&str) -> bool) -> io::Result<()> {
        let rules = nft::rules(socket, &self.table)?;
        let (leaving, staying): (Vec<_>, Vec<_>) =
            rules.into_iter().partition(|rule| gone(&rule.comment));
        if leaving.is_empty() {
            return Ok(());
        }
        let owned = |comment: &str| comment.starts_with("pod ") || comment.starts_with("network ");
        if !staying.iter().any(|rule| owned(&rule.comment)) {
            return nft::delete_table(socket, &self.table);
        }
        let mut transaction = Transaction::new(&self.table);
        for rule in &leaving {
            transaction.delete_rule(rule);
        }
        transaction.commit(socket)
    }
}

fn standing(needs: &Needs<'_>) -> Vec<Standing> {
    let mut wanted = Vec::new();
    if needs.masquerade {
        let network = needs.network.to_owned();
        wanted.extend(needs.leases.iter().map(|lease| Standing::Masquerade {
            network: network.clone(),
            subnet: lease.subnet,
        }));
    }
    if let Some((portmap, _)) = needs.ports {
        wanted.extend([Standing::Lookup("prerouting"), Standing::Lookup("output")]);
        if portmap.snat {
            wanted.push(Standing::Hairpin(portmap.mark));
        }
    }
    wanted
}

fn add_ports(
    transaction: &mut Transaction<'_>,
    needs: &Needs<'_>,
    portmap: &Portmap,
    ports: &[PortMapping],
) {
    let comment = pod_comment(needs.pod_id);
    for port in ports {
        for lease in needs.leases.iter().filter(|lease| applies(port, lease)) {
            let pod = lease.address.addr();
            for source in hairpin_sources(portmap, lease) {
                transaction.add_rule(PORTS_CHAIN, &comment, |rule| {
                    rule.family_of(pod);
                    if let Some(source) = source {
                        rule.address(Side::Source, source, true);
                    }
                    match_port(rule, port);
                    rule.set_mark(portmap.mark);
                });
            }
            transaction.add_rule(PORTS_CHAIN, &comment, |rule| {
                rule.family_of(pod);
                match_port(rule, port);
                rule.dnat(pod, port.container_port);
            });
        }
    }
}

fn match_port(rule: &mut Expressions<'_, '_>, port: &PortMapping) {
    if let Some(ip) = port.host_ip.filter(|ip| !ip.is_unspecified()) {
        rule.address(Side::Destination, IpNet::from(ip), true);
    }
    rule.port(port.protocol.number(), port.host_port);
}

/// A host address, even an unspecified one, chooses its family.
fn applies(port: &PortMapping, lease: &Lease) -> bool {
    port.host_ip
        .is_none_or(|ip| ip.is_ipv4() == lease.address.addr().is_ipv4())
}

/// Senders whose packets need the machine's address to have their answers come back through it:
/// the pod's own subnet and the machine's loopback addresses. `None` is everybody.
fn hairpin_sources(portmap: &Portmap, lease: &Lease) -> Vec<Option<IpNet>> {
    if !portmap.snat {
        return Vec::new();
    }
    if portmap.masquerade_all {
        return vec![None];
    }
    match lease.address.addr() {
        IpAddr::V4(_) => {
            vec![
                Some(lease.subnet),
                Some(IpNet::new_assert([127, 0, 0, 0].into(), 8)),
            ]
        }
        IpAddr::V6(_) => vec![Some(lease.subnet)],
    }
}

/// A kernel that cannot filter tracked flows keeps them until they time out, as without us.
fn forget_old_flows(socket: &Socket, ports: &[PortMapping]) {
    for port in ports.iter().filter(|port| port.protocol == Protocol::Udp) {
        for ipv6 in [false, true] {
            if let Err(error) = nft::forget_udp(socket, ipv6, port.host_port) {
                tracing::debug!(%error, port = port.host_port, "tracked UDP flows kept");
            }
        }
    }
}
