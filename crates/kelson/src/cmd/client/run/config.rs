//! What `kelson run` asks the runtime for: the CRI's configuration of the pod and of its container.
//!
//! The defaults are the strict ones: the runtime's own seccomp profile, masked and read-only paths.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kelson_cri::v1::security_profile::ProfileType;
use kelson_cri::v1::{
    ContainerConfig, ContainerMetadata, ImageSpec, Int64Value, KeyValue, LinuxContainerConfig,
    LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, SecurityProfile,
};
use kelson_pod::config::{DEFAULT_MASKED_PATHS, DEFAULT_READONLY_PATHS, NETWORK_FALLBACK};

use super::flags::{self, Args, Net, UserName};

/// Marks the pods that `kelson run` has made.
pub(crate) const LABEL: &str = "kelson.run";

/// Length of a processor period in microseconds.
const CPU_PERIOD: i64 = 100_000;

/// Both configurations.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) pod: PodSandboxConfig,
    pub(super) container: ContainerConfig,
}

impl Plan {
    /// Translates the flags; draws a uid and, where none is given, a name.
    pub(super) fn new(args: &Args) -> Result<Self> {
        let uid = random_uid()?;
        let container_name = name_from(&args.image);
        let name = match &args.name {
            Some(name) => name.clone(),
            None => format!("{container_name}-{}", &uid[..5]),
        };
        let logs = match &args.log_dir {
            Some(directory) => {
                let directory = std::path::absolute(directory).context("find the log directory")?;
                directory.join(format!("{name}_{uid}"))
            }
            None => log_directory(&name, &uid).context("no directory for the log")?,
        };
        Ok(Self {
            pod: pod(args, &name, &uid, &logs),
            container: container(args, &container_name, environment(&args.env)),
        })
    }
}

/// Where the log of a pod of `kelson run` lies unless `--log-dir` names another place; nothing if the name
/// or uid cannot be one that this program has made.
pub(crate) fn log_directory(name: &str, uid: &str) -> Option<PathBuf> {
    let base = if rustix::process::geteuid().is_root() {
        PathBuf::from("/var/log/kelson")
    } else {
        std::env::temp_dir().join("kelson-logs")
    };
    flags::name(name).ok()?;
    flags::name(uid).ok()?;
    Some(base.join(format!("{name}_{uid}")))
}

fn pod(args: &Args, name: &str, uid: &str, logs: &Path) -> PodSandboxConfig {
    let network = match args.net {
        Net::Pod => NamespaceMode::Pod,
        Net::Host => NamespaceMode::Node,
    };
    let hostname = match args.net {
        Net::Pod => args.hostname.clone().unwrap_or_else(|| name.to_owned()),
        // The pod has no host name of its own.
        Net::Host => String::new(),
    };
    let labels = BTreeMap::from([
        (LABEL.to_owned(), "true".to_owned()),
        ("io.kubernetes.pod.name".to_owned(), name.to_owned()),
        (
            "io.kubernetes.pod.namespace".to_owned(),
            "default".to_owned(),
        ),
        ("io.kubernetes.pod.uid".to_owned(), uid.to_owned()),
    ]);
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.to_owned(),
            uid: uid.to_owned(),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        hostname,
        log_directory: logs.display().to_string(),
        port_mappings: args.ports.clone(),
        labels,
        annotations: BTreeMap::from([(NETWORK_FALLBACK.to_owned(), "bridge".to_owned())]),
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(network)),
                privileged: args.privileged,
                seccomp: Some(seccomp(args.privileged)),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn container(args: &Args, name: &str, envs: Vec<KeyValue>) -> ContainerConfig {
    let network = match args.net {
        Net::Pod => NamespaceMode::Pod,
        Net::Host => NamespaceMode::Node,
    };
    let paths = |paths: &[&str]| {
        let kept = if args.privileged { &[] } else { paths };
        kept.iter().map(|&path| path.to_owned()).collect()
    };
    let number = |value: i64| Int64Value { value };
    let user = args.user.as_ref();
    let (run_as_user, run_as_username) = match user.map(|user| &user.user) {
        None => (None, String::new()),
        Some(UserName::Id(id)) => (Some(number(*id)), String::new()),
        Some(UserName::Name(name)) => (None, name.clone()),
    };
    let security = LinuxContainerSecurityContext {
        privileged: args.privileged,
        namespace_options: Some(namespaces(network)),
        run_as_user,
        run_as_username,
        run_as_group: user.and_then(|user| user.group).map(number),
        readonly_rootfs: args.read_only,
        masked_paths: paths(DEFAULT_MASKED_PATHS),
        readonly_paths: paths(DEFAULT_READONLY_PATHS),
        seccomp: Some(seccomp(args.privileged)),
        ..Default::default()
    };
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: name.to_owned(),
            attempt: 0,
        }),
        image: Some(ImageSpec {
            image: args.image.clone(),
            user_specified_image: args.image.clone(),
            ..Default::default()
        }),
        command: args.entrypoint.iter().cloned().collect(),
        args: args.command.clone(),
        working_dir: args.workdir.clone().unwrap_or_default(),
        envs,
        mounts: args.volumes.clone(),
        labels: BTreeMap::from([("io.kubernetes.container.name".to_owned(), name.to_owned())]),
        log_path: format!("{name}.log"),
        stdin: args.streams.stdin,
        stdin_once: args.streams.stdin && !args.detach,
        tty: args.streams.tty,
        linux: Some(LinuxContainerConfig {
            resources: Some(resources(args)),
            security_context: Some(security),
        }),
        ..Default::default()
    }
}

fn namespaces(network: NamespaceMode) -> NamespaceOption {
    NamespaceOption {
        network: network.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

fn seccomp(privileged: bool) -> SecurityProfile {
    let kind = if privileged {
        ProfileType::Unconfined
    } else {
        ProfileType::RuntimeDefault
    };
    SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: String::new(),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the flag's range was checked"
)]
#[expect(clippy::cast_precision_loss, reason = "a period is small")]
fn resources(args: &Args) -> LinuxContainerResources {
    let (cpu_period, cpu_quota) = match args.cpus {
        None => (0, 0),
        Some(count) => (CPU_PERIOD, (count * CPU_PERIOD as f64) as i64),
    };
    LinuxContainerResources {
        cpu_period,
        cpu_quota,
        memory_limit_in_bytes: args.memory.unwrap_or_default(),
        ..Default::default()
    }
}

/// `NAME=VALUE` as it is; a bare `NAME` is passed on where it is set.
fn environment(flags: &[String]) -> Vec<KeyValue> {
    let pair = |flag: &String| match flag.split_once('=') {
        Some((key, value)) => Some((key.to_owned(), value.to_owned())),
        None => std::env::var(flag).ok().map(|value| (flag.clone(), value)),
    };
    let pairs = flags.iter().filter_map(pair);
    pairs
        .map(|(key, value)| KeyValue {
            key,
            value: value.into_bytes(),
        })
        .collect()
}

/// A container's name from the last part of an image's name: `registry:5000/team/App_x:1` gives `app-x`.
fn name_from(image: &str) -> String {
    let without_digest = image.split('@').next().unwrap_or(image);
    let last = without_digest.rsplit('/').next().unwrap_or(without_digest);
    let base = last.split(':').next().unwrap_or(last).to_ascii_lowercase();
    let name: String = base
        .chars()
        .map(|c| {
            if c.is_ascii_lowercase() || c.is_ascii_digit() {
                c
            } else {
                '-'
            }
        })
        .take(40)
        .collect();
    let name = name.trim_matches('-');
    if name.is_empty() {
        "container".to_owned()
    } else {
        name.to_owned()
    }
}

/// 16 random bytes as 32 hexadecimal digits.
fn random_uid() -> Result<String> {
    let mut bytes = [0_u8; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .context("draw a random uid")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn plan(line: &str) -> Plan {
        let words = ["run"].into_iter().chain(line.split_whitespace());
        Plan::new(&Cli::try_parse_from(words).unwrap().args).unwrap()
    }

    #[test]
    fn names_come_from_the_image() {
        assert_eq!(name_from("localhost:5000/team/App_x:1.2"), "app-x");
        assert_eq!(name_from("busybox@sha256:00"), "busybox");
        assert_eq!(name_from("___"), "container");
        let plan = plan("busybox");
        let metadata = plan.pod.metadata.unwrap();
        assert!(metadata.name.starts_with("busybox-") && metadata.name.len() == 13);
        assert_eq!(metadata.uid.len(), 32);
    }

    #[test]
    fn flags_after_the_image_belong_to_the_command() {
        let plan = plan("--log-dir /l --name a -e A=1=2 --cpus 1.5 -m 64m -u 5:6 -w /x b sh -c -e");
        assert_eq!(plan.container.args, ["sh", "-c", "-e"]);
        assert!(plan.container.command.is_empty());
        assert_eq!(plan.container.envs[0].value, b"1=2");
        assert_eq!(plan.container.working_dir, "/x");
        let linux = plan.container.linux.unwrap();
        let resources = linux.resources.unwrap();
        assert_eq!(
            (resources.cpu_quota, resources.cpu_period),
            (150_000, 100_000)
        );
        assert_eq!(resources.memory_limit_in_bytes, 64 << 20);
        let security = linux.security_context.unwrap();
        assert_eq!(security.run_as_user.unwrap().value, 5);
        assert_eq!(security.run_as_group.unwrap().value, 6);
        let uid = plan.pod.metadata.unwrap().uid;
        assert_eq!(plan.pod.log_directory, format!("/l/a_{uid}"));
        assert_eq!(plan.pod.hostname, "a");
    }

    #[test]
    fn protection_is_on_unless_privileged() {
        let security = |line| {
            plan(line)
                .container
                .linux
                .unwrap()
                .security_context
                .unwrap()
        };
        let strict = security("b");
        assert!(strict.masked_paths.iter().any(|path| path == "/proc/kcore"));
        assert!(strict.readonly_paths.iter().any(|path| path == "/proc/sys"));
        assert_eq!(
            strict.seccomp.unwrap().profile_type(),
            ProfileType::RuntimeDefault
        );
        let open = security("--privileged b");
        assert!(open.masked_paths.is_empty() && open.readonly_paths.is_empty());
        assert_eq!(
            open.seccomp.unwrap().profile_type(),
            ProfileType::Unconfined
        );
    }

    #[test]
    fn the_host_network_has_no_host_name() {
        let pod = plan("--net host --hostname x b").pod;
        assert_eq!(pod.hostname, "");
        let options = pod
            .linux
            .unwrap()
            .security_context
            .unwrap()
            .namespace_options
            .unwrap();
        assert_eq!(options.network(), NamespaceMode::Node);
    }

    #[test]
    fn log_directories_cannot_leave_their_base() {
        assert!(log_directory("web", "0123").is_some());
        for (name, uid) in [("..", "1"), ("a/b", "1"), ("a", "../x"), ("", "1")] {
            assert_eq!(log_directory(name, uid), None);
        }
    }
}
