//! From a container's request and its image to an OCI runtime specification. Pure but for [`devices`],
//! which looks at device nodes: everything else that must be known of the machine comes in.

pub(crate) mod capabilities;
pub(crate) mod devices;
pub(crate) mod mounts;
pub(crate) mod process;
mod resources;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use oci_spec::runtime::{
    Capability, Linux, LinuxCapabilities, LinuxNamespace, LinuxNamespaceType, PosixRlimit, Process,
    Root, Spec, User as SpecUser,
};

use crate::PodId;
use crate::config::{ContainerConfig, NamespaceMode, PodConfig, Resources};
use crate::selinux::Labels;
use crate::view::User;

use devices::Node;
use mounts::{Bind, PodFiles};
use process::ImageProcess;

/// The version of the runtime specification that is written.
const OCI_VERSION: &str = "1.2.0";

/// What the node adds to every container.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeRules {
    /// Largest number of processes.
    pub(crate) pids_limit: Option<i64>,
    /// Resource limits.
    pub(crate) rlimits: Vec<PosixRlimit>,
    /// The lowest OOM score that a container can be given; `None`: any.
    pub(crate) least_oom_score: Option<i32>,
    /// Annotations of pods and containers that are passed on; `*` at the end stands for any rest.
    pub(crate) passed_annotations: Vec<String>,
    /// Whether containers may make cgroups in their own.
    pub(crate) writable_cgroups: bool,
    /// What the daemon itself can grant.
    pub(crate) capabilities: HashSet<Capability>,
}

/// Everything that goes into a specification.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) pod_id: &'a PodId,
    pub(crate) pod: &'a PodConfig,
    pub(crate) files: &'a PodFiles,
    /// The init of the pod's PID namespace, as the host numbers it.
    pub(crate) pid_init: Option<u32>,
    pub(crate) hostname: &'a str,
    pub(crate) config: &'a ContainerConfig,
    pub(crate) image: &'a ImageProcess,
    pub(crate) image_name: &'a str,
    pub(crate) user: &'a User,
    pub(crate) home: &'a str,
    pub(crate) binds: &'a [Bind],
    pub(crate) devices: &'a [Node],
    pub(crate) node: &'a NodeRules,
    pub(crate) cgroup: &'a str,
    /// The AppArmor profile.
    pub(crate) apparmor: Option<&'a str>,
    /// The SELinux labels.
    pub(crate) labels: Option<&'a Labels>,
}

/// The capabilities of the container.
pub(crate) fn granted(config: &ContainerConfig, node: &NodeRules) -> HashSet<Capability> {
    let security = &config.security;
    capabilities::granted(
        security.privileged,
        &security.capabilities,
        &node.capabilities,
    )
}

/// The specification, without its seccomp profile: that is put in when the container is started, so that
/// it is not kept for every container.
pub(crate) fn build(request: &Request<'_>) -> Spec {
    let config = request.config;
    let security = &config.security;
    let mut root = Root::default();
    root.set_path(PathBuf::from("rootfs"))
        .set_readonly(Some(security.readonly_rootfs));
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned())
        .set_root(Some(root))
        .set_hostname(None)
        .set_hooks(None)
        .set_mounts(Some(mounts::all(
            request.files,
            request.binds,
            &mounts::Rules {
                privileged: security.privileged,
                writable_cgroup: request.node.writable_cgroups,
                readonly_root: security.readonly_rootfs,
                user: request.pod.namespaces.own_users(),
                host_network: request.pod.namespaces.network == NamespaceMode::Node,
            },
        )))
        .set_process(Some(process(request)))
        .set_annotations(Some(annotations(request)))
        .set_linux(Some(linux(request)));
    spec
}

fn process(request: &Request<'_>) -> Process {
    let config = request.config;
    let granted = granted(config, request.node);
    let ambient = capabilities::ambient(&config.security.capabilities, &granted);
    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_bounding(Some(granted.clone()))
        .set_effective(Some(granted.clone()))
        .set_permitted(Some(granted))
        .set_inheritable(Some(ambient.clone()))
        .set_ambient(Some(ambient));
    let mut user = SpecUser::default();
    user.set_uid(request.user.uid)
        .set_gid(request.user.gid)
        .set_additional_gids(Some(request.user.groups.clone()));
    let rlimits = Some(request.node.rlimits.clone()).filter(|list| !list.is_empty());
    let mut process = Process::default();
    process
        .set_terminal(Some(config.tty))
        .set_user(user)
        .set_args(Some(process::args(config, request.image)))
        .set_env(Some(process::env(
            config,
            request.image,
            request.hostname,
            request.home,
        )))
        .set_cwd(PathBuf::from(process::cwd(config, request.image)))
        .set_capabilities(Some(capabilities))
        .set_rlimits(rlimits)
        .set_no_new_privileges(Some(config.security.no_new_privs))
        .set_oom_score_adj(Some(oom_score(&config.resources, request.node)))
        .set_apparmor_profile(request.apparmor.map(str::to_owned))
        .set_selinux_label(request.labels.and_then(|labels| labels.process.clone()));
    process
}

/// Puts other limits into a specification.
pub(crate) fn change_resources(spec: &mut Spec, wanted: &Resources, node: &NodeRules) {
    if let Some(process) = spec.process_mut() {
        process.set_oom_score_adj(Some(oom_score(wanted, node)));
    }
    if let Some(linux) = spec.linux_mut() {
        let mut limits = linux.resources().clone().unwrap_or_default();
        resources::set(&mut limits, wanted);
        linux.set_resources(Some(limits));
    }
}

/// The OOM score to set: the wanted one, or the least that the daemon may set.
pub(crate) fn oom_score(wanted: &Resources, node: &NodeRules) -> i32 {
    // Validation has seen to it that it is between -1000 and 1000.
    let wanted = i32::try_from(wanted.oom_score_adj).unwrap_or_default();
    node.least_oom_score
        .map_or(wanted, |least| wanted.max(least))
}

fn linux(request: &Request<'_>) -> Linux {
    let config = request.config;
    let privileged = config.security.privileged;
    let paths =
        |list: &[String]| Some(list.to_vec()).filter(|list| !privileged && !list.is_empty());
    let nodes: Vec<_> = request.devices.iter().map(Node::device).collect();
    let users = request.pod.namespaces.own_users();
    let mut linux = Linux::default();
    linux
        .set_resources(Some(resources::limits(
            &config.resources,
            request.node.pids_limit,
            privileged,
            request.devices,
        )))
        .set_cgroups_path(Some(PathBuf::from(request.cgroup)))
        .set_namespaces(Some(namespaces(request)))
        .set_uid_mappings(users.map(|user| mounts::mappings(&user.uids)))
        .set_gid_mappings(users.map(|user| mounts::mappings(&user.gids)))
        .set_devices(Some(nodes).filter(|list| !list.is_empty()))
        .set_seccomp(None)
        .set_mount_label(request.labels.map(|labels| labels.files.clone()))
        .set_rootfs_propagation(mounts::root_propagation(request.binds).map(str::to_owned))
        .set_masked_paths(paths(&config.security.masked_paths))
        .set_readonly_paths(paths(&config.security.readonly_paths));
    linux
}

/// The namespaces that are not simply the shim's: the pod's network, IPC and host name are where the shim
/// lives, so the container has them by being its child.
fn namespaces(request: &Request<'_>) -> Vec<LinuxNamespace> {
    let namespace = |kind, path: Option<PathBuf>| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind).set_path(path);
        namespace
    };
    let mut all = vec![namespace(LinuxNamespaceType::Mount, None)];
    if request.pod.namespaces.own_users().is_some() {
        // The shim has made it for the pod.
        all.push(namespace(LinuxNamespaceType::User, None));
    }
    if !request.config.security.privileged {
        all.push(namespace(LinuxNamespaceType::Cgroup, None));
    }
    match request
        .config
        .security
        .pid
        .unwrap_or(request.pod.namespaces.pid)
    {
        NamespaceMode::Pod => {
            let path = request
                .pid_init
                .map(|pid| PathBuf::from(format!("/proc/{pid}/ns/pid")));
            all.push(namespace(LinuxNamespaceType::Pid, path));
        }
        // That of the target is put in when the container is started, as only then it is known.
        NamespaceMode::Container | NamespaceMode::Target => {
            all.push(namespace(LinuxNamespaceType::Pid, None));
        }
        NamespaceMode::Node => {}
    }
    all
}

/// Makes the container join the PID namespace of a process of the host.
pub(crate) fn join_pid_namespace(spec: &mut Spec, pid: u32) {
    let linux = spec.linux_mut().as_mut();
    let namespaces = linux.and_then(|linux| linux.namespaces_mut().as_mut());
    for namespace in namespaces.into_iter().flatten() {
        if namespace.typ() == LinuxNamespaceType::Pid {
            namespace.set_path(Some(PathBuf::from(format!("/proc/{pid}/ns/pid"))));
        }
    }
}

/// Raises the limit of processes by the one that keeps the container's cgroup until it is there.
pub(crate) fn allow_one_more(spec: &mut Spec) {
    let linux = spec.linux_mut().as_mut();
    if let Some(limits) = linux.and_then(|linux| linux.resources_mut().as_mut()) {
        resources::allow_one_more(limits);
    }
}

/// What other runtimes and hooks expect to be told.
fn annotations(request: &Request<'_>) -> HashMap<String, String> {
    let metadata = &request.pod.metadata;
    let mut all = vec![
        ("container-type", "container".to_owned()),
        ("container-name", request.config.name.clone()),
        ("image-name", request.image_name.to_owned()),
        ("sandbox-id", request.pod_id.to_string()),
        ("sandbox-name", metadata.name.clone()),
        ("sandbox-namespace", metadata.namespace.clone()),
        ("sandbox-uid", metadata.uid.clone()),
    ];
    for resources in [&request.pod.resources, &request.pod.overhead]
        .into_iter()
        .flatten()
        .take(1)
    {
        all.push(("sandbox-cpu-period", resources.cpu_period.to_string()));
        all.push(("sandbox-cpu-quota", resources.cpu_quota.to_string()));
        all.push(("sandbox-cpu-shares", resources.cpu_shares.to_string()));
        all.push(("sandbox-memory", resources.memory_limit.to_string()));
    }
    let passed = |key: &String| {
        let mut patterns = request.node.passed_annotations.iter();
        patterns.any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => key.starts_with(start),
            None => key == pattern,
        })
    };
    // A container's own come after its pod's, and what Kelson says itself cannot be replaced.
    let given = request.pod.annotations.iter();
    given
        .chain(&request.config.annotations)
        .filter(|(key, _)| passed(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .chain(
            all.into_iter()
                .map(|(key, value)| (format!("io.kubernetes.cri.{key}"), value)),
        )
        .collect()
}

#[cfg(test)]
mod tests;
