//! Between protobuf and Kelson's own types, in both directions. Nothing here decides anything:
//! what a value means and whether it is allowed is checked in `kelson-pod`.

mod container;
mod pod;
mod resources;
mod signal;

pub(crate) use container::{container_config, container_mounts, image_spec};
pub(crate) use pod::{namespaces, pod_config, pod_metadata};
pub(crate) use resources::{resources, resources_back};
pub(crate) use signal::{signal_name, signal_number};

use kelson_cri::v1;
use kelson_pod::config::{GroupsPolicy, IdMapping, NamespaceMode, Profile, Selinux, UserNamespace};

use crate::error::VerbError;

/// A value of an enumeration that this version of the CRI does not have.
fn unknown(field: &str, value: i32) -> VerbError {
    VerbError::invalid(format!("{field} has the unknown value {value}"))
}

fn namespace_mode(field: &str, value: i32) -> Result<NamespaceMode, VerbError> {
    Ok(
        match v1::NamespaceMode::try_from(value).map_err(|_| unknown(field, value))? {
            v1::NamespaceMode::Pod => NamespaceMode::Pod,
            v1::NamespaceMode::Container => NamespaceMode::Container,
            v1::NamespaceMode::Node => NamespaceMode::Node,
            v1::NamespaceMode::Target => NamespaceMode::Target,
        },
    )
}

/// Whose groups count; `field` is the security context that it is in.
fn groups_policy(field: &str, value: i32) -> Result<GroupsPolicy, VerbError> {
    match v1::SupplementalGroupsPolicy::try_from(value) {
        Ok(v1::SupplementalGroupsPolicy::Merge) => Ok(GroupsPolicy::Merge),
        Ok(v1::SupplementalGroupsPolicy::Strict) => Ok(GroupsPolicy::Strict),
        Err(_) => Err(unknown(
            &format!("{field}.supplemental_groups_policy"),
            value,
        )),
    }
}

fn namespace_mode_back(mode: NamespaceMode) -> i32 {
    match mode {
        NamespaceMode::Pod => v1::NamespaceMode::Pod,
        NamespaceMode::Container => v1::NamespaceMode::Container,
        NamespaceMode::Node => v1::NamespaceMode::Node,
        NamespaceMode::Target => v1::NamespaceMode::Target,
    }
    .into()
}

fn profile(field: &str, profile: v1::SecurityProfile) -> Result<Profile, VerbError> {
    use v1::security_profile::ProfileType;
    let kind = ProfileType::try_from(profile.profile_type)
        .map_err(|_| unknown(field, profile.profile_type))?;
    Ok(match kind {
        ProfileType::RuntimeDefault => Profile::RuntimeDefault,
        ProfileType::Unconfined => Profile::Unconfined,
        // Some clients write the deprecated path here, too.
        ProfileType::Localhost => {
            let name = profile.localhost_ref;
            let bare = name.strip_prefix(LOCALHOST).map(str::to_owned);
            Profile::Localhost(bare.unwrap_or(name))
        }
    })
}

/// What a deprecated path of a profile by name begins with.
const LOCALHOST: &str = "localhost/";

/// The new profile field, or the deprecated path beside it (`runtime/default`, `unconfined`,
/// `localhost/…`, or empty for none).
fn profile_or_old(
    field: &str,
    new: Option<v1::SecurityProfile>,
    old: &str,
) -> Result<Option<Profile>, VerbError> {
    if let Some(new) = new {
        return profile(field, new).map(Some);
    }
    Ok(match old {
        "" => None,
        "runtime/default" | "docker/default" => Some(Profile::RuntimeDefault),
        "unconfined" => Some(Profile::Unconfined),
        other => match other.strip_prefix(LOCALHOST) {
            Some(reference) => Some(Profile::Localhost(reference.to_owned())),
            None => {
                return Err(VerbError::invalid(format!(
                    "{field} has the unknown profile {other:?}; give runtime/default, unconfined or localhost/…"
                )));
            }
        },
    })
}

fn selinux(option: Option<v1::SeLinuxOption>) -> Selinux {
    let option = option.unwrap_or_default();
    Selinux {
        user: option.user,
        role: option.role,
        kind: option.r#type,
        level: option.level,
    }
}

/// A user namespace; `field` is the security context that it is in.
fn user_namespace(field: &str, user: v1::UserNamespace) -> Result<UserNamespace, VerbError> {
    let field = format!("{field}.namespace_options.userns_options.mode");
    Ok(UserNamespace {
        mode: namespace_mode(&field, user.mode)?,
        uids: id_mappings(user.uids),
        gids: id_mappings(user.gids),
    })
}

fn id_mappings(mappings: Vec<v1::IdMapping>) -> Vec<IdMapping> {
    mappings
        .into_iter()
        .map(|line| IdMapping {
            host_id: line.host_id,
            container_id: line.container_id,
            length: line.length,
        })
        .collect()
}

fn id_mappings_back(mappings: &[IdMapping]) -> Vec<v1::IdMapping> {
    mappings
        .iter()
        .map(|line| v1::IdMapping {
            host_id: line.host_id,
            container_id: line.container_id,
            length: line.length,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_by_name_in_every_writing() {
        let new = |name: &str| {
            Some(v1::SecurityProfile {
                profile_type: v1::security_profile::ProfileType::Localhost.into(),
                localhost_ref: name.to_owned(),
            })
        };
        for (new, old) in [
            (new("mine"), ""),
            (new("localhost/mine"), "localhost/other"),
            (None, "localhost/mine"),
        ] {
            let found = profile_or_old("apparmor", new, old).unwrap();
            assert_eq!(found, Some(Profile::Localhost("mine".to_owned())));
        }
        assert!(profile_or_old("apparmor", None, "mine").is_err());
    }
}
