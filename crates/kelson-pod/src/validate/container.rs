//! The rules for a container, given its pod.

use super::{Checker, Facts, annotations, plain_component, users};
use crate::config::{
    ContainerConfig, ContainerSecurity, ImageSpec, Mount, NamespaceMode, PodConfig, Propagation,
};
use crate::error::PodError;
use crate::signal;
use crate::spec::capabilities;

/// Most mounts.
const MAX_MOUNTS: usize = 4096;
/// Most mounts that are images.
const MAX_IMAGE_VOLUMES: usize = 256;
/// Most bytes of arguments and environment together; the kernel's own limit is about the same.
const MAX_ARGUMENT_BYTES: usize = 2 << 20;

/// Checks all fields.
pub(crate) fn container(
    config: &ContainerConfig,
    pod: &PodConfig,
    facts: Facts,
) -> Result<(), PodError> {
    let mut checker = Checker::default();
    checker.name("metadata.name", &config.name);
    checker.check(
        !config.image.image.is_empty(),
        "image.image",
        "must not be empty",
    );
    checker.handler("image.runtime_handler", &config.image.runtime_handler);
    checker.labels(&config.labels, &config.annotations);
    annotations::check(&mut checker, &config.annotations);
    if !config.working_dir.is_empty() {
        checker.absolute("working_dir", &config.working_dir);
    }
    process(&mut checker, config);
    let images = config
        .mounts
        .iter()
        .filter(|one| one.image_volume.is_some());
    if images.count() > MAX_IMAGE_VOLUMES {
        checker.wrong(
            "mounts",
            format!("has more than {MAX_IMAGE_VOLUMES} images"),
        );
    }
    if config.mounts.len() > MAX_MOUNTS {
        checker.wrong("mounts", format!("has more than {MAX_MOUNTS} entries"));
    }
    for (n, mount) in config.mounts.iter().enumerate() {
        check_mount(&mut checker, &format!("mounts[{n}]"), mount);
    }
    for (n, device) in config.devices.iter().enumerate() {
        let field = |name: &str| format!("devices[{n}].{name}");
        checker.absolute(&field("container_path"), &device.container_path);
        checker.absolute(&field("host_path"), &device.host_path);
        if !device
            .permissions
            .bytes()
            .all(|byte| matches!(byte, b'r' | b'w' | b'm'))
        {
            checker.wrong(field("permissions"), "must be letters out of rwm");
        }
    }
    cdi_devices(&mut checker, config);
    let log = config.log_path.as_str();
    if !log.is_empty() && !log.split('/').all(plain_component) {
        checker.wrong(
            "log_path",
            "must be a plain path below log_directory: not absolute, without ..",
        );
    }
    if !config.stop_signal.is_empty() && signal::parse(&config.stop_signal).is_none() {
        checker.wrong(
            "stop_signal",
            format!("there is no signal {:?}", config.stop_signal),
        );
    }
    checker.resources("linux.resources", &config.resources, facts);
    security(&mut checker, &config.security, pod);
    users::container(&mut checker, config, pod);
    checker.finish()
}

fn cdi_devices(checker: &mut Checker, config: &ContainerConfig) {
    let mut count = config.cdi_devices.len();
    match kelson_cdi::from_annotations(&config.annotations) {
        Ok(names) => count += names.len(),
        Err((key, error)) => {
            checker.wrong(format!("annotations[{key}]"), error.to_string());
        }
    }
    if count > kelson_cdi::MAX_NAMES {
        let error = kelson_cdi::NameError::TooMany;
        checker.wrong("CDI_devices", error.to_string());
    }
}

fn process(checker: &mut Checker, config: &ContainerConfig) {
    for (name, list) in [("command", &config.command), ("args", &config.args)] {
        if list.iter().any(|word| word.contains('\0')) {
            checker.wrong(name, "has a NUL byte");
        }
    }
    if config.command.first().is_some_and(String::is_empty) {
        checker.wrong("command", "names an empty program");
    }
    for (n, (key, value)) in config.envs.iter().enumerate() {
        if key.is_empty() || key.contains(['=', '\0']) {
            checker.wrong(
                format!("envs[{n}].key"),
                "must not be empty nor contain = or NUL",
            );
        }
        if value.contains('\0') {
            checker.wrong(format!("envs[{n}].value"), "has a NUL byte");
        }
    }
    let words: usize = config
        .command
        .iter()
        .chain(&config.args)
        .map(String::len)
        .sum();
    let envs: usize = config
        .envs
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if words + envs > MAX_ARGUMENT_BYTES {
        checker.wrong(
            "command, args, envs",
            format!("have more than {MAX_ARGUMENT_BYTES} bytes together"),
        );
    }
}

fn check_mount(checker: &mut Checker, field: &str, mount: &Mount) {
    let at = |name: &str| format!("{field}.{name}");
    let target = mount.container_path.as_str();
    if target.trim_matches('/').is_empty() || target.contains('\0') {
        checker.wrong(at("container_path"), "must name a place below the root");
    } else if target.split('/').any(|part| part == "..") {
        checker.wrong(at("container_path"), "must not contain ..");
    }
    match &mount.image_volume {
        Some(image) => image_volume(checker, field, mount, image),
        None => {
            checker.absolute(&at("host_path"), &mount.host_path);
            let text = "means something only for an image";
            checker.check(mount.image_sub_path.is_empty(), &at("image_sub_path"), text);
        }
    }
    if mount.recursive_read_only {
        checker.check(mount.readonly, &at("recursive_read_only"), "needs readonly");
        let private = mount.propagation == Propagation::Private;
        checker.check(
            private,
            &at("recursive_read_only"),
            "needs PROPAGATION_PRIVATE",
        );
    }
}

fn image_volume(checker: &mut Checker, field: &str, mount: &Mount, image: &ImageSpec) {
    let at = |name: &str| format!("{field}.{name}");
    checker.check(
        !image.image.is_empty(),
        &at("image.image"),
        "must not be empty",
    );
    checker.check(
        mount.host_path.is_empty(),
        &at("host_path"),
        "cannot be given together with an image",
    );
    checker.handler(&at("image.runtime_handler"), &image.runtime_handler);
    let sub_path = mount.image_sub_path.as_str();
    let plain = sub_path
        .trim_end_matches('/')
        .split('/')
        .all(plain_component);
    if !sub_path.is_empty() && !plain {
        checker.wrong(
            at("image_sub_path"),
            format!("{sub_path:?} is not a plain path in the image: relative, without . and .."),
        );
    }
    checker.check(
        mount.propagation == Propagation::Private,
        &at("propagation"),
        "an image has no mounts to propagate; it needs PROPAGATION_PRIVATE",
    );
    checker.check(
        mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty(),
        &at("uidMappings"),
        "an image volume has no mappings of its own",
    );
}

fn security(checker: &mut Checker, wanted: &ContainerSecurity, pod: &PodConfig) {
    let at = |name: &str| format!("linux.security_context.{name}");
    if wanted.privileged && !pod.security.privileged {
        checker.wrong(at("privileged"), "the pod is not privileged");
    }
    let modes = [
        ("network", wanted.network, pod.namespaces.network),
        ("ipc", wanted.ipc, pod.namespaces.ipc),
    ];
    for (name, mode, of_pod) in modes {
        if mode.is_some_and(|mode| mode != of_pod) {
            checker.wrong(at(&format!("namespace_options.{name}")), "is not the pod's");
        }
    }
    match wanted.pid {
        None | Some(NamespaceMode::Container | NamespaceMode::Node) => {}
        Some(NamespaceMode::Target) => checker.check(
            !wanted.target_id.is_empty(),
            &at("namespace_options.target_id"),
            "pid is TARGET, so it must name a container",
        ),
        Some(NamespaceMode::Pod) => {
            if pod.namespaces.pid != NamespaceMode::Pod {
                checker.wrong(
                    at("namespace_options.pid"),
                    "is POD, and the pod has no PID namespace of its own",
                );
            }
        }
    }
    if wanted.pid != Some(NamespaceMode::Target) {
        checker.check(
            wanted.target_id.is_empty(),
            &at("namespace_options.target_id"),
            "means something only when pid is TARGET",
        );
    }
    let host_pid = pod.namespaces.pid == NamespaceMode::Node;
    if wanted.pid == Some(NamespaceMode::Node) && !host_pid {
        checker.wrong(
            at("namespace_options.pid"),
            "is NODE, and the pod does not use the host's",
        );
    }
    ids(checker, wanted);
    for (name, list) in [
        ("masked_paths", &wanted.masked_paths),
        ("readonly_paths", &wanted.readonly_paths),
    ] {
        for path in list {
            checker.absolute(&at(name), path);
        }
    }
    let lists = [
        ("add_capabilities", &wanted.capabilities.add),
        ("drop_capabilities", &wanted.capabilities.drop),
        ("add_ambient_capabilities", &wanted.capabilities.add_ambient),
    ];
    for (name, list) in lists {
        for capability in list.iter().filter(|one| !capabilities::is_known(one)) {
            checker.wrong(
                at(&format!("capabilities.{name}")),
                format!("there is no capability {capability:?}"),
            );
        }
    }
    let withheld = capabilities::not_granted(wanted.privileged, &wanted.capabilities);
    for capability in withheld {
        checker.wrong(
            at("capabilities.add_ambient_capabilities"),
            format!("{capability:?} is not among the container's capabilities; add it to add_capabilities"),
        );
    }
    checker.profiles(wanted.seccomp.as_ref(), &wanted.selinux);
}

fn ids(checker: &mut Checker, wanted: &ContainerSecurity) {
    let at = |name: &str| format!("linux.security_context.{name}");
    for (name, id) in [
        ("run_as_user", wanted.run_as_user),
        ("run_as_group", wanted.run_as_group),
    ] {
        if let Some(id) = id {
            checker.id(&at(name), id);
        }
    }
    for id in &wanted.supplemental_groups {
        checker.id(&at("supplemental_groups"), *id);
    }
    let user = wanted.run_as_user.is_some() || !wanted.run_as_username.is_empty();
    if wanted.run_as_group.is_some() && !user {
        checker.wrong(at("run_as_group"), "needs run_as_user or run_as_username");
    }
}
