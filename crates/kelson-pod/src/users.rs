//! Who a container's process is: users, groups and home from the request, the image's configuration, and the
//! image's own `/etc/passwd` and `/etc/group`.
//!
//! Those files are hostile. They are read in-root with a size limit; a name of digits only is an id and never
//! looked up; an id that does not fit is an error, never wrapped or cut.

use std::collections::HashSet;
use std::path::Path;

use kelson_sys::root::{Root, RootError};

use crate::config::{ContainerSecurity, GroupsPolicy};
use crate::view::User;

/// Largest `/etc/passwd` or `/etc/group` of an image, in bytes.
pub(crate) const MAX_FILE: u64 = 1 << 20;
/// Most supplementary groups: the kernel's `NGROUPS_MAX`.
pub(crate) const MAX_GROUPS: usize = 65536;
/// The home of a user who has none.
const NO_HOME: &str = "/";

/// Why a user or group is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    #[error("user {name:?} is not in the image's /etc/passwd")]
    NoUser { name: String },
    #[error("group {name:?} is not in the image's /etc/group")]
    NoGroup { name: String },
    #[error("{text:?} is not an id between 0 and {}", u32::MAX - 1)]
    Id { text: String },
    #[error("the user has more than {MAX_GROUPS} groups")]
    TooManyGroups,
    #[error("cannot read the image's users")]
    Read(#[from] RootError),
}

/// Whom the process runs as, and where that user is at home.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) user: User,
    pub(crate) home: String,
}

/// A line of `/etc/passwd`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

/// Finds the identity. `image_user` is the image's `user` or `user:group`.
pub(crate) fn resolve(
    wanted: &ContainerSecurity,
    image_user: &str,
    root: &Root,
) -> Result<Identity, UserError> {
    let (image_name, image_group) = image_user.split_once(':').unwrap_or((image_user, ""));
    let chosen = wanted.run_as_user.is_some() || !wanted.run_as_username.is_empty();
    let (name, group) = match wanted.run_as_user {
        Some(uid) => (uid.to_string(), ""),
        None if chosen => (wanted.run_as_username.clone(), ""),
        None => (image_name.to_owned(), image_group),
    };
    let accounts = accounts(root)?;
    let (uid, account) = find_user(&name, &accounts)?;
    let groups_file = read(root, "/etc/group")?;
    let gid = match wanted.run_as_group {
        Some(gid) => checked(&gid.to_string())?,
        None if group.is_empty() => account.map_or(0, |account| account.gid),
        None => find_group(group, &groups_file)?,
    };
    let mut groups = vec![gid];
    for id in &wanted.supplemental_groups {
        groups.push(checked(&id.to_string())?);
    }
    if wanted.supplemental_groups_policy == GroupsPolicy::Merge
        && let Some(account) = account
    {
        groups.extend(memberships(&account.name, &groups_file));
    }
    let mut seen = HashSet::new();
    groups.retain(|gid| seen.insert(*gid));
    if groups.len() > MAX_GROUPS {
        return Err(UserError::TooManyGroups);
    }
    let home = account
        .map_or(NO_HOME, |account| account.home.as_str())
        .to_owned();
    Ok(Identity {
        user: User { uid, gid, groups },
        home,
    })
}

fn find_user<'a>(
    name: &str,
    accounts: &'a [Account],
) -> Result<(u32, Option<&'a Account>), UserError> {
    // No user at all is root.
    let name = if name.is_empty() { "0" } else { name };
    if is_number(name) {
        let uid = checked(name)?;
        return Ok((uid, accounts.iter().find(|account| account.uid == uid)));
    }
    match accounts.iter().find(|account| account.name == name) {
        Some(account) => Ok((account.uid, Some(account))),
        None => Err(UserError::NoUser { name: cut(name) }),
    }
}

fn find_group(name: &str, file: &str) -> Result<u32, UserError> {
    if is_number(name) {
        return checked(name);
    }
    group_lines(file)
        .find(|(group, ..)| *group == name)
        .map(|(_, gid, _)| gid)
        .ok_or_else(|| UserError::NoGroup { name: cut(name) })
}

/// The groups that list `user` as a member.
fn memberships<'a>(user: &'a str, file: &'a str) -> impl Iterator<Item = u32> + 'a {
    group_lines(file)
        .filter(move |(_, _, members)| members.split(',').any(|member| member == user))
        .map(|(_, gid, _)| gid)
}

/// Name, id and members of each well-formed line.
fn group_lines(file: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    file.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        Some((name, checked(gid).ok()?, fields.next().unwrap_or("")))
    })
}

fn accounts(root: &Root) -> Result<Vec<Account>, UserError> {
    let file = read(root, "/etc/passwd")?;
    let account = |line: &str| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields.as_slice() else {
            return None;
        };
        Some(Account {
            name: (*name).to_owned(),
            uid: checked(uid).ok()?,
            gid: checked(gid).ok()?,
            home: home_of(home),
        })
    };
    Ok(file.lines().filter_map(account).collect())
}

/// A home that can stand in an environment; anything else is none.
fn home_of(field: &str) -> String {
    let plain = field.starts_with('/') && !field.chars().any(char::is_control);
    if plain { field } else { NO_HOME }.to_owned()
}

fn read(root: &Root, path: &str) -> Result<String, UserError> {
    match root.read_capped(Path::new(path), MAX_FILE) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.is_not_found() => Ok(String::new()),
        Err(error) => Err(error.into()),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// An id; the last one means "no change" to the kernel and is none.
fn checked(text: &str) -> Result<u32, UserError> {
    let id = if is_number(text) {
        text.parse::<u32>().ok()
    } else {
        None
    };
    id.filter(|id| *id != u32::MAX)
        .ok_or_else(|| UserError::Id { text: cut(text) })
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        www:x:33:34::/srv/www:/bin/false\n\
        bad:x:4294967296:0::/:/bin/sh\n\
        5000:x:77:77::/home/digits:/bin/sh\n\
        evil:x:66:66::/tmp\u{7}x:/bin/sh\n\
        short:x:1\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nvideo:x:44:www,root\naudio:x:29:www\nlost:x:x:www\n";

    fn image(passwd: &str, group: &str) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
        std::fs::write(dir.path().join("etc/group"), group).unwrap();
        let root = Root::open(dir.path()).unwrap();
        (dir, root)
    }

    fn find(
        change: impl FnOnce(&mut ContainerSecurity),
        user: &str,
    ) -> Result<Identity, UserError> {
        let (_dir, root) = image(PASSWD, GROUP);
        let mut wanted = ContainerSecurity::default();
        change(&mut wanted);
        resolve(&wanted, user, &root)
    }

    fn identity(uid: u32, gid: u32, groups: &[u32], home: &str) -> Identity {
        Identity {
            user: User {
                uid,
                gid,
                groups: groups.to_vec(),
            },
            home: home.to_owned(),
        }
    }

    #[test]
    fn the_images_user() {
        assert_eq!(find(|_| (), "").unwrap(), identity(0, 0, &[0, 44], "/root"));
        assert_eq!(
            find(|_| (), "www").unwrap(),
            identity(33, 34, &[34, 44, 29], "/srv/www")
        );
        assert_eq!(
            find(|_| (), "33").unwrap(),
            identity(33, 34, &[34, 44, 29], "/srv/www")
        );
        assert_eq!(
            find(|_| (), "www:root").unwrap(),
            identity(33, 0, &[0, 44, 29], "/srv/www")
        );
        assert_eq!(
            find(|_| (), "1234:99").unwrap(),
            identity(1234, 99, &[99], "/")
        );
    }

    #[test]
    fn the_request_wins_over_the_image() {
        let user = |c: &mut ContainerSecurity| c.run_as_user = Some(33);
        assert_eq!(
            find(user, "root:video").unwrap(),
            identity(33, 34, &[34, 44, 29], "/srv/www")
        );
        let name = |c: &mut ContainerSecurity| c.run_as_username = "www".into();
        assert_eq!(find(name, "0").unwrap().user.uid, 33);
        let group = |c: &mut ContainerSecurity| {
            c.run_as_user = Some(33);
            c.run_as_group = Some(7);
            c.supplemental_groups = vec![1000, 44];
        };
        assert_eq!(
            find(group, "").unwrap(),
            identity(33, 7, &[7, 1000, 44, 29], "/srv/www")
        );
        let strict = |c: &mut ContainerSecurity| {
            c.run_as_user = Some(33);
            c.supplemental_groups = vec![1000];
            c.supplemental_groups_policy = GroupsPolicy::Strict;
        };
        assert_eq!(find(strict, "").unwrap().user.groups, [34, 1000]);
    }

    #[test]
    fn digits_are_an_id_and_never_a_name() {
        assert_eq!(find(|_| (), "5000").unwrap(), identity(5000, 0, &[0], "/"));
    }

    #[test]
    fn ids_that_do_not_fit_are_errors_and_not_root() {
        for user in [
            "4294967296",
            "4294967295",
            "99999999999999999999",
            "0:4294967296",
        ] {
            assert!(
                matches!(find(|_| (), user), Err(UserError::Id { .. })),
                "{user}"
            );
        }
        // A malformed line makes no account.
        assert!(matches!(find(|_| (), "bad"), Err(UserError::NoUser { .. })));
    }

    #[test]
    fn unknown_names_are_errors() {
        assert!(matches!(
            find(|_| (), "nobody"),
            Err(UserError::NoUser { .. })
        ));
        assert!(matches!(
            find(|_| (), "www:nogroup"),
            Err(UserError::NoGroup { .. })
        ));
        assert!(matches!(find(|_| (), "-1"), Err(UserError::NoUser { .. })));
        assert!(matches!(find(|_| (), "+0"), Err(UserError::NoUser { .. })));
    }

    #[test]
    fn a_home_with_control_characters_is_none() {
        assert_eq!(find(|_| (), "evil").unwrap().home, "/");
    }

    #[test]
    fn an_image_without_users_has_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let wanted = ContainerSecurity::default();
        assert_eq!(
            resolve(&wanted, "", &root).unwrap(),
            identity(0, 0, &[0], "/")
        );
        assert!(resolve(&wanted, "www", &root).is_err());
    }

    #[test]
    fn huge_files_links_and_fifos_are_refused() {
        let (_dir, root) = image(&"x".repeat(usize::try_from(MAX_FILE).unwrap() + 1), "");
        let wanted = ContainerSecurity::default();
        assert!(matches!(
            resolve(&wanted, "", &root),
            Err(UserError::Read(_))
        ));

        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        // Points at the host's file, which in-root resolution must not reach.
        std::os::unix::fs::symlink("/../../../etc/passwd", dir.path().join("etc/passwd")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        assert!(resolve(&wanted, "daemon", &root).is_err());

        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join("etc/passwd"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let root = Root::open(dir.path()).unwrap();
        assert!(matches!(
            resolve(&wanted, "", &root),
            Err(UserError::Read(_))
        ));
    }

    #[test]
    fn too_many_groups_are_refused() {
        let groups: String = (0..=MAX_GROUPS).map(|n| format!("g:x:{n}:u\n")).collect();
        let (_dir, root) = image("u:x:1:1::/:/bin/sh\n", &groups);
        let wanted = ContainerSecurity::default();
        let result = resolve(&wanted, "u", &root);
        assert!(matches!(
            result,
            Err(UserError::TooManyGroups | UserError::Read(_))
        ));
    }
}
