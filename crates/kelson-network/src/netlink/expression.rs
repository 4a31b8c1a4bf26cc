//! The expressions of an nftables rule: those that address translation for pods needs.

use std::net::IpAddr;

use ipnet::IpNet;

use super::message::Attrs;
use super::nft::{NFPROTO_IPV4, NFPROTO_IPV6};

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const REG_VERDICT: u32 = 0;
const REG_1: u32 = 1;
const REG_2: u32 = 2;
const NFT_JUMP: u32 = -3_i32 as u32;
const META_MARK: u32 = 3;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

/// Which address of a packet is compared.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Side {
    Source,
    Destination,
}

/// Writer of a rule's expressions: conditions first, then what to do.
pub(crate) struct Expressions<'a, 'b> {
    attrs: &'a mut Attrs<'b>,
}

impl<'a, 'b> Expressions<'a, 'b> {
    pub(super) fn new(attrs: &'a mut Attrs<'b>) -> Self {
        Self { attrs }
    }

    fn expression(&mut self, name: &str, data: impl FnOnce(&mut Attrs<'_>)) {
        self.attrs.nest(NFTA_LIST_ELEM, |a| {
            a.str(NFTA_EXPR_NAME, name);
            a.nest(NFTA_EXPR_DATA, data);
        });
    }

    fn compare(&mut self, value: &[u8], equal: bool) {
        self.expression("cmp", |a| {
            a.be32(1, REG_1);
            a.be32(2, u32::from(!equal));
            a.nest(3, |a| a.bytes(NFTA_DATA_VALUE, value));
        });
    }

    fn load_meta(&mut self, key: u32) {
        self.expression("meta", |a| {
            a.be32(1, REG_1);
            a.be32(2, key);
        });
    }

    fn load_payload(&mut self, base: u32, offset: u32, len: usize) {
        self.expression("payload", |a| {
            a.be32(1, REG_1);
            a.be32(2, base);
            a.be32(3, offset);
            a.be32(4, u32::try_from(len).unwrap_or(0));
        });
    }

    fn bitwise(&mut self, mask: &[u8], xor: &[u8]) {
        self.expression("bitwise", |a| {
            a.be32(1, REG_1);
            a.be32(2, REG_1);
            a.be32(3, u32::try_from(mask.len()).unwrap_or(0));
            a.nest(4, |a| a.bytes(NFTA_DATA_VALUE, mask));
            a.nest(5, |a| a.bytes(NFTA_DATA_VALUE, xor));
        });
    }

    fn immediate(&mut self, register: u32, data: impl FnOnce(&mut Attrs<'_>)) {
        self.expression("immediate", |a| {
            a.be32(1, register);
            a.nest(2, data);
        });
    }

    /// The packet is of this address's family.
    pub(crate) fn family_of(&mut self, address: IpAddr) {
        self.load_meta(META_NFPROTO);
        self.compare(
            &[if address.is_ipv4() {
                NFPROTO_IPV4
            } else {
                NFPROTO_IPV6
            }],
            true,
        );
    }

    /// An address of the packet is inside (or, not `inside`, outside) this network. The family
    /// must have been compared before.
    pub(crate) fn address(&mut self, side: Side, net: IpNet, inside: bool) {
        let (octets, mask) = match net.trunc() {
            IpNet::V4(v4) => (v4.addr().octets().to_vec(), v4.netmask().octets().to_vec()),
            IpNet::V6(v6) => (v6.addr().octets().to_vec(), v6.netmask().octets().to_vec()),
        };
        let offset = match (side, octets.len()) {
            (Side::Source, 4) => 12,
            (Side::Destination, 4) => 16,
            (Side::Source, _) => 8,
            (Side::Destination, _) => 24,
        };
        self.load_payload(NETWORK_HEADER, offset, octets.len());
        if net.prefix_len() != net.max_prefix_len() {
            self.bitwise(&mask, &vec![0; mask.len()]);
        }
        self.compare(&octets, inside);
    }

    /// The packet's destination is an address of this machine.
    pub(crate) fn destination_is_local(&mut self) {
        const RESULT_ADDRTYPE: u32 = 3;
        const FLAG_DADDR: u32 = 2;
        const RTN_LOCAL: u32 = 2;
        self.expression("fib", |a| {
            a.be32(1, REG_1);
            a.be32(2, RESULT_ADDRTYPE);
            a.be32(3, FLAG_DADDR);
        });
        self.compare(&RTN_LOCAL.to_ne_bytes(), true);
    }

    /// The packet is of this protocol and goes to this port.
    pub(crate) fn port(&mut self, protocol: u8, port: u16) {
        self.load_meta(META_L4PROTO);
        self.compare(&[protocol], true);
        self.load_payload(TRANSPORT_HEADER, 2, 2);
        self.compare(&port.to_be_bytes(), true);
    }

    /// The packet's mark has this bit.
    pub(crate) fn has_mark(&mut self, bit: u32) {
        self.load_meta(META_MARK);
        self.bitwise(&bit.to_ne_bytes(), &[0; 4]);
        self.compare(&bit.to_ne_bytes(), true);
    }

    /// Sets this bit of the packet's mark.
    pub(crate) fn set_mark(&mut self, bit: u32) {
        self.load_meta(META_MARK);
        self.bitwise(&(!bit).to_ne_bytes(), &bit.to_ne_bytes());
        self.expression("meta", |a| {
            a.be32(2, META_MARK);
            a.be32(3, REG_1);
        });
    }

    /// Goes on in another chain.
    pub(crate) fn jump(&mut self, chain: &str) {
        self.immediate(REG_VERDICT, |a| {
            a.nest(NFTA_DATA_VERDICT, |a| {
                a.be32(1, NFT_JUMP);
                a.str(2, chain);
            });
        });
    }

    /// Sends the packet to this address and port instead.
    pub(crate) fn dnat(&mut self, address: IpAddr, port: u16) {
        const NAT_DNAT: u32 = 1;
        let (octets, family) = match address {
            IpAddr::V4(v4) => (v4.octets().to_vec(), NFPROTO_IPV4),
            IpAddr::V6(v6) => (v6.octets().to_vec(), NFPROTO_IPV6),
        };
        self.immediate(REG_1, |a| a.bytes(NFTA_DATA_VALUE, &octets));
        self.immediate(REG_2, |a| a.bytes(NFTA_DATA_VALUE, &port.to_be_bytes()));
        self.expression("nat", |a| {
            a.be32(1, NAT_DNAT);
            a.be32(2, family.into());
            a.be32(3, REG_1);
            a.be32(5, REG_2);
        });
    }

    /// Gives the packet the address of the interface that it leaves by.
    pub(crate) fn masquerade(&mut self) {
        self.expression("masq", |_| {});
    }
}
