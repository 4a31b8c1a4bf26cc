//! The zygote, the shim and their protocol.
//!
//! The zygote is a small copy of the program that forks one shim per pod ([`zygote`]). A shim
//! holds the pod's namespaces, starts its containers, owns their output and reports their exits;
//! it outlives the daemon. The daemon speaks to both through [`client`], with the messages of
//! [`proto`].
//!
//! This crate never talks to a registry, a network plugin or the CRI, and nothing in it but
//! [`client`] is asynchronous.

#![expect(unsafe_code, reason = "forking, and signals as a descriptor")]

pub mod client;
pub mod ids;
pub mod proto;
pub mod zygote;

mod log;
mod memory;
mod shim;
