//! nftables over nfnetlink: transactions on one table, and reading its rules back by comment.
//!
//! What a rule says is written with `expression`.

use std::io;

use rustix::io::Errno;

use super::expression::Expressions;
use super::message::{Attrs, Batch, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, attribute};
use super::route::is;
use super::socket::Socket;

const SUBSYSTEM: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = SUBSYSTEM << 8;
const DELTABLE: u16 = (SUBSYSTEM << 8) | 2;
const NEWCHAIN: u16 = (SUBSYSTEM << 8) | 3;
const NEWRULE: u16 = (SUBSYSTEM << 8) | 6;
const GETRULE: u16 = (SUBSYSTEM << 8) | 7;
const DELRULE: u16 = (SUBSYSTEM << 8) | 8;
const GETGEN: u16 = (SUBSYSTEM << 8) | 16;
const CONNTRACK_DELETE: u16 = (1 << 8) | 2;

const NFPROTO_INET: u8 = 1;
pub(super) const NFPROTO_IPV4: u8 = 2;
pub(super) const NFPROTO_IPV6: u8 = 10;

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_USERDATA: u16 = 7;
const NFTA_GEN_ID: u16 = 1;
/// The type that `nft` gives to a comment among a rule's user data.
const UDATA_COMMENT: u8 = 0;

/// Where a base chain is hooked in (linux/netfilter.h), with the usual priority of nat there.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Hook {
    Prerouting,
    Output,
    Postrouting,
}

impl Hook {
    fn number_and_priority(self) -> (u32, i32) {
        match self {
            Self::Prerouting => (0, -100),
            Self::Output => (3, -100),
            Self::Postrouting => (4, 100),
        }
    }
}

/// A rule that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) chain: String,
    pub(crate) handle: [u8; 8],
    pub(crate) comment: String,
}

fn nfgenmsg(family: u8, resource: u16) -> [u8; 4] {
    let resource = resource.to_be_bytes();
    [family, 0, resource[0], resource[1]]
}

/// Changes to one table of family inet that happen together or not at all.
pub(crate) struct Transaction<'a> {
    table: &'a str,
    batch: Batch,
}

impl<'a> Transaction<'a> {
    pub(crate) fn new(table: &'a str) -> Self {
        let mut batch = Batch::new();
        batch.push(NFNL_MSG_BATCH_BEGIN, 0, &nfgenmsg(0, SUBSYSTEM), |_| {});
        Self { table, batch }
    }

    fn push(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Attrs<'_>)) {
        self.batch
            .push(kind, NLM_F_ACK | flags, &nfgenmsg(NFPROTO_INET, 0), body);
    }

    /// Makes sure of the table.
    pub(crate) fn add_table(&mut self) {
        let table = self.table;
        self.push(NEWTABLE, NLM_F_CREATE, |a| a.str(NFTA_TABLE_NAME, table));
    }

    /// Makes sure of a chain, with a hook for a base chain of type nat.
    pub(crate) fn add_chain(&mut self, name: &str, hook: Option<Hook>) {
        let table = self.table;
        self.push(NEWCHAIN, NLM_F_CREATE, |a| {
            a.str(NFTA_CHAIN_TABLE, table);
            a.str(NFTA_CHAIN_NAME, name);
            if let Some(hook) = hook {
                let (number, priority) = hook.number_and_priority();
                a.nest(NFTA_CHAIN_HOOK, |a| {
                    a.be32(NFTA_HOOK_HOOKNUM, number);
                    a.be32(NFTA_HOOK_PRIORITY, priority.cast_unsigned());
                });
                a.str(NFTA_CHAIN_TYPE, "nat");
            }
        });
    }

    /// Appends a rule that is known by its comment.
    pub(crate) fn add_rule(
        &mut self,
        chain: &str,
        comment: &str,
        body: impl FnOnce(&mut Expressions<'_, '_>),
    ) {
        let table = self.table;
        self.push(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |a| {
            a.str(NFTA_RULE_TABLE, table);
            a.str(NFTA_RULE_CHAIN, chain);
            a.nest(NFTA_RULE_EXPRESSIONS, |a| body(&mut Expressions::new(a)));
            let text = &comment.as_bytes()[..comment.len().min(254)];
            let len = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
            let userdata = [&[UDATA_COMMENT, len], text, &[0]].concat();
            a.bytes(NFTA_RULE_USERDATA, &userdata);
        });
    }

    /// Removes one rule.
    pub(crate) fn delete_rule(&mut self, rule: &Rule) {
        let table = self.table;
        self.push(DELRULE, 0, |a| {
            a.str(NFTA_RULE_TABLE, table);
            a.str(NFTA_RULE_CHAIN, &rule.chain);
            a.bytes(NFTA_RULE_HANDLE, &rule.handle);
        });
    }

    /// Does it.
    pub(crate) fn commit(mut self, socket: &Socket) -> io::Result<()> {
        self.batch
            .push(NFNL_MSG_BATCH_END, 0, &nfgenmsg(0, SUBSYSTEM), |_| {});
        Ok(socket.run(&self.batch, |_| {})?)
    }
}

/// Removes the table with all that is in it; fine when there is none.
pub(crate) fn delete_table(socket: &Socket, table: &str) -> io::Result<()> {
    let mut transaction = Transaction::new(table);
    transaction.push(DELTABLE, 0, |a| a.str(NFTA_TABLE_NAME, table));
    match transaction.commit(socket) {
        Err(source) if is(&source, Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// The number that grows with every change that anybody makes to nftables.
pub(crate) fn generation(socket: &Socket) -> io::Result<u32> {
    let mut batch = Batch::new();
    batch.push(GETGEN, NLM_F_ACK, &nfgenmsg(0, 0), |_| {});
    let mut generation = 0;
    socket.run(&batch, |reply| {
        let id = reply
            .body
            .get(4..)
            .and_then(|attrs| attribute(attrs, NFTA_GEN_ID));
        if let Some(id) = id.and_then(|id| id.try_into().ok()) {
            generation = u32::from_be_bytes(id);
        }
    })?;
    Ok(generation)
}

/// The rules of a table; none when there is no such table.
pub(crate) fn rules(socket: &Socket, table: &str) -> io::Result<Vec<Rule>> {
    let mut batch = Batch::new();
    batch.push(GETRULE, NLM_F_DUMP, &nfgenmsg(NFPROTO_INET, 0), |a| {
        a.str(NFTA_RULE_TABLE, table)
    });
    socket.dump(&batch, |reply| {
        let attrs = reply.body.get(4..)?;
        let text = |kind| Some(String::from_utf8_lossy(attribute(attrs, kind)?).into_owned());
        let chain = text(NFTA_RULE_CHAIN)?.trim_end_matches('\0').to_owned();
        let handle = attribute(attrs, NFTA_RULE_HANDLE)?.try_into().ok()?;
        let comment = attribute(attrs, NFTA_RULE_USERDATA)
            .and_then(comment_of)
            .unwrap_or_default();
        Some(Rule {
            chain,
            handle,
            comment,
        })
    })
}

fn comment_of(userdata: &[u8]) -> Option<String> {
    let (kind, len) = (userdata.first()?, usize::from(*userdata.get(1)?));
    let text = userdata.get(2..2 + len)?;
    let text = text.strip_suffix(&[0]).unwrap_or(text);
    (*kind == UDATA_COMMENT).then(|| String::from_utf8_lossy(text).into_owned())
}

/// Forgets tracked UDP flows to this destination port, which would go on to an earlier pod.
pub(crate) fn forget_udp(socket: &Socket, ipv6: bool, port: u16) -> io::Result<()> {
    const CTA_TUPLE_ORIG: u16 = 1;
    const CTA_FILTER: u16 = 25;
    const CTA_TUPLE_PROTO: u16 = 2;
    const CTA_PROTO_NUM: u16 = 1;
    const CTA_PROTO_DST_PORT: u16 = 3;
    const CTA_FILTER_ORIG_FLAGS: u16 = 1;
    const MATCH_PROTO_AND_DST_PORT: u32 = (1 << 3) | (1 << 5);
    let family = if ipv6 { NFPROTO_IPV6 } else { NFPROTO_IPV4 };
    let mut batch = Batch::new();
    batch.push(CONNTRACK_DELETE, NLM_F_ACK, &nfgenmsg(family, 0), |a| {
        a.nest(CTA_TUPLE_ORIG, |a| {
            a.nest(CTA_TUPLE_PROTO, |a| {
                a.bytes(CTA_PROTO_NUM, &[17]);
                a.bytes(CTA_PROTO_DST_PORT, &port.to_be_bytes());
            });
        });
        a.nest(CTA_FILTER, |a| {
            a.u32(CTA_FILTER_ORIG_FLAGS, MATCH_PROTO_AND_DST_PORT)
        });
    });
    match socket.run(&batch, |_| {}) {
        Err(refusal) if !is(&refusal.source, Errno::NOENT) => Err(refusal.source),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_survive_the_way_through_user_data() {
        assert_eq!(
            comment_of(&[0, 4, b'p', b'o', b'd', 0]).as_deref(),
            Some("pod")
        );
        assert_eq!(comment_of(&[0, 9, b'p']), None);
        assert_eq!(comment_of(&[1, 1, 0]), None);
        assert_eq!(comment_of(&[]), None);
    }
}
