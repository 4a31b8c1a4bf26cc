//! Tests of the rules: a right request passes, and each mistake is told with its field.

use super::*;
use crate::CgroupDriver;
use crate::config::{
    ContainerConfig, Dns, IdMapping, ImageSpec, Mount, NamespaceMode, PodConfig, PodMetadata,
    PortMapping, Propagation, Protocol, UserNamespace,
};
use crate::error::ErrorKind;

const FACTS: Facts = Facts {
    user_namespaces: Ok(()),
    cgroup_v2: false,
    driver: CgroupDriver::Cgroupfs,
};

fn right_pod() -> PodConfig {
    PodConfig {
        metadata: PodMetadata {
            name: "web".into(),
            namespace: "default".into(),
            uid: "u-1".into(),
            attempt: 0,
        },
        hostname: "web-0.example".into(),
        log_directory: "/var/log/pods/default_web_u-1".into(),
        dns: Some(Dns {
            servers: vec!["10.0.0.1".into()],
            ..Dns::default()
        }),
        ports: vec![PortMapping {
            protocol: Protocol::Tcp,
            container_port: 80,
            host_port: 8080,
            host_ip: "127.0.0.1".into(),
        }],
        cgroup_parent: "/kubepods/burstable/podu-1".into(),
        sysctls: [
            ("net.ipv4.ip_local_port_range".into(), "1024 65000".into()),
            ("kernel.shm_rmid_forced".into(), "1".into()),
        ]
        .into(),
        ..PodConfig::default()
    }
}

fn right_container() -> ContainerConfig {
    ContainerConfig {
        name: "nginx".into(),
        image: ImageSpec {
            image: "nginx".into(),
            ..ImageSpec::default()
        },
        mounts: vec![Mount {
            container_path: "/data".into(),
            host_path: "/srv/data".into(),
            readonly: true,
            recursive_read_only: true,
            ..Mount::default()
        }],
        log_path: "nginx/0.log".into(),
        stop_signal: "SIGQUIT".into(),
        ..ContainerConfig::default()
    }
}

/// The fields that are told as wrong.
fn fields(result: Result<(), PodError>) -> Vec<String> {
    match result {
        Ok(()) => Vec::new(),
        Err(PodError::Invalid(Mistakes(all))) => all.into_iter().map(|one| one.field).collect(),
        Err(other) => panic!("{other}"),
    }
}

fn pod_fields(change: impl FnOnce(&mut PodConfig)) -> Vec<String> {
    let mut config = right_pod();
    change(&mut config);
    fields(pod(&config, FACTS))
}

fn container_fields(change: impl FnOnce(&mut ContainerConfig)) -> Vec<String> {
    let mut config = right_container();
    change(&mut config);
    fields(container(&config, &right_pod(), FACTS))
}

#[test]
fn right_requests_pass() {
    assert!(pod(&right_pod(), FACTS).is_ok());
    assert!(container(&right_container(), &right_pod(), FACTS).is_ok());
}

#[test]
fn all_mistakes_are_told_at_once() {
    let error = pod(
        &PodConfig {
            hostname: "a b".into(),
            ..PodConfig::default()
        },
        FACTS,
    )
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert_eq!(
        fields(Err(error)),
        [
            "metadata.name",
            "metadata.namespace",
            "metadata.uid",
            "hostname"
        ]
    );
}

#[test]
fn pods_that_are_wrong() {
    assert_eq!(
        pod_fields(|c| c.runtime_handler = "kata".into()),
        ["runtime_handler"]
    );
    assert_eq!(pod_fields(|c| c.hostname = "x".repeat(65)), ["hostname"]);
    assert_eq!(
        pod_fields(|c| c.log_directory = "logs".into()),
        ["log_directory"]
    );
    assert_eq!(
        pod_fields(|c| c.log_directory = "/a/../b".into()),
        ["log_directory"]
    );
    let dns = Dns {
        searches: vec!["a\nnameserver 6.6.6.6".into()],
        ..Dns::default()
    };
    assert_eq!(pod_fields(|c| c.dns = Some(dns)), ["dns_config.searches"]);
    assert_eq!(
        pod_fields(|c| c.ports[0].host_port = 70000),
        ["port_mappings[0].host_port"]
    );
    assert_eq!(
        pod_fields(|c| c.ports[0].container_port = 0),
        ["port_mappings[0].container_port"]
    );
    assert_eq!(
        pod_fields(|c| c.ports[0].host_ip = "host".into()),
        ["port_mappings[0].host_ip"]
    );
    for parent in ["/", "/a/../b", "a//b", "kubepods-pod1.slice"] {
        assert_eq!(
            pod_fields(|c| c.cgroup_parent = parent.into()),
            ["linux.cgroup_parent"]
        );
    }
    // Where SELinux is off labels have no subject.
    let selinux = |kind: &str| Selinux {
        kind: kind.into(),
        level: "s0-s1:c0.c5,c7".into(),
        ..Selinux::default()
    };
    assert!(pod_fields(|c| c.security.selinux = selinux("spc_t")).is_empty());
    assert_eq!(
        pod_fields(|c| c.security.selinux = selinux("a:b")),
        ["linux.security_context.selinux_options.type"]
    );
    assert_eq!(
        pod_fields(|c| c.security.run_as_group = Some(5)),
        ["linux.security_context.run_as_group"]
    );
    assert_eq!(
        pod_fields(|c| c.annotations = [("a".into(), "x".repeat(MAX_LABEL_BYTES))].into()),
        ["labels, annotations"]
    );
}

#[test]
fn sysctls_must_belong_to_the_pod() {
    let with = |name: &str, value: &str, change: fn(&mut PodConfig)| {
        pod_fields(|config| {
            config.sysctls = [(name.to_owned(), value.to_owned())].into();
            change(config);
        })
    };
    assert!(with("net/ipv4/conf/eth0.1/forwarding", "1", |_| ()).is_empty());
    assert!(with("kernel.sem", "1 2 3 4", |_| ()).is_empty());
    for name in [
        "kernel.panic",
        "vm.swappiness",
        "kernel.semx",
        "",
        "net..x",
        "../net",
    ] {
        assert_eq!(with(name, "1", |_| ()).len(), 1, "{name}");
    }
    assert_eq!(with("net.core.somaxconn", " 1", |_| ()).len(), 1);
    assert_eq!(with("net.core.somaxconn", "1\n2", |_| ()).len(), 1);
    assert_eq!(
        with("net.core.somaxconn", "1", |c| {
            c.namespaces.network = NamespaceMode::Node;
            c.hostname.clear();
            c.ports.clear();
        })
        .len(),
        1
    );
    assert_eq!(
        with("fs.mqueue.msg_max", "1", |c| c.namespaces.ipc =
            NamespaceMode::Node)
        .len(),
        1
    );
}

#[test]
fn namespaces_that_make_no_sense_or_are_not_supported() {
    let options = "linux.security_context.namespace_options";
    assert_eq!(
        pod_fields(|c| c.namespaces.network = NamespaceMode::Container),
        [format!("{options}.network")]
    );
    let pid = |mode| container_fields(|c| c.security.pid = Some(mode));
    assert!(pid(NamespaceMode::Pod).is_empty());
    assert!(pid(NamespaceMode::Container).is_empty());
    assert_eq!(pid(NamespaceMode::Node), [format!("{options}.pid")]);
    assert_eq!(pid(NamespaceMode::Target), [format!("{options}.target_id")]);
    assert_eq!(
        container_fields(|c| c.security.target_id = "abc".into()),
        [format!("{options}.target_id")]
    );
    assert!(
        container_fields(|c| {
            c.security.pid = Some(NamespaceMode::Target);
            c.security.target_id = "abc".into();
        })
        .is_empty()
    );
    assert_eq!(
        container_fields(|c| c.security.ipc = Some(NamespaceMode::Node)),
        [format!("{options}.ipc")]
    );
}

fn line(host_id: u32, container_id: u32, length: u32) -> IdMapping {
    IdMapping {
        host_id,
        container_id,
        length,
    }
}

fn users(uids: &[IdMapping], gids: &[IdMapping]) -> Option<UserNamespace> {
    Some(UserNamespace {
        mode: NamespaceMode::Pod,
        uids: uids.to_vec(),
        gids: gids.to_vec(),
    })
}

#[test]
fn user_namespaces_have_one_mapping_of_each_kind_from_zero_on() {
    let at = |name: &str| format!("linux.security_context.namespace_options.userns_options{name}");
    let right = line(65_536, 0, 65_536);
    let with = |user| pod_fields(|c| c.namespaces.user = user);
    assert!(with(users(&[right], &[right])).is_empty());
    assert!(with(users(&[line(0, 0, u32::MAX)], &[line(7, 0, 1)])).is_empty());
    for bad in [
        &[][..],
        &[right, right],
        &[right, line(200_000, 65_536, 10)],
        &[line(65_536, 1, 10)],
        &[line(65_536, 0, 0)],
        &[line(1, 0, u32::MAX)],
        &[line(u32::MAX, 0, 1)],
    ] {
        assert_eq!(with(users(bad, &[right])), [at(".uids")], "{bad:?}");
        assert_eq!(with(users(&[right], bad)), [at(".gids")], "{bad:?}");
    }
    for mode in [NamespaceMode::Container, NamespaceMode::Target] {
        let user = UserNamespace {
            mode,
            ..UserNamespace::default()
        };
        assert_eq!(with(Some(user)), [at("")], "{mode:?}");
    }
    let node = |uids: &[IdMapping]| UserNamespace {
        mode: NamespaceMode::Node,
        ..users(uids, &[]).unwrap()
    };
    assert!(with(Some(node(&[]))).is_empty());
    assert_eq!(with(Some(node(&[right]))), [at("")]);
    for (name, change) in [
        (
            "pid",
            (|c| c.namespaces.pid = NamespaceMode::Node) as fn(&mut PodConfig),
        ),
        ("ipc", |c| c.namespaces.ipc = NamespaceMode::Node),
    ] {
        let wrong = pod_fields(|c| {
            c.sysctls.clear();
            c.namespaces.user = users(&[right], &[right]);
            change(c);
        });
        let field = format!("linux.security_context.namespace_options.{name}");
        assert_eq!(wrong, [field]);
    }
}

#[test]
fn a_machine_without_user_namespaces_says_why() {
    let facts = Facts {
        user_namespaces: Err(NoUserNamespaces::Kernel),
        ..FACTS
    };
    let mut config = right_pod();
    assert!(pod(&config, facts).is_ok());
    config.namespaces.user = users(&[line(1000, 0, 10)], &[line(1000, 0, 10)]);
    let error = pod(&config, facts).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("userns_options"), "{error}");
    assert!(error.to_string().contains("5.19"), "{error}");
}

#[test]
fn containers_and_mounts_are_in_the_pods_user_namespace() {
    let own = line(65_536, 0, 65_536);
    let other = line(131_072, 0, 65_536);
    let of = |pod_user: Option<UserNamespace>, change: &dyn Fn(&mut ContainerConfig)| {
        let mut of_pod = right_pod();
        of_pod.namespaces.user = pod_user;
        let mut config = right_container();
        change(&mut config);
        fields(container(&config, &of_pod, FACTS))
    };
    let pods = || users(&[own], &[own]);
    let options = "linux.security_context.namespace_options.userns_options";
    assert!(of(pods(), &|c| c.security.user = pods()).is_empty());
    assert!(of(None, &|c| c.security.user = users(&[], &[])).is_empty());
    assert_eq!(
        of(pods(), &|c| c.security.user = users(&[other], &[own])),
        [options]
    );
    assert_eq!(of(None, &|c| c.security.user = pods()), [options]);
    let mapped = |uids: &[IdMapping], gids: &[IdMapping]| {
        let (uids, gids) = (uids.to_vec(), gids.to_vec());
        move |c: &mut ContainerConfig| {
            c.mounts[0].uid_mappings.clone_from(&uids);
            c.mounts[0].gid_mappings.clone_from(&gids);
        }
    };
    assert!(of(pods(), &mapped(&[own], &[own])).is_empty());
    assert_eq!(
        of(pods(), &mapped(&[own], &[other])),
        ["mounts[0].gidMappings"]
    );
    assert_eq!(of(pods(), &mapped(&[own], &[])), ["mounts[0].uidMappings"]);
    assert_eq!(
        of(None, &mapped(&[own], &[own])),
        ["mounts[0].uidMappings", "mounts[0].gidMappings"]
    );
}

#[test]
fn containers_that_are_wrong() {
    assert_eq!(container_fields(|c| c.name.clear()), ["metadata.name"]);
    assert_eq!(container_fields(|c| c.image.image.clear()), ["image.image"]);
    assert_eq!(
        container_fields(|c| c.working_dir = "tmp".into()),
        ["working_dir"]
    );
    assert_eq!(
        container_fields(|c| c.command = vec![String::new()]),
        ["command"]
    );
    assert_eq!(container_fields(|c| c.args = vec!["\0".into()]), ["args"]);
    assert_eq!(
        container_fields(|c| c.envs = vec![("A=".into(), "x".into())]),
        ["envs[0].key"]
    );
    assert_eq!(
        container_fields(|c| c.envs = vec![("A".into(), "x".repeat(3 << 20))]),
        ["command, args, envs"]
    );
    for path in ["/abs.log", "../x.log", "a/../../x", "a//b", "."] {
        assert_eq!(
            container_fields(|c| c.log_path = path.into()),
            ["log_path"],
            "{path}"
        );
    }
    assert_eq!(
        container_fields(|c| c.stop_signal = "SIGNOPE".into()),
        ["stop_signal"]
    );
    assert_eq!(
        container_fields(|c| c.cdi_devices = vec!["v.com/c=d".into(); 1025]),
        ["CDI_devices"]
    );
    assert_eq!(
        container_fields(|c| {
            let wrong = ("cdi.k8s.io/x".to_owned(), "nonsense".to_owned());
            c.annotations = [wrong].into();
        }),
        ["annotations[cdi.k8s.io/x]"]
    );
    assert_eq!(
        container_fields(|c| c.mounts[0].host_path.clear()),
        ["mounts[0].host_path"]
    );
    assert_eq!(
        container_fields(|c| c.mounts[0].container_path = "/".into()),
        ["mounts[0].container_path"]
    );
    let image = |change: fn(&mut crate::config::Mount)| {
        container_fields(|c| {
            c.mounts[0] = crate::config::Mount {
                container_path: "/image".into(),
                image_volume: Some(crate::config::ImageSpec {
                    image: "x".into(),
                    ..Default::default()
                }),
                ..Default::default()
            };
            change(&mut c.mounts[0]);
        })
    };
    assert!(image(|_| ()).is_empty());
    assert!(image(|m| m.image_sub_path = "a/b/".into()).is_empty());
    assert_eq!(
        image(|m| m.image_volume = Some(Default::default())),
        ["mounts[0].image.image"]
    );
    assert_eq!(
        image(|m| m.host_path = "/a".into()),
        ["mounts[0].host_path"]
    );
    for path in ["/a", "../a", "a/../../b", "./a", "a//b", "a\0"] {
        let fields = container_fields(|c| {
            c.mounts[0].host_path.clear();
            c.mounts[0].image_volume = Some(crate::config::ImageSpec {
                image: "x".into(),
                ..Default::default()
            });
            c.mounts[0].image_sub_path = path.into();
        });
        assert_eq!(fields, ["mounts[0].image_sub_path"], "{path:?}");
    }
    assert_eq!(
        image(|m| m.propagation = Propagation::Bidirectional),
        ["mounts[0].propagation"]
    );
    assert_eq!(
        container_fields(|c| c.mounts[0].image_sub_path = "a".into()),
        ["mounts[0].image_sub_path"]
    );
    assert_eq!(
        container_fields(|c| {
            c.mounts = (0..257)
                .map(|n| crate::config::Mount {
                    container_path: format!("/{n}"),
                    image_volume: Some(crate::config::ImageSpec {
                        image: "x".into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                })
                .collect();
        }),
        ["mounts"]
    );
    assert_eq!(
        container_fields(|c| c.mounts[0].propagation = Propagation::HostToContainer),
        ["mounts[0].recursive_read_only"]
    );
    assert_eq!(
        container_fields(|c| c.resources.memory_limit = -5),
        ["linux.resources.memory_limit_in_bytes"]
    );
    assert_eq!(
        container_fields(|c| c.resources.unified = [("memory.high".into(), "1".into())].into()),
        ["linux.resources.unified"]
    );
}

#[test]
fn security_of_containers_that_is_wrong() {
    let at = |name: &str| vec![format!("linux.security_context.{name}")];
    assert_eq!(
        container_fields(|c| c.security.privileged = true),
        at("privileged")
    );
    assert_eq!(
        container_fields(|c| c.security.run_as_user = Some(-1)),
        at("run_as_user")
    );
    assert_eq!(
        container_fields(|c| c.security.run_as_user = Some(1 << 32)),
        at("run_as_user")
    );
    assert_eq!(
        container_fields(|c| c.security.run_as_group = Some(1)),
        at("run_as_group")
    );
    assert_eq!(
        container_fields(|c| c.security.capabilities.add = vec!["FLY".into()]),
        at("capabilities.add_capabilities")
    );
    assert_eq!(
        container_fields(|c| c.security.capabilities.add_ambient = vec!["SYS_ADMIN".into()]),
        at("capabilities.add_ambient_capabilities")
    );
    assert_eq!(
        container_fields(|c| c.image.runtime_handler = "kata".into()),
        ["image.runtime_handler"]
    );
    assert_eq!(
        container_fields(|c| c.security.seccomp = Some(Profile::Localhost("rel.json".into()))),
        at("seccomp.localhost_ref")
    );
}

#[test]
fn what_other_runtimes_do_by_annotation_is_refused() {
    for (key, value) in [
        ("io.kubernetes.cri.untrusted-workload", "true"),
        ("io.kubernetes.cri.blockio-class", "slow"),
        ("blockio.resources.beta.kubernetes.io/container.web", "slow"),
        ("io.kubernetes.cri.rdt-class", "gold"),
        ("rdt.resources.beta.kubernetes.io/pod", "gold"),
    ] {
        let field = [format!("annotations[{key}]")];
        let annotations = std::collections::BTreeMap::from([(key.into(), value.into())]);
        let of_pod = annotations.clone();
        assert_eq!(pod_fields(|c| c.annotations = of_pod), field);
        assert_eq!(container_fields(|c| c.annotations = annotations), field);
    }
    let right = [
        ("io.kubernetes.cri.untrusted-workload", "false"),
        ("example.com/rdt.resources.beta.kubernetes.io", "gold"),
        ("kubernetes.io/ingress-bandwidth", "10M"),
    ];
    let right = right.map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert!(pod_fields(|c| c.annotations = right.into()).is_empty());
    let fast = [(
        "kubernetes.io/egress-bandwidth".to_owned(),
        "fast".to_owned(),
    )];
    assert_eq!(
        pod_fields(|c| c.annotations = fast.into()),
        ["annotations[kubernetes.io/egress-bandwidth]"]
    );
}

#[test]
fn the_hosts_network_comes_with_its_name_and_ports() {
    let on_host = |change: fn(&mut PodConfig)| {
        pod_fields(|c| {
            c.namespaces.network = NamespaceMode::Node;
            c.sysctls.clear();
            c.hostname.clear();
            c.ports[0].host_port = c.ports[0].container_port;
            change(c);
        })
    };
    assert!(on_host(|_| {}).is_empty());
    assert!(on_host(|c| c.ports[0].host_port = 0).is_empty());
    assert_eq!(
        on_host(|c| c.ports[0].host_port = 8080),
        ["port_mappings[0].host_port"]
    );
    assert_eq!(on_host(|c| c.hostname = "web".into()), ["hostname"]);
}

#[test]
fn a_parent_has_the_form_of_its_driver() {
    let facts = Facts {
        driver: CgroupDriver::Systemd,
        ..FACTS
    };
    let told = |parent: &str| {
        let mut config = right_pod();
        config.cgroup_parent = parent.into();
        super::pod(&config, facts)
            .err()
            .map(|error| error.to_string())
    };
    for right in [
        "",
        "kubepods-burstable-pod1.slice",
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice",
    ] {
        assert_eq!(told(right), None, "{right}");
    }
    for wrong in [
        "/kubepods/pod1",
        "/",
        "/other.slice/kubepods-pod1.slice",
        "a--b.slice",
        "-.slice",
    ] {
        let said = told(wrong).expect(wrong);
        assert!(said.contains("linux.cgroup_parent"), "{said}");
    }
}
