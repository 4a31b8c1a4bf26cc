//! The `unified` map of the OCI specification: v2 files by name.

use crate::dir::Dir;
use crate::{Error, Resources, Result};

/// v1 has no such files.
pub(super) fn refuse_on_v1(r: &Resources) -> Result<()> {
    match r.unified.keys().next() {
        None => Ok(()),
        Some(name) => Err(Error::limit("unified", name, "this machine has cgroup v1")),
    }
}

pub(super) fn apply(dir: &Dir, r: &Resources) -> Result<()> {
    r.unified.keys().try_for_each(|name| check(name))?;
    for (name, value) in &r.unified {
        if !dir.write_if_there(name, value)? {
            let reason = "there is no such file; is its controller enabled?";
            return Err(Error::limit("unified", name, reason));
        }
    }
    Ok(())
}

/// Only files of controllers, and those of `cgroup.` that are limits: the others move, kill or
/// freeze processes.
fn check(name: &str) -> Result<()> {
    let word = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
    };
    if name.len() > 255 || !name.contains('.') || !name.split('.').all(word) {
        return Err(Error::limit(
            "unified",
            name,
            "it is no file name such as memory.high",
        ));
    }
    if name.starts_with("cgroup.") && !name.starts_with("cgroup.max.") {
        return Err(Error::limit("unified", name, "it is no limit"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::testing::Files;

    fn with(name: &str) -> Resources {
        let unified = [(name.to_owned(), "5".to_owned())].into();
        Resources {
            unified,
            ..Resources::default()
        }
    }

    #[test]
    fn names() {
        let files = Files::new(&["memory.high", "cgroup.procs", "hugetlb.2MB.max"]);
        apply(&files.dir, &with("memory.high")).unwrap();
        assert_eq!(files.get("memory.high"), "5");
        apply(&files.dir, &with("hugetlb.2MB.max")).unwrap();
        for name in [
            "",
            "memory",
            "../memory.high",
            "a/b.c",
            "memory..high",
            "cgroup.procs",
            "a.b\0",
        ] {
            assert!(apply(&files.dir, &with(name)).is_err(), "{name:?}");
        }
        let error = apply(&files.dir, &with("memory.low")).unwrap_err();
        assert!(error.to_string().contains("no such file"));
        assert!(refuse_on_v1(&with("memory.high")).is_err());
    }
}
