//! The mounts of a container: the defaults, the pod's files, and those of the request.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, Mount as SpecMount};

use crate::config::{IdMapping, Mount, Propagation, UserNamespace};

/// The group of terminals.
const TTY_GROUP: u32 = 5;

/// A mount of the request whose source on the host is known to be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bind {
    /// The source, without symlinks.
    pub(crate) source: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) readonly: bool,
    pub(crate) recursive_read_only: bool,
    pub(crate) propagation: Propagation,
    /// The mappings by which its ids are shown.
    pub(crate) uids: Vec<IdMapping>,
    pub(crate) gids: Vec<IdMapping>,
    /// The tree of an image to mount instead of the source.
    pub(crate) image: Option<ImageTree>,
}

/// What the default mounts depend on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rules<'a> {
    pub(crate) privileged: bool,
    /// Whether the container may make cgroups in its own.
    pub(crate) writable_cgroup: bool,
    pub(crate) readonly_root: bool,
    /// The pod's own user namespace.
    pub(crate) user: Option<&'a UserNamespace>,
    pub(crate) host_network: bool,
}

/// Mappings in the words of the runtime specification.
pub(crate) fn mappings(list: &[IdMapping]) -> Vec<LinuxIdMapping> {
    // All three fields are given, so there is nothing that the builder could miss.
    let line = |one: &IdMapping| {
        LinuxIdMappingBuilder::default()
            .container_id(one.container_id)
            .host_id(one.host_id)
            .size(one.length)
            .build()
            .ok()
    };
    list.iter().filter_map(line).collect()
}

/// The merged tree of an image, or a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageTree {
    /// Its layers' directories, the top first.
    pub(crate) lower: Vec<PathBuf>,
    /// File or directory in it; empty: all.
    pub(crate) sub_path: String,
}

impl Bind {
    pub(crate) fn new(mount: &Mount, source: PathBuf) -> Self {
        Self {
            source,
            target: target(&mount.container_path),
            readonly: mount.readonly,
            recursive_read_only: mount.recursive_read_only,
            propagation: mount.propagation,
            uids: mount.uid_mappings.clone(),
            gids: mount.gid_mappings.clone(),
            image: None,
        }
    }

    /// A directory of Kelson's own that the container can write to, at `path` in it.
    pub(crate) fn volume(path: &str, source: PathBuf) -> Self {
        let mount = Mount {
            container_path: path.to_owned(),
            ..Mount::default()
        };
        Self::new(&mount, source)
    }

    /// The tree of an image where `mount` says.
    pub(crate) fn image(mount: &Mount, lower: Vec<PathBuf>) -> Self {
        let sub_path = mount.image_sub_path.trim_end_matches('/').to_owned();
        Self {
            readonly: true,
            image: Some(ImageTree { lower, sub_path }),
            ..Self::new(mount, PathBuf::new())
        }
    }
}

/// Where the pod's own files are on the host.
#[derive(Clone, Debug)]
pub(crate) struct PodFiles {
    pub(crate) resolv_conf: PathBuf,
    pub(crate) hosts: PathBuf,
    pub(crate) hostname: PathBuf,
    /// The pod's shared memory, or the host's.
    pub(crate) shm: PathBuf,
}

/// A path in the container: absolute, without empty and `.` components.
pub(crate) fn target(path: &str) -> PathBuf {
    let parts = path.split('/').filter(|part| !matches!(*part, "" | "."));
    let mut target = PathBuf::from("/");
    target.extend(parts);
    target
}

/// All mounts in the order in which they are made: the defaults, then the request's by depth. A mount of
/// the request at the place of a default one replaces it.
pub(crate) fn all(files: &PodFiles, binds: &[Bind], rules: &Rules<'_>) -> Vec<SpecMount> {
    let mut mounts: Vec<SpecMount> = defaults(files, rules)
        .into_iter()
        .filter(|default| {
            !binds
                .iter()
                .any(|bind| bind.target == *default.destination())
        })
        .collect();
    let mut sorted: Vec<&Bind> = binds.iter().collect();
    sorted.sort_by_key(|bind| bind.target.components().count());
    mounts.extend(sorted.into_iter().map(bind));
    mounts
}

/// How the root's mounts propagate, when the binds need more than nothing.
pub(crate) fn root_propagation(binds: &[Bind]) -> Option<&'static str> {
    let any = |propagation| binds.iter().any(|bind| bind.propagation == propagation);
    if any(Propagation::Bidirectional) {
        Some("rshared")
    } else if any(Propagation::HostToContainer) {
        Some("rslave")
    } else {
        None
    }
}

fn defaults(files: &PodFiles, rules: &Rules<'_>) -> Vec<SpecMount> {
    let kernel = if rules.privileged { "rw" } else { "ro" };
    let cgroup = if rules.writable_cgroup { "rw" } else { kernel };
    let file = if rules.readonly_root { "ro" } else { "rw" };
    let mut devpts = vec![
        "nosuid",
        "noexec",
        "newinstance",
        "ptmxmode=0666",
        "mode=0620",
    ];
    if rules
        .user
        .is_none_or(|user| user.host(0, TTY_GROUP).is_some())
    {
        devpts.push("gid=5");
    }
    let sys = if rules.user.is_some() && rules.host_network {
        // A new sysfs shows a network namespace, and takes one that the user namespace owns.
        mount(
            "/sys",
            "bind",
            "/sys",
            &["rbind", "rprivate", "nosuid", "noexec", "nodev", "rro"],
        )
    } else {
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", kernel],
        )
    };
    let bound =
        |path: &str, source: &Path| mount(path, "bind", source, &["rbind", "rprivate", file]);
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount("/dev/pts", "devpts", "devpts", &devpts),
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
        sys,
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", cgroup],
        ),
        mount(
            "/dev/shm",
            "bind",
            &files.shm,
            &["rbind", "rprivate", "nosuid", "noexec", "nodev", "rw"],
        ),
        bound("/etc/resolv.conf", &files.resolv_conf),
        bound("/etc/hosts", &files.hosts),
        bound("/etc/hostname", &files.hostname),
    ]
}

fn bind(bind: &Bind) -> SpecMount {
    if let Some(tree) = &bind.image {
        return image(bind, tree);
    }
    let propagation = match bind.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    let access = match (bind.readonly, bind.recursive_read_only) {
        (false, _) => "rw",
        (true, false) => "ro",
        (true, true) => "rro",
    };
    let mut mount = mount(
        &bind.target,
        "bind",
        &bind.source,
        &["rbind", propagation, access],
    );
    if !bind.uids.is_empty() {
        mount
            .set_uid_mappings(Some(mappings(&bind.uids)))
            .set_gid_mappings(Some(mappings(&bind.gids)));
    }
    mount
}

/// As Kubernetes documents image volumes: read-only, and nothing in them is executed.
fn image(bind: &Bind, tree: &ImageTree) -> SpecMount {
    let mut options: Vec<String> = ["ro", "noexec", "nosuid", "nodev", "rprivate"]
        .map(str::to_owned)
        .into();
    let lower = tree.lower.iter();
    options.extend(lower.map(|path| format!("lowerdir+={}", path.display())));
    if !tree.sub_path.is_empty() {
        options.push(format!("X-mount.subdir={}", tree.sub_path));
    }
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    mount(&bind.target, "overlay", "overlay", &options)
}

fn mount(
    destination: impl AsRef<Path>,
    kind: &str,
    source: impl AsRef<Path>,
    options: &[&str],
) -> SpecMount {
    let mut mount = SpecMount::default();
    mount
        .set_destination(destination.as_ref().to_owned())
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(source.as_ref().to_owned()))
        .set_options(Some(
            options.iter().map(|option| (*option).to_owned()).collect(),
        ));
    mount
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> PodFiles {
        PodFiles {
            resolv_conf: "/p/resolv.conf".into(),
            hosts: "/p/hosts".into(),
            hostname: "/p/hostname".into(),
            shm: "/p/shm".into(),
        }
    }

    fn at(container_path: &str, propagation: Propagation) -> Bind {
        let mount = Mount {
            container_path: container_path.into(),
            propagation,
            ..Mount::default()
        };
        Bind::new(&mount, "/src".into())
    }

    fn places(mounts: &[SpecMount]) -> Vec<&str> {
        mounts
            .iter()
            .map(|one| one.destination().to_str().unwrap())
            .collect()
    }

    fn options<'a>(mounts: &'a [SpecMount], place: &str) -> &'a [String] {
        let found = mounts
            .iter()
            .find(|one| one.destination() == Path::new(place))
            .unwrap();
        found.options().as_deref().unwrap()
    }

    #[test]
    fn defaults_come_first_and_binds_by_depth() {
        let binds = [
            at("/a/b/c", Propagation::Private),
            at("x/./y//", Propagation::Private),
        ];
        let mounts = all(&files(), &binds, &Rules::default());
        assert_eq!(
            places(&mounts),
            [
                "/proc",
                "/dev",
                "/dev/pts",
                "/dev/mqueue",
                "/sys",
                "/sys/fs/cgroup",
                "/dev/shm",
                "/etc/resolv.conf",
                "/etc/hosts",
                "/etc/hostname",
                "/x/y",
                "/a/b/c",
            ]
        );
        assert!(options(&mounts, "/sys").contains(&"ro".to_owned()));
        assert!(options(&mounts, "/etc/hosts").contains(&"rw".to_owned()));
    }

    #[test]
    fn a_bind_replaces_the_default_at_its_place() {
        let mounts = all(
            &files(),
            &[at("/etc/hosts/", Propagation::Private)],
            &Rules::default(),
        );
        let hosts: Vec<_> = mounts
            .iter()
            .filter(|one| one.destination() == Path::new("/etc/hosts"))
            .collect();
        assert_eq!(hosts.len(), 1);
        assert_eq!(hosts[0].source().as_deref(), Some(Path::new("/src")));
    }

    #[test]
    fn privileged_and_read_only() {
        let rules = Rules {
            privileged: true,
            readonly_root: true,
            ..Rules::default()
        };
        let mounts = all(&files(), &[], &rules);
        assert!(options(&mounts, "/sys").contains(&"rw".to_owned()));
        assert!(options(&mounts, "/sys/fs/cgroup").contains(&"rw".to_owned()));
        assert!(options(&mounts, "/etc/hosts").contains(&"ro".to_owned()));
    }

    #[test]
    fn a_cgroup_can_be_writable_alone() {
        let rules = Rules {
            writable_cgroup: true,
            ..Rules::default()
        };
        let mounts = all(&files(), &[], &rules);
        assert!(options(&mounts, "/sys").contains(&"ro".to_owned()));
        assert!(options(&mounts, "/sys/fs/cgroup").contains(&"rw".to_owned()));
    }

    #[test]
    fn a_user_namespace_changes_what_is_mounted() {
        let line = |length| IdMapping {
            host_id: 1000,
            container_id: 0,
            length,
        };
        let user = |length| UserNamespace {
            uids: vec![line(length)],
            gids: vec![line(length)],
            ..UserNamespace::default()
        };
        let (large, small) = (user(6), user(5));
        let with = |user, host_network| {
            let rules = Rules {
                user: Some(user),
                host_network,
                ..Rules::default()
            };
            all(&files(), &[], &rules)
        };
        let gid = "gid=5".to_owned();
        assert!(options(&with(&large, false), "/dev/pts").contains(&gid));
        assert!(!options(&with(&small, false), "/dev/pts").contains(&gid));
        assert!(options(&with(&large, false), "/sys").contains(&"ro".to_owned()));
        assert!(options(&with(&large, true), "/sys").contains(&"rro".to_owned()));

        let mount = Mount {
            container_path: "/m".into(),
            uid_mappings: vec![line(6)],
            gid_mappings: vec![line(6)],
            ..Mount::default()
        };
        let mounts = all(
            &files(),
            &[Bind::new(&mount, "/s".into())],
            &Rules::default(),
        );
        let bind = mounts.last().unwrap();
        assert_eq!(bind.uid_mappings().as_ref().unwrap()[0].host_id(), 1000);
        assert_eq!(bind.gid_mappings().as_ref().unwrap()[0].size(), 6);
    }

    #[test]
    fn access_and_propagation() {
        let mount = |readonly, recursive_read_only, propagation| Mount {
            container_path: "/m".into(),
            readonly,
            recursive_read_only,
            propagation,
            ..Mount::default()
        };
        for (wanted, expected) in [
            (
                mount(false, false, Propagation::Private),
                ["rbind", "rprivate", "rw"],
            ),
            (
                mount(true, false, Propagation::HostToContainer),
                ["rbind", "rslave", "ro"],
            ),
            (
                mount(true, true, Propagation::Private),
                ["rbind", "rprivate", "rro"],
            ),
            (
                mount(false, false, Propagation::Bidirectional),
                ["rbind", "rshared", "rw"],
            ),
        ] {
            let binds = [Bind::new(&wanted, "/s".into())];
            let mounts = all(&files(), &binds, &Rules::default());
            assert_eq!(options(&mounts, "/m"), expected);
        }
        let slave = [
            at("/a", Propagation::Private),
            at("/b", Propagation::HostToContainer),
        ];
        assert_eq!(root_propagation(&slave), Some("rslave"));
        assert_eq!(
            root_propagation(&[at("/b", Propagation::Bidirectional)]),
            Some("rshared")
        );
        assert_eq!(root_propagation(&slave[..1]), None);
    }
}
