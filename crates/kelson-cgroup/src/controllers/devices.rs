//! `devices`: which device nodes may be opened and made.

use std::collections::BTreeMap;

use rustix::fs::{Mode, OFlags};

use super::device_program;
use super::device_set::{DeviceSet, Key, Kind, minus, union};
use crate::dir::{Dir, malformed};
use crate::{Access, Error, Resources, Result};

/// Changes what is different only, so that a running process keeps what it may use throughout.
pub(super) fn apply_v1(dir: &Dir, r: &Resources) -> Result<()> {
    if r.devices.is_empty() {
        return Ok(());
    }
    let wanted = DeviceSet::from_rules(&r.devices)?;
    let mut buf = Vec::new();
    let list = dir.read("devices.list", &mut buf)?.unwrap_or_default();
    let mut now = parse_list(list).ok_or_else(|| malformed(&dir.file("devices.list"), list))?;
    // In a cgroup that allows by default the list does not show the exceptions.
    if wanted.allow || now.allow {
        dir.write(
            if wanted.allow {
                "devices.allow"
            } else {
                "devices.deny"
            },
            "a",
        )?;
        now = DeviceSet {
            allow: wanted.allow,
            exceptions: BTreeMap::new(),
        };
    }
    let (except, end) = if wanted.allow {
        ("devices.deny", "devices.allow")
    } else {
        ("devices.allow", "devices.deny")
    };
    write_difference(dir, except, &wanted, &now)?;
    write_difference(dir, end, &now, &wanted)
}

/// Without the controller every device could be made and used, which is only right when all are allowed.
pub(super) fn refuse_without(r: &Resources) -> Result<()> {
    let all = DeviceSet {
        allow: true,
        exceptions: BTreeMap::new(),
    };
    if r.devices.is_empty() || DeviceSet::from_rules(&r.devices)? == all {
        return Ok(());
    }
    Err(Error::limit(
        "devices",
        "some only",
        "the controller devices of cgroup v1 is not mounted; mount it",
    ))
}

/// Writes the accesses of `of` that are not in `without`.
fn write_difference(dir: &Dir, file: &str, of: &DeviceSet, without: &DeviceSet) -> Result<()> {
    for (key, access) in &of.exceptions {
        let other = without.exceptions.get(key).copied().unwrap_or_default();
        let access = minus(*access, other);
        if access != Access::default() {
            dir.write(file, &format!("{key} {}", letters(access)))?;
        }
    }
    Ok(())
}

fn letters(access: Access) -> String {
    let all = [(access.read, 'r'), (access.write, 'w'), (access.mknod, 'm')];
    all.into_iter()
        .filter_map(|(has, letter)| has.then_some(letter))
        .collect()
}

/// Reads `devices.list`. Lines are `c 1:3 rwm`; `a *:* rwm` alone is "all".
fn parse_list(list: &str) -> Option<DeviceSet> {
    let mut set = DeviceSet {
        allow: false,
        exceptions: BTreeMap::new(),
    };
    for line in list.lines() {
        let mut words = line.split_ascii_whitespace();
        let (kind, numbers, access) = (words.next()?, words.next()?, words.next()?);
        let number = |text: &str| match text {
            "*" => Some(None),
            digits => digits.parse().ok().map(Some),
        };
        let (major, minor) = numbers.split_once(':')?;
        let access = Access {
            read: access.contains('r'),
            write: access.contains('w'),
            mknod: access.contains('m'),
        };
        let kind = match kind {
            "a" => {
                set.allow = true;
                continue;
            }
            "c" => Kind::Char,
            "b" => Kind::Block,
            _ => return None,
        };
        let key = Key {
            kind,
            major: number(major)?,
            minor: number(minor)?,
        };
        let known = set.exceptions.entry(key).or_default();
        *known = union(*known, access);
    }
    Some(set)
}

/// Attaches a program; an earlier one is replaced in one step.
pub(super) fn apply_v2(dir: &Dir, r: &Resources) -> Result<()> {
    if r.devices.is_empty() {
        return Ok(());
    }
    let program = device_program::compile(&DeviceSet::from_rules(&r.devices)?);
    let failed =
        |error: std::io::Error| Error::io("attach the device filter to", dir.path(), error);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let cgroup = rustix::fs::open(dir.path(), flags, Mode::empty())
        .map_err(|error| Error::io("open", dir.path(), error))?;
    let program = kelson_sys::bpf::load_cgroup_device(&program)
        .map_err(|error| Error::io("load the device filter of", dir.path(), error))?;
    kelson_sys::bpf::set_cgroup_device(&cgroup, &program).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::super::device_set::tests::rule;
    use super::*;
    use crate::controllers::testing::Files;

    #[test]
    fn lists() {
        let set = parse_list("c 1:3 rw\nc *:* m\nb 8:0 r\nc 1:3 m\n").unwrap();
        assert!(!set.allow);
        assert_eq!(set.exceptions.len(), 3);
        assert!(parse_list("a *:* rwm\n").unwrap().allow);
        assert!(parse_list("").unwrap().exceptions.is_empty());
        for bad in ["x", "c 1 r", "z 1:1 r", "c a:b r"] {
            assert_eq!(parse_list(bad), None);
        }
    }

    #[test]
    fn only_the_difference_is_written() {
        let files = Files::new(&["devices.allow", "devices.deny"]);
        files.set("devices.list", "c 1:3 rwm\nc 1:5 rwm\n");
        let r = Resources {
            devices: vec![
                rule("deny a *:* rwm"),
                rule("allow c 1:3 rwm"),
                rule("allow b 8:0 r"),
            ],
            ..Resources::default()
        };
        apply_v1(&files.dir, &r).unwrap();
        assert_eq!(files.get("devices.allow"), "b 8:0 r");
        assert_eq!(files.get("devices.deny"), "c 1:5 rwm");
    }

    #[test]
    fn without_the_controller_only_all_is_allowed() {
        let with = |rules: &[&str]| {
            let devices = rules.iter().map(|text| rule(text)).collect();
            refuse_without(&Resources {
                devices,
                ..Resources::default()
            })
        };
        assert!(with(&[]).is_ok() && with(&["allow a *:* rwm"]).is_ok());
        let error = with(&["deny a *:* rwm", "allow c 1:3 rwm"]).unwrap_err();
        assert!(error.to_string().contains("devices"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn any_list(text in "([abc] [0-9*]{1,3}:[0-9*]{1,3} [rwm]{1,3}\n|[ -~]{0,9}\n){0,5}") {
            let _ = parse_list(&text);
        }
    }
}
