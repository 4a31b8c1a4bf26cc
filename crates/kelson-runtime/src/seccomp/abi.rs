//! Machines, the system call interfaces of their processes, and the numbers of calls in each.

use oci_spec::runtime::Arch;

/// The bit that marks x32 calls on x86_64.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// Where ARM's private calls begin.
pub(super) const ARM_PRIVATE: u32 = 0x000f_0000;

/// A kind of machine that Kelson runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Machine {
    X86_64,
    Aarch64,
    Riscv64,
}

/// A system call interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Abi {
    X86_64,
    X32,
    X86,
    Aarch64,
    Arm,
    Riscv64,
}

impl Machine {
    /// The machine that this program was built for.
    pub(super) fn native() -> Option<Self> {
        if cfg!(target_arch = "x86_64") {
            Some(Self::X86_64)
        } else if cfg!(target_arch = "aarch64") {
            Some(Self::Aarch64)
        } else if cfg!(target_arch = "riscv64") {
            Some(Self::Riscv64)
        } else {
            None
        }
    }

    /// The interfaces by the kernel's name for them (`AUDIT_ARCH_*`), the native one first.
    fn all(self) -> &'static [&'static [Abi]] {
        match self {
            Self::X86_64 => &[&[Abi::X86_64, Abi::X32], &[Abi::X86]],
            Self::Aarch64 => &[&[Abi::Aarch64], &[Abi::Arm]],
            Self::Riscv64 => &[&[Abi::Riscv64]],
        }
    }

    /// The native interface and those that are listed, grouped by `AUDIT_ARCH_*`. Architectures of
    /// other machines have no processes here, and are left out.
    pub(super) fn sections(self, listed: &[Arch]) -> impl Iterator<Item = Vec<Abi>> {
        let native = self.all()[0][0];
        let groups = self.all().iter();
        let wanted = move |abi: &Abi| *abi == native || listed.contains(&abi.oci());
        groups
            .map(move |group| group.iter().copied().filter(wanted).collect())
            .filter(|group: &Vec<Abi>| !group.is_empty())
    }

    /// All its interfaces, as a default profile lists them.
    pub(super) fn architectures(self) -> Vec<Arch> {
        self.all()
            .iter()
            .flat_map(|group| group.iter())
            .map(|abi| abi.oci())
            .collect()
    }
}

impl Abi {
    fn oci(self) -> Arch {
        match self {
            Self::X86_64 => Arch::ScmpArchX86_64,
            Self::X32 => Arch::ScmpArchX32,
            Self::X86 => Arch::ScmpArchX86,
            Self::Aarch64 => Arch::ScmpArchAarch64,
            Self::Arm => Arch::ScmpArchArm,
            Self::Riscv64 => Arch::ScmpArchRiscv64,
        }
    }

    /// `AUDIT_ARCH_*` of linux/audit.h.
    pub(super) fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
            Self::Riscv64 => 0xc000_00f3,
        }
    }

    /// Whether arguments have 32 bits, or are meant to: the upper halves of an x32 process's are not
    /// looked at.
    pub(super) fn is_32_bit(self) -> bool {
        matches!(self, Self::X32 | Self::X86 | Self::Arm)
    }

    /// Calls `each` with the name and number of every call, in no particular order.
    pub(super) fn calls(self, mut each: impl FnMut(&'static str, u32)) {
        // The tables' own iterators leave the last call out.
        macro_rules! table {
            ($arch:ident, $each:expr) => {{
                use syscalls::$arch::Sysno;
                let last = Sysno::last().id().cast_unsigned();
                for number in 0..=last {
                    if let Some(call) = Sysno::new(number as usize) {
                        $each(call.name(), number);
                    }
                }
            }};
            ($arch:ident) => {
                table!($arch, each)
            };
        }
        match self {
            Self::X86_64 => table!(x86_64),
            Self::X32 => {
                table!(x86_64, |name, number| each(
                    name,
                    X32_BIT | x32_number(name, number)
                ));
            }
            Self::X86 => table!(x86),
            Self::Aarch64 => {
                table!(aarch64);
                each("newfstatat", 79);
            }
            Self::Arm => {
                table!(arm);
                each("sync_file_range2", 341);
                let private = [
                    ("breakpoint", 1),
                    ("cacheflush", 2),
                    ("set_tls", 5),
                    ("get_tls", 6),
                ];
                for (name, number) in private {
                    each(name, ARM_PRIVATE + number);
                }
            }
            Self::Riscv64 => table!(riscv64),
        }
    }

    /// x86 has some calls behind one number, with the call meant as the first argument: these
    /// calls and their values, if `name` is such a number's.
    pub(super) fn multiplexed(self, name: &str) -> &'static [(&'static str, u64)] {
        match (self, name) {
            (Self::X86, "socketcall") => &SOCKETCALL,
            (Self::X86, "ipc") => &IPC,
            _ => &[],
        }
    }
}

/// x32 has the numbers of x86_64, but for calls whose arguments look different.
fn x32_number(name: &str, number: u32) -> u32 {
    match X32_OWN.binary_search_by(|(known, _)| (*known).cmp(name)) {
        Ok(at) => X32_OWN[at].1,
        Err(_) => number,
    }
}

/// By name.
const X32_OWN: [(&str, u32); 36] = [
    ("execve", 520),
    ("execveat", 545),
    ("get_robust_list", 531),
    ("getsockopt", 542),
    ("io_setup", 543),
    ("io_submit", 544),
    ("ioctl", 514),
    ("kexec_load", 528),
    ("move_pages", 533),
    ("mq_notify", 527),
    ("preadv", 534),
    ("preadv2", 546),
    ("process_vm_readv", 539),
    ("process_vm_writev", 540),
    ("ptrace", 521),
    ("pwritev", 535),
    ("pwritev2", 547),
    ("readv", 515),
    ("recvfrom", 517),
    ("recvmmsg", 537),
    ("recvmsg", 519),
    ("rt_sigaction", 512),
    ("rt_sigpending", 522),
    ("rt_sigqueueinfo", 524),
    ("rt_sigreturn", 513),
    ("rt_sigtimedwait", 523),
    ("rt_tgsigqueueinfo", 536),
    ("sendmmsg", 538),
    ("sendmsg", 518),
    ("set_robust_list", 530),
    ("setsockopt", 541),
    ("sigaltstack", 525),
    ("timer_create", 526),
    ("vmsplice", 532),
    ("waitid", 529),
    ("writev", 516),
];

/// `SYS_*` of linux/net.h.
const SOCKETCALL: [(&str, u64); 20] = [
    ("socket", 1),
    ("bind", 2),
    ("connect", 3),
    ("listen", 4),
    ("accept", 5),
    ("getsockname", 6),
    ("getpeername", 7),
    ("socketpair", 8),
    ("send", 9),
    ("recv", 10),
    ("sendto", 11),
    ("recvfrom", 12),
    ("shutdown", 13),
    ("setsockopt", 14),
    ("getsockopt", 15),
    ("sendmsg", 16),
    ("recvmsg", 17),
    ("accept4", 18),
    ("recvmmsg", 19),
    ("sendmmsg", 20),
];

/// linux/ipc.h.
const IPC: [(&str, u64); 12] = [
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn number(abi: Abi, name: &str) -> Option<u32> {
        let mut found = None;
        abi.calls(|known, number| {
            if known == name {
                found = Some(number);
            }
        });
        found
    }

    #[test]
    fn numbers() {
        for (abi, name, expected) in [
            (Abi::X86_64, "read", Some(0)),
            (Abi::X86_64, "seccomp", Some(317)),
            (Abi::X32, "read", Some(X32_BIT)),
            (Abi::X32, "ioctl", Some(X32_BIT | 514)),
            (Abi::X86, "socketcall", Some(102)),
            (Abi::X86, "accept", None),
            (Abi::Aarch64, "newfstatat", Some(79)),
            (Abi::Aarch64, "open", None),
            (Abi::Arm, "set_tls", Some(0xf_0005)),
            (Abi::Arm, "sync_file_range2", Some(341)),
            (Abi::Riscv64, "riscv_hwprobe", Some(258)),
        ] {
            assert_eq!(number(abi, name), expected, "{abi:?} {name}");
        }
        assert!(X32_OWN.is_sorted());
    }

    #[test]
    fn relatives() {
        let all = |machine: Machine, listed: &[Arch]| -> Vec<Vec<Abi>> {
            machine.sections(listed).collect()
        };
        assert_eq!(all(Machine::X86_64, &[]), [[Abi::X86_64]]);
        assert_eq!(
            all(Machine::X86_64, &[Arch::ScmpArchAarch64]),
            [[Abi::X86_64]]
        );
        let listed = Machine::X86_64.architectures();
        assert_eq!(
            all(Machine::X86_64, &listed),
            [vec![Abi::X86_64, Abi::X32], vec![Abi::X86]]
        );
        assert_eq!(
            all(Machine::Aarch64, &[Arch::ScmpArchArm]),
            [[Abi::Aarch64], [Abi::Arm]]
        );
    }
}
