//! Tests on a made-up interface of a kernel and the files of a policy.

use std::os::unix::fs::symlink;

use super::*;
use crate::config::PodNamespaces;

pub(crate) const CONTEXTS: &str = r#"
process = "system_u:system_r:container_t:s0"
content = "system_u:object_r:virt_var_lib_t:s0"
file = "system_u:object_r:container_file_t:s0"
"#;

/// Puts the files of a machine with SELinux into a directory; its kernel takes every label.
pub(crate) fn make_up(dir: &Path, contexts: &str) {
    let at = |name: &str| dir.join(name);
    fs::create_dir_all(at("etc/strict/contexts")).unwrap();
    fs::create_dir(at("sys")).unwrap();
    fs::write(at("sys/enforce"), "1").unwrap();
    fs::write(at("sys/context"), "").unwrap();
    fs::write(at("etc/config"), "# words\nSELINUXTYPE = strict\n").unwrap();
    fs::write(at("etc/strict/contexts/lxc_contexts"), contexts).unwrap();
}

fn machine(contexts: &str) -> (tempfile::TempDir, Result<Policy, SelinuxError>) {
    let dir = tempfile::tempdir().unwrap();
    make_up(dir.path(), contexts);
    let policy = Policy::open(true, &dir.path().join("sys"), &dir.path().join("etc"));
    (dir, policy)
}

fn label(user: &str, kind: &str, level: &str) -> Selinux {
    Selinux {
        user: user.into(),
        kind: kind.into(),
        level: level.into(),
        ..Selinux::default()
    }
}

#[test]
fn a_container_has_its_pods_level() {
    let (_dir, policy) = machine(CONTEXTS);
    let policy = policy.unwrap();
    let (mut one, mut other) = (PodConfig::default(), PodConfig::default());
    let held = policy.assign(&mut one).unwrap().unwrap();
    let _held = policy.assign(&mut other).unwrap();
    assert!(one.selinux_level.starts_with("s0:c") && one.selinux_level != other.selinux_level);
    assert_eq!(held.level(), one.selinux_level);

    let mut security = ContainerSecurity::default();
    let labels = policy.labels(&one, &security).unwrap().unwrap();
    let level = &one.selinux_level;
    let process = format!("system_u:system_r:container_t:{level}");
    assert_eq!(labels.process.as_deref(), Some(process.as_str()));
    let files = format!("system_u:object_r:container_file_t:{level}");
    assert_eq!(labels.files, files);
    assert!(labels.relabels);
    assert_eq!(policy.of_pod_files(&one), Some(files));

    security.privileged = true;
    let labels = policy.labels(&one, &security).unwrap().unwrap();
    let process = labels.process.as_deref();
    assert_eq!(process, Some("system_u:system_r:spc_t:s0"));
    assert!(labels.relabels);
    security.selinux.kind = "mine_t".into();
    let labels = policy.labels(&one, &security).unwrap().unwrap();
    let process = format!("system_u:system_r:mine_t:{level}");
    assert_eq!(labels.process, Some(process));
}

#[test]
fn parts_of_a_label_can_be_asked_for() {
    let (_dir, policy) = machine(CONTEXTS);
    let policy = policy.unwrap();
    let mut pod = PodConfig::default();
    pod.security.selinux = label("pod_u", "pod_t", "s0:c1,c2");
    let _held = policy.assign(&mut pod).unwrap();
    assert_eq!(pod.selinux_level, "s0:c1,c2");
    let mut security = ContainerSecurity::default();
    let of = |security: &ContainerSecurity| policy.labels(&pod, security).unwrap().unwrap();
    let labels = of(&security);
    assert_eq!(
        labels.process.as_deref(),
        Some("pod_u:system_r:pod_t:s0:c1,c2")
    );
    assert_eq!(labels.files, "pod_u:object_r:container_file_t:s0:c1,c2");
    security.selinux = label("", "spc_t", "s0");
    let labels = of(&security);
    assert_eq!(labels.process.as_deref(), Some("pod_u:system_r:spc_t:s0"));
    assert!(!labels.relabels);
}

#[test]
fn pods_of_the_host_and_machines_without_it_have_no_labels() {
    let (_dir, policy) = machine(CONTEXTS);
    let mut pod = PodConfig {
        namespaces: PodNamespaces {
            pid: NamespaceMode::Node,
            ..PodNamespaces::default()
        },
        ..PodConfig::default()
    };
    let security = ContainerSecurity::default();
    for policy in [policy.unwrap(), Policy(None)] {
        assert!(policy.assign(&mut pod).unwrap().is_none());
        assert_eq!(pod.selinux_level, "");
        assert_eq!(policy.labels(&pod, &security).unwrap(), None);
        assert_eq!(policy.of_pod_files(&pod), None);
        pod.namespaces.pid = NamespaceMode::Pod;
    }
    let nothing = Path::new("/nonexistent");
    assert!(Policy::open(true, nothing, nothing).unwrap().0.is_none());
}

#[test]
fn a_policy_without_containers_or_levels() {
    let (_dir, policy) = machine("process = \"nonsense\"\n");
    let error = policy.err().unwrap();
    assert!(error.to_string().contains("process"), "{error}");
    let (_dir, policy) = machine("process = \"u:r:t\"\nfile = \"u:r:f\"\n");
    let policy = policy.unwrap();
    let mut pod = PodConfig::default();
    assert!(policy.assign(&mut pod).unwrap().is_none());
    let labels = policy.labels(&pod, &ContainerSecurity::default()).unwrap();
    assert_eq!(labels.unwrap().files, "u:r:f");
}

#[test]
fn a_label_that_the_kernel_does_not_know_is_refused() {
    let (dir, policy) = machine(CONTEXTS);
    let policy = policy.unwrap();
    fs::remove_file(dir.path().join("sys/context")).unwrap();
    let mut pod = PodConfig::default();
    let error = policy.assign(&mut pod).unwrap_err();
    assert!(matches!(error, SelinuxError::Unknown { .. }), "{error}");
    // What was held for it is free again.
    assert_eq!(policy.levels_in_use(), 0);
}

fn label_of(path: &Path) -> Option<String> {
    let mut value = [0_u8; 256];
    let length = rustix::fs::lgetxattr(path, c"security.selinux", &mut value).ok()?;
    Some(String::from_utf8_lossy(&value[..length]).into_owned())
}

#[test]
fn a_tree_is_labelled_and_nothing_that_its_links_lead_to() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: labels are root's to set");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("tree/a/b")).unwrap();
    fs::write(at("tree/a/b/file"), "").unwrap();
    fs::write(at("outside"), "").unwrap();
    symlink(at("outside"), at("tree/link")).unwrap();
    relabel(&at("tree"), "u:r:t:s0", Scope::Tree).unwrap();
    for name in ["tree", "tree/a", "tree/a/b", "tree/a/b/file", "tree/link"] {
        assert_eq!(label_of(&at(name)).as_deref(), Some("u:r:t:s0"), "{name}");
    }
    assert_eq!(label_of(&at("outside")), None);
    relabel(&at("tree"), "u:r:t:s1", Scope::Itself).unwrap();
    assert_eq!(label_of(&at("tree")).as_deref(), Some("u:r:t:s1"));
    assert_eq!(label_of(&at("tree/a")).as_deref(), Some("u:r:t:s0"));
    // A file system that has no labels is no error.
    relabel(Path::new("/proc/self/status"), "u:r:t:s0", Scope::Itself).unwrap();
}

#[test]
fn the_machines_own_directories_keep_their_labels() {
    for path in ["/", "/etc", "/srv", "/usr/lib", "/var/lib", "/etc/shadow"] {
        assert!(is_protected(Path::new(path)), "{path}");
    }
    for path in [
        "/srv/data",
        "/etc/kubernetes",
        "/var/lib/data",
        "/usr/lib/x",
    ] {
        assert!(!is_protected(Path::new(path)), "{path}");
    }
}
