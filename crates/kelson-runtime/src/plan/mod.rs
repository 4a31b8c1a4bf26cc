//! From a runtime specification to what the steps need, checked before anything is changed.
//!
//! Nothing here does I/O: a mistake in a specification is found without a process.

mod capabilities;
mod mounts;
mod namespaces;
mod process;
pub(crate) mod resources;
mod sysctl;

use std::path::PathBuf;

use kelson_sys::mount::Propagation;
use kelson_sys::userns::{IdRange, MAX_RANGES};
use oci_spec::runtime::{Linux, LinuxDevice, LinuxIdMapping, Spec};

pub(crate) use capabilities::{
    CapabilitySets, all_names as all_capability_names, names as capability_names,
};
pub(crate) use mounts::{MountKind, MountPlan};
pub(crate) use namespaces::Namespaces;
pub(crate) use process::{ProcessPlan, Rlimit};
pub(crate) use sysctl::Sysctl;

use crate::LaunchError;

/// A container, checked.
#[derive(Debug)]
pub(crate) struct ContainerPlan {
    pub(crate) namespaces: Namespaces,
    /// The mappings of a new user namespace.
    pub(crate) uid_mappings: Vec<IdRange>,
    pub(crate) gid_mappings: Vec<IdRange>,
    /// Offsets of the clocks of a new time namespace: clock, seconds, nanoseconds.
    pub(crate) time_offsets: Vec<(String, i64, u32)>,
    pub(crate) root_propagation: Option<Propagation>,
    pub(crate) readonly_root: bool,
    pub(crate) mounts: Vec<MountPlan>,
    pub(crate) devices: Vec<LinuxDevice>,
    pub(crate) masked_paths: Vec<PathBuf>,
    pub(crate) readonly_paths: Vec<PathBuf>,
    pub(crate) sysctls: Vec<Sysctl>,
    pub(crate) hostname: Option<String>,
    pub(crate) domainname: Option<String>,
    /// The SELinux label of the root and of new file systems.
    pub(crate) mount_label: Option<String>,
    pub(crate) process: ProcessPlan,
}

impl ContainerPlan {
    /// Checks a specification.
    pub(crate) fn new(spec: &Spec) -> Result<Self, LaunchError> {
        let linux = spec.linux().clone().unwrap_or_default();
        let namespaces = Namespaces::new(&linux)?;
        let process = spec
            .process()
            .as_ref()
            .ok_or_else(|| LaunchError::spec("process", "it is missing"))?;
        let mut process = ProcessPlan::new(process)?;
        process.set_personality(linux.personality().as_ref())?;
        let label = linux
            .mount_label()
            .as_deref()
            .filter(|label| !label.is_empty());
        let mounts = spec.mounts().as_deref().unwrap_or_default();
        let mounts = mounts
            .iter()
            .enumerate()
            .map(|(i, m)| MountPlan::new(i, m, label));
        let mounts = mounts.collect::<Result<Vec<_>, _>>()?;
        for (i, mount) in mounts.iter().enumerate() {
            let own = mount
                .id_map
                .as_ref()
                .is_some_and(|map| map.ranges.is_none());
            if own && !namespaces.has(kelson_sys::process::ns::USER) {
                return Err(LaunchError::spec(
                    format!("mounts[{i}].options"),
                    "idmap without mappings means those of the container, which has no user namespace",
                ));
            }
        }
        let root_propagation = propagation(linux.rootfs_propagation().as_deref())?;
        Ok(Self {
            sysctls: sysctl::check(&linux, &namespaces)?,
            hostname: uts_name("hostname", spec.hostname().as_deref(), &namespaces)?,
            domainname: uts_name("domainname", spec.domainname().as_deref(), &namespaces)?,
            uid_mappings: mappings("uidMappings", linux.uid_mappings(), &namespaces)?,
            gid_mappings: mappings("gidMappings", linux.gid_mappings(), &namespaces)?,
            time_offsets: time_offsets(&linux),
            root_propagation,
            readonly_root: spec
                .root()
                .as_ref()
                .and_then(|r| r.readonly())
                .unwrap_or(false),
            mounts,
            devices: linux.devices().clone().unwrap_or_default(),
            masked_paths: paths(linux.masked_paths().as_deref()),
            readonly_paths: paths(linux.readonly_paths().as_deref()),
            mount_label: label.map(str::to_owned),
            namespaces,
            process,
        })
    }

    /// Whether the container sees its cgroup as the root of all, and may write to it.
    pub(crate) fn owns_its_cgroup(&self) -> bool {
        let read_only = libc::MOUNT_ATTR_RDONLY;
        self.namespaces.create & kelson_sys::process::ns::CGROUP != 0
            && self.mounts.iter().any(|mount| {
                mount.kind == MountKind::Cgroup
                    && (mount.attributes.set | mount.recursive.set) & read_only == 0
            })
    }

    /// Whether `/dev` is the runtime's to fill: not when the specification binds one.
    pub(crate) fn fills_dev(&self) -> bool {
        !self.mounts.iter().any(|m| {
            m.target
                .components()
                .eq(std::path::Path::new("/dev").components())
                && matches!(m.kind, MountKind::Bind { .. })
        })
    }
}

fn paths(list: Option<&[String]>) -> Vec<PathBuf> {
    list.unwrap_or_default().iter().map(PathBuf::from).collect()
}

fn propagation(text: Option<&str>) -> Result<Option<Propagation>, LaunchError> {
    match text {
        None | Some("") => Ok(None),
        Some("private" | "rprivate") => Ok(Some(Propagation::Private)),
        Some("slave" | "rslave") => Ok(Some(Propagation::Slave)),
        Some("shared" | "rshared") => Ok(Some(Propagation::Shared)),
        Some("unbindable" | "runbindable") => Ok(Some(Propagation::Unbindable)),
        Some(other) => Err(LaunchError::spec(
            "linux.rootfsPropagation",
            format!("{other:?} is not private, slave, shared or unbindable"),
        )),
    }
}

fn uts_name(
    field: &str,
    name: Option<&str>,
    namespaces: &Namespaces,
) -> Result<Option<String>, LaunchError> {
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    if !namespaces.has(kelson_sys::process::ns::UTS) {
        return Err(LaunchError::spec(
            field,
            "it needs a uts namespace in linux.namespaces",
        ));
    }
    if name.len() > 64 {
        return Err(LaunchError::spec(field, "it is longer than 64 bytes"));
    }
    Ok(Some(name.to_owned()))
}

fn mappings(
    field: &str,
    list: &Option<Vec<LinuxIdMapping>>,
    namespaces: &Namespaces,
) -> Result<Vec<IdRange>, LaunchError> {
    let list = ranges(
        &format!("linux.{field}"),
        list.as_deref().unwrap_or_default(),
    )?;
    let new_user = namespaces.create & kelson_sys::process::ns::USER != 0;
    match (new_user, list.is_empty()) {
        (true, true) => Err(LaunchError::spec(
            format!("linux.{field}"),
            "a new user namespace needs at least one mapping",
        )),
        (false, false) if !namespaces.has(kelson_sys::process::ns::USER) => Err(LaunchError::spec(
            format!("linux.{field}"),
            "it needs a user namespace in linux.namespaces",
        )),
        (true, false) => Ok(list),
        (false, _) => Ok(Vec::new()),
    }
}

/// The lines of a mapping, checked for what the kernel would refuse without saying where.
fn ranges(field: &str, list: &[LinuxIdMapping]) -> Result<Vec<IdRange>, LaunchError> {
    let wrong = |reason: String| Err(LaunchError::spec(field, reason));
    if list.len() > MAX_RANGES {
        return wrong(format!("it has more than {MAX_RANGES} lines"));
    }
    let mut ranges: Vec<IdRange> = Vec::with_capacity(list.len());
    for mapping in list {
        let range = IdRange {
            inside: mapping.container_id(),
            outside: mapping.host_id(),
            count: mapping.size(),
        };
        let fits = |first: u32| first.checked_add(range.count).is_some();
        if range.count == 0 || !fits(range.inside) || !fits(range.outside) {
            return wrong(format!(
                "{} {} {} is no range of ids",
                range.inside, range.outside, range.count
            ));
        }
        let apart = |a: u32, b: u32, count: u32| a >= b + count || b >= a + range.count;
        if !ranges.iter().all(|other| {
            apart(range.inside, other.inside, other.count)
                && apart(range.outside, other.outside, other.count)
        }) {
            return wrong("its ranges overlap".to_owned());
        }
        ranges.push(range);
    }
    Ok(ranges)
}

fn time_offsets(linux: &Linux) -> Vec<(String, i64, u32)> {
    let offsets = linux.time_offsets().iter().flatten();
    offsets
        .map(|(clock, offset)| {
            (
                clock.clone(),
                offset.secs().unwrap_or(0),
                offset.nanosecs().unwrap_or(0),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_checked_before_the_kernel_sees_them() {
        let parse = |lines: &[(u32, u32, u32)]| {
            let mapping = |&(inside, outside, size): &(u32, u32, u32)| {
                serde_json::from_value(serde_json::json!({
                    "containerID": inside, "hostID": outside, "size": size,
                }))
                .unwrap()
            };
            let list: Vec<LinuxIdMapping> = lines.iter().map(mapping).collect();
            ranges("linux.uidMappings", &list)
        };
        assert_eq!(parse(&[(0, 1000, 10), (10, 5000, 10)]).unwrap().len(), 2);
        for bad in [
            &[(0, 1000, 0)][..],
            &[(0, u32::MAX, 2)],
            &[(1, 0, u32::MAX)],
            &[(0, 1000, 10), (9, 5000, 10)],
            &[(0, 1000, 10), (10, 1009, 10)],
            &[(0, 1000, 1); MAX_RANGES + 1],
        ] {
            let error = parse(bad).unwrap_err();
            assert!(matches!(error, LaunchError::Spec { .. }), "{error}");
        }
    }
}
