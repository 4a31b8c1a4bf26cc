//! Checks a whole request before anything is done, and tells all mistakes at once.
//!
//! Nothing here touches the machine: what must be known of it comes in as [`Facts`]. A field that Kelson
//! has no effect for is a mistake that names it, never silence.

mod annotations;
mod container;
mod pod;
mod users;

use std::collections::BTreeMap;

pub(crate) use container::container;
pub(crate) use pod::pod;

use crate::CgroupDriver;
use crate::config::{Profile, Resources, Selinux};
use crate::error::{Mistake, Mistakes, PodError};

/// Most bytes of labels and annotations of one pod or container together.
pub(crate) const MAX_LABEL_BYTES: usize = 1 << 20;

/// Longest name of a pod, namespace or container, in bytes. Kubernetes allows 253.
const MAX_NAME: usize = 1024;

/// Checks a change of resources alone; `field` is what the request calls them.
pub(crate) fn resources(field: &str, wanted: &Resources, facts: Facts) -> Result<(), PodError> {
    let mut checker = Checker::default();
    checker.resources(field, wanted, facts);
    checker.finish()
}

/// What validation must know of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Whether cgroup v2 carries the controllers.
    pub(crate) cgroup_v2: bool,
    /// Who makes cgroups, which decides what a parent looks like.
    pub(crate) driver: CgroupDriver,
    /// Whether pods can have user namespaces, or why not.
    pub(crate) user_namespaces: Result<(), NoUserNamespaces>,
}

/// Why pods cannot have user namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoUserNamespaces {
    #[error("layers cannot be id-mapped before Linux 5.19")]
    Kernel,
    #[error("the kernel makes none; set user.max_user_namespaces above 0")]
    Disabled,
    #[error(
        "the file system of Kelson's root directory cannot be id-mapped; move root to one that can, as ext4, xfs or btrfs"
    )]
    FileSystem,
}

/// Collects mistakes.
#[derive(Debug, Default)]
pub(crate) struct Checker(Vec<Mistake>);

impl Checker {
    fn wrong(&mut self, field: impl Into<String>, problem: impl Into<String>) {
        self.0.push(Mistake {
            field: field.into(),
            problem: problem.into(),
            unsupported: false,
        });
    }

    fn unsupported(&mut self, field: impl Into<String>, problem: impl Into<String>) {
        self.0.push(Mistake {
            field: field.into(),
            problem: problem.into(),
            unsupported: true,
        });
    }

    fn check(&mut self, right: bool, field: &str, problem: &str) {
        if !right {
            self.wrong(field, problem);
        }
    }

    fn finish(self) -> Result<(), PodError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(PodError::Invalid(Mistakes(self.0)))
        }
    }

    fn name(&mut self, field: &str, value: &str) {
        if value.is_empty() {
            self.wrong(field, "must not be empty");
        } else if value.len() > MAX_NAME {
            self.wrong(field, format!("is longer than {MAX_NAME} bytes"));
        } else if value.chars().any(char::is_control) {
            self.wrong(field, "has control characters");
        }
    }

    fn handler(&mut self, field: &str, name: &str) {
        if !is_handler(name) {
            self.wrong(
                field,
                format!("there is no handler {name:?}; leave it empty"),
            );
        }
    }

    fn labels(
        &mut self,
        labels: &BTreeMap<String, String>,
        annotations: &BTreeMap<String, String>,
    ) {
        let bytes = |map: &BTreeMap<String, String>| -> usize {
            map.iter().map(|(key, value)| key.len() + value.len()).sum()
        };
        let total = bytes(labels) + bytes(annotations);
        if total > MAX_LABEL_BYTES {
            self.wrong(
                "labels, annotations",
                format!("have {total} bytes together, more than the limit of {MAX_LABEL_BYTES}"),
            );
        }
    }

    fn id(&mut self, field: &str, id: i64) {
        // The last id means "no change" to the kernel.
        if u32::try_from(id).is_err() || id == i64::from(u32::MAX) {
            self.wrong(
                field,
                format!("{id} is not an id between 0 and {}", u32::MAX - 1),
            );
        }
    }

    fn absolute(&mut self, field: &str, path: &str) {
        if !path.starts_with('/') {
            self.wrong(field, format!("{path:?} is not an absolute path"));
        } else if path.contains('\0') {
            self.wrong(field, "has a NUL byte");
        }
    }

    fn profiles(&mut self, seccomp: Option<&Profile>, selinux: &Selinux) {
        const CONTEXT: &str = "linux.security_context";
        if let Some(Profile::Localhost(path)) = seccomp {
            self.absolute(&format!("{CONTEXT}.seccomp.localhost_ref"), path);
        }
        let Selinux {
            user,
            role,
            kind,
            level,
        } = selinux;
        let words = [
            ("user", user),
            ("role", role),
            ("type", kind),
            ("level", level),
        ];
        for (name, value) in words {
            let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
            let in_level = |c: char| name == "level" && matches!(c, ':' | ',');
            if !value.chars().all(|c| word(c) || in_level(c)) {
                self.wrong(
                    format!("{CONTEXT}.selinux_options.{name}"),
                    format!(
                        "{:?} is not part of a label",
                        value.chars().take(80).collect::<String>()
                    ),
                );
            }
        }
    }

    fn resources(&mut self, field: &str, wanted: &Resources, facts: Facts) {
        let mut negative = |name: &str, value: i64, least: i64| {
            if value < least {
                self.wrong(
                    format!("{field}.{name}"),
                    format!("{value} is below {least}"),
                );
            }
        };
        negative("cpu_period", wanted.cpu_period, 0);
        negative("cpu_quota", wanted.cpu_quota, -1);
        negative("cpu_shares", wanted.cpu_shares, 0);
        negative("memory_limit_in_bytes", wanted.memory_limit, -1);
        negative("memory_swap_limit_in_bytes", wanted.memory_swap_limit, -1);
        if !(-1000..=1000).contains(&wanted.oom_score_adj) {
            self.wrong(
                format!("{field}.oom_score_adj"),
                format!("{} is not between -1000 and 1000", wanted.oom_score_adj),
            );
        }
        if wanted.memory_swap_limit > 0 && wanted.memory_limit > wanted.memory_swap_limit {
            self.wrong(
                format!("{field}.memory_swap_limit_in_bytes"),
                "is memory and swap together, so it cannot be below memory_limit_in_bytes",
            );
        }
        for (name, list) in [
            ("cpuset_cpus", &wanted.cpuset_cpus),
            ("cpuset_mems", &wanted.cpuset_mems),
        ] {
            if !list
                .bytes()
                .all(|byte| byte.is_ascii_digit() || matches!(byte, b',' | b'-'))
            {
                self.wrong(
                    format!("{field}.{name}"),
                    format!("{list:?} is not a list like 0-3,7"),
                );
            }
        }
        for (size, _) in &wanted.hugepages {
            let number = size
                .strip_suffix("KB")
                .or(size.strip_suffix("MB"))
                .or(size.strip_suffix("GB"));
            if number.is_none_or(|number| number.parse::<u32>().is_err()) {
                self.wrong(
                    format!("{field}.hugepage_limits"),
                    format!("{size:?} is not a page size like 2MB"),
                );
            }
        }
        for (file, value) in &wanted.unified {
            let controller = file.split_once('.').is_some_and(|(head, tail)| {
                !head.is_empty() && !tail.is_empty() && head.bytes().all(|b| b.is_ascii_lowercase())
            });
            if !controller || file.contains('/') || file.contains('\0') || value.contains('\0') {
                self.wrong(
                    format!("{field}.unified"),
                    format!("{file:?} is not a file of a cgroup"),
                );
            }
        }
        if !wanted.unified.is_empty() && !facts.cgroup_v2 {
            self.unsupported(format!("{field}.unified"), "this machine has cgroup v1");
        }
    }
}

/// Whether there is a runtime handler of this name; the default one has none.
pub fn is_handler(name: &str) -> bool {
    matches!(name, "" | "native")
}

/// A part of a path that is neither empty nor `.` nor `..`.
fn plain_component(part: &str) -> bool {
    !matches!(part, "" | "." | "..") && !part.contains('\0')
}

#[cfg(test)]
mod tests;
