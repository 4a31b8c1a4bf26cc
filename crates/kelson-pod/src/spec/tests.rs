//! Tests of whole specifications.

use super::*;
use crate::config::{ContainerSecurity, PodMetadata};

struct Setup {
    pod_id: PodId,
    pod: PodConfig,
    config: ContainerConfig,
    node: NodeRules,
    pid_init: Option<u32>,
    devices: Vec<Node>,
    labels: Option<Labels>,
}

impl Setup {
    fn new() -> Self {
        Self {
            pod_id: "a".repeat(64).parse().unwrap(),
            pod: PodConfig {
                metadata: PodMetadata {
                    name: "web".into(),
                    namespace: "default".into(),
                    uid: "u".into(),
                    attempt: 0,
                },
                ..PodConfig::default()
            },
            config: ContainerConfig {
                name: "nginx".into(),
                command: vec!["sh".into()],
                ..ContainerConfig::default()
            },
            node: NodeRules {
                capabilities: capabilities::from_mask(u64::MAX),
                ..NodeRules::default()
            },
            pid_init: Some(42),
            devices: Vec::new(),
            labels: None,
        }
    }

    fn build(&self) -> Spec {
        let files = PodFiles {
            resolv_conf: "/p/resolv.conf".into(),
            hosts: "/p/hosts".into(),
            hostname: "/p/hostname".into(),
            shm: "/p/shm".into(),
        };
        build(&Request {
            pod_id: &self.pod_id,
            pod: &self.pod,
            files: &files,
            pid_init: self.pid_init,
            hostname: "web-0",
            config: &self.config,
            image: &ImageProcess::default(),
            image_name: "nginx:1",
            user: &User {
                uid: 33,
                gid: 34,
                groups: vec![34, 44],
            },
            home: "/srv",
            binds: &[],
            devices: &self.devices,
            node: &self.node,
            apparmor: None,
            labels: self.labels.as_ref(),
            cgroup: "/kubepods/x/b",
        })
    }
}

fn process_of(spec: &Spec) -> &Process {
    spec.process().as_ref().unwrap()
}

fn linux_of(spec: &Spec) -> &Linux {
    spec.linux().as_ref().unwrap()
}

fn namespace_types(spec: &Spec) -> Vec<LinuxNamespaceType> {
    linux_of(spec)
        .namespaces()
        .as_ref()
        .unwrap()
        .iter()
        .map(LinuxNamespace::typ)
        .collect()
}

#[test]
fn the_default_is_the_strict_one() {
    let spec = Setup::new().build();
    let process = process_of(&spec);
    assert_eq!(
        process.args().as_deref(),
        Some(["sh".to_owned()].as_slice())
    );
    assert_eq!((process.user().uid(), process.user().gid()), (33, 34));
    assert_eq!(
        process.user().additional_gids().as_deref(),
        Some([34, 44].as_slice())
    );
    assert_eq!(process.terminal(), Some(false));
    assert_eq!(process.oom_score_adj(), Some(0));
    let capabilities = process.capabilities().as_ref().unwrap();
    assert_eq!(capabilities.bounding().as_ref().unwrap().len(), 14);
    assert_eq!(capabilities.effective(), capabilities.bounding());
    assert!(capabilities.ambient().as_ref().unwrap().is_empty());
    assert!(capabilities.inheritable().as_ref().unwrap().is_empty());
    let linux = linux_of(&spec);
    assert!(
        linux
            .masked_paths()
            .as_ref()
            .unwrap()
            .contains(&"/proc/kcore".to_owned())
    );
    assert!(
        linux
            .readonly_paths()
            .as_ref()
            .unwrap()
            .contains(&"/proc/sys".to_owned())
    );
    assert_eq!(
        linux.cgroups_path().as_deref(),
        Some(std::path::Path::new("/kubepods/x/b"))
    );
    assert!(linux.devices().is_none() && linux.rootfs_propagation().is_none());
    // No namespace that the shim lives in is named.
    assert_eq!(
        namespace_types(&spec),
        [
            LinuxNamespaceType::Mount,
            LinuxNamespaceType::Cgroup,
            LinuxNamespaceType::Pid
        ]
    );
    let annotations = spec.annotations().as_ref().unwrap();
    assert_eq!(annotations["io.kubernetes.cri.sandbox-id"], "a".repeat(64));
    assert_eq!(annotations["io.kubernetes.cri.container-type"], "container");
}

#[test]
fn the_pid_namespace_follows_the_request_and_the_pod() {
    let path = |setup: &Setup| {
        let spec = setup.build();
        let all = linux_of(&spec).namespaces().clone().unwrap();
        all.into_iter()
            .find(|one| one.typ() == LinuxNamespaceType::Pid)
            .map(|one| one.path().clone())
    };
    let mut setup = Setup::new();
    assert_eq!(path(&setup), Some(Some(PathBuf::from("/proc/42/ns/pid"))));
    setup.config.security.pid = Some(NamespaceMode::Container);
    assert_eq!(path(&setup), Some(None));
    setup.config.security.pid = None;
    setup.pod.namespaces.pid = NamespaceMode::Node;
    assert_eq!(path(&setup), None);
    // Until it is started, and if it never was told whose to join, it has one of its own.
    setup.config.security.pid = Some(NamespaceMode::Target);
    assert_eq!(path(&setup), Some(None));
    let mut spec = setup.build();
    join_pid_namespace(&mut spec, 77);
    let all = linux_of(&spec).namespaces().clone().unwrap();
    let joined: Vec<_> = all.iter().filter_map(|one| one.path().clone()).collect();
    assert_eq!(joined, [PathBuf::from("/proc/77/ns/pid")]);
}

#[test]
fn annotations_are_passed_on_by_a_list() {
    let mut setup = Setup::new();
    let map = |list: &[(&str, &str)]| {
        let owned = list.iter();
        owned
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    };
    setup.pod.annotations = map(&[
        ("vm.example.com/cpus", "2"),
        ("vm.example.com/pod", "p"),
        ("secret", "s"),
        ("io.kubernetes.cri.sandbox-id", "forged"),
    ]);
    setup.config.annotations = map(&[
        ("vm.example.com/cpus", "4"),
        ("exact", "e"),
        ("exacter", "x"),
    ]);
    setup.node.passed_annotations = ["vm.example.com/*", "exact", "io.kubernetes.cri.*"]
        .map(str::to_owned)
        .into();
    let spec = setup.build();
    let all = spec.annotations().as_ref().unwrap();
    assert_eq!(all["vm.example.com/cpus"], "4");
    assert_eq!(
        (all["vm.example.com/pod"].as_str(), all["exact"].as_str()),
        ("p", "e")
    );
    assert!(!all.contains_key("secret") && !all.contains_key("exacter"));
    assert_eq!(all["io.kubernetes.cri.sandbox-id"], "a".repeat(64));
}

#[test]
fn privileged_has_nothing_masked_and_everything_allowed() {
    let mut setup = Setup::new();
    setup.config.security = ContainerSecurity {
        privileged: true,
        ..ContainerSecurity::default()
    };
    let spec = setup.build();
    let linux = linux_of(&spec);
    assert!(linux.masked_paths().is_none() && linux.readonly_paths().is_none());
    let capabilities = process_of(&spec).capabilities().as_ref().unwrap();
    assert_eq!(capabilities.bounding().as_ref().unwrap().len(), 41);
    assert!(!namespace_types(&spec).contains(&LinuxNamespaceType::Cgroup));
}

#[test]
fn an_oom_score_below_the_least_is_raised() {
    let mut setup = Setup::new();
    setup.config.resources.oom_score_adj = -998;
    assert_eq!(process_of(&setup.build()).oom_score_adj(), Some(-998));
    setup.node.least_oom_score = Some(100);
    assert_eq!(process_of(&setup.build()).oom_score_adj(), Some(100));
    setup.config.resources.oom_score_adj = 900;
    assert_eq!(process_of(&setup.build()).oom_score_adj(), Some(900));
}

#[test]
fn the_specification_survives_json() {
    let spec = Setup::new().build();
    let json = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<Spec>(&json).unwrap(), spec);
}

#[test]
fn labels_are_the_processes_and_the_mounts() {
    let mut setup = Setup::new();
    assert_eq!(process_of(&setup.build()).selinux_label(), &None);
    setup.labels = Some(Labels {
        process: Some("u:r:t:s0:c1,c2".into()),
        files: "u:r:f:s0:c1,c2".into(),
        relabels: true,
    });
    let spec = setup.build();
    let process = process_of(&spec).selinux_label();
    assert_eq!(process.as_deref(), Some("u:r:t:s0:c1,c2"));
    assert_eq!(
        linux_of(&spec).mount_label().as_deref(),
        Some("u:r:f:s0:c1,c2")
    );
}

#[test]
fn ambient_capabilities_are_inheritable() {
    let mut setup = Setup::new();
    setup.config.security.capabilities.add_ambient = vec!["NET_BIND_SERVICE".into()];
    let spec = setup.build();
    let capabilities = process_of(&spec).capabilities().as_ref().unwrap();
    let expected = Some(HashSet::from([Capability::NetBindService]));
    assert_eq!(capabilities.ambient(), &expected);
    assert_eq!(capabilities.inheritable(), &expected);
}
