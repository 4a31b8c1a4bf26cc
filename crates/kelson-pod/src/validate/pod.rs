//! The rules for a pod.

use std::net::IpAddr;

use super::{Checker, Facts, annotations, plain_component, users};
use crate::config::{Dns, NamespaceMode, PodConfig, PodNamespaces};
use crate::error::PodError;
use crate::{CgroupDriver, bandwidth};

/// Longest host name that the kernel takes.
const MAX_HOSTNAME: usize = 64;
/// Longest entry of a DNS list, in bytes.
const MAX_DNS_ENTRY: usize = 1024;
/// Most entries of a DNS list.
const MAX_DNS_ENTRIES: usize = 64;
/// Most port mappings.
const MAX_PORTS: usize = 4096;
/// Longest value of a kernel parameter: a page.
const MAX_SYSCTL: usize = 4096;
/// Checks all fields.
pub(crate) fn pod(config: &PodConfig, facts: Facts) -> Result<(), PodError> {
    let mut checker = Checker::default();
    checker.name("metadata.name", &config.metadata.name);
    checker.name("metadata.namespace", &config.metadata.namespace);
    checker.name("metadata.uid", &config.metadata.uid);
    checker.labels(&config.labels, &config.annotations);
    checker.handler("runtime_handler", &config.runtime_handler);
    annotations::check(&mut checker, &config.annotations);
    for key in bandwidth::of(&config.annotations).err().unwrap_or_default() {
        checker.wrong(
            format!("annotations[{key}]"),
            "is not a number of bits per second from 1k to 1P, such as 10M",
        );
    }
    hostname(&mut checker, config);
    if !config.log_directory.is_empty() {
        checker.absolute("log_directory", &config.log_directory);
        let climbs = config.log_directory.split('/').any(|part| part == "..");
        checker.check(!climbs, "log_directory", "must not contain ..");
    }
    if let Some(dns) = &config.dns {
        names(&mut checker, dns);
    }
    ports(&mut checker, config);
    cgroup_parent(&mut checker, &config.cgroup_parent, facts.driver);
    namespaces(&mut checker, &config.namespaces);
    users::pod(&mut checker, &config.namespaces, facts);
    for (name, value) in &config.sysctls {
        sysctl(&mut checker, &config.namespaces, name, value);
    }
    let security = &config.security;
    let field = |name: &str| format!("linux.security_context.{name}");
    for (name, id) in [
        ("run_as_user", security.run_as_user),
        ("run_as_group", security.run_as_group),
    ] {
        if let Some(id) = id {
            checker.id(&field(name), id);
        }
    }
    if security.run_as_group.is_some() && security.run_as_user.is_none() {
        checker.wrong(field("run_as_group"), "needs run_as_user");
    }
    checker.profiles(security.seccomp.as_ref(), &security.selinux);
    for (name, resources) in [
        ("overhead", &config.overhead),
        ("resources", &config.resources),
    ] {
        if let Some(resources) = resources {
            checker.resources(&format!("linux.{name}"), resources, facts);
        }
    }
    checker.finish()
}

fn hostname(checker: &mut Checker, config: &PodConfig) {
    let name = config.hostname.as_str();
    if !name.is_empty() && config.namespaces.network == NamespaceMode::Node {
        checker.wrong(
            "hostname",
            "must be empty on the host's network, which comes with the host's name",
        );
    }
    if name.len() > MAX_HOSTNAME {
        checker.wrong("hostname", format!("is longer than {MAX_HOSTNAME} bytes"));
    }
    if !name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
    {
        checker.wrong(
            "hostname",
            "has characters other than letters, digits, '-', '.' and '_'",
        );
    }
}

fn names(checker: &mut Checker, dns: &Dns) {
    let lists = [
        ("servers", &dns.servers),
        ("searches", &dns.searches),
        ("options", &dns.options),
    ];
    for (name, list) in lists {
        let field = format!("dns_config.{name}");
        if list.len() > MAX_DNS_ENTRIES {
            checker.wrong(
                field.as_str(),
                format!("has more than {MAX_DNS_ENTRIES} entries"),
            );
        }
        for entry in list {
            let visible = entry.chars().all(|c| !c.is_whitespace() && !c.is_control());
            if entry.is_empty() || entry.len() > MAX_DNS_ENTRY || !visible {
                checker.wrong(field.as_str(), format!("{:?} is not one word", cut(entry)));
            }
        }
    }
}

fn ports(checker: &mut Checker, config: &PodConfig) {
    if config.ports.len() > MAX_PORTS {
        checker.wrong(
            "port_mappings",
            format!("has more than {MAX_PORTS} entries"),
        );
    }
    for (n, port) in config.ports.iter().enumerate() {
        let field = |name: &str| format!("port_mappings[{n}].{name}");
        if u16::try_from(port.host_port).is_err() {
            checker.wrong(
                field("host_port"),
                format!("{} is not a port", port.host_port),
            );
        }
        let least = i32::from(port.host_port != 0);
        if u16::try_from(port.container_port).is_err() || port.container_port < least {
            checker.wrong(
                field("container_port"),
                format!("{} is not a port", port.container_port),
            );
        }
        let elsewhere = port.host_port != 0 && port.host_port != port.container_port;
        if elsewhere && config.namespaces.network == NamespaceMode::Node {
            checker.wrong(
                field("host_port"),
                "must be container_port or 0 on the host's network, where nothing is forwarded",
            );
        }
        if !port.host_ip.is_empty() && port.host_ip.parse::<IpAddr>().is_err() {
            checker.wrong(
                field("host_ip"),
                format!("{:?} is not an address", cut(&port.host_ip)),
            );
        }
    }
}

/// With systemd a parent is a slice, by its name or by the path of its cgroup.
fn slice(checker: &mut Checker, field: &str, parent: &str) {
    let (folder, name) = parent.rsplit_once('/').unwrap_or(("", parent));
    if !name.ends_with(".slice") {
        checker.wrong(
            field,
            format!(
                "{:?} is for the cgroupfs driver; set the kubelet's cgroupDriver to systemd",
                cut(parent)
            ),
        );
        return;
    }
    match kelson_cgroup::systemd::slice_path(name) {
        Err(error) => checker.wrong(field, error.to_string()),
        Ok(path) => checker.check(
            folder.is_empty() || path.trim_start_matches('/') == parent.trim_start_matches('/'),
            field,
            &format!("{:?} is not where that slice is: {path:?}", cut(parent)),
        ),
    }
}

fn cgroup_parent(checker: &mut Checker, path: &str, driver: CgroupDriver) {
    const FIELD: &str = "linux.cgroup_parent";
    if path.is_empty() {
        return;
    }
    if driver == CgroupDriver::Systemd {
        slice(checker, FIELD, path);
        return;
    }
    if !path.contains('/') && path.ends_with(".slice") {
        checker.wrong(
            FIELD,
            format!(
                "{:?} is for the systemd driver; set the kubelet's cgroupDriver to cgroupfs",
                cut(path)
            ),
        );
        return;
    }
    let parts = path
        .trim_start_matches('/')
        .trim_end_matches('/')
        .split('/');
    if path.trim_matches('/').is_empty() || !parts.into_iter().all(plain_component) {
        checker.wrong(
            FIELD,
            format!("{:?} is not the path of a cgroup", cut(path)),
        );
    }
}

fn namespaces(checker: &mut Checker, namespaces: &PodNamespaces) {
    const FIELD: &str = "linux.security_context.namespace_options";
    for (name, mode) in [("network", namespaces.network), ("ipc", namespaces.ipc)] {
        if !matches!(mode, NamespaceMode::Pod | NamespaceMode::Node) {
            checker.wrong(format!("{FIELD}.{name}"), "must be POD or NODE");
        }
    }
    if namespaces.pid == NamespaceMode::Target {
        checker.wrong(
            format!("{FIELD}.pid"),
            "TARGET is for containers; a pod has POD, CONTAINER or NODE",
        );
    }
}

fn sysctl(checker: &mut Checker, namespaces: &PodNamespaces, name: &str, value: &str) {
    let field = format!("linux.sysctls[{}]", cut(name));
    // Both spellings are in use: dots, and slashes where a part has a dot in it (an interface's name).
    let path = name.replace('/', ".");
    let characters = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if path.is_empty() || path.split('.').any(str::is_empty) || !path.bytes().all(characters) {
        checker.wrong(field, "is not the name of a kernel parameter");
        return;
    }
    if value.is_empty() || value.len() > MAX_SYSCTL || value.trim() != value {
        checker.wrong(field.as_str(), "has an empty, long or padded value");
    } else if value.chars().any(|c| c.is_control() && c != '\t') {
        checker.wrong(field.as_str(), "has control characters in its value");
    }
    let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."]
        .iter()
        .any(|start| path.starts_with(start))
        || path == "kernel.sem";
    if path.starts_with("net.") {
        if namespaces.network == NamespaceMode::Node {
            checker.wrong(
                field,
                "belongs to the network namespace, and the pod uses the host's",
            );
        }
    } else if ipc {
        if namespaces.ipc == NamespaceMode::Node {
            checker.wrong(
                field,
                "belongs to the IPC namespace, and the pod uses the host's",
            );
        }
    } else {
        checker.wrong(field, "belongs to the whole machine, not to a pod");
    }
}

/// The start of a text for an error.
fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}
