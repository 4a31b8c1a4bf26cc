//! Reading `/proc/self/mountinfo` and `/proc/self/cgroup` (proc(5), cgroups(7)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// The cgroup file systems in a mount table, the best mount of each.
#[derive(Debug, Default)]
pub(crate) struct Cgroups {
    pub(crate) v1: Vec<V1>,
    pub(crate) v2: Option<PathBuf>,
}

/// One v1 hierarchy.
#[derive(Debug)]
pub(crate) struct V1 {
    pub(crate) dir: PathBuf,
    /// Super block options: the controllers, `name=`.
    pub(crate) options: Vec<String>,
    pub(crate) writable: bool,
    rank: u8,
}

/// Finds them. A hierarchy that is mounted more than once counts where its own root is mounted,
/// then the earlier mount; lines of another form are left out.
pub(crate) fn cgroups(mountinfo: &str) -> Cgroups {
    let mut found = Cgroups::default();
    let mut v2_rank = u8::MAX;
    for line in mountinfo.lines() {
        let Some((fields, rest)) = line.split_once(" - ") else {
            continue;
        };
        let mut fields = fields.split(' ').skip(3);
        let (Some(root), Some(point), Some(flags)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let mut rest = rest.split(' ');
        let (kind, options) = (rest.next(), rest.nth(1).unwrap_or_default());
        let rank = match root {
            "/" => 0,
            // Seen from a cgroup namespace beneath: not ours to write in.
            root if root.starts_with("/..") => 2,
            _ => 1,
        };
        match kind {
            Some("cgroup2") if rank < v2_rank => {
                v2_rank = rank;
                found.v2 = Some(unescape(point));
            }
            Some("cgroup") => {
                let writable = flags.split(',').next() == Some("rw");
                let dir = unescape(point);
                let options = identity(options);
                match found.v1.iter_mut().find(|mount| mount.options == options) {
                    Some(known) if known.rank <= rank => {}
                    Some(known) => {
                        *known = V1 {
                            dir,
                            options,
                            writable,
                            rank,
                        }
                    }
                    None => found.v1.push(V1 {
                        dir,
                        options,
                        writable,
                        rank,
                    }),
                }
            }
            _ => {}
        }
    }
    found
}

/// The options that say which hierarchy it is, without `rw` and the like.
fn identity(options: &str) -> Vec<String> {
    let incidental = [
        "rw",
        "ro",
        "xattr",
        "noprefix",
        "clone_children",
        "cpuset_v2_mode",
        "favordynmods",
    ];
    options
        .split(',')
        .filter(|option| !incidental.contains(option) && !option.starts_with("release_agent="))
        .map(str::to_owned)
        .collect()
}

/// The caller's own path in the v2 hierarchy, from the text of `/proc/self/cgroup`.
pub(crate) fn own_v2_path(cgroup: &str) -> Option<&str> {
    cgroup.lines().find_map(|line| line.strip_prefix("0::"))
}

/// Undoes the octal escapes of mountinfo.
fn unescape(field: &str) -> PathBuf {
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = bytes
            .get(at + 1..at + 4)
            .filter(|_| bytes[at] == b'\\')
            .and_then(octal);
        out.push(code.unwrap_or(bytes[at]));
        at += if code.is_some() { 4 } else { 1 };
    }
    PathBuf::from(OsString::from_vec(out))
}

fn octal(digits: &[u8]) -> Option<u8> {
    digits.iter().try_fold(0_u8, |value, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
        value.checked_mul(8)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn hybrid_layout() {
        let found = cgroups(
            "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
             32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
             40 31 0:37 / /sys/fs/cgroup/systemd ro,relatime shared:1 master:2 - cgroup systemd rw,xattr,release_agent=/x,name=systemd\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n",
        );
        assert_eq!(found.v1.len(), 2);
        assert_eq!(found.v1[0].options, ["cpu", "cpuacct"]);
        assert!(found.v1[0].writable);
        assert_eq!(found.v1[1].options, ["name=systemd"]);
        assert!(!found.v1[1].writable);
        assert_eq!(
            found.v2.as_deref(),
            Some(Path::new("/sys/fs/cgroup/unified"))
        );
    }

    #[test]
    fn the_root_of_a_hierarchy_is_preferred() {
        let found = cgroups(
            "1 0 0:1 /docker/a /c/part rw - cgroup cgroup rw,pids\n\
             2 0 0:1 / /c/whole rw - cgroup cgroup rw,pids\n\
             3 0 0:1 / /c/again rw - cgroup cgroup rw,pids\n\
             4 0 0:2 /../.. /c/outside rw - cgroup2 cgroup2 rw\n\
             5 0 0:2 / /c/with\\040space rw - cgroup2 cgroup2 rw,nsdelegate\n",
        );
        assert_eq!(found.v1.len(), 1);
        assert_eq!(found.v1[0].dir, Path::new("/c/whole"));
        assert_eq!(found.v2.as_deref(), Some(Path::new("/c/with space")));
    }

    #[test]
    fn own_path() {
        assert_eq!(own_v2_path("9:name=systemd:/\n0::/a/b\n"), Some("/a/b"));
        assert_eq!(own_v2_path("9:cpu:/\n"), None);
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape("a\\040b\\134c\\9\\"), Path::new("a b\\c\\9\\"));
        assert_eq!(unescape("\\777"), Path::new("\\777"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "[ -~\n\\\\]{0,400}") {
            let _ = cgroups(&text);
            let _ = own_v2_path(&text);
            let _ = unescape(&text);
        }

        #[test]
        fn almost_right_lines(
            root in "/[a-z./]{0,9}", point in "/[a-z\\\\0-9]{0,12}", options in "[a-z,=]{0,20}",
            kind in "cgroup2?"
        ) {
            let line = format!("1 2 0:3 {root} {point} rw - {kind} x {options}\n");
            let found = cgroups(&line);
            proptest::prop_assert_eq!(found.v1.len() + usize::from(found.v2.is_some()), 1);
        }
    }
}
