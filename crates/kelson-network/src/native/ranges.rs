//! Address ranges as host-local has them: which addresses may be given out, and in which order.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::Deserialize;

/// One range as configured.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RangeConf {
    pub(crate) subnet: IpNet,
    pub(crate) range_start: Option<IpAddr>,
    pub(crate) range_end: Option<IpAddr>,
    pub(crate) gateway: Option<IpAddr>,
}

/// One range, complete and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) subnet: IpNet,
    pub(crate) gateway: IpAddr,
    start: u128,
    end: u128,
}

/// Ranges of one family of which a pod gets one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RangeSet(pub(crate) Vec<Range>);

/// Completes and checks the configured ranges; the error names the mistake.
pub(crate) fn range_sets(configured: &[Vec<RangeConf>]) -> Result<Vec<RangeSet>, String> {
    if configured.is_empty() {
        return Err("no `ranges` and no `subnet`".into());
    }
    let mut sets: Vec<RangeSet> = Vec::new();
    for ranges in configured {
        let set: Vec<Range> = ranges.iter().map(Range::new).collect::<Result<_, _>>()?;
        let first = set.first().ok_or("a range set is empty")?;
        if set.iter().any(|range| range.is_v4() != first.is_v4()) {
            return Err("a range set mixes IPv4 and IPv6".into());
        }
        for (index, range) in set.iter().enumerate() {
            let others = sets.iter().flat_map(|set| &set.0).chain(&set[..index]);
            if let Some(other) = others.into_iter().find(|other| other.overlaps(range)) {
                return Err(format!("the ranges {other} and {range} overlap"));
            }
        }
        sets.push(RangeSet(set));
    }
    Ok(sets)
}

impl Range {
    fn new(conf: &RangeConf) -> Result<Self, String> {
        let subnet = conf.subnet;
        if subnet.trunc() != subnet {
            return Err(format!(
                "`subnet` {subnet} has host bits set, use {}",
                subnet.trunc()
            ));
        }
        if subnet.prefix_len() + 2 > subnet.max_prefix_len() {
            return Err(format!(
                "`subnet` {subnet} is too small, /30 or /126 is the least"
            ));
        }
        let first = number(subnet.network()) + 1;
        let last = number(subnet.broadcast()) - u128::from(subnet.addr().is_ipv4());
        let inside = |key: &str, address: Option<IpAddr>, default: u128| match address {
            None => Ok(default),
            Some(address) if subnet.contains(&address) => Ok(number(address)),
            Some(address) => Err(format!("`{key}` {address} is not in {subnet}")),
        };
        let start = inside("rangeStart", conf.range_start, first)?;
        let end = inside("rangeEnd", conf.range_end, last)?;
        if start > end {
            return Err(format!("the range in {subnet} ends before it starts"));
        }
        let gateway = conf
            .gateway
            .unwrap_or_else(|| address(first, subnet.addr().is_ipv4()));
        if gateway.is_ipv4() != subnet.addr().is_ipv4() {
            return Err(format!(
                "`gateway` {gateway} is not of the family of {subnet}"
            ));
        }
        Ok(Self {
            subnet,
            gateway,
            start,
            end,
        })
    }

    fn is_v4(&self) -> bool {
        self.subnet.addr().is_ipv4()
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.is_v4() == other.is_v4() && self.start <= other.end && other.start <= self.end
    }

    fn has(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.is_v4() && (self.start..=self.end).contains(&number(ip))
    }

    /// The address as an interface has it, with the length of the subnet.
    pub(crate) fn interface_address(&self, ip: IpAddr) -> IpNet {
        IpNet::new_assert(ip, self.subnet.prefix_len())
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (start, end) = (
            address(self.start, self.is_v4()),
            address(self.end, self.is_v4()),
        );
        write!(f, "{start}-{end}")
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<String> = self.0.iter().map(Range::to_string).collect();
        f.write_str(&ranges.join(", "))
    }
}

impl RangeSet {
    /// The range that an address belongs to.
    pub(crate) fn range_of(&self, ip: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.has(ip))
    }

    /// Every address that may be given out, beginning after `last` and going round once.
    /// Gateways are left out.
    pub(crate) fn candidates(
        &self,
        last: Option<IpAddr>,
    ) -> impl Iterator<Item = (IpAddr, &Range)> {
        let place = last.and_then(|last| {
            let index = self.0.iter().position(|range| range.has(last))?;
            Some((index, number(last)))
        });
        let (index, after) = place.unwrap_or((0, self.0[0].start.wrapping_sub(1)));
        let tail = self.0[index..=index]
            .iter()
            .map(move |r| (r, after.wrapping_add(1), r.end));
        let others = self.0[index + 1..].iter().chain(&self.0[..index]);
        let whole = others.map(|range| (range, range.start, range.end));
        let head = self.0[index..=index]
            .iter()
            .filter(move |r| after.wrapping_add(1) > r.start);
        let head = head.map(move |range| (range, range.start, after));
        tail.chain(whole)
            .chain(head)
            .flat_map(|(range, start, end)| {
                (start..=end)
                    .map(move |n| (address(n, range.is_v4()), range))
                    .filter(|(ip, range)| *ip != range.gateway)
            })
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

fn address(number: u128, v4: bool) -> IpAddr {
    if v4 {
        Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into()
    } else {
        Ipv6Addr::from(number).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sets(value: serde_json::Value) -> Result<Vec<RangeSet>, String> {
        range_sets(&serde_json::from_value::<Vec<Vec<RangeConf>>>(value).unwrap())
    }

    fn order(set: &RangeSet, last: Option<&str>) -> Vec<String> {
        set.candidates(last.map(|ip| ip.parse().unwrap()))
            .map(|(ip, _)| ip.to_string())
            .collect()
    }

    #[test]
    fn addresses_go_round_and_leave_out_gateway_network_and_broadcast() {
        let all = sets(json!([[{ "subnet": "10.0.0.0/29" }]])).unwrap();
        let round = ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"];
        assert_eq!(order(&all[0], None), round);
        assert_eq!(order(&all[0], Some("10.0.0.6")), round);
        assert_eq!(
            order(&all[0], Some("10.0.0.4")),
            ["10.0.0.5", "10.0.0.6", "10.0.0.2", "10.0.0.3", "10.0.0.4"]
        );
        assert_eq!(order(&all[0], Some("192.168.0.1")), round);
    }

    #[test]
    fn a_set_of_two_ranges_is_used_in_turn() {
        let range = |subnet: &str, start: &str, end: &str| json!({ "subnet": subnet, "rangeStart": start, "rangeEnd": end });
        let all = sets(json!([[
            range("10.0.0.0/24", "10.0.0.10", "10.0.0.11"),
            range("10.0.1.0/24", "10.0.1.10", "10.0.1.11"),
        ]]))
        .unwrap();
        assert_eq!(
            order(&all[0], Some("10.0.1.10")),
            ["10.0.1.11", "10.0.0.10", "10.0.0.11", "10.0.1.10"]
        );
    }

    #[test]
    fn ipv6_has_its_last_address_and_both_ends_of_the_number_space() {
        let all = sets(json!([[{ "subnet": "fd00::/126" }]])).unwrap();
        assert_eq!(order(&all[0], None), ["fd00::2", "fd00::3"]);
        let zero = json!([[{ "subnet": "0.0.0.0/30", "rangeStart": "0.0.0.0" }]]);
        assert_eq!(order(&sets(zero).unwrap()[0], None), ["0.0.0.0", "0.0.0.2"]);
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            (json!([]), "no `ranges`"),
            (json!([[]]), "empty"),
            (json!([[{ "subnet": "10.0.0.1/24" }]]), "host bits"),
            (json!([[{ "subnet": "10.0.0.0/31" }]]), "too small"),
            (
                json!([[{ "subnet": "10.0.0.0/24", "rangeStart": "10.0.1.1" }]]),
                "`rangeStart`",
            ),
            (
                json!([[{ "subnet": "10.0.0.0/24", "gateway": "fd00::1" }]]),
                "`gateway`",
            ),
            (
                json!([[{ "subnet": "10.0.0.0/24" }, { "subnet": "fd00::/64" }]]),
                "mixes",
            ),
            (
                json!([[{ "subnet": "10.0.0.0/24" }], [{ "subnet": "10.0.0.0/16" }]]),
                "overlap",
            ),
            (
                json!([[{ "subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9",
                    "rangeEnd": "10.0.0.8" }]]),
                "ends before",
            ),
        ];
        for (value, named) in cases {
            let mistake = sets(value).unwrap_err();
            assert!(mistake.contains(named), "{mistake} does not name {named}");
        }
    }
}
