//! Which namespaces are made and which are joined.

use std::path::PathBuf;

use kelson_sys::process::ns;
use oci_spec::runtime::{Linux, LinuxNamespaceType};

use crate::LaunchError;

/// The namespaces of a container. Types in neither list are the caller's.
#[derive(Debug, Default)]
pub(crate) struct Namespaces {
    /// Flags of those that are made.
    pub(crate) create: u64,
    /// Those that are joined: flag and path.
    pub(crate) join: Vec<(u64, PathBuf)>,
}

impl Namespaces {
    /// Checks the list of a specification.
    pub(crate) fn new(linux: &Linux) -> Result<Self, LaunchError> {
        let mut namespaces = Self::default();
        for (i, namespace) in linux.namespaces().iter().flatten().enumerate() {
            let flag = flag(namespace.typ());
            let field = || format!("linux.namespaces[{i}]");
            if namespaces.has(flag) {
                return Err(LaunchError::spec(field(), "the type is listed twice"));
            }
            match namespace
                .path()
                .as_ref()
                .filter(|path| !path.as_os_str().is_empty())
            {
                None => namespaces.create |= flag,
                Some(path) if path.is_absolute() => namespaces.join.push((flag, path.clone())),
                Some(_) => return Err(LaunchError::spec(field(), "the path is not absolute")),
            }
        }
        if namespaces.create & ns::MOUNT == 0 {
            let reason = "a mount namespace without a path is needed: the container's root is \
                          made in it";
            return Err(LaunchError::spec("linux.namespaces", reason));
        }
        // A user namespace owns those joined after it.
        namespaces.join.sort_by_key(|(flag, _)| *flag != ns::USER);
        Ok(namespaces)
    }

    /// Whether a type is made or joined.
    pub(crate) fn has(&self, flag: u64) -> bool {
        self.create & flag != 0 || self.path_of(flag).is_some()
    }

    /// The path by which a type is joined.
    pub(crate) fn path_of(&self, flag: u64) -> Option<&PathBuf> {
        self.join
            .iter()
            .find(|(f, _)| *f == flag)
            .map(|(_, path)| path)
    }
}

fn flag(kind: LinuxNamespaceType) -> u64 {
    match kind {
        LinuxNamespaceType::Mount => ns::MOUNT,
        LinuxNamespaceType::Cgroup => ns::CGROUP,
        LinuxNamespaceType::Uts => ns::UTS,
        LinuxNamespaceType::Ipc => ns::IPC,
        LinuxNamespaceType::User => ns::USER,
        LinuxNamespaceType::Pid => ns::PID,
        LinuxNamespaceType::Network => ns::NETWORK,
        LinuxNamespaceType::Time => ns::TIME,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Namespaces, LaunchError> {
        Namespaces::new(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn made_and_joined_are_told_apart() {
        let json = r#"{"namespaces":[{"type":"mount"},{"type":"pid","path":"/proc/7/ns/pid"}]}"#;
        let namespaces = parse(json).unwrap();
        assert_eq!(namespaces.create, ns::MOUNT);
        assert!(namespaces.has(ns::PID) && !namespaces.has(ns::NETWORK));
    }

    #[test]
    fn a_user_namespace_is_joined_first() {
        let json = r#"{"namespaces":[{"type":"mount"},{"type":"network","path":"/n"},
            {"type":"user","path":"/u"}]}"#;
        assert_eq!(parse(json).unwrap().join[0].0, ns::USER);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for json in [
            r#"{"namespaces":[{"type":"pid"}]}"#,
            r#"{"namespaces":[{"type":"mount"},{"type":"mount"}]}"#,
            r#"{"namespaces":[{"type":"mount"},{"type":"pid","path":"proc"}]}"#,
        ] {
            assert!(
                matches!(parse(json), Err(LaunchError::Spec { .. })),
                "{json}"
            );
        }
    }
}
