//! What may be the path of a cgroup.

use crate::{Error, Result};

/// Longest path in bytes: with the mount point before it and a file name behind it, it stays below
/// the kernel's PATH_MAX of 4096.
const MAX_PATH: usize = 3072;

/// Longest component, the kernel's NAME_MAX.
const MAX_NAME: usize = 255;

/// Checks a path and returns it with a leading slash.
pub(crate) fn checked(path: &str) -> Result<String> {
    let refuse = |reason| {
        Err(Error::Path {
            path: shortened(path),
            reason,
        })
    };
    if path.len() > MAX_PATH {
        return refuse("it is longer than 3072 bytes");
    }
    let inner = path.strip_prefix('/').unwrap_or(path);
    if inner.is_empty() {
        return refuse("it is the root");
    }
    for name in inner.split('/') {
        match name {
            "" => return refuse("it has an empty component"),
            "." | ".." => return refuse("it has a component . or .."),
            name if name.len() > MAX_NAME => {
                return refuse("it has a component longer than 255 bytes");
            }
            // The kernel refuses a newline; the others have no business in a path either.
            name if name.chars().any(char::is_control) => {
                return refuse("it has a control character");
            }
            _ => {}
        }
    }
    Ok(format!("/{inner}"))
}

fn shortened(path: &str) -> String {
    path.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_paths() {
        assert_eq!(checked("/kelson/a").unwrap(), "/kelson/a");
        assert_eq!(checked("kelson/a..b/...").unwrap(), "/kelson/a..b/...");
    }

    #[test]
    fn bad_paths() {
        let name = "x".repeat(256);
        let long = "/abc".repeat(1000);
        for path in [
            "", "/", "//", "/a/", "/a//b", "..", "/a/../b", "/a/.", "./a", "/a\0b", "a\nb", &name,
            &long,
        ] {
            let error = checked(path).expect_err(path);
            assert!(error.to_string().len() < 400);
        }
    }

    proptest::proptest! {
        #[test]
        fn what_passes_stays_beneath(path in "[a./\0\n]{0,12}") {
            if let Ok(path) = checked(&path) {
                let normal = |part| matches!(part, std::path::Component::Normal(_));
                let beneath = std::path::Path::new(&path[1..]).components().all(normal);
                proptest::prop_assert!(beneath);
            }
        }
    }
}
