//! The part of netlink that pods need: links, addresses, routes, nftables rules.
//!
//! Requests are written by hand: there are two dozen, a batch of them goes to the kernel in one
//! system call, and the bindings generated from the kernel's specifications know neither `masq`
//! nor `redir` while being fifty thousand lines. Nothing here decides what a pod gets.

pub(crate) mod expression;
mod message;
pub(crate) mod nft;
pub(crate) mod route;
mod socket;

pub(crate) use message::Batch;
pub(crate) use socket::{Refusal, Socket};

use std::io;

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        refusal.source
    }
}
