//! `ContainerConfig`.

use std::collections::BTreeMap;

use kelson_cri::v1;
use kelson_pod::config::{
    Capabilities, ContainerConfig, ContainerSecurity, Device, ImageSpec, Mount, Propagation,
};

use super::{
    groups_policy, id_mappings, id_mappings_back, namespace_mode, profile_or_old, resources,
    selinux, signal_name, unknown, user_namespace,
};
use crate::error::VerbError;

/// What a request asks of a container.
pub(crate) fn container_config(config: v1::ContainerConfig) -> Result<ContainerConfig, VerbError> {
    if config.windows.is_some() {
        return Err(VerbError::invalid(
            "config.windows is set, but this is Linux",
        ));
    }
    let metadata = config
        .metadata
        .ok_or_else(|| VerbError::invalid("config.metadata is missing"))?;
    let image = config
        .image
        .ok_or_else(|| VerbError::invalid("config.image is missing"))?;
    let signal = v1::Signal::try_from(config.stop_signal)
        .map_err(|_| unknown("config.stop_signal", config.stop_signal))?;
    let linux = config.linux.unwrap_or_default();
    Ok(ContainerConfig {
        name: metadata.name,
        attempt: metadata.attempt,
        image: image_spec_of(image),
        command: config.command,
        args: config.args,
        working_dir: config.working_dir,
        envs: config
            .envs
            .into_iter()
            .map(environment)
            .collect::<Result<_, _>>()?,
        mounts: config
            .mounts
            .into_iter()
            .map(mount)
            .collect::<Result<_, _>>()?,
        devices: config
            .devices
            .into_iter()
            .map(|device| Device {
                container_path: device.container_path,
                host_path: device.host_path,
                permissions: device.permissions,
            })
            .collect(),
        cdi_devices: config
            .cdi_devices
            .into_iter()
            .map(|device| device.name)
            .collect(),
        labels: config.labels.into_iter().collect(),
        annotations: config.annotations.into_iter().collect(),
        log_path: config.log_path,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        resources: linux.resources.map(resources).unwrap_or_default(),
        security: match linux.security_context {
            Some(context) => security(context)?,
            // Nothing was said: the strict defaults.
            None => ContainerSecurity::default(),
        },
        stop_signal: signal_name(signal),
    })
}

fn image_spec_of(image: v1::ImageSpec) -> ImageSpec {
    ImageSpec {
        image: image.image,
        user_specified_image: image.user_specified_image,
        annotations: image.annotations.into_iter().collect(),
        runtime_handler: image.runtime_handler,
    }
}

fn environment(variable: v1::KeyValue) -> Result<(String, String), VerbError> {
    let value = String::from_utf8(variable.value).map_err(|_| {
        VerbError::invalid(format!(
            "config.envs: the value of {:?} is not UTF-8",
            variable.key
        ))
    })?;
    Ok((variable.key, value))
}

fn mount(mount: v1::Mount) -> Result<Mount, VerbError> {
    let propagation = match v1::MountPropagation::try_from(mount.propagation) {
        Ok(v1::MountPropagation::PropagationPrivate) => Propagation::Private,
        Ok(v1::MountPropagation::PropagationHostToContainer) => Propagation::HostToContainer,
        Ok(v1::MountPropagation::PropagationBidirectional) => Propagation::Bidirectional,
        Err(_) => return Err(unknown("config.mounts.propagation", mount.propagation)),
    };
    Ok(Mount {
        container_path: mount.container_path,
        host_path: mount.host_path,
        readonly: mount.readonly,
        recursive_read_only: mount.recursive_read_only,
        selinux_relabel: mount.selinux_relabel,
        propagation,
        uid_mappings: id_mappings(mount.uid_mappings),
        gid_mappings: id_mappings(mount.gid_mappings),
        image_volume: mount.image.map(image_spec_of),
        image_sub_path: mount.image_sub_path,
    })
}

#[expect(
    deprecated,
    reason = "older kubelets still fill the old profile fields"
)]
fn security(context: v1::LinuxContainerSecurityContext) -> Result<ContainerSecurity, VerbError> {
    let field = "config.linux.security_context";
    // Without options the container has what its pod has.
    let options = context.namespace_options;
    let mode = |name: &str, of: fn(&v1::NamespaceOption) -> i32| match &options {
        Some(options) => {
            namespace_mode(&format!("{field}.namespace_options.{name}"), of(options)).map(Some)
        }
        None => Ok(None),
    };
    let user = match options.as_ref().and_then(|o| o.userns_options.clone()) {
        Some(user) => Some(user_namespace(field, user)?),
        None => None,
    };
    let capabilities = context.capabilities.unwrap_or_default();
    Ok(ContainerSecurity {
        privileged: context.privileged,
        capabilities: Capabilities {
            add: capabilities.add_capabilities,
            drop: capabilities.drop_capabilities,
            add_ambient: capabilities.add_ambient_capabilities,
        },
        pid: mode("pid", |options| options.pid)?,
        target_id: options
            .as_ref()
            .map(|options| options.target_id.clone())
            .unwrap_or_default(),
        network: mode("network", |options| options.network)?,
        ipc: mode("ipc", |options| options.ipc)?,
        user,
        run_as_user: context.run_as_user.map(|id| id.value),
        run_as_username: context.run_as_username,
        run_as_group: context.run_as_group.map(|id| id.value),
        supplemental_groups: context.supplemental_groups,
        supplemental_groups_policy: groups_policy(field, context.supplemental_groups_policy)?,
        readonly_rootfs: context.readonly_rootfs,
        no_new_privs: context.no_new_privs,
        masked_paths: context.masked_paths,
        readonly_paths: context.readonly_paths,
        seccomp: profile_or_old(
            &format!("{field}.seccomp"),
            context.seccomp,
            &context.seccomp_profile_path,
        )?,
        apparmor: profile_or_old(
            &format!("{field}.apparmor"),
            context.apparmor,
            &context.apparmor_profile,
        )?,
        selinux: selinux(context.selinux_options),
    })
}

/// The image of a container, for a status.
pub(crate) fn image_spec(spec: &ImageSpec) -> v1::ImageSpec {
    v1::ImageSpec {
        image: spec.image.clone(),
        annotations: spec.annotations.clone().into_iter().collect(),
        user_specified_image: spec.user_specified_image.clone(),
        runtime_handler: spec.runtime_handler.clone(),
        image_ref: String::new(),
    }
}

/// The mounts of a container, for a status; `images` are the references of those that are images.
pub(crate) fn container_mounts(
    mounts: &[Mount],
    images: &BTreeMap<usize, String>,
) -> Vec<v1::Mount> {
    mounts
        .iter()
        .enumerate()
        .map(|(n, mount)| v1::Mount {
            container_path: mount.container_path.clone(),
            host_path: mount.host_path.clone(),
            readonly: mount.readonly || mount.image_volume.is_some(),
            selinux_relabel: mount.selinux_relabel,
            propagation: match mount.propagation {
                Propagation::Private => v1::MountPropagation::PropagationPrivate,
                Propagation::HostToContainer => v1::MountPropagation::PropagationHostToContainer,
                Propagation::Bidirectional => v1::MountPropagation::PropagationBidirectional,
            }
            .into(),
            uid_mappings: id_mappings_back(&mount.uid_mappings),
            gid_mappings: id_mappings_back(&mount.gid_mappings),
            recursive_read_only: mount.recursive_read_only,
            image: mount.image_volume.as_ref().map(|image| v1::ImageSpec {
                image_ref: images.get(&n).cloned().unwrap_or_default(),
                ..image_spec(image)
            }),
            image_sub_path: mount.image_sub_path.clone(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named() -> v1::ContainerConfig {
        v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata {
                name: "main".into(),
                attempt: 1,
            }),
            image: Some(v1::ImageSpec {
                image: "busybox".into(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn names_and_signals_are_kept() {
        let mut config = named();
        config.stop_signal = v1::Signal::Sigrtminplus3.into();
        let container = container_config(config).unwrap();
        assert_eq!((container.name.as_str(), container.attempt), ("main", 1));
        assert_eq!(container.stop_signal, "SIGRTMIN+3");
    }

    #[test]
    fn missing_parts_are_named() {
        for (config, part) in [
            (
                v1::ContainerConfig {
                    metadata: None,
                    ..named()
                },
                "config.metadata",
            ),
            (
                v1::ContainerConfig {
                    image: None,
                    ..named()
                },
                "config.image",
            ),
        ] {
            let error = container_config(config).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn an_environment_that_is_not_text_is_refused_without_its_value() {
        let mut config = named();
        config.envs = vec![v1::KeyValue {
            key: "TOKEN".into(),
            value: vec![0xff, 0x41],
        }];
        let error = container_config(config).unwrap_err();
        assert!(error.to_string().contains("TOKEN"), "{error}");
    }
}
