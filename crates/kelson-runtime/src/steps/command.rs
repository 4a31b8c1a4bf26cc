//! The program and the working directory, looked up inside the container.

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kelson_sys::root::Root;
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode};
use rustix::io::Errno;

use super::{Container, Failure, NewProcess, OrFail};
use crate::Kind;

/// Largest `/etc/passwd` that is read.
const MAX_PASSWD: u64 = 1 << 20;

/// Finds the program as execvp(3) does, and the user's home.
pub(super) fn find(process: &mut NewProcess<'_>) -> Result<(), Failure> {
    let name = process
        .plan
        .args
        .first()
        .map(CString::as_c_str)
        .unwrap_or_default();
    process.program = find_program(name, &process.plan.path, &process.plan.cwd)?;
    if !process
        .plan
        .env
        .iter()
        .any(|variable| variable.to_bytes().starts_with(b"HOME="))
    {
        let home = home_of(process.plan.uid);
        process
            .extra_env
            .extend(CString::new([b"HOME=", home.as_slice()].concat()));
    }
    Ok(())
}

fn find_program(name: &CStr, path: &str, cwd: &Path) -> Result<CString, Failure> {
    let text = name.to_string_lossy();
    let file = Path::new(OsStr::from_bytes(name.to_bytes()));
    if name.to_bytes().contains(&b'/') {
        return match check(&cwd.join(file)) {
            Ok(()) => Ok(name.to_owned()),
            Err(e) => Err(failure(format!("cannot find the program {text:?}"), e)),
        };
    }
    let mut denied = None;
    for directory in path.split(':') {
        let directory = if directory.is_empty() {
            cwd
        } else {
            Path::new(directory)
        };
        let candidate = cwd.join(directory).join(file);
        match check(&candidate) {
            Ok(()) => {
                return CString::new(candidate.into_os_string().into_encoded_bytes())
                    .map_err(|_| Failure::new("there is a NUL byte in PATH"));
            }
            Err(Errno::ACCESS) => denied = Some(candidate),
            Err(_) => {}
        }
    }
    match denied {
        Some(path) => Err(failure(
            format!("cannot execute {}", path.display()),
            Errno::ACCESS,
        )),
        None => Err(Failure::new(format!(
            "exec: {text:?}: executable file not found in $PATH"
        ))
        .of(Kind::CommandNotFound)),
    }
}

/// Whether `path` is something that can be executed.
fn check(path: &Path) -> rustix::io::Result<()> {
    let stat = rustix::fs::stat(path)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::ACCESS);
    }
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

/// A failure of the program, by its kind.
pub(super) fn failure(what: String, errno: Errno) -> Failure {
    let kind = match errno {
        Errno::NOENT | Errno::NOTDIR => Kind::CommandNotFound,
        Errno::ACCESS | Errno::NOEXEC | Errno::ISDIR => Kind::CommandNotExecutable,
        _ => Kind::Other,
    };
    Failure::errno(what, errno).of(kind)
}

/// The home of a user by the container's `/etc/passwd`; `/` when it does not say.
fn home_of(uid: u32) -> Vec<u8> {
    let passwd = Root::open(Path::new("/"))
        .and_then(|root| root.read_capped(Path::new("/etc/passwd"), MAX_PASSWD));
    let Ok(passwd) = passwd else {
        return b"/".to_vec();
    };
    home_in(&passwd, uid).unwrap_or(b"/").to_vec()
}

fn home_in(passwd: &[u8], uid: u32) -> Option<&[u8]> {
    passwd.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let number = fields
            .nth(2)
            .and_then(|text| std::str::from_utf8(text).ok())?;
        let home = fields.nth(2)?;
        let usable = !home.is_empty() && !home.contains(&0);
        (number.parse() == Ok(uid) && usable).then_some(home)
    })
}

/// Makes the working directory when the image does not have it, as the field's runtimes do.
pub(super) fn make_directory(container: &mut Container<'_>) -> Result<(), Failure> {
    let cwd = &container.process.plan.cwd;
    container
        .root()?
        .mkdir_all(cwd, Mode::from_raw_mode(0o755))?;
    Ok(())
}

/// Enters the working directory and makes sure that it is inside the root.
pub(super) fn enter_directory(process: &mut NewProcess<'_>) -> Result<(), Failure> {
    let cwd = &process.plan.cwd;
    rustix::process::chdir(cwd.as_path())
        .or_fail(|| format!("cannot enter the working directory {}", cwd.display()))?;
    let real = rustix::process::getcwd(Vec::new())
        .or_fail(|| "cannot tell the working directory".into())?;
    if real.to_bytes().first() != Some(&b'/') {
        return Err(Failure::new(format!(
            "the working directory {} is outside of the container",
            cwd.display()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_home_is_found_by_number() {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\nbroken\nuser:x:7:7::/home/u:/bin/sh\n";
        assert_eq!(home_in(passwd, 7), Some(&b"/home/u"[..]));
        assert_eq!(home_in(passwd, 0), Some(&b"/root"[..]));
        assert_eq!(home_in(passwd, 8), None);
        assert_eq!(home_in(b"a:b:c:d", 0), None);
    }

    #[test]
    fn programs_are_found_and_failures_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("plain");
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let path = format!("/nonexistent:{}:/bin", dir.path().display());
        let cwd = Path::new("/");
        assert_eq!(
            find_program(c"sh", &path, cwd).unwrap().as_c_str(),
            c"/bin/sh"
        );
        assert_eq!(
            find_program(c"bin/sh", &path, cwd).unwrap().as_c_str(),
            c"bin/sh"
        );
        let kind = |name: &CStr| find_program(name, &path, cwd).unwrap_err().kind;
        assert_eq!(kind(c"plain"), Kind::CommandNotExecutable);
        assert_eq!(kind(c"nothing"), Kind::CommandNotFound);
        assert_eq!(kind(c"/nothing"), Kind::CommandNotFound);
        assert_eq!(kind(c"/bin"), Kind::CommandNotExecutable);
    }
}
