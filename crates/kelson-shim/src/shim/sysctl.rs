//! Kernel parameters of a pod: only those that belong to a namespace the pod has of its own.

use std::path::{Path, PathBuf};

use kelson_sys::root::{Root, RootError};
use rustix::fs::OFlags;

use crate::proto::{Namespace, PodNamespaces};

/// A kernel parameter that cannot be set.
#[derive(Debug, thiserror::Error)]
pub(super) enum SysctlError {
    #[error("the kernel parameter {name:?} belongs to no namespace that a pod can own; remove it")]
    NotNamespaced { name: String },
    #[error(
        "the kernel parameter {name:?} would change the host, as the pod shares the host's \
         {namespace} namespace; remove it"
    )]
    Shared {
        name: String,
        namespace: &'static str,
    },
    #[error("cannot find the kernel parameter {name:?}")]
    Open {
        name: String,
        #[source]
        source: RootError,
    },
    #[error("cannot set the kernel parameter {name:?} to {value:?}")]
    Write {
        name: String,
        value: String,
        #[source]
        source: std::io::Error,
    },
}

/// The file of a parameter beneath `/proc/sys`. As in sysctl(8), the first separator decides: with
/// a dot first, dots separate and slashes stand for dots; with a slash first, slashes separate.
fn file_of(name: &str) -> PathBuf {
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'.' => {
            let swap = |c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            };
            name.chars().map(swap).collect::<String>().into()
        }
        _ => name.into(),
    }
}

/// Refuses a parameter that is not the pod's own.
fn check(name: &str, file: &Path, namespaces: &PodNamespaces) -> Result<(), SysctlError> {
    let mut parts = file.to_str().unwrap_or_default().split('/');
    let (owner, namespace) = match (parts.next(), parts.next()) {
        (Some("net"), Some(_)) => (namespaces.network, "network"),
        (Some("kernel"), Some(leaf))
            if leaf == "sem" || leaf.starts_with("shm") || leaf.starts_with("msg") =>
        {
            (namespaces.ipc, "IPC")
        }
        (Some("fs"), Some("mqueue")) => (namespaces.ipc, "IPC"),
        _ => {
            return Err(SysctlError::NotNamespaced {
                name: name.to_owned(),
            });
        }
    };
    match owner {
        Namespace::New => Ok(()),
        Namespace::Host => Err(SysctlError::Shared {
            name: name.to_owned(),
            namespace,
        }),
    }
}

/// Sets parameters in the namespaces of the calling process. Nothing is set when one of them is
/// not allowed.
pub(super) fn set_all<'a>(
    proc_sys: &Path,
    namespaces: &PodNamespaces,
    sysctls: impl Iterator<Item = (&'a String, &'a String)> + Clone,
) -> Result<(), SysctlError> {
    for (name, _) in sysctls.clone() {
        check(name, &file_of(name), namespaces)?;
    }
    let mut root = None;
    for (name, value) in sysctls {
        let open = |source| SysctlError::Open {
            name: name.clone(),
            source,
        };
        let root = match &root {
            Some(root) => root,
            None => root.insert(Root::open(proc_sys).map_err(open)?),
        };
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW;
        let file = root.open_file(&file_of(name), flags).map_err(open)?;
        rustix::io::write(&file, value.as_bytes()).map_err(|error| SysctlError::Write {
            name: name.clone(),
            value: value.clone(),
            source: error.into(),
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const OWN: PodNamespaces = PodNamespaces {
        network: Namespace::New,
        ipc: Namespace::New,
        uts: Namespace::New,
        pid: Namespace::Host,
    };

    #[test]
    fn names_in_dots_and_slashes() {
        assert_eq!(
            file_of("net.ipv4.ip_forward"),
            Path::new("net/ipv4/ip_forward")
        );
        assert_eq!(
            file_of("net/ipv4/conf/eth0.1/x"),
            Path::new("net/ipv4/conf/eth0.1/x")
        );
        assert_eq!(
            file_of("net.ipv4.conf.eth0/1.x"),
            Path::new("net/ipv4/conf/eth0.1/x")
        );
    }

    #[test]
    fn only_the_pods_own_are_allowed() {
        let host = PodNamespaces {
            network: Namespace::Host,
            ipc: Namespace::Host,
            ..OWN
        };
        for name in [
            "net.core.somaxconn",
            "kernel.shmmax",
            "kernel.msgmax",
            "kernel.sem",
            "kernel/shm_rmid_forced",
            "fs.mqueue.msg_max",
        ] {
            check(name, &file_of(name), &OWN).unwrap();
            let error = check(name, &file_of(name), &host).unwrap_err();
            assert!(matches!(error, SysctlError::Shared { .. }), "{name}");
        }
        for name in [
            "kernel.hostname",
            "kernel.core_pattern",
            "vm.swappiness",
            "net",
            "",
            "fs.x",
            "/net/core/x",
            "kernel.semaphores",
            "../net/x",
        ] {
            let error = check(name, &file_of(name), &OWN).unwrap_err();
            assert!(matches!(error, SysctlError::NotNamespaced { .. }), "{name}");
        }
    }

    #[test]
    fn values_are_written_and_paths_do_not_leave() {
        let dir = tempfile::tempdir().unwrap();
        let sys = dir.path().join("sys");
        std::fs::create_dir_all(sys.join("net/core")).unwrap();
        std::fs::write(sys.join("net/core/somaxconn"), "").unwrap();
        std::fs::write(dir.path().join("outside"), "").unwrap();
        let set = |name: &str| {
            let sysctls = BTreeMap::from([(name.to_owned(), "7".to_owned())]);
            set_all(&sys, &OWN, sysctls.iter())
        };
        set("net.core.somaxconn").unwrap();
        assert_eq!(
            std::fs::read_to_string(sys.join("net/core/somaxconn")).unwrap(),
            "7"
        );
        assert!(matches!(
            set("net/../../outside"),
            Err(SysctlError::Open { .. })
        ));
        assert_eq!(
            std::fs::read_to_string(dir.path().join("outside")).unwrap(),
            ""
        );
        assert!(matches!(
            set("net.core.nothing"),
            Err(SysctlError::Open { .. })
        ));
    }
}
