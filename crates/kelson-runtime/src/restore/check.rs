//! What CRIU has made, compared with the specification by what the kernel says of it.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use kelson_cgroup::Cgroup;
use kelson_sys::process::ns;
use kelson_sys::root::{Root, RootError};
use oci_spec::runtime::Spec;

use crate::LaunchError;
use crate::plan::{ContainerPlan, MountKind, MountPlan};

/// Numbers of the capabilities by which a process may change its ids.
const SETGID: u64 = 1 << 6;
const SETUID: u64 = 1 << 7;

/// A mount of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mounted {
    pub(super) point: PathBuf,
    options: Vec<String>,
    kind: String,
}

/// What differs from the specification.
type Difference = String;

/// Compares the restored and still stopped processes in `cgroup`, of which `pid` is the first, with the
/// specification: namespaces, mounts, ids, capabilities, seccomp, `no_new_privs`, OOM scores. The names
/// of the differences make the error.
pub fn check(spec: &Spec, cgroup: &Cgroup, pid: u32, filtered: bool) -> Result<(), LaunchError> {
    let plan = ContainerPlan::new(spec)?;
    let pids = cgroup.pids()?;
    let found = if pids.contains(&pid) {
        let own = Path::new("/proc/self");
        let first = PathBuf::from(format!("/proc/{pid}"));
        mounts(&plan, &first).and_then(|()| {
            pids.iter().try_for_each(|pid| {
                let process = PathBuf::from(format!("/proc/{pid}"));
                namespaces(&plan, own, &first, &process)?;
                identity(&plan, &process, filtered)
            })
        })
    } else {
        Err("its first process is not in its cgroup".to_owned())
    };
    found.map_err(|what| LaunchError::Restored { what })
}

fn namespaces(
    plan: &ContainerPlan,
    own: &Path,
    first: &Path,
    process: &Path,
) -> Result<(), Difference> {
    let read = |process: &Path, name: &str| {
        let path = process.join("ns").join(name);
        fs::read_link(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))
    };
    for name in ["net", "ipc", "uts", "user"] {
        if read(process, name)? != read(own, name)? {
            return Err(format!(
                "a process is in a {name} namespace other than the pod's"
            ));
        }
    }
    // CRIU makes a time namespace, in which the clocks go on from where they were.
    if read(process, "time")? != read(first, "time")? {
        return Err("a process is in a time namespace that is not the container's".to_owned());
    }
    for (name, flag) in [("mnt", ns::MOUNT), ("pid", ns::PID), ("cgroup", ns::CGROUP)] {
        let here = read(process, name)?;
        let right = match plan.namespaces.path_of(flag) {
            Some(path) => Some(here.clone()) == fs::read_link(path).ok(),
            None => (here == read(own, name)?) != (plan.namespaces.create & flag != 0),
        };
        if !right || here != read(first, name)? {
            return Err(format!(
                "a process is in a {name} namespace that is not the container's"
            ));
        }
    }
    Ok(())
}

/// Ids, capabilities and filters of a process: no more than the specification gives.
fn identity(plan: &ContainerPlan, process: &Path, filtered: bool) -> Result<(), Difference> {
    let path = process.join("status");
    let text = fs::read_to_string(&path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let field = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim)
            .ok_or_else(|| format!("{} has no {name}", path.display()))
    };
    let wanted = &plan.process;
    let granted = wanted.capabilities.bounding;
    for set in ["CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb"] {
        let has = u64::from_str_radix(field(set)?, 16).map_err(|error| error.to_string())?;
        if has & !granted != 0 {
            let more = crate::plan::capability_names(has & !granted);
            return Err(format!(
                "a process has capabilities in {set} that the container has not: {more}"
            ));
        }
    }
    let ids = |name: &str| -> Result<Vec<u32>, Difference> {
        let ids = field(name)?.split_whitespace().map(str::parse);
        ids.collect::<Result<_, _>>()
            .map_err(|_| format!("{name} cannot be read"))
    };
    if granted & SETUID == 0 && ids("Uid")?.iter().any(|id| *id != wanted.uid) {
        return Err(format!("a process has a user other than {}", wanted.uid));
    }
    if granted & SETGID == 0 {
        let known = |id: &u32| *id == wanted.gid || wanted.groups.contains(id);
        if !ids("Gid")?.iter().all(|id| *id == wanted.gid) || !ids("Groups")?.iter().all(known) {
            return Err("a process has a group that the container has not".to_owned());
        }
    }
    if wanted.no_new_privileges && field("NoNewPrivs")? != "1" {
        return Err("a process can gain privileges by executing a program".to_owned());
    }
    if filtered && field("Seccomp")? != "2" {
        return Err("a process runs without the container's seccomp filter".to_owned());
    }
    let score = fs::read_to_string(process.join("oom_score_adj")).unwrap_or_default();
    let score: i32 = score.trim().parse().unwrap_or_default();
    if wanted.oom_score_adj.is_some_and(|least| score < least) {
        return Err(format!(
            "a process has the OOM score {score}, less than the container's"
        ));
    }
    Ok(())
}

/// The mounts: all that the specification asks for, with what it write-protects, and no other.
fn mounts(plan: &ContainerPlan, process: &Path) -> Result<(), Difference> {
    let path = process.join("mountinfo");
    let text = fs::read_to_string(&path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let mounted = parse(&text);
    let root = Root::open(&process.join("root")).map_err(|error| told(&error))?;
    for mount in &mounted {
        let at = &mount.point;
        let within = plan.mounts.iter().any(|wanted| match wanted.kind {
            MountKind::Filesystem { .. } | MountKind::Layers { .. } => *at == wanted.target,
            MountKind::Bind { .. } | MountKind::Cgroup => at.starts_with(&wanted.target),
        });
        let hidden = plan.masked_paths.iter().chain(&plan.readonly_paths);
        if at != Path::new("/") && !within && !hidden.into_iter().any(|path| path == at) {
            return Err(format!(
                "{} is mounted, which the request does not ask for",
                at.display()
            ));
        }
    }
    let last = |at: &Path| mounted.iter().rfind(|mount| mount.point == at);
    let top = last(Path::new("/")).ok_or("there is no root")?;
    if plan.readonly_root && !top.has("ro") {
        return Err("the root is not write-protected".to_owned());
    }
    for wanted in &plan.mounts {
        let at = wanted.target.display();
        let found = last(&wanted.target).ok_or_else(|| format!("{at} is not mounted"))?;
        one(wanted, found, &root).map_err(|what| format!("{at} {what}"))?;
    }
    for path in &plan.readonly_paths {
        let protected = last(path).is_some_and(|mount| mount.has("ro"));
        if exists(&root, path)? && !protected {
            return Err(format!("{} is not write-protected", path.display()));
        }
    }
    for path in &plan.masked_paths {
        let hides = |mount: &Mounted| matches!(mount.kind.as_str(), "tmpfs" | "devtmpfs");
        if exists(&root, path)? && !last(path).is_some_and(hides) {
            return Err(format!("{} is not hidden", path.display()));
        }
    }
    Ok(())
}

fn one(wanted: &MountPlan, found: &Mounted, root: &Root) -> Result<(), Difference> {
    let set = wanted.attributes.set | wanted.recursive.set;
    for (bit, option) in [
        (libc::MOUNT_ATTR_RDONLY, "ro"),
        (libc::MOUNT_ATTR_NOSUID, "nosuid"),
        (libc::MOUNT_ATTR_NODEV, "nodev"),
        (libc::MOUNT_ATTR_NOEXEC, "noexec"),
    ] {
        if set & bit != 0 && !found.has(option) {
            return Err(format!("is not mounted {option}"));
        }
    }
    match &wanted.kind {
        MountKind::Filesystem { kind, .. } => match kind.to_string_lossy() == found.kind {
            true => Ok(()),
            false => Err(format!("is of the type {}", found.kind)),
        },
        MountKind::Cgroup => Ok(()),
        MountKind::Layers { .. } => Err("is an image".to_owned()),
        MountKind::Bind { source, .. } => {
            let there = root
                .open_path_no_symlinks(&wanted.target)
                .map_err(|error| told(&error))?;
            let there = rustix::fs::fstat(there.as_fd()).map_err(|error| error.to_string())?;
            let source = rustix::fs::stat(source).map_err(|error| error.to_string())?;
            match (there.st_dev, there.st_ino) == (source.st_dev, source.st_ino) {
                true => Ok(()),
                false => Err("is not what the request mounts there".to_owned()),
            }
        }
    }
}

fn exists(root: &Root, path: &Path) -> Result<bool, Difference> {
    match root.open_path(path) {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) if error.errno() == Some(rustix::io::Errno::LOOP) => Ok(false),
        Err(error) => Err(told(&error)),
    }
}

fn told(error: &RootError) -> String {
    crate::error::chain(error)
}

impl Mounted {
    fn has(&self, option: &str) -> bool {
        self.options.iter().any(|one| one == option)
    }
}

/// Reads the text of `/proc/<pid>/mountinfo`.
pub(super) fn parse(text: &str) -> Vec<Mounted> {
    let mounted = |line: &str| {
        let mut fields = line.split(' ').skip(4);
        let point = PathBuf::from(unescape(fields.next()?));
        let options = fields.next()?.split(',').map(str::to_owned).collect();
        let kind = fields.skip_while(|field| *field != "-").nth(1)?.to_owned();
        Some(Mounted {
            point,
            options,
            kind,
        })
    };
    text.lines().filter_map(mounted).collect()
}

/// Undoes the kernel's octal escapes.
fn unescape(text: &str) -> String {
    let escapes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    escapes
        .iter()
        .fold(text.to_owned(), |text, (escape, plain)| {
            text.replace(escape, plain)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(json: &str) -> ContainerPlan {
        ContainerPlan::new(&serde_json::from_str(json).unwrap()).unwrap()
    }

    fn process(status: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("status"), status).unwrap();
        fs::write(dir.path().join("oom_score_adj"), "0\n").unwrap();
        let path = dir.path().to_owned();
        (dir, path)
    }

    const STATUS: &str = "Uid:\t1000\t1000\t1000\t1000\nGid:\t1000\t1000\t1000\t1000\n\
        Groups:\t1000 1001 \nCapInh:\t0\nCapPrm:\t0\nCapEff:\t0\nCapBnd:\t400\nCapAmb:\t0\n\
        NoNewPrivs:\t1\nSeccomp:\t2\n";

    fn spec() -> String {
        r#"{"ociVersion":"1.2.0","root":{"path":"r"},"linux":{"namespaces":[{"type":"mount"}]},
            "process":{"cwd":"/","args":["x"],"user":{"uid":1000,"gid":1000,"additionalGids":[1001]},
            "noNewPrivileges":true,"oomScoreAdj":0,
            "capabilities":{"bounding":["CAP_NET_BIND_SERVICE"]}}}"#
            .to_owned()
    }

    #[test]
    fn more_power_than_was_given_is_refused() {
        let plan = plan(&spec());
        let (_dir, right) = process(STATUS);
        identity(&plan, &right, true).unwrap();
        for (from, to, why) in [
            ("CapBnd:\t400", "CapBnd:\t200400", "CAP_SYS_ADMIN"),
            ("CapEff:\t0", "CapEff:\t80", "CAP_SETUID"),
            ("Uid:\t1000\t1000", "Uid:\t1000\t0", "a user other than"),
            ("1000 1001 ", "1000 0 ", "a group that"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0", "gain privileges"),
            (
                "Seccomp:\t2",
                "Seccomp:\t0",
                "without the container's seccomp",
            ),
        ] {
            let (_dir, wrong) = process(&STATUS.replace(from, to));
            let text = identity(&plan, &wrong, true).unwrap_err();
            assert!(text.contains(why), "{text}");
        }
        let (dir, path) = process(STATUS);
        fs::write(dir.path().join("oom_score_adj"), "-999\n").unwrap();
        assert!(identity(&plan, &path, true).unwrap_err().contains("OOM"));
    }

    /// This process has no namespace of its own: as a container it would be refused.
    #[test]
    fn a_process_of_the_host_is_no_container() {
        let own = Path::new("/proc/self");
        let text = namespaces(&plan(&spec()), own, own, own).unwrap_err();
        assert!(text.contains("mnt namespace"), "{text}");
        let text = mounts(&plan(&spec()), own).unwrap_err();
        assert!(
            text.contains("which the request does not ask for"),
            "{text}"
        );
    }

    #[test]
    fn mounts_are_read() {
        let text = "72 44 0:41 / / rw,relatime - overlay overlay rw\n\
                    95 72 8:1 /x /a\\040b ro,nosuid shared:1 - ext4 /dev/sda rw\n";
        let mounted = parse(text);
        assert_eq!(mounted[1].point, Path::new("/a b"));
        assert!(mounted[1].has("ro") && mounted[1].has("nosuid") && !mounted[0].has("ro"));
        assert_eq!(mounted[1].kind, "ext4");
    }
}
