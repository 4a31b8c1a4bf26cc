//! The archive: a tar file of CRIU's images, the changes of the root, and what the container was.
//!
//! | name | what |
//! | --- | --- |
//! | `checkpoint/` | CRIU's images, and `descriptors.json`: the standard streams |
//! | `config.dump` | [`Config`]: the container and its image |
//! | `spec.dump` | its OCI runtime specification |
//! | `rootfs-diff.tar` | what is new or different in its root |
//! | `deleted.files` | what is gone from its root |
//! | `bind.mounts` | [`BindMount`]s: what of the host was mounted in it |
//! | `dump.log` | CRIU's log |

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use kelson_sys::root::{Root, RootError};
use rustix::fs::OFlags;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::tar::{Entry, Kind, Writer};
use crate::{DUMP_LOG, IMAGES};

/// Name of [`Config`] in an archive.
pub const CONFIG: &str = "config.dump";
/// Name of the OCI runtime specification in an archive.
pub const SPEC: &str = "spec.dump";
/// Name of the archive of changes in an archive.
pub const ROOTFS_DIFF: &str = "rootfs-diff.tar";
/// Name of the list of deleted paths in an archive.
pub const DELETED: &str = "deleted.files";
/// Name of the list of [`BindMount`]s in an archive.
pub const BINDS: &str = "bind.mounts";
/// Name of the standard streams among CRIU's images.
pub const DESCRIPTORS: &str = "descriptors.json";

/// Longest JSON file of an archive that is read, in bytes.
const LONGEST: u64 = 16 << 20;
/// Most images of CRIU in an archive; a process takes some four.
const IMAGE_FILES: usize = 100_000;
/// Mode of an archive: memory holds secrets.
const MODE: u32 = 0o600;

/// What was checkpointed. Empty texts are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Id of the container.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Id of its image.
    #[serde(rename = "rootfsImage", skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// Reference of its image with a digest.
    #[serde(rename = "rootfsImageRef", skip_serializing_if = "String::is_empty")]
    pub image_ref: String,
    /// Name of its image as it was asked for.
    #[serde(rename = "rootfsImageName", skip_serializing_if = "String::is_empty")]
    pub image_name: String,
    /// Runtime that ran it.
    #[serde(rename = "runtime", skip_serializing_if = "String::is_empty")]
    pub runtime: String,
    /// When it was made, as RFC 3339 has it.
    #[serde(rename = "createdTime")]
    pub created: String,
    /// When it was checkpointed.
    #[serde(rename = "checkpointedTime")]
    pub checkpointed: String,
    /// When it was restored: in an archive always the year 1.
    #[serde(rename = "restoredTime")]
    pub restored_at: String,
    /// Whether it is restored.
    pub restored: bool,
}

/// Something of the host that was mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindMount {
    /// Its path on the host.
    pub source: String,
    /// Its path in the container.
    pub destination: String,
    /// `directory` or `file`.
    pub file_type: String,
    /// Permission bits.
    pub permissions: u32,
}

/// A time in nanoseconds since 1970, as RFC 3339 has it.
pub fn time(nanoseconds: i64) -> String {
    jiff::Timestamp::from_nanosecond(nanoseconds.into())
        .unwrap_or_default()
        .to_string()
}

/// The time that means none.
pub const NO_TIME: &str = "0001-01-01T00:00:00Z";

/// Why an archive could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct WriteError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn on(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WriteError {
    let path = path.to_owned();
    move |source| WriteError {
        operation,
        path,
        source,
    }
}

/// Writes a value as a JSON file.
///
/// # Errors
/// The file cannot be written.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), WriteError> {
    let text = serde_json::to_vec(value).map_err(|error| on("write", path)(error.into()))?;
    std::fs::write(path, text).map_err(on("write", path))
}

/// Packs the files of `from` into an archive at `location`, with mode 0600. An archive appears there
/// whole or not at all; one that is there already is replaced.
///
/// # Errors
/// A file cannot be read or written.
pub fn write(from: &Path, location: &Path) -> Result<(), WriteError> {
    let mut name = std::ffi::OsString::from(".");
    name.push(location.file_name().unwrap_or_default());
    name.push(format!(".{}.partial", std::process::id()));
    let partial = location.with_file_name(name);
    // What an earlier process of the same number left.
    let _ = std::fs::remove_file(&partial);
    let written = pack(from, &partial).and_then(|()| {
        std::fs::rename(&partial, location).map_err(on("move the archive to", location))
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    written
}

fn pack(from: &Path, to: &Path) -> Result<(), WriteError> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(to)
        .map_err(on("create", to))?;
    let mut writer = Writer::new(io::BufWriter::with_capacity(256 << 10, file));
    for name in [CONFIG, SPEC, BINDS, DELETED, ROOTFS_DIFF, DUMP_LOG] {
        file_into(&mut writer, &from.join(name), name)?;
    }
    let images = from.join(IMAGES);
    let entry = Entry::plain(IMAGES.as_bytes(), Kind::Directory, 0o700, 0);
    writer
        .entry(&entry, &mut io::empty())
        .map_err(on("write", to))?;
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&images).map_err(on("read", &images))? {
        names.push(entry.map_err(on("read", &images))?.file_name());
    }
    names.sort();
    for name in names {
        let inside = format!("{IMAGES}/{}", name.to_string_lossy());
        file_into(&mut writer, &images.join(name), &inside)?;
    }
    let file = writer.end().map_err(on("write", to))?;
    let file = file
        .into_inner()
        .map_err(|error| on("write", to)(error.into_error()))?;
    file.sync_all().map_err(on("write", to))
}

fn file_into(writer: &mut Writer<impl Write>, path: &Path, name: &str) -> Result<(), WriteError> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file.map_err(on("open", path))?,
    };
    let facts = file.metadata().map_err(on("look at", path))?;
    let mut entry = Entry::plain(name.as_bytes(), Kind::File, MODE, facts.len());
    entry.mtime = facts.mtime();
    writer.entry(&entry, &mut file).map_err(on("archive", path))
}

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A file of it cannot be read: not there, no plain file, or too large.
    #[error("{name} cannot be used")]
    File {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: RootError,
    },
    /// A file of it is not the JSON that it should be.
    #[error("{name} is not what it should be")]
    Json {
        /// Which.
        name: &'static str,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// It has something that no archive has.
    #[error("{0}")]
    Content(String),
    /// It cannot be looked into.
    #[error("its directory of images cannot be read")]
    Images(#[source] io::Error),
}

/// What an unpacked archive says. Its texts are outside data: they are compared, and never used as paths
/// of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// The container and its image.
    pub config: Config,
    /// What of the host was mounted in it.
    pub binds: Vec<BindMount>,
    /// What is gone from its root: paths without empty, `.` and `..` components, relative to the root.
    pub deleted: Vec<PathBuf>,
    /// Standard input, output and error, in CRIU's words; `None`: nothing to hand over.
    pub streams: [Option<String>; 3],
}

/// Reads an unpacked archive and checks that its images are plain files.
///
/// # Errors
/// See [`ReadError`].
pub fn read(root: &Root) -> Result<Contents, ReadError> {
    let config = json(root, CONFIG, CONFIG)?.ok_or_else(|| missing(CONFIG))?;
    images(root)?;
    let descriptors: Vec<String> =
        json(root, &format!("{IMAGES}/{DESCRIPTORS}"), DESCRIPTORS)?.unwrap_or_default();
    let mut streams = [const { None }; 3];
    for (stream, text) in streams.iter_mut().zip(&descriptors) {
        *stream = key(text)?;
    }
    let deleted: Vec<String> = json(root, DELETED, DELETED)?.unwrap_or_default();
    let deleted = deleted.iter().map(|path| inside(path));
    Ok(Contents {
        config,
        binds: json(root, BINDS, BINDS)?.unwrap_or_default(),
        deleted: deleted.collect::<Result<_, _>>()?,
        streams,
    })
}

/// Opens the archive of changes, if there is one.
///
/// # Errors
/// It is there and is no plain file.
pub fn rootfs_diff(root: &Root) -> Result<Option<File>, ReadError> {
    plain(root, ROOTFS_DIFF)
}

/// Opens a plain file, without following any link.
fn plain(root: &Root, name: &str) -> Result<Option<File>, ReadError> {
    let failed = |source| ReadError::File {
        name: name.to_owned(),
        source,
    };
    match root.open_path_no_symlinks(Path::new(name)) {
        Err(error) if error.is_not_found() => return Ok(None),
        found => found.map(drop).map_err(failed)?,
    }
    // Nobody else writes into the directory: what was no link is none now.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(root.open_file(Path::new(name), flags).map_err(failed)?);
    let facts = file.metadata().map_err(ReadError::Images)?;
    match facts.is_file() && facts.nlink() == 1 {
        true => Ok(Some(file)),
        false => Err(ReadError::Content(format!("{name} is not a plain file"))),
    }
}

fn json<T: DeserializeOwned>(
    root: &Root,
    path: &str,
    name: &'static str,
) -> Result<Option<T>, ReadError> {
    let Some(file) = plain(root, path)? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    let read = file.take(LONGEST + 1).read_to_end(&mut bytes);
    read.map_err(ReadError::Images)?;
    if bytes.len() as u64 > LONGEST {
        let text = format!("{name} is larger than {LONGEST} bytes");
        return Err(ReadError::Content(text));
    }
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(Some(value)),
        Err(source) => Err(ReadError::Json { name, source }),
    }
}

fn missing(name: &str) -> ReadError {
    ReadError::Content(format!("there is no {name} in it"))
}

/// Every image must be a plain file of its own: CRIU opens them by name.
fn images(root: &Root) -> Result<(), ReadError> {
    let failed = |source| ReadError::File {
        name: IMAGES.to_owned(),
        source,
    };
    let dir = match root.open_path_no_symlinks(Path::new(IMAGES)) {
        Err(error) if error.is_not_found() => return Err(missing(IMAGES)),
        dir => dir.map_err(failed)?,
    };
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&dir));
    let mut count = 0;
    for entry in std::fs::read_dir(path).map_err(ReadError::Images)? {
        let entry = entry.map_err(ReadError::Images)?;
        let facts = entry.metadata().map_err(ReadError::Images)?;
        if !facts.is_file() || facts.nlink() != 1 {
            let name = entry.file_name().to_string_lossy().into_owned();
            let text = format!("{IMAGES}/{name} is not a plain file");
            return Err(ReadError::Content(text));
        }
        count += 1;
        if count > IMAGE_FILES {
            let text = format!("there are more than {IMAGE_FILES} files in {IMAGES}");
            return Err(ReadError::Content(text));
        }
    }
    match count {
        0 => Err(missing("image of a process")),
        _ => Ok(()),
    }
}

/// CRIU's word for a standard stream that is handed over: `pipe:[<inode>]` or `file[<mount>:<inode>]`.
/// Whatever else a stream was, CRIU restores by itself.
fn key(text: &str) -> Result<Option<String>, ReadError> {
    let hex = |text: &str| {
        let right = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (1..=16).contains(&text.len()) && text.bytes().all(right)
    };
    let within = |start: &str| text.strip_prefix(start)?.strip_suffix(']');
    let right = match (within("pipe:["), within("file[")) {
        (Some(inode), _) => hex(inode),
        (_, Some(file)) => file
            .split_once(':')
            .is_some_and(|(mount, inode)| hex(mount) && hex(inode)),
        (None, None) if text.starts_with('/') => return Ok(None),
        (None, None) => false,
    };
    match right {
        true => Ok(Some(text.to_owned())),
        false => Err(ReadError::Content(format!(
            "{DESCRIPTORS} has a stream that is none: {:?}",
            text.chars().take(80).collect::<String>()
        ))),
    }
}

/// A path of the container, relative to its root.
fn inside(path: &str) -> Result<PathBuf, ReadError> {
    let mut inside = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => inside.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                let short: String = path.chars().take(80).collect();
                let text = format!("{DELETED} has {short:?}, which leads out of the container");
                return Err(ReadError::Content(text));
            }
        }
    }
    match inside.as_os_str().is_empty() {
        true => Err(ReadError::Content(format!("{DELETED} has the root itself"))),
        false => Ok(inside),
    }
}

/// An archive that deletes `deleted`, to be followed by another: image layers delete by a file of the
/// name `.wh.<name>`.
///
/// # Errors
/// None that memory does not make.
pub fn deletions(deleted: &[PathBuf]) -> io::Result<Vec<u8>> {
    use std::os::unix::ffi::OsStrExt as _;
    let mut writer = Writer::new(Vec::new());
    for path in deleted {
        let mut name = std::ffi::OsString::from(".wh.");
        name.push(path.file_name().unwrap_or_default());
        let path = path.with_file_name(name);
        let entry = Entry::plain(path.as_os_str().as_bytes(), Kind::File, 0, 0);
        writer.entry(&entry, &mut io::empty())?;
    }
    Ok(writer.into_inner())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn archive() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(IMAGES)).unwrap();
        fs::write(dir.path().join(IMAGES).join("core-1.img"), "x").unwrap();
        let config = Config {
            id: "c".into(),
            image_name: "busybox".into(),
            ..Config::default()
        };
        write_json(&dir.path().join(CONFIG), &config).unwrap();
        let root = Root::open(dir.path()).unwrap();
        (dir, root)
    }

    fn why(root: &Root) -> String {
        let error = read(root).unwrap_err();
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error}: {}", cause.unwrap_or_default())
    }

    #[test]
    fn the_least_archive_is_read() {
        let (_dir, root) = archive();
        let contents = read(&root).unwrap();
        assert_eq!(contents.config.image_name, "busybox");
        assert!(contents.binds.is_empty() && contents.deleted.is_empty());
        assert!(rootfs_diff(&root).unwrap().is_none());
    }

    #[test]
    fn missing_and_wrong_files_are_named() {
        let (dir, root) = archive();
        fs::write(dir.path().join(BINDS), "{").unwrap();
        assert!(why(&root).contains("bind.mounts is not what it should be"));
        fs::remove_file(dir.path().join(BINDS)).unwrap();
        fs::write(dir.path().join(CONFIG), vec![b' '; 17 << 20]).unwrap();
        assert!(why(&root).contains("config.dump is larger than"));
        fs::remove_file(dir.path().join(CONFIG)).unwrap();
        assert!(why(&root).contains("there is no config.dump"));
        let (dir, root) = archive();
        fs::remove_file(dir.path().join(IMAGES).join("core-1.img")).unwrap();
        assert!(why(&root).contains("there is no image"));
    }

    #[test]
    fn links_and_devices_are_refused() {
        for name in ["checkpoint/evil.img", DELETED, BINDS] {
            let (dir, root) = archive();
            symlink("/etc/hostname", dir.path().join(name)).unwrap();
            let text = why(&root);
            assert!(text.contains(name), "{text}");
        }
        let (dir, root) = archive();
        fs::remove_dir_all(dir.path().join(IMAGES)).unwrap();
        symlink("/etc", dir.path().join(IMAGES)).unwrap();
        assert!(why(&root).contains("checkpoint cannot be used"));
        let (dir, root) = archive();
        fs::hard_link(
            dir.path().join("checkpoint/core-1.img"),
            dir.path().join("checkpoint/other.img"),
        )
        .unwrap();
        assert!(why(&root).contains("is not a plain file"));
        let (dir, root) = archive();
        symlink("/etc/hostname", dir.path().join(ROOTFS_DIFF)).unwrap();
        assert!(rootfs_diff(&root).is_err());
    }

    #[test]
    fn paths_and_streams_of_others_are_checked() {
        let (dir, root) = archive();
        write_json(&dir.path().join(DELETED), &["/a/../../b"]).unwrap();
        assert!(why(&root).contains("leads out of the container"));
        write_json(&dir.path().join(DELETED), &["/"]).unwrap();
        assert!(why(&root).contains("the root itself"));
        write_json(&dir.path().join(DELETED), &["/a//./b"]).unwrap();
        let streams = ["/dev/null", "pipe:[12]", "file[18:3]"];
        let place = dir.path().join("checkpoint/descriptors.json");
        write_json(&place, &streams).unwrap();
        let contents = read(&root).unwrap();
        assert_eq!(contents.deleted, [PathBuf::from("a/b")]);
        assert_eq!(contents.streams[0], None);
        assert_eq!(contents.streams[2].as_deref(), Some("file[18:3]"));
        for bad in [
            "pipe:[1]--root",
            "file[1]",
            "--exec-cmd",
            "tty[1:2]",
            "pipe:[]",
        ] {
            write_json(&place, &[bad]).unwrap();
            assert!(why(&root).contains("a stream that is none"), "{bad}");
        }
    }

    #[test]
    fn an_archive_is_whole_and_private() {
        let (dir, _) = archive();
        let to = tempfile::tempdir().unwrap();
        let location = to.path().join("c.tar");
        fs::write(&location, "old").unwrap();
        write(dir.path(), &location).unwrap();
        let mode = fs::metadata(&location).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let list = std::process::Command::new("tar")
            .arg("-tf")
            .arg(&location)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&list.stdout).into_owned();
        assert_eq!(text, "config.dump\ncheckpoint\ncheckpoint/core-1.img\n");
        assert!(write(dir.path(), &to.path().join("no/such/dir.tar")).is_err());
        assert_eq!(fs::read_dir(to.path()).unwrap().count(), 1);
    }

    #[test]
    fn deletions_are_whiteouts() {
        let bytes = deletions(&["etc/group".into(), "x".into()]).unwrap();
        assert_eq!(bytes.len(), 2 * 512);
        assert!(bytes.starts_with(b"etc/.wh.group\0"));
        assert!(bytes[512..].starts_with(b".wh.x\0"));
    }

    #[test]
    fn times() {
        assert_eq!(time(1_000_000_000), "1970-01-01T00:00:01Z");
    }
}
