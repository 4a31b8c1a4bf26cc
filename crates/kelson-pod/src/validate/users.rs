//! The rules for user namespaces, of pods, containers and mounts.

use super::{Checker, Facts};
use crate::config::{ContainerConfig, IdMapping, NamespaceMode, PodConfig, PodNamespaces};

const OPTIONS: &str = "linux.security_context.namespace_options";

/// Checks what is asked of a pod.
pub(super) fn pod(checker: &mut Checker, namespaces: &PodNamespaces, facts: Facts) {
    let Some(user) = &namespaces.user else { return };
    let field = format!("{OPTIONS}.userns_options");
    match user.mode {
        NamespaceMode::Node if user.uids.is_empty() && user.gids.is_empty() => return,
        NamespaceMode::Node => return checker.wrong(field, "mode NODE has no mappings"),
        NamespaceMode::Pod => {}
        NamespaceMode::Container | NamespaceMode::Target => {
            return checker.wrong(field, "mode must be POD or NODE");
        }
    }
    if let Err(lack) = facts.user_namespaces {
        checker.unsupported(field.as_str(), format!("user namespaces: {lack}"));
    }
    for (name, list) in [("uids", &user.uids), ("gids", &user.gids)] {
        mapping(checker, &format!("{field}.{name}"), list);
    }
    // The kernel shows neither the host's processes nor its message queues to a user namespace.
    for (name, mode) in [("pid", namespaces.pid), ("ipc", namespaces.ipc)] {
        if mode == NamespaceMode::Node {
            checker.wrong(
                format!("{OPTIONS}.{name}"),
                "is NODE, which a pod with a user namespace cannot have",
            );
        }
    }
}

fn mapping(checker: &mut Checker, field: &str, list: &[IdMapping]) {
    let [line] = list else {
        return checker.wrong(
            field,
            format!("has {} mappings, and must have one", list.len()),
        );
    };
    if line.container_id != 0 {
        checker.wrong(
            field,
            format!(
                "begins at container id {}, and must at 0",
                line.container_id
            ),
        );
    }
    // The last id means "no change" to the kernel.
    let end = u64::from(line.length) + u64::from(line.host_id.max(line.container_id));
    if line.length == 0 {
        checker.wrong(field, "has the length 0");
    } else if end > u64::from(u32::MAX) {
        checker.wrong(
            field,
            format!(
                "{} ids from {} on end above the last id {}",
                line.length,
                line.host_id.max(line.container_id),
                u32::MAX - 1
            ),
        );
    }
}

/// Checks what is asked of a container: its user namespace and its mounts' mappings are the pod's.
pub(super) fn container(checker: &mut Checker, config: &ContainerConfig, pod: &PodConfig) {
    let own = pod.namespaces.own_users();
    if let Some(user) = &config.security.user {
        let field = format!("{OPTIONS}.userns_options");
        let same = match own {
            Some(own) => user == own,
            // A mode of POD without mappings is what a message that says nothing looks like.
            None => user.uids.is_empty() && user.gids.is_empty(),
        };
        if !same {
            checker.wrong(field, "is not the pod's");
        }
    }
    for (n, mount) in config.mounts.iter().enumerate() {
        let (uids, gids) = match own {
            Some(own) => (own.uids.as_slice(), own.gids.as_slice()),
            None => (&[][..], &[][..]),
        };
        for (name, list, own) in [
            ("uidMappings", &mount.uid_mappings, uids),
            ("gidMappings", &mount.gid_mappings, gids),
        ] {
            if !list.is_empty() && list.as_slice() != own {
                checker.wrong(
                    format!("mounts[{n}].{name}"),
                    "are not those of the pod's user namespace",
                );
            }
        }
        if mount.uid_mappings.is_empty() != mount.gid_mappings.is_empty() {
            checker.wrong(
                format!("mounts[{n}].uidMappings"),
                "and gidMappings go together",
            );
        }
    }
}
