//! Names of devices, `vendor/class=device`, and the annotations that ask for them.

use std::collections::BTreeMap;

/// The start of annotations that ask for devices.
const PREFIX: &str = "cdi.k8s.io/";
/// Most devices of a container.
pub const MAX_NAMES: usize = 1024;
/// Longest name, in bytes.
const MAX_LENGTH: usize = 512;

/// A name that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It does not have the form of one.
    #[error("{name:?} is not a device name like vendor.com/class=device")]
    Form {
        /// The start of it.
        name: String,
    },
    /// There are too many.
    #[error("more than {MAX_NAMES} devices are asked for")]
    TooMany,
}

/// The devices that annotations ask for: the value of each `cdi.k8s.io/*` is a list of names.
///
/// # Errors
/// A name is none.
pub fn from_annotations(
    annotations: &BTreeMap<String, String>,
) -> Result<Vec<String>, (String, NameError)> {
    let mut names = Vec::new();
    for (key, value) in annotations
        .iter()
        .filter(|(key, _)| key.starts_with(PREFIX))
    {
        for name in value.split(',') {
            check(name).map_err(|error| (key.clone(), error))?;
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Checks a full name.
pub(crate) fn check(name: &str) -> Result<(), NameError> {
    let parts = name
        .split_once('=')
        .and_then(|(kind, device)| Some((kind.split_once('/')?, device)));
    let right = parts.is_some_and(|((vendor, class), device)| {
        is_word(vendor, b"_-.", true) && is_word(class, b"_-.", true) && is_device(device)
    });
    if right && name.len() <= MAX_LENGTH {
        Ok(())
    } else {
        Err(NameError::Form {
            name: name.chars().take(80).collect(),
        })
    }
}

/// Whether this is the name of a device in its class.
pub(crate) fn is_device(name: &str) -> bool {
    is_word(name, b"_-.:", false)
}

/// Whether this is `vendor/class`.
pub(crate) fn is_kind(kind: &str) -> bool {
    kind.len() <= MAX_LENGTH
        && kind.split_once('/').is_some_and(|(vendor, class)| {
            is_word(vendor, b"_-.", true) && is_word(class, b"_-.", true)
        })
}

/// Letters and digits at both ends, and some other characters between them.
fn is_word(word: &str, between: &[u8], letter_first: bool) -> bool {
    let bytes = word.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    let begins = if letter_first {
        first.is_ascii_alphabetic()
    } else {
        first.is_ascii_alphanumeric()
    };
    begins
        && last.is_ascii_alphanumeric()
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || between.contains(byte))
}
