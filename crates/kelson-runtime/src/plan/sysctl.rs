//! Kernel parameters: only those of namespaces that the container has for itself.

use std::path::PathBuf;

use kelson_sys::process::ns;
use oci_spec::runtime::Linux;

use super::Namespaces;
use crate::LaunchError;

/// Parameters of the IPC namespace outside `fs.mqueue`.
const IPC: [&str; 11] = [
    "kernel/auto_msgmni",
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/msg_next_id",
    "kernel/sem",
    "kernel/sem_next_id",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

/// A parameter to set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sysctl {
    /// Its path beneath `/proc/sys`.
    pub(crate) path: PathBuf,
    /// The value.
    pub(crate) value: String,
}

/// Checks `linux.sysctl`.
pub(super) fn check(linux: &Linux, namespaces: &Namespaces) -> Result<Vec<Sysctl>, LaunchError> {
    let mut sysctls = Vec::new();
    for (key, value) in linux.sysctl().iter().flatten() {
        let field = || format!("linux.sysctl[{key:?}]");
        let path = path(key);
        let bad = path
            .split('/')
            .any(|part| part.is_empty() || part == "." || part == "..");
        if bad || key.contains('\0') || value.contains('\0') {
            return Err(LaunchError::spec(
                field(),
                "it is no name of a kernel parameter",
            ));
        }
        let (flag, name) = match path.as_str() {
            p if p.starts_with("net/") => (ns::NETWORK, "network"),
            p if p.starts_with("fs/mqueue/") || IPC.contains(&p) => (ns::IPC, "ipc"),
            "kernel/domainname" => (ns::UTS, "uts"),
            "kernel/hostname" => {
                return Err(LaunchError::spec(field(), "use the field hostname instead"));
            }
            _ => {
                let reason = "the kernel keeps it for the whole machine; set it on the host";
                return Err(LaunchError::spec(field(), reason));
            }
        };
        if !namespaces.has(flag) {
            let reason = format!("it needs a {name} namespace in linux.namespaces");
            return Err(LaunchError::spec(field(), reason));
        }
        sysctls.push(Sysctl {
            path: PathBuf::from(path),
            value: value.clone(),
        });
    }
    sysctls.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sysctls)
}

/// The path of a parameter, written with dots or slashes. Whichever comes first separates; with
/// dots, a slash stands for a dot inside a component (`net.ipv4.conf.eth0/1.forwarding`).
fn path(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(at) if key.as_bytes()[at] == b'.' => key
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => key.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(key: &str, flag: u64) -> Result<Vec<Sysctl>, LaunchError> {
        let linux: Linux =
            serde_json::from_value(serde_json::json!({"sysctl": {key: "1"}})).unwrap();
        check(
            &linux,
            &Namespaces {
                create: flag,
                join: Vec::new(),
            },
        )
    }

    #[test]
    fn both_notations_are_one_path() {
        for key in ["net.ipv4.ip_forward", "net/ipv4/ip_forward"] {
            let path = &checked(key, ns::NETWORK).unwrap()[0].path;
            assert_eq!(path, &PathBuf::from("net/ipv4/ip_forward"));
        }
        let path = &checked("net.ipv4.conf.eth0/1.forwarding", ns::NETWORK).unwrap()[0].path;
        assert_eq!(path, &PathBuf::from("net/ipv4/conf/eth0.1/forwarding"));
    }

    #[test]
    fn what_the_container_does_not_own_is_refused() {
        let all = ns::NETWORK | ns::IPC | ns::UTS;
        for (key, flags) in [
            ("kernel.shmmax", 0),
            ("net.ipv4.ip_forward", ns::IPC),
            ("fs.mqueue.msg_max", ns::NETWORK),
            ("kernel.core_pattern", all),
            ("kernel.hostname", all),
            ("net/../kernel/core_pattern", all),
            ("net..core", all),
            ("/net/core", all),
            ("vm.swappiness", all),
        ] {
            assert!(
                matches!(checked(key, flags), Err(LaunchError::Spec { .. })),
                "{key}"
            );
        }
    }
}
