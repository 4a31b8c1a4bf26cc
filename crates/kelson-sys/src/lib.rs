//! The few system calls that no crate wraps safely, and path resolution that cannot leave a tree.
//!
//! Thin by intent: each function is one system call or a short, fixed sequence of them, with the
//! kernel's error number as its error. Policy, and text for people, belong to the callers. The
//! exception is [`root::Root`], whose errors name the operation and the path.

#![expect(unsafe_code, reason = "system calls that rustix does not offer")]

pub mod bpf;
pub mod fdpass;
pub mod memfd;
pub mod memory;
pub mod mount;
pub mod process;
pub mod root;
pub mod userns;
