//! What confines a container, and what devices by name add to it.

use std::sync::Arc;

use oci_spec::runtime::Spec;

use crate::apparmor::ApparmorError;
use crate::config::{ContainerConfig, PodConfig, Profile};
use crate::error::{Mistake, Mistakes, PodError, chain};
use crate::filters::{self, FilterError};
use crate::pods::selinux_error;
use crate::record::Seccomp;
use crate::selinux::{self, Labels, Scope};
use crate::spec::mounts::Bind;
use crate::world::World;

/// The seccomp filter, compiled when it is a file's.
pub(super) fn seccomp(world: &World, config: &ContainerConfig) -> Result<Seccomp, PodError> {
    if config.security.privileged {
        return Ok(Seccomp::None);
    }
    let profile = config
        .security
        .seccomp
        .as_ref()
        .unwrap_or(&world.config.unset_seccomp);
    Ok(match profile {
        Profile::Unconfined => Seccomp::None,
        Profile::RuntimeDefault => Seccomp::Default,
        Profile::Localhost(path) => {
            let filter = filters::of_file(path).map_err(|error: FilterError| {
                let field = "linux.security_context.seccomp.localhost_ref";
                PodError::invalid(field, chain(&error))
            });
            Seccomp::Compiled(filter?)
        }
    })
}

/// The AppArmor profile's name.
pub(super) fn apparmor(
    world: &World,
    config: &ContainerConfig,
) -> Result<Option<String>, PodError> {
    let security = &config.security;
    let profile = world
        .apparmor
        .profile(security.apparmor.as_ref(), security.privileged);
    profile.map_err(|error| match &error {
        ApparmorError::Off(_) | ApparmorError::NotLoaded(_) => {
            PodError::Invalid(Mistakes(vec![Mistake {
                field: "linux.security_context.apparmor".to_owned(),
                problem: error.to_string(),
                unsupported: matches!(error, ApparmorError::Off(_)),
            }]))
        }
        _ => PodError::step("use the AppArmor profile", error),
    })
}

/// The SELinux labels.
pub(super) fn labels(
    world: &World,
    pod: &PodConfig,
    config: &ContainerConfig,
) -> Result<Option<Labels>, PodError> {
    let labels = world.selinux.labels(pod, &config.security);
    labels.map_err(selinux_error)
}

/// Gives volumes the label of the container's files where that is asked for. `binds` begins with the mounts of
/// the request.
pub(super) fn relabel(
    config: &ContainerConfig,
    binds: &[Bind],
    labels: &Labels,
) -> Result<(), PodError> {
    let wanted = || {
        let mounts = config.mounts.iter().zip(binds).enumerate();
        mounts.filter(|(_, (mount, bind))| {
            labels.relabels && mount.selinux_relabel && bind.image.is_none()
        })
    };
    let mistakes: Vec<Mistake> = wanted()
        .filter(|(_, (_, bind))| selinux::is_protected(&bind.source))
        .map(|(n, (_, bind))| Mistake {
            field: format!("mounts[{n}].selinux_relabel"),
            problem: format!(
                "the machine depends on the label of {}; mount a directory in it instead",
                bind.source.display()
            ),
            unsupported: false,
        })
        .collect();
    if !mistakes.is_empty() {
        return Err(PodError::Invalid(Mistakes(mistakes)));
    }
    for (_, (_, bind)) in wanted() {
        let labelled = selinux::relabel(&bind.source, &labels.files, Scope::Tree);
        labelled.map_err(|error| PodError::step("label a volume", error))?;
    }
    Ok(())
}

/// Adds what devices by CDI name need.
pub(super) fn inject_devices(
    world: &World,
    config: &ContainerConfig,
    spec: &mut Spec,
) -> Result<(), PodError> {
    let mut names = config.cdi_devices.clone();
    // Validation has seen to it that they are names.
    names.extend(kelson_cdi::from_annotations(&config.annotations).unwrap_or_default());
    if names.is_empty() {
        return Ok(());
    }
    let injection = kelson_cdi::resolve(&world.config.cdi_dirs, &names).map_err(|errors| {
        let mistake = |error: &kelson_cdi::CdiError| Mistake {
            field: "CDI_devices".to_owned(),
            problem: error.to_string(),
            unsupported: false,
        };
        PodError::Invalid(Mistakes(errors.iter().map(mistake).collect()))
    })?;
    injection.apply(spec).map_err(|error| {
        let problem = chain(&error);
        match error {
            kelson_cdi::EditError::Missing { .. } => PodError::Step {
                step: "use a CDI device",
                source: Arc::new(error),
            },
            _ => PodError::invalid("CDI_devices", problem),
        }
    })
}
