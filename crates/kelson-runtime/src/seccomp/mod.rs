//! Seccomp: from the OCI runtime specification's filter to the kernel's, without libseccomp.
//!
//! [`compile`] turns a [`LinuxSeccomp`] into a classic BPF [`Program`]; [`default_profile`] is the
//! profile that containers get when they ask for the runtime's default. Nothing here loads a
//! filter: that is the launched process's own last step before it executes.
//!
//! What a filter means is as runc with libseccomp has it:
//! - the native architecture is always covered, with those of its relatives that are listed; a
//!   process of any other is killed;
//! - names that an architecture does not know are left out, and rules whose action is the default
//!   are too;
//! - a rule without arguments outweighs those with arguments for the same call, and the first
//!   without outweighs later ones; among rules with arguments the first that fits counts;
//! - conditions of one rule must all hold, but if two are about the same argument each counts as a
//!   rule of its own;
//! - where calls are refused by default, numbers above all that the filter names answer ENOSYS
//!   instead, so that programs fall back as on an older kernel.

mod abi;
mod code;
mod profile;
mod rules;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompFilterFlag as FilterFlag,
};

use abi::Machine;
use rules::RuleBook;

pub use profile::default_profile;

/// The kernel's limit of a program (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;

/// Most rules in a filter, each name of a rule counted. Real filters have about 500.
const MAX_RULES: usize = 65_536;

// linux/seccomp.h
const FLAG_LOG: u32 = 1 << 1;
const FLAG_SPEC_ALLOW: u32 = 1 << 2;
const FLAG_WAIT_KILLABLE_RECV: u32 = 1 << 5;

/// A compiled filter: what `seccomp(SECCOMP_SET_MODE_FILTER)` takes.
#[derive(Debug, Clone)]
pub struct Program {
    filter: Vec<libc::sock_filter>,
    flags: u32,
}

impl Program {
    /// The instructions, at most 4096.
    pub fn filter(&self) -> &[libc::sock_filter] {
        &self.filter
    }

    /// `SECCOMP_FILTER_FLAG_*` to load it with. Without `NEW_LISTENER`, see
    /// [`Program::needs_listener`], and `TSYNC`: the process that loads it has one thread.
    pub fn flags(&self) -> u32 {
        self.flags
    }

    /// Whether it notifies a listener, so that it has to be loaded with
    /// `SECCOMP_FILTER_FLAG_NEW_LISTENER` and the descriptor be handed to somebody.
    pub fn needs_listener(&self) -> bool {
        let notify = code::action(Action::ScmpActNotify, 0);
        self.filter
            .iter()
            .any(|insn| (insn.code, insn.k) == (code::RETURN, notify))
    }

    /// The program as bytes, for keeping or passing on: the flags, then the instructions as
    /// `struct sock_filter`, all little-endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 + self.filter.len() * 8);
        bytes.extend(self.flags.to_le_bytes());
        for insn in &self.filter {
            bytes.extend(insn.code.to_le_bytes());
            bytes.extend([insn.jt, insn.jf]);
            bytes.extend(insn.k.to_le_bytes());
        }
        bytes
    }

    /// Undoes [`Program::to_bytes`]. `None` when the bytes have not the form of a program; whether
    /// it is a valid one is checked by the kernel.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (flags, rest) = bytes.split_first_chunk::<4>()?;
        let (instructions, rest) = rest.as_chunks::<8>();
        if !rest.is_empty() || !(1..=MAX_INSTRUCTIONS).contains(&instructions.len()) {
            return None;
        }
        let filter = instructions
            .iter()
            .map(|[c0, c1, jt, jf, k @ ..]| libc::sock_filter {
                code: u16::from_le_bytes([*c0, *c1]),
                jt: *jt,
                jf: *jf,
                k: u32::from_le_bytes(*k),
            })
            .collect();
        Some(Self {
            filter,
            flags: u32::from_le_bytes(*flags),
        })
    }
}

/// Why a filter could not be compiled.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SeccompError {
    /// The program would be longer than the kernel takes.
    #[error("the seccomp filter needs {0} instructions, the kernel takes 4096; use fewer rules")]
    TooLong(usize),
    /// More rules than [`compile`] looks at.
    #[error("the seccomp filter has more than 65536 rules")]
    TooManyRules,
    /// Kelson has no system call table for this machine.
    #[error("seccomp filters are supported on x86_64, aarch64 and riscv64 only")]
    Machine,
    /// A system call has six arguments.
    #[error("a rule for {name} is about argument {index}; arguments are 0 to 5")]
    Argument {
        /// The system call.
        name: String,
        /// The index as given.
        index: usize,
    },
    /// A rule names a system call with nothing.
    #[error("a rule of the seccomp filter has an empty system call name")]
    EmptyName,
    /// The error number does not fit.
    #[error("errno {0} of the seccomp filter is above 65535")]
    Errno(u32),
    /// Nobody could answer the notification.
    #[error("SCMP_ACT_NOTIFY cannot be {0}")]
    Notify(&'static str),
}

/// Compiles a filter for this machine's architecture.
pub fn compile(seccomp: &LinuxSeccomp) -> Result<Program, SeccompError> {
    compile_for(Machine::native().ok_or(SeccompError::Machine)?, seccomp)
}

fn compile_for(machine: Machine, seccomp: &LinuxSeccomp) -> Result<Program, SeccompError> {
    let book = RuleBook::new(seccomp)?;
    let listed = seccomp.architectures().as_deref().unwrap_or_default();
    let sections: Vec<_> = machine
        .sections(listed)
        .map(|abis| book.section(&abis))
        .collect();
    let filter = code::program(&sections);
    if filter.len() > MAX_INSTRUCTIONS {
        return Err(SeccompError::TooLong(filter.len()));
    }
    Ok(Program {
        filter,
        flags: flags(seccomp),
    })
}

/// As runc: without a list of flags speculation is left as it is, as a container is no browser.
fn flags(seccomp: &LinuxSeccomp) -> u32 {
    let Some(list) = seccomp.flags() else {
        return FLAG_SPEC_ALLOW;
    };
    list.iter().fold(0, |flags, flag| {
        flags
            | match flag {
                FilterFlag::SeccompFilterFlagLog => FLAG_LOG,
                FilterFlag::SeccompFilterFlagSpecAllow => FLAG_SPEC_ALLOW,
                FilterFlag::SeccompFilterFlagWaitKillableRecv => FLAG_WAIT_KILLABLE_RECV,
                FilterFlag::SeccompFilterFlagTsync => 0,
            }
    })
}

#[cfg(test)]
mod tests;
