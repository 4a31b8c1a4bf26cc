//! `cpuset`: the CPUs and memory nodes to run on.

use std::path::Path;

use crate::dir::Dir;
use crate::{Error, Resources, Result};

/// Whether a limit of this controller is asked for.
pub(super) fn wanted(r: &Resources) -> bool {
    r.cpuset_cpus.is_some() || r.cpuset_mems.is_some()
}

/// The files have the same names on v1 and v2.
pub(super) fn apply(dir: &Dir, r: &Resources) -> Result<()> {
    for (limit, file, list) in [
        ("cpu.cpus", "cpuset.cpus", &r.cpuset_cpus),
        ("cpu.mems", "cpuset.mems", &r.cpuset_mems),
    ] {
        let Some(list) = list
            .as_deref()
            .map(str::trim)
            .filter(|list| !list.is_empty())
        else {
            continue;
        };
        if !list
            .bytes()
            .all(|byte| byte.is_ascii_digit() || matches!(byte, b',' | b'-'))
        {
            return Err(Error::limit(limit, list, "it is no list such as 0-3,7"));
        }
        dir.write_if_there(file, list)?;
    }
    Ok(())
}

/// v1: fills an empty cpuset from its nearest parent that has one, all the way down. Nothing can be
/// put into an empty cpuset.
pub(crate) fn inherit(dir: &Dir, root: &Path) -> Result<()> {
    let mut buf = Vec::new();
    for file in ["cpuset.cpus", "cpuset.mems"] {
        inherited(dir, root, file, &mut buf)?;
    }
    Ok(())
}

fn inherited(dir: &Dir, root: &Path, file: &str, buf: &mut Vec<u8>) -> Result<String> {
    let own = dir
        .read(file, buf)?
        .unwrap_or_default()
        .trim_ascii()
        .to_owned();
    let parent = dir
        .path()
        .parent()
        .filter(|parent| parent.starts_with(root));
    match parent {
        Some(parent) if own.is_empty() => {
            let value = inherited(&Dir::new(parent.to_owned()), root, file, buf)?;
            if !value.is_empty() {
                dir.write(file, &value)?;
            }
            Ok(value)
        }
        _ => Ok(own),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::testing::Files;

    #[test]
    fn lists_are_checked() {
        let files = Files::new(&["cpuset.cpus"]);
        let with = |list: &str| Resources {
            cpuset_cpus: Some(list.to_owned()),
            ..Resources::default()
        };
        apply(&files.dir, &with("")).unwrap();
        assert_eq!(files.get("cpuset.cpus"), "");
        apply(&files.dir, &with("0-1,3")).unwrap();
        assert_eq!(files.get("cpuset.cpus"), "0-1,3");
        assert!(apply(&files.dir, &with("0\n1")).is_err());
    }

    #[test]
    fn the_nearest_parent_gives() {
        let files = Files::new(&["cpuset.cpus", "cpuset.mems"]);
        files.set("cpuset.cpus", "0-3\n");
        files.set("cpuset.mems", "0\n");
        let root = files.dir.path().to_owned();
        let leaf = root.join("a/b");
        std::fs::create_dir_all(&leaf).unwrap();
        for dir in [root.join("a"), leaf.clone()] {
            std::fs::write(dir.join("cpuset.cpus"), "").unwrap();
            std::fs::write(dir.join("cpuset.mems"), "").unwrap();
        }
        std::fs::write(root.join("a/cpuset.cpus"), "1\n").unwrap();
        inherit(&Dir::new(leaf.clone()), &root).unwrap();
        assert_eq!(
            std::fs::read_to_string(leaf.join("cpuset.cpus")).unwrap(),
            "1"
        );
        assert_eq!(
            std::fs::read_to_string(leaf.join("cpuset.mems")).unwrap(),
            "0"
        );
        assert_eq!(
            std::fs::read_to_string(root.join("a/cpuset.mems")).unwrap(),
            "0"
        );
    }
}
