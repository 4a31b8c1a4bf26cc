//! Which capabilities a container's process has.

use std::collections::HashSet;

use oci_spec::runtime::Capability;

use crate::config::Capabilities;

/// What a container has unless it says otherwise: the fourteen that the field's runtimes grant.
const DEFAULT: &[Capability] = &[
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// All capabilities by their kernel number.
const BY_NUMBER: &[(Capability, &str)] = &[
    (Capability::Chown, "CHOWN"),
    (Capability::DacOverride, "DAC_OVERRIDE"),
    (Capability::DacReadSearch, "DAC_READ_SEARCH"),
    (Capability::Fowner, "FOWNER"),
    (Capability::Fsetid, "FSETID"),
    (Capability::Kill, "KILL"),
    (Capability::Setgid, "SETGID"),
    (Capability::Setuid, "SETUID"),
    (Capability::Setpcap, "SETPCAP"),
    (Capability::LinuxImmutable, "LINUX_IMMUTABLE"),
    (Capability::NetBindService, "NET_BIND_SERVICE"),
    (Capability::NetBroadcast, "NET_BROADCAST"),
    (Capability::NetAdmin, "NET_ADMIN"),
    (Capability::NetRaw, "NET_RAW"),
    (Capability::IpcLock, "IPC_LOCK"),
    (Capability::IpcOwner, "IPC_OWNER"),
    (Capability::SysModule, "SYS_MODULE"),
    (Capability::SysRawio, "SYS_RAWIO"),
    (Capability::SysChroot, "SYS_CHROOT"),
    (Capability::SysPtrace, "SYS_PTRACE"),
    (Capability::SysPacct, "SYS_PACCT"),
    (Capability::SysAdmin, "SYS_ADMIN"),
    (Capability::SysBoot, "SYS_BOOT"),
    (Capability::SysNice, "SYS_NICE"),
    (Capability::SysResource, "SYS_RESOURCE"),
    (Capability::SysTime, "SYS_TIME"),
    (Capability::SysTtyConfig, "SYS_TTY_CONFIG"),
    (Capability::Mknod, "MKNOD"),
    (Capability::Lease, "LEASE"),
    (Capability::AuditWrite, "AUDIT_WRITE"),
    (Capability::AuditControl, "AUDIT_CONTROL"),
    (Capability::Setfcap, "SETFCAP"),
    (Capability::MacOverride, "MAC_OVERRIDE"),
    (Capability::MacAdmin, "MAC_ADMIN"),
    (Capability::Syslog, "SYSLOG"),
    (Capability::WakeAlarm, "WAKE_ALARM"),
    (Capability::BlockSuspend, "BLOCK_SUSPEND"),
    (Capability::AuditRead, "AUDIT_READ"),
    (Capability::Perfmon, "PERFMON"),
    (Capability::Bpf, "BPF"),
    (Capability::CheckpointRestore, "CHECKPOINT_RESTORE"),
];

fn parse(name: &str) -> Option<Capability> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    BY_NUMBER
        .iter()
        .find(|(_, known)| *known == short)
        .map(|(capability, _)| *capability)
}

fn is_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("ALL")
}

/// Whether `name` is a capability or `ALL`.
pub(crate) fn is_known(name: &str) -> bool {
    is_all(name) || parse(name).is_some()
}

/// The capabilities in a kernel mask, such as `CapBnd` of `/proc/self/status`. Bits that this program has
/// no name for are left out, so that a newer kernel does no harm.
pub(crate) fn from_mask(mask: u64) -> HashSet<Capability> {
    let named = BY_NUMBER.iter().enumerate();
    named
        .filter(|(bit, _)| mask >> bit & 1 == 1)
        .map(|(_, (capability, _))| *capability)
        .collect()
}

/// The kernel mask of these capabilities.
pub(crate) fn to_mask(capabilities: &HashSet<Capability>) -> u64 {
    let named = BY_NUMBER.iter().enumerate();
    named
        .filter(|(_, (capability, _))| capabilities.contains(capability))
        .fold(0, |mask, (bit, _)| mask | 1 << bit)
}

/// What the process may have: `ALL` first, then single names, additions before drops. `available` is what
/// the daemon itself can grant; it bounds the default list, `ALL` and the privileged, but not what was asked
/// for by name: that must be granted or fail.
pub(crate) fn granted(
    privileged: bool,
    wanted: &Capabilities,
    available: &HashSet<Capability>,
) -> HashSet<Capability> {
    if privileged {
        return available.clone();
    }
    let mut granted: HashSet<Capability> = if wanted.drop.iter().any(|name| is_all(name)) {
        HashSet::new()
    } else if wanted.add.iter().any(|name| is_all(name)) {
        available.clone()
    } else {
        DEFAULT
            .iter()
            .copied()
            .filter(|capability| available.contains(capability))
            .collect()
    };
    granted.extend(wanted.add.iter().filter_map(|name| parse(name)));
    for dropped in wanted.drop.iter().filter_map(|name| parse(name)) {
        granted.remove(&dropped);
    }
    granted
}

/// Those of the granted capabilities that are to be ambient.
pub(crate) fn ambient(wanted: &Capabilities, granted: &HashSet<Capability>) -> HashSet<Capability> {
    if wanted.add_ambient.iter().any(|name| is_all(name)) {
        return granted.clone();
    }
    let named = wanted.add_ambient.iter().filter_map(|name| parse(name));
    named.filter(|one| granted.contains(one)).collect()
}

/// The names of capabilities that are to be ambient and that the container is not to have.
pub(crate) fn not_granted(privileged: bool, wanted: &Capabilities) -> Vec<&str> {
    let granted = granted(privileged, wanted, &from_mask(u64::MAX));
    let lacks = |name: &&str| parse(name).is_some_and(|one| !granted.contains(&one));
    let names = wanted.add_ambient.iter().map(String::as_str);
    names.filter(lacks).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(add: &[&str], drop: &[&str]) -> Capabilities {
        let owned = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        Capabilities {
            add: owned(add),
            drop: owned(drop),
            add_ambient: Vec::new(),
        }
    }

    fn everything() -> HashSet<Capability> {
        from_mask(u64::MAX)
    }

    #[test]
    fn the_default_list_has_fourteen() {
        assert_eq!(granted(false, &wanted(&[], &[]), &everything()).len(), 14);
        assert_eq!(everything().len(), 41);
        assert_eq!(to_mask(&from_mask(0b1010_0001)), 0b1010_0001);
    }

    #[test]
    fn additions_and_drops() {
        let default = granted(false, &wanted(&[], &[]), &everything());
        let more = granted(
            false,
            &wanted(&["NET_ADMIN", "cap_sys_time"], &["KILL"]),
            &everything(),
        );
        assert_eq!(more.len(), default.len() + 1);
        assert!(more.contains(&Capability::NetAdmin) && more.contains(&Capability::SysTime));
        assert!(!more.contains(&Capability::Kill));
        // A drop of the same name wins.
        assert_eq!(
            granted(
                false,
                &wanted(&["NET_ADMIN"], &["NET_ADMIN"]),
                &everything()
            ),
            default
        );
    }

    #[test]
    fn all_and_single_names() {
        let only = granted(false, &wanted(&["NET_RAW"], &["ALL"]), &everything());
        assert_eq!(only, HashSet::from([Capability::NetRaw]));
        let but = granted(false, &wanted(&["all"], &["SYS_ADMIN"]), &everything());
        assert_eq!(but.len(), 40);
        assert!(granted(false, &wanted(&["ALL"], &["ALL"]), &everything()).is_empty());
        assert_eq!(
            granted(true, &wanted(&[], &["ALL"]), &everything()).len(),
            41
        );
    }

    #[test]
    fn what_the_daemon_lacks_is_granted_only_by_name() {
        let available = from_mask(!(1 << 27));
        assert!(!available.contains(&Capability::Mknod));
        assert!(!granted(false, &wanted(&[], &[]), &available).contains(&Capability::Mknod));
        assert!(!granted(false, &wanted(&["ALL"], &[]), &available).contains(&Capability::Mknod));
        assert!(granted(false, &wanted(&["MKNOD"], &[]), &available).contains(&Capability::Mknod));
    }

    #[test]
    fn ambient_ones_are_among_those_granted() {
        let mut asked = wanted(&["NET_ADMIN"], &["KILL"]);
        let all = granted(false, &asked, &everything());
        assert!(ambient(&asked, &all).is_empty() && not_granted(false, &asked).is_empty());
        asked.add_ambient = ["net_admin", "KILL", "SYS_TIME"].map(str::to_owned).into();
        let expected = HashSet::from([Capability::NetAdmin]);
        assert_eq!(ambient(&asked, &all), expected);
        assert_eq!(not_granted(false, &asked), ["KILL", "SYS_TIME"]);
        assert!(not_granted(true, &asked).is_empty());
        asked.add_ambient = vec!["ALL".to_owned()];
        assert_eq!(ambient(&asked, &all), all);
        assert!(not_granted(false, &asked).is_empty());
    }

    #[test]
    fn names() {
        for name in ["ALL", "all", "SYS_ADMIN", "CAP_SYS_ADMIN", "cap_bpf"] {
            assert!(is_known(name), "{name}");
        }
        for name in ["", "CAP_", "ADMIN", "CAP_ALL"] {
            assert!(!is_known(name), "{name}");
        }
    }
}
