//! Mounts of a specification: options taken apart.

use std::ffi::{CStr, CString};
use std::path::PathBuf;

use kelson_sys::mount::Propagation;
use kelson_sys::userns::IdRange;
use oci_spec::runtime::{LinuxIdMapping, Mount};

use crate::LaunchError;

/// A mount, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountPlan {
    /// Where, inside the container.
    pub(crate) target: PathBuf,
    /// What.
    pub(crate) kind: MountKind,
    /// Attributes of the mount itself.
    pub(crate) attributes: AttributeChange,
    /// Attributes of it and all mounts beneath.
    pub(crate) recursive: AttributeChange,
    /// Propagation, and whether it is for all mounts beneath too.
    pub(crate) propagation: Option<(Propagation, bool)>,
    /// By which mapping ids are shown.
    pub(crate) id_map: Option<IdMap>,
}

/// A mapping of the ids of a bound file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdMap {
    /// User and group ids; `None`: those of the container's user namespace.
    pub(crate) ranges: Option<(Vec<IdRange>, Vec<IdRange>)>,
    /// Whether it is for all mounts beneath too.
    pub(crate) recursive: bool,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MountKind {
    /// A file or directory of the host.
    Bind {
        /// The path, as the caller gave it.
        source: PathBuf,
        /// With the mounts beneath it.
        recursive: bool,
    },
    /// A new instance of a filesystem.
    Filesystem {
        /// Its type.
        kind: CString,
        /// Its source, as the kernel shows it.
        source: CString,
        /// Its own options.
        options: Vec<String>,
    },
    /// The merged tree of directories of the host that are not written to: an overlay whose options are
    /// `lowerdir+=` only, as the kernel takes them since 6.5; older ones get it in their form.
    Layers {
        /// The directories, the topmost first.
        lower: Vec<PathBuf>,
        /// What of the tree is mounted, as mount(8) knows it by `X-mount.subdir`: a file or directory.
        subdir: Option<PathBuf>,
    },
    /// The container's view of its cgroups.
    Cgroup,
}

/// `MOUNT_ATTR_*` to set and to clear.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct AttributeChange {
    pub(crate) set: u64,
    pub(crate) clear: u64,
}

impl AttributeChange {
    fn set(&mut self, bits: u64) {
        self.set |= bits;
        self.clear &= !bits;
    }

    fn clear(&mut self, bits: u64) {
        self.clear |= bits;
        self.set &= !bits;
    }

    fn access_time(&mut self, mode: u64) {
        self.set = self.set & !libc::MOUNT_ATTR__ATIME | mode;
        self.clear |= libc::MOUNT_ATTR__ATIME;
    }
}

impl MountPlan {
    /// Checks entry `index` of `mounts`; `label` is the SELinux label for new filesystems.
    pub(crate) fn new(
        index: usize,
        mount: &Mount,
        label: Option<&str>,
    ) -> Result<Self, LaunchError> {
        let spec_error = |field: &str, reason: &str| {
            LaunchError::spec(format!("mounts[{index}].{field}"), reason)
        };
        let target = mount.destination().clone();
        if !target.is_absolute() {
            return Err(spec_error("destination", "it is not an absolute path"));
        }
        let mut options = Options::default();
        for option in mount.options().iter().flatten() {
            options
                .read(option)
                .map_err(|reason| spec_error("options", &format!("{option:?}: {reason}")))?;
        }
        let id_map = id_map(index, mount, &options)?;
        let kind = mount.typ().as_deref().unwrap_or_default();
        let kind = if options.bind || kind == "bind" {
            let source = mount.source().clone().filter(|path| path.is_absolute());
            let source = source.ok_or_else(|| {
                spec_error("source", "a bind mount needs an absolute path of the host")
            })?;
            MountKind::Bind {
                source,
                recursive: options.recursive_bind,
            }
        } else if kind == "cgroup" || kind == "cgroup2" {
            MountKind::Cgroup
        } else if kind.is_empty() {
            return Err(spec_error("type", "it is missing"));
        } else if kind == "overlay" && options.data.iter().any(|one| one.starts_with(LOWER)) {
            let data = std::mem::take(&mut options.data);
            layers(data).map_err(|reason| spec_error("options", &reason))?
        } else {
            let text = |field, text: &str| {
                CString::new(text).map_err(|_| spec_error(field, "there is a NUL byte in it"))
            };
            let kind = text("type", kind)?;
            let source = mount.source().as_ref().map(|path| path.to_string_lossy());
            let source = match source.as_deref() {
                Some("") | None => kind.clone(),
                Some(source) => text("source", source)?,
            };
            if let Some(label) = label.filter(|_| takes_label(&kind)) {
                options.data.push(format!("context={label}"));
            }
            MountKind::Filesystem {
                kind,
                source,
                options: options.data,
            }
        };
        if id_map.is_some() && !matches!(kind, MountKind::Bind { .. }) {
            return Err(spec_error(
                "uidMappings",
                "only bind mounts can be id-mapped",
            ));
        }
        Ok(Self {
            id_map,
            target,
            kind,
            attributes: options.attributes,
            recursive: options.recursive,
            propagation: options.propagation,
        })
    }
}

/// Option of an overlay that adds a lower directory.
const LOWER: &str = "lowerdir+=";
/// Option that names what of the file system is mounted.
const SUBDIR: &str = "X-mount.subdir=";

fn layers(options: Vec<String>) -> Result<MountKind, String> {
    let (mut lower, mut subdir) = (Vec::new(), None);
    for option in options {
        if let Some(path) = option.strip_prefix(LOWER) {
            lower.push(PathBuf::from(path));
        } else if let Some(path) = option.strip_prefix(SUBDIR) {
            subdir = Some(PathBuf::from(path));
        } else {
            return Err(format!("{option:?} does not go with {LOWER}"));
        }
    }
    if lower.len() < 2 || lower.iter().any(|path| !path.is_absolute()) {
        return Err(format!("{LOWER} needs two absolute paths at least"));
    }
    Ok(MountKind::Layers { lower, subdir })
}

/// The mapping of a mount: by its own fields, or by an option.
fn id_map(index: usize, mount: &Mount, options: &Options) -> Result<Option<IdMap>, LaunchError> {
    let list = |name: &str, list: &Option<Vec<LinuxIdMapping>>| {
        let list = list.as_deref().unwrap_or_default();
        super::ranges(&format!("mounts[{index}].{name}"), list)
    };
    let uids = list("uidMappings", mount.uid_mappings())?;
    let gids = list("gidMappings", mount.gid_mappings())?;
    let ranges = match (uids.is_empty(), gids.is_empty()) {
        (true, true) if options.id_map.is_none() => return Ok(None),
        (true, true) => None,
        (false, false) => Some((uids, gids)),
        _ => {
            return Err(LaunchError::spec(
                format!("mounts[{index}].uidMappings"),
                "uidMappings and gidMappings go together",
            ));
        }
    };
    Ok(Some(IdMap {
        ranges,
        recursive: options.id_map.unwrap_or(false),
    }))
}

/// Filesystems that are empty at first and take a label for all of their files. A mqueue is that of the IPC
/// namespace, which has been mounted without one.
fn takes_label(kind: &CStr) -> bool {
    kind == c"tmpfs" || kind == c"devpts"
}

#[derive(Debug, Default)]
struct Options {
    bind: bool,
    recursive_bind: bool,
    attributes: AttributeChange,
    recursive: AttributeChange,
    propagation: Option<(Propagation, bool)>,
    /// Whether `idmap` was asked for recursively.
    id_map: Option<bool>,
    data: Vec<String>,
}

impl Options {
    fn read(&mut self, option: &str) -> Result<(), &'static str> {
        if option.contains('\0') {
            return Err("there is a NUL byte in it");
        }
        match option {
            "" | "defaults" | "auto" | "user" | "async" | "loud" | "nomand" | "copy-symlink" => {}
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive_bind) = (true, true),
            "remount" => return Err("a container has nothing mounted yet"),
            "tmpcopyup" => return Err("copying into a tmpfs is not supported"),
            "idmap" => self.id_map = Some(false),
            "ridmap" => self.id_map = Some(true),
            _ if self.read_propagation(option) => {}
            _ if read_attribute(&mut self.attributes, option) => {}
            _ if option.strip_prefix('r').is_some_and(|plain| {
                !matches!(plain, "w") && read_attribute(&mut self.recursive, plain)
            }) => {}
            _ => self.data.push(option.to_owned()),
        }
        Ok(())
    }

    fn read_propagation(&mut self, option: &str) -> bool {
        use Propagation::{Private, Shared, Slave, Unbindable};
        self.propagation = Some(match option {
            "private" => (Private, false),
            "rprivate" => (Private, true),
            "slave" => (Slave, false),
            "rslave" => (Slave, true),
            "shared" => (Shared, false),
            "rshared" => (Shared, true),
            "unbindable" => (Unbindable, false),
            "runbindable" => (Unbindable, true),
            _ => return false,
        });
        true
    }
}

/// Takes `option` over if it is one about attributes.
fn read_attribute(change: &mut AttributeChange, option: &str) -> bool {
    match option {
        "ro" => change.set(libc::MOUNT_ATTR_RDONLY),
        "rw" => change.clear(libc::MOUNT_ATTR_RDONLY),
        "nosuid" => change.set(libc::MOUNT_ATTR_NOSUID),
        "suid" => change.clear(libc::MOUNT_ATTR_NOSUID),
        "nodev" => change.set(libc::MOUNT_ATTR_NODEV),
        "dev" => change.clear(libc::MOUNT_ATTR_NODEV),
        "noexec" => change.set(libc::MOUNT_ATTR_NOEXEC),
        "exec" => change.clear(libc::MOUNT_ATTR_NOEXEC),
        "nodiratime" => change.set(libc::MOUNT_ATTR_NODIRATIME),
        "diratime" => change.clear(libc::MOUNT_ATTR_NODIRATIME),
        "nosymfollow" => change.set(libc::MOUNT_ATTR_NOSYMFOLLOW),
        "symfollow" => change.clear(libc::MOUNT_ATTR_NOSYMFOLLOW),
        "noatime" => change.access_time(libc::MOUNT_ATTR_NOATIME),
        "strictatime" => change.access_time(libc::MOUNT_ATTR_STRICTATIME),
        "relatime" | "atime" | "norelatime" | "nostrictatime" => {
            change.access_time(libc::MOUNT_ATTR_RELATIME);
        }
        _ => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(json: serde_json::Value) -> Result<MountPlan, LaunchError> {
        MountPlan::new(0, &serde_json::from_value(json).unwrap(), None)
    }

    #[test]
    fn options_are_sorted_by_what_they_are_for() {
        let plan = parse(
            json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k", "rprivate"]}),
        )
        .unwrap();
        assert_eq!(
            plan.attributes.set,
            libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_STRICTATIME
        );
        assert_eq!(plan.propagation, Some((Propagation::Private, true)));
        let MountKind::Filesystem { options, .. } = plan.kind else {
            panic!()
        };
        assert_eq!(options, ["mode=755", "size=65536k"]);
    }

    #[test]
    fn layers_and_a_part_of_them() {
        let overlay = |options: &[&str]| {
            parse(
                json!({"destination": "/v", "type": "overlay", "source": "overlay",
                "options": options}),
            )
        };
        let plan =
            overlay(&["ro", "lowerdir+=/a", "lowerdir+=/b", "X-mount.subdir=etc/x"]).unwrap();
        assert_eq!(plan.attributes.set, libc::MOUNT_ATTR_RDONLY);
        let expected = MountKind::Layers {
            lower: vec!["/a".into(), "/b".into()],
            subdir: Some("etc/x".into()),
        };
        assert_eq!(plan.kind, expected);
        for bad in [
            ["lowerdir+=/a", "ro"].as_slice(),
            &["lowerdir+=/a", "lowerdir+=b"],
            &["lowerdir+=/a", "lowerdir+=/b", "upperdir=/c"],
        ] {
            assert!(overlay(bad).is_err(), "{bad:?}");
        }
        // An overlay in another form is the kernel's to understand.
        assert!(matches!(
            overlay(&["lowerdir=/a:/b"]).unwrap().kind,
            MountKind::Filesystem { .. }
        ));
    }

    #[test]
    fn the_last_of_two_opposites_wins() {
        let plan = parse(json!({"destination": "/a", "type": "bind", "source": "/b",
            "options": ["ro", "rw", "rro", "rnoexec"]}))
        .unwrap();
        assert_eq!(plan.attributes.set, 0);
        assert_eq!(plan.attributes.clear, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(
            plan.recursive.set,
            libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOEXEC
        );
    }

    #[test]
    fn bind_is_known_by_option_and_by_type() {
        for (kind, option, recursive) in [("none", "rbind", true), ("bind", "nosuid", false)] {
            let plan = parse(json!({"destination": "/a", "type": kind, "source": "/b",
                "options": [option]}))
            .unwrap();
            assert_eq!(
                plan.kind,
                MountKind::Bind {
                    source: "/b".into(),
                    recursive
                }
            );
        }
    }

    #[test]
    fn mappings_come_by_field_and_by_option() {
        let map = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
        let bind = |changes: serde_json::Value| {
            let mut json = json!({"destination": "/a", "type": "bind", "source": "/b"});
            for (key, value) in changes.as_object().unwrap() {
                json[key] = value.clone();
            }
            parse(json)
        };
        let plan = bind(json!({"uidMappings": map, "gidMappings": map})).unwrap();
        let id_map = plan.id_map.unwrap();
        assert_eq!(id_map.ranges.unwrap().0[0].outside, 1000);
        assert!(!id_map.recursive);
        let plan = bind(json!({"options": ["ridmap"]})).unwrap();
        let expected = IdMap {
            ranges: None,
            recursive: true,
        };
        assert_eq!(plan.id_map, Some(expected));
        assert!(bind(json!({})).unwrap().id_map.is_none());
        assert!(bind(json!({"uidMappings": map})).is_err());
    }

    #[test]
    fn mistakes_are_refused() {
        for json in [
            json!({"destination": "/a", "type": "tmpfs", "options": ["idmap"]}),
            json!({"destination": "a", "type": "tmpfs"}),
            json!({"destination": "/a"}),
            json!({"destination": "/a", "type": "bind"}),
            json!({"destination": "/a", "type": "bind", "source": "b"}),
            json!({"destination": "/a", "type": "tmpfs", "options": ["remount"]}),
            json!({"destination": "/a", "type": "tmpfs", "options": ["size=\u{0}"]}),
        ] {
            assert!(
                matches!(parse(json.clone()), Err(LaunchError::Spec { .. })),
                "{json}"
            );
        }
    }
}
