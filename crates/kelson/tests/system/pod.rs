//! Requests as tests need them: small, with names that differ.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use kelson_cri::v1;

/// A pod's configuration with a name of its own and private namespaces; logs below `logs`.
pub(crate) fn pod(logs: &std::path::Path) -> v1::PodSandboxConfig {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("pod{number}");
    v1::PodSandboxConfig {
        log_directory: logs.join(&name).display().to_string(),
        metadata: Some(v1::PodSandboxMetadata {
            uid: format!("uid-{}-{number}", std::process::id()),
            namespace: "test".into(),
            attempt: 0,
            name,
        }),
        labels: BTreeMap::from([("number".to_owned(), number.to_string())]),
        linux: Some(v1::LinuxPodSandboxConfig {
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(private()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The same on the host's network.
pub(crate) fn host_network_pod(logs: &std::path::Path) -> v1::PodSandboxConfig {
    let mut config = pod(logs);
    if let Some(options) = config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut())
        .and_then(|security| security.namespace_options.as_mut())
    {
        options.network = v1::NamespaceMode::Node.into();
    }
    config
}

/// Namespaces as the kubelet asks for them: PID per container.
pub(crate) fn private() -> v1::NamespaceOption {
    v1::NamespaceOption {
        pid: v1::NamespaceMode::Container.into(),
        ..Default::default()
    }
}

/// A container that runs a shell command.
pub(crate) fn shell(name: &str, image: &str, script: &str) -> v1::ContainerConfig {
    command(name, image, &["/bin/sh", "-c", script])
}

/// A container that runs a command.
pub(crate) fn command(name: &str, image: &str, command: &[&str]) -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata {
            name: name.into(),
            attempt: 0,
        }),
        image: Some(v1::ImageSpec {
            image: image.into(),
            ..Default::default()
        }),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        log_path: format!("{name}.log"),
        linux: Some(v1::LinuxContainerConfig {
            resources: None,
            security_context: Some(v1::LinuxContainerSecurityContext {
                namespace_options: Some(private()),
                seccomp: Some(v1::SecurityProfile::default()),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

/// The same with another security context.
pub(crate) fn with_security(
    mut config: v1::ContainerConfig,
    change: impl FnOnce(&mut v1::LinuxContainerSecurityContext),
) -> v1::ContainerConfig {
    if let Some(security) = config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut())
    {
        change(security);
    }
    config
}
