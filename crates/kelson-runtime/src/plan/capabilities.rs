//! Capability sets as bit masks, built in one place.

use std::collections::HashSet;

use oci_spec::runtime::{Capability, LinuxCapabilities};

/// The names of the capabilities in the order of their numbers, without their prefix.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The capability sets of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CapabilitySets {
    pub(crate) bounding: u64,
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
    pub(crate) ambient: u64,
}

impl CapabilitySets {
    /// The sets of a specification; one that is not there is empty.
    pub(crate) fn new(capabilities: &LinuxCapabilities) -> Self {
        Self {
            bounding: mask(capabilities.bounding()),
            effective: mask(capabilities.effective()),
            permitted: mask(capabilities.permitted()),
            inheritable: mask(capabilities.inheritable()),
            ambient: mask(capabilities.ambient()),
        }
    }

    /// The sets without what `available` lacks, and made consistent: effective is within
    /// permitted, ambient within permitted and inheritable.
    pub(crate) fn within(self, available: u64) -> Self {
        let permitted = self.permitted & available;
        let inheritable = self.inheritable & available;
        Self {
            bounding: self.bounding & available,
            effective: self.effective & permitted,
            permitted,
            inheritable,
            ambient: self.ambient & permitted & inheritable,
        }
    }
}

/// The names in `mask`, for people.
pub(crate) fn names(mask: u64) -> String {
    let set: Vec<_> = (0..64)
        .filter(|bit| mask & (1 << bit) != 0)
        .map(|bit| {
            NAMES
                .get(bit)
                .map_or_else(|| bit.to_string(), |n| format!("CAP_{n}"))
        })
        .collect();
    set.join(", ")
}

/// The names of all known capabilities.
pub(crate) fn all_names() -> Vec<String> {
    NAMES.iter().map(|name| format!("CAP_{name}")).collect()
}

fn mask(set: &Option<HashSet<Capability>>) -> u64 {
    let bit = |capability: &Capability| {
        let name = capability.to_string();
        NAMES
            .iter()
            .position(|known| *known == name)
            .map_or(0, |bit| 1 << bit)
    };
    set.iter().flatten().map(bit).fold(0, |all, bit| all | bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(json: &str) -> CapabilitySets {
        CapabilitySets::new(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn every_name_has_its_number() {
        for (bit, name) in NAMES.iter().enumerate() {
            let json = format!(r#"{{"bounding":["CAP_{name}"]}}"#);
            assert_eq!(sets(&json).bounding, 1 << bit, "{name}");
        }
    }

    #[test]
    fn inheritable_and_ambient_are_empty_unless_asked_for() {
        let sets = sets(r#"{"permitted":["CAP_KILL"],"effective":["CAP_KILL"]}"#);
        assert_eq!((sets.inheritable, sets.ambient, sets.bounding), (0, 0, 0));
    }

    #[test]
    fn what_is_not_available_is_left_out_everywhere() {
        let all = r#"["CAP_CHOWN","CAP_KILL"]"#;
        let json = format!(
            r#"{{"bounding":{all},"effective":{all},"permitted":{all},"inheritable":{all},"ambient":{all}}}"#
        );
        let got = sets(&json).within(1);
        let want = CapabilitySets {
            bounding: 1,
            effective: 1,
            permitted: 1,
            inheritable: 1,
            ambient: 1,
        };
        assert_eq!(got, want);
    }

    #[test]
    fn ambient_needs_inheritable() {
        let sets = sets(r#"{"permitted":["CAP_KILL"],"ambient":["CAP_KILL"]}"#);
        assert_eq!(sets.within(u64::MAX).ambient, 0);
    }

    #[test]
    fn names_are_readable() {
        assert_eq!(names(0b10_0001), "CAP_CHOWN, CAP_KILL");
    }
}
