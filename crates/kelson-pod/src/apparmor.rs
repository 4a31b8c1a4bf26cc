//! AppArmor: the profile that a container's processes get. The default one is made here and loaded into
//! the kernel by apparmor_parser(8) when the first container needs it.

use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use crate::config::Profile;

/// Name of the default profile.
const DEFAULT: &str = "kelson-default";
/// The default profile, as apparmor.d(5) says.
const TEXT: &str = include_str!("apparmor.profile");

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApparmorError {
    #[error("profile {0:?}: AppArmor is not enabled on this machine")]
    Off(String),
    #[error("profile {0:?} is not loaded; load it with apparmor_parser")]
    NotLoaded(String),
    #[error("cannot read the profiles that are loaded")]
    Read(#[source] io::Error),
    #[error("cannot run {}", parser.display())]
    Run {
        parser: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} does not load the default profile: {text}", parser.display())]
    Load { parser: PathBuf, text: String },
}

/// AppArmor on this machine.
#[derive(Debug)]
pub(crate) struct AppArmor {
    /// The directory of the kernel's interface.
    interface: PathBuf,
    /// The file that says whether it is on.
    parameter: PathBuf,
    /// Where the program that loads profiles may be.
    parsers: Vec<PathBuf>,
    /// Whether the default profile was loaded by this process.
    loaded: Mutex<bool>,
}

impl AppArmor {
    pub(crate) fn host() -> Self {
        Self {
            interface: "/sys/kernel/security/apparmor".into(),
            parameter: "/sys/module/apparmor/parameters/enabled".into(),
            parsers: vec![
                "/sbin/apparmor_parser".into(),
                "/usr/sbin/apparmor_parser".into(),
            ],
            loaded: Mutex::default(),
        }
    }

    /// A machine without AppArmor.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self {
            interface: PathBuf::new(),
            parameter: PathBuf::new(),
            parsers: Vec::new(),
            loaded: Mutex::default(),
        }
    }

    fn is_on(&self) -> bool {
        let on = fs::read_to_string(&self.parameter).is_ok_and(|text| text.starts_with('Y'));
        on && self.interface.is_dir()
    }

    /// The profile for what was asked; none where nothing confines. Without AppArmor the default is none.
    pub(crate) fn profile(
        &self,
        wanted: Option<&Profile>,
        privileged: bool,
    ) -> Result<Option<String>, ApparmorError> {
        match wanted {
            Some(Profile::Unconfined) => Ok(None),
            Some(Profile::Localhost(name)) if !self.is_on() => {
                Err(ApparmorError::Off(name.clone()))
            }
            Some(Profile::Localhost(name)) => {
                if self.is_loaded(name)? {
                    Ok(Some(name.clone()))
                } else {
                    Err(ApparmorError::NotLoaded(name.clone()))
                }
            }
            // Nothing said means the default, but not for those who may do everything.
            Some(Profile::RuntimeDefault) | None if privileged || !self.is_on() => Ok(None),
            Some(Profile::RuntimeDefault) | None => self.default_profile(),
        }
    }

    fn is_loaded(&self, name: &str) -> Result<bool, ApparmorError> {
        let text =
            fs::read_to_string(self.interface.join("profiles")).map_err(ApparmorError::Read)?;
        // `name (mode)`
        let mut names = text
            .lines()
            .filter_map(|line| Some(line.rsplit_once(" (")?.0));
        Ok(names.any(|known| known == name))
    }

    fn default_profile(&self) -> Result<Option<String>, ApparmorError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if !*loaded {
            match self.parsers.iter().find(|path| path.exists()) {
                Some(parser) => load(parser.clone())?,
                None if self.is_loaded(DEFAULT)? => {}
                None => {
                    tracing::warn!(
                        "AppArmor is on, but without apparmor_parser containers get no default profile; \
                         install the package apparmor"
                    );
                    return Ok(None);
                }
            }
            *loaded = true;
        }
        Ok(Some(DEFAULT.to_owned()))
    }
}

/// Loads the default profile in place of one that an earlier daemon loaded.
fn load(parser: PathBuf) -> Result<(), ApparmorError> {
    let run = || -> io::Result<std::process::Output> {
        let mut child = Command::new(&parser)
            .args(["--replace", "--skip-cache"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(TEXT.as_bytes()) {
                // It ended without reading all, and says why.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                result => result?,
            }
        }
        child.wait_with_output()
    };
    match run() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            let text = text.trim().chars().take(1000).collect();
            Err(ApparmorError::Load { parser, text })
        }
        Err(source) => Err(ApparmorError::Run { parser, source }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A machine in a directory, whose parser writes down what it is given.
    fn machine(on: bool, script: Option<&str>) -> (tempfile::TempDir, AppArmor) {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("apparmor")).unwrap();
        fs::write(at("enabled"), if on { "Y\n" } else { "N\n" }).unwrap();
        fs::write(
            at("apparmor/profiles"),
            "mine (enforce)\nwith space (complain)\n",
        )
        .unwrap();
        if let Some(script) = script {
            let text = format!("#!/bin/sh\ncd {}\n{script}\n", dir.path().display());
            fs::write(at("parser"), text).unwrap();
            fs::set_permissions(at("parser"), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let machine = AppArmor {
            interface: at("apparmor"),
            parameter: at("enabled"),
            parsers: vec![at("none"), at("parser")],
            loaded: Mutex::default(),
        };
        (dir, machine)
    }

    fn localhost(name: &str) -> Option<Profile> {
        Some(Profile::Localhost(name.to_owned()))
    }

    #[test]
    fn without_apparmor_only_a_profile_by_name_is_refused() {
        let (_dir, off) = machine(false, Some("exit 1"));
        for wanted in [
            None,
            Some(Profile::RuntimeDefault),
            Some(Profile::Unconfined),
        ] {
            assert_eq!(off.profile(wanted.as_ref(), false).unwrap(), None);
        }
        let refused = off.profile(localhost("mine").as_ref(), false);
        assert!(matches!(refused, Err(ApparmorError::Off(name)) if name == "mine"));
    }

    #[test]
    fn the_default_is_loaded_once() {
        let (dir, on) = machine(true, Some("echo \"$@\" >> runs; cat > given"));
        for wanted in [None, Some(Profile::RuntimeDefault)] {
            let got = on.profile(wanted.as_ref(), false).unwrap();
            assert_eq!(got.as_deref(), Some(DEFAULT));
            assert_eq!(on.profile(wanted.as_ref(), true).unwrap(), None);
        }
        assert_eq!(on.profile(Some(&Profile::Unconfined), false).unwrap(), None);
        let runs = fs::read_to_string(dir.path().join("runs")).unwrap();
        assert_eq!(runs, "--replace --skip-cache\n");
        let given = fs::read_to_string(dir.path().join("given")).unwrap();
        assert!(given.contains("profile kelson-default ") && given == TEXT);
    }

    #[test]
    fn a_profile_by_name_must_be_loaded() {
        let (_dir, on) = machine(true, Some("cat >/dev/null"));
        for name in ["mine", "with space"] {
            let got = on.profile(localhost(name).as_ref(), true).unwrap();
            assert_eq!(got.as_deref(), Some(name));
        }
        for name in ["other", "min", "mine (enforce)", ""] {
            let got = on.profile(localhost(name).as_ref(), false);
            assert!(matches!(got, Err(ApparmorError::NotLoaded(_))), "{name:?}");
        }
    }

    #[test]
    fn a_parser_that_fails_or_is_missing() {
        let (_dir, broken) = machine(true, Some("echo wrong version >&2; exit 3"));
        let error = broken.profile(None, false).unwrap_err();
        assert!(error.to_string().contains("wrong version"), "{error}");
        let (_dir, missing) = machine(true, None);
        assert_eq!(missing.profile(None, false).unwrap(), None);
        fs::write(
            missing.interface.join("profiles"),
            "kelson-default (enforce)\n",
        )
        .unwrap();
        let got = missing.profile(None, false).unwrap();
        assert_eq!(got.as_deref(), Some(DEFAULT));
    }
}
