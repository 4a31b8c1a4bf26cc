//! What must be known of the machine, read once at the start.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use kelson_cgroup::{Hierarchy, Version};
use kelson_sys::mount;
use kelson_sys::userns::{self, IdRange};
use oci_spec::runtime::{PosixRlimitBuilder, PosixRlimitType};

use crate::pods::PodsConfig;
use crate::spec::NodeRules;
use crate::spec::capabilities;
use crate::validate::{Facts, NoUserNamespaces};

/// Bit of CAP_SYS_RESOURCE, which it takes to lower an OOM score.
const SYS_RESOURCE: u32 = 24;

/// Facts that requests are checked against.
pub(crate) fn facts(cgroups: &Hierarchy, config: &PodsConfig) -> Facts {
    let user_namespaces = user_namespaces(&config.root);
    if let Err(lack) = user_namespaces {
        tracing::info!("pods cannot have user namespaces: {lack}");
    }
    Facts {
        cgroup_v2: cgroups.version() == Version::V2,
        driver: config.cgroup_driver,
        user_namespaces,
    }
}

/// Whether pods can have user namespaces: makes one, and maps the ids of the file system of `root`.
fn user_namespaces(root: &Path) -> Result<(), NoUserNamespaces> {
    let release = rustix::system::uname();
    if !at_least(&release.release().to_string_lossy(), (5, 19)) {
        return Err(NoUserNamespaces::Kernel);
    }
    let range = [IdRange {
        inside: 0,
        outside: 1 << 16,
        count: 1 << 16,
    }];
    let user = userns::make(&range, &range).map_err(|_| NoUserNamespaces::Disabled)?;
    let change = mount::Attributes {
        id_map: Some(user.as_fd()),
        ..mount::Attributes::default()
    };
    mount::clone_tree_at(rustix::fs::CWD, root, false)
        .and_then(|tree| mount::set_attributes(tree.as_fd(), &change, false))
        .map_err(|_| NoUserNamespaces::FileSystem)
}

/// Whether a kernel's release is this version or a later one.
fn at_least(release: &str, version: (u32, u32)) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= version,
        _ => false,
    }
}

/// The kernel's id of this boot; empty when it cannot be read.
pub(crate) fn boot_id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

/// What the node adds to every container.
pub(crate) fn rules(config: &PodsConfig, cgroup_v2: bool) -> NodeRules {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
            .unwrap_or(u64::MAX)
    };
    let restricted = config.restrict_oom_score_adj || mask("CapEff:") >> SYS_RESOURCE & 1 == 0;
    let least_oom_score = restricted.then(own_oom_score);
    if let Some(score) = least_oom_score {
        tracing::info!(score, "OOM scores below the daemon's own are raised to it");
    }
    let rlimit = |(kind, soft, hard): &(String, u64, u64)| {
        let kind: PosixRlimitType = kind.parse().ok()?;
        PosixRlimitBuilder::default()
            .typ(kind)
            .soft(*soft)
            .hard(*hard)
            .build()
            .ok()
    };
    NodeRules {
        pids_limit: config.pids_limit,
        rlimits: config.rlimits.iter().filter_map(rlimit).collect(),
        least_oom_score,
        passed_annotations: config.passed_annotations.clone(),
        writable_cgroups: config.writable_cgroups && cgroup_v2,
        capabilities: capabilities::from_mask(mask("CapBnd:")),
    }
}

fn own_oom_score() -> i32 {
    let text = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    text.trim().parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_kernels() {
        for (release, new) in [
            ("5.19.0-50-generic", true),
            ("6.1.0-13-amd64", true),
            ("5.18.19", false),
            ("4.99", false),
            ("x", false),
        ] {
            assert_eq!(at_least(release, (5, 19)), new, "{release}");
        }
        // procfs is a file system that no kernel maps.
        if rustix::process::geteuid().is_root() {
            let lack = user_namespaces(Path::new("/proc"));
            assert_eq!(lack, Err(NoUserNamespaces::FileSystem));
        }
    }

    #[test]
    fn the_machine_is_known() {
        assert_eq!(boot_id().len(), 36);
        let config = PodsConfig {
            rlimits: vec![("RLIMIT_NOFILE".into(), 1024, 2048)],
            restrict_oom_score_adj: true,
            ..PodsConfig::default()
        };
        let rules = rules(&config, true);
        assert_eq!(rules.rlimits[0].hard(), 2048);
        assert!(rules.least_oom_score.is_some());
        assert!(!rules.capabilities.is_empty());
    }
}
