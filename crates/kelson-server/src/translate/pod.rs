//! `PodSandboxConfig`.

use kelson_cri::v1;
use kelson_pod::config::{
    Dns, PodConfig, PodMetadata, PodNamespaces, PodSecurity, PortMapping, Protocol,
};

use super::{
    groups_policy, id_mappings_back, namespace_mode, namespace_mode_back, profile_or_old,
    resources, selinux, unknown, user_namespace,
};
use crate::error::VerbError;

/// What a request asks of a pod.
pub(crate) fn pod_config(
    config: v1::PodSandboxConfig,
    runtime_handler: String,
) -> Result<PodConfig, VerbError> {
    if config.windows.is_some() {
        return Err(VerbError::invalid(
            "config.windows is set, but this is Linux",
        ));
    }
    let metadata = config
        .metadata
        .ok_or_else(|| VerbError::invalid("config.metadata is missing"))?;
    let linux = config.linux.unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    let options = security.namespace_options.clone().unwrap_or_default();
    Ok(PodConfig {
        metadata: PodMetadata {
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            attempt: metadata.attempt,
        },
        runtime_handler,
        hostname: config.hostname,
        log_directory: config.log_directory,
        dns: config.dns_config.map(|dns| Dns {
            servers: dns.servers,
            searches: dns.searches,
            options: dns.options,
        }),
        ports: config
            .port_mappings
            .into_iter()
            .map(port)
            .collect::<Result<_, _>>()?,
        labels: config.labels.into_iter().collect(),
        annotations: config.annotations.into_iter().collect(),
        cgroup_parent: linux.cgroup_parent,
        sysctls: linux.sysctls.into_iter().collect(),
        namespaces: pod_namespaces(options)?,
        security: pod_security(security)?,
        overhead: linux.overhead.map(resources),
        resources: linux.resources.map(resources),
        selinux_level: String::new(),
    })
}

fn port(port: v1::PortMapping) -> Result<PortMapping, VerbError> {
    let field = "config.port_mappings.protocol";
    let protocol = match v1::Protocol::try_from(port.protocol) {
        Ok(v1::Protocol::Tcp) => Protocol::Tcp,
        Ok(v1::Protocol::Udp) => Protocol::Udp,
        Ok(v1::Protocol::Sctp) => Protocol::Sctp,
        Err(_) => return Err(unknown(field, port.protocol)),
    };
    Ok(PortMapping {
        protocol,
        container_port: port.container_port,
        host_port: port.host_port,
        host_ip: port.host_ip,
    })
}

fn pod_namespaces(options: v1::NamespaceOption) -> Result<PodNamespaces, VerbError> {
    let field = "config.linux.security_context.namespace_options";
    if !options.target_id.is_empty() {
        let text = format!("{field}.target_id is for containers: a pod joins no container");
        return Err(VerbError::invalid(text));
    }
    let user = match options.userns_options {
        Some(user) => Some(user_namespace("config.linux.security_context", user)?),
        None => None,
    };
    Ok(PodNamespaces {
        network: namespace_mode(&format!("{field}.network"), options.network)?,
        pid: namespace_mode(&format!("{field}.pid"), options.pid)?,
        ipc: namespace_mode(&format!("{field}.ipc"), options.ipc)?,
        user,
    })
}

#[expect(deprecated, reason = "older kubelets still fill the old seccomp field")]
fn pod_security(security: v1::LinuxSandboxSecurityContext) -> Result<PodSecurity, VerbError> {
    let field = "config.linux.security_context";
    groups_policy(field, security.supplemental_groups_policy)?;
    Ok(PodSecurity {
        privileged: security.privileged,
        run_as_user: security.run_as_user.map(|id| id.value),
        run_as_group: security.run_as_group.map(|id| id.value),
        seccomp: profile_or_old(
            &format!("{field}.seccomp"),
            security.seccomp,
            &security.seccomp_profile_path,
        )?,
        apparmor: profile_or_old(&format!("{field}.apparmor"), security.apparmor, "")?,
        selinux: selinux(security.selinux_options),
    })
}

/// A pod's names, for a status.
pub(crate) fn pod_metadata(metadata: &PodMetadata) -> v1::PodSandboxMetadata {
    v1::PodSandboxMetadata {
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        namespace: metadata.namespace.clone(),
        attempt: metadata.attempt,
    }
}

/// A pod's namespaces, for a status.
pub(crate) fn namespaces(namespaces: &PodNamespaces) -> v1::NamespaceOption {
    v1::NamespaceOption {
        network: namespace_mode_back(namespaces.network),
        pid: namespace_mode_back(namespaces.pid),
        ipc: namespace_mode_back(namespaces.ipc),
        target_id: String::new(),
        userns_options: namespaces.user.as_ref().map(|user| v1::UserNamespace {
            mode: namespace_mode_back(user.mode),
            uids: id_mappings_back(&user.uids),
            gids: id_mappings_back(&user.gids),
        }),
    }
}

#[cfg(test)]
mod tests {
    use kelson_pod::config::NamespaceMode;

    use super::*;

    fn named() -> v1::PodSandboxConfig {
        v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: "web".into(),
                uid: "u1".into(),
                namespace: "default".into(),
                attempt: 2,
            }),
            ..Default::default()
        }
    }

    #[test]
    fn a_pod_without_options_has_namespaces_of_its_own() {
        let pod = pod_config(named(), String::new()).unwrap();
        assert_eq!(pod.metadata.attempt, 2);
        assert_eq!(pod.namespaces.pid, NamespaceMode::Pod);
        assert_eq!(pod.namespaces.network, NamespaceMode::Pod);
    }

    #[test]
    fn unknown_numbers_are_refused_by_name() {
        let mut config = named();
        config.port_mappings = vec![v1::PortMapping {
            protocol: 9,
            container_port: 80,
            ..Default::default()
        }];
        let error = pod_config(config, String::new()).unwrap_err();
        assert!(
            error.to_string().contains("config.port_mappings.protocol"),
            "{error}"
        );
    }

    #[test]
    fn no_metadata_is_an_invalid_argument() {
        let error = pod_config(v1::PodSandboxConfig::default(), String::new()).unwrap_err();
        assert_eq!(error.code, tonic::Code::InvalidArgument);
    }
}
