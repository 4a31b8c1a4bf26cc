//! Names of slices and scopes, and where their cgroups are (systemd.slice(5), systemd.unit(5)).

use crate::{Error, Result};

/// The longest name of a unit, in bytes.
const MAX_NAME: usize = 255;

/// The path of a slice's cgroup: `a-b.slice` is in `/a.slice`, as its name says. Refuses what is no
/// name of a slice, and the root slice.
pub fn slice_path(name: &str) -> Result<String> {
    let refuse = |reason| {
        Err(Error::Path {
            path: name.chars().take(200).collect(),
            reason,
        })
    };
    let Some(words) = name.strip_suffix(".slice") else {
        return refuse("a slice's name ends with .slice");
    };
    if name.len() > MAX_NAME {
        return refuse("a unit's name has at most 255 bytes");
    }
    if words == "-" {
        return refuse("it is the root slice");
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b":_.\\-@".contains(&byte);
    if !words.bytes().all(allowed) {
        return refuse("it has a character that no unit's name has");
    }
    let mut path = String::new();
    let mut parent = String::new();
    for word in words.split('-') {
        if word.is_empty() {
            return refuse("it has a dash too many");
        }
        if !parent.is_empty() {
            parent.push('-');
        }
        parent.push_str(word);
        path.push('/');
        path.push_str(&parent);
        path.push_str(".slice");
    }
    Ok(path)
}

/// The unit whose cgroup is at `path`, with the slice that it is in; `None` when it is none that
/// this crate asks systemd for.
pub(super) fn unit(path: &str) -> Option<(&str, &str)> {
    let (parent, name) = path.rsplit_once('/')?;
    let known = name.ends_with(".scope") || name.ends_with(".slice");
    let slice = parent.rsplit_once('/').map_or(parent, |(_, name)| name);
    known.then_some((name, slice))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_where_their_names_say() {
        assert_eq!(slice_path("kelson.slice").unwrap(), "/kelson.slice");
        assert_eq!(
            slice_path("kubepods-burstable-pod1_2.slice").unwrap(),
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice"
        );
        let long = format!("{}.slice", "x".repeat(250));
        for wrong in [
            "",
            ".slice",
            "-.slice",
            "a",
            "a/b.slice",
            "a--b.slice",
            "-a.slice",
            "a-.slice",
            "a b.slice",
            "a\n.slice",
            "ä.slice",
            &long,
        ] {
            let error = slice_path(wrong).expect_err(wrong);
            assert!(error.to_string().len() < 400);
        }
    }

    #[test]
    fn units_of_paths() {
        assert_eq!(
            unit("/a.slice/a-b.slice/kelson-1.scope"),
            Some(("kelson-1.scope", "a-b.slice"))
        );
        assert_eq!(unit("/a.slice"), Some(("a.slice", "")));
        assert_eq!(unit("/kelson/1"), None);
        assert_eq!(unit("a.slice"), None);
    }
}
