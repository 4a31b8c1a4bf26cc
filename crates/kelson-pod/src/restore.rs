//! Making a container of a checkpoint archive.
//!
//! The archive is outside data. Taken from it are the images of processes, the changes of the root, which
//! go through the reader of image layers, and the name of the image that the root was made of, which must
//! be here already. Mounts, devices, labels, log, cgroup and environment are those of the request; the
//! shim compares what CRIU makes with them before a process of it runs.

use std::fs::File;
use std::io::{Cursor, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kelson_checkpoint::archive::{self, Contents, ReadError};
use kelson_checkpoint::{Criu, IMAGES, first_filters};
use kelson_runtime::seccomp::Program;
use kelson_shim::proto::{RestoreRequest, SeccompFilter};
use kelson_snapshot::{DiffId, Digest, Expected, Staging, UnpackError};
use kelson_sys::root::Root;
use rustix::fs::{Mode, OFlags};

use crate::config::ContainerConfig;
use crate::error::{Mistake, Mistakes, PodError};
use crate::outside::ImageFacts;
use crate::record::Restored;
use crate::spec::mounts;
use crate::world::{FileError, World};

/// Name of the directory of images beside a container's writable directory.
const DIR: &str = "checkpoint";

/// An archive, unpacked and read.
pub(crate) struct Checkpoint {
    path: PathBuf,
    contents: Contents,
    unpacked: Staging,
    changes: Option<Staging>,
}

/// Why an archive cannot be used.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("it is not a plain file")]
    Kind,
    #[error("it is not a checkpoint archive: an uncompressed tar file")]
    Archive(#[source] UnpackError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("its changes of the root cannot be used")]
    Changes(#[source] UnpackError),
}

/// The archive that an image's name means, if it means one: no image has an absolute path as its name.
pub(crate) fn location(image: &str) -> Option<&Path> {
    Some(Path::new(image)).filter(|path| path.is_absolute())
}

/// Unpacks and reads an archive, and checks the request against it.
pub(crate) fn open(
    world: &World,
    path: &Path,
    config: &ContainerConfig,
) -> Result<Checkpoint, PodError> {
    let program = world.config.criu.as_deref();
    Criu::find(program.ok_or(PodError::CheckpointsOff)?)
        .map_err(|error| PodError::step("restore a checkpoint", error))?;
    let checkpoint = unpack(world, path).map_err(|error| {
        let text = format!("the checkpoint {} cannot be used", path.display());
        PodError::Image(text, Some(Arc::new(error)))
    })?;
    check(&checkpoint.contents, config)?;
    Ok(checkpoint)
}

fn unpack(world: &World, path: &Path) -> Result<Checkpoint, OpenError> {
    let on = |operation| FileError::on(operation, path);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty());
    let mut file = File::from(file.map_err(|errno| on("open")(errno.into()))?);
    if !file.metadata().map_err(on("look at"))?.is_file() {
        return Err(OpenError::Kind);
    }
    let expected = expected(&mut file).map_err(on("read"))?;
    file.rewind().map_err(on("read"))?;
    let unpacked = world
        .snapshots
        .stage(&mut file, &expected)
        .map_err(OpenError::Archive)?;
    let root = Root::from_fd(unpacked.open().map_err(on("unpack"))?, "the checkpoint");
    let contents = archive::read(&root)?;
    let deletions = archive::deletions(&contents.deleted).map_err(on("read"))?;
    let changes = match archive::rootfs_diff(&root)? {
        None if deletions.is_empty() => None,
        changed => Some(
            stage_changes(world, deletions, changed).map_err(|error| match error {
                Staged::Read(error) => on("read")(error).into(),
                Staged::Unpack(error) => OpenError::Changes(error),
            })?,
        ),
    };
    Ok(Checkpoint {
        path: path.to_owned(),
        contents,
        unpacked,
        changes,
    })
}

enum Staged {
    Read(std::io::Error),
    Unpack(UnpackError),
}

/// Deletions and changes as one layer, by the reader of layers.
fn stage_changes(
    world: &World,
    deletions: Vec<u8>,
    changed: Option<File>,
) -> Result<Staging, Staged> {
    let again = match &changed {
        Some(file) => Some(file.try_clone().map_err(Staged::Read)?),
        None => None,
    };
    // Two empty blocks end an archive that has nothing but deletions.
    let stream = |file: Option<File>| -> Box<dyn Read + Send> {
        let deletions = Cursor::new(deletions.clone());
        match file {
            Some(file) => Box::new(deletions.chain(file)),
            None => Box::new(deletions.chain(Cursor::new(vec![0; 1024]))),
        }
    };
    let expected = expected(&mut *stream(changed)).map_err(Staged::Read)?;
    let again = match again {
        Some(mut file) => {
            file.rewind().map_err(Staged::Read)?;
            Some(file)
        }
        None => None,
    };
    let mut layer = stream(again);
    let staged = world.snapshots.stage(&mut *layer, &expected);
    staged.map_err(Staged::Unpack)
}

/// What a tar file of the machine's own must have: its digest, so that one that changes while it is read
/// is found out.
fn expected(file: &mut dyn Read) -> std::io::Result<Expected> {
    let (blob, size) = Digest::of_stream(file)?;
    Ok(Expected {
        blob,
        size,
        diff_id: DiffId::from(blob),
    })
}

/// Whether the request has what the checkpoint needs; all that is missing is named.
fn check(contents: &Contents, config: &ContainerConfig) -> Result<(), PodError> {
    let mut mistakes = Vec::new();
    let mut mistake = |field: &str, problem: String, unsupported| {
        mistakes.push(Mistake {
            field: field.to_owned(),
            problem,
            unsupported,
        });
    };
    let asked: Vec<PathBuf> = config
        .mounts
        .iter()
        .map(|mount| mounts::target(&mount.container_path))
        .collect();
    for bind in &contents.binds {
        if !asked.contains(&mounts::target(&bind.destination)) {
            let short: String = bind.destination.chars().take(200).collect();
            let problem = format!("the checkpoint needs something mounted at {short:?}");
            mistake("mounts", problem, false);
        }
    }
    if config.tty {
        let problem = "a checkpoint cannot be restored to a terminal".to_owned();
        mistake("tty", problem, true);
    }
    match mistakes.is_empty() {
        true => Ok(()),
        false => Err(PodError::Invalid(Mistakes(mistakes))),
    }
}

impl Checkpoint {
    /// The image that the root was made of. It is looked up, never pulled, and nothing is named by it.
    pub(crate) fn image(&self, world: &World) -> Result<(String, ImageFacts), PodError> {
        let config = &self.contents.config;
        let names = [&config.image_name, &config.image_ref, &config.image];
        let known = |name: &&String| !name.is_empty() && location(name).is_none();
        let mut wanted = None;
        for name in names.into_iter().filter(known) {
            if let Some(image) = world.images.find(name) {
                return Ok((name.clone(), image));
            }
            wanted.get_or_insert(name);
        }
        let short = |name: &String| name.chars().take(300).collect::<String>();
        match wanted {
            Some(name) => Err(PodError::NoSuchImage(short(name))),
            None => Err(PodError::Image(
                format!("the checkpoint {} names no image", self.path.display()),
                None,
            )),
        }
    }

    /// The changes of the root, and the rest.
    pub(crate) fn apart(self) -> (Option<Staging>, Rest) {
        let rest = Rest {
            streams: self.contents.streams,
            unpacked: self.unpacked,
        };
        (self.changes, rest)
    }
}

/// An archive without the changes of the root.
pub(crate) struct Rest {
    streams: [Option<String>; 3],
    unpacked: Staging,
}

impl Rest {
    /// Puts the images beside the container's writable directory. After an error nothing of the container
    /// is left.
    pub(crate) fn keep(self, world: &World, id: &str) -> Result<Restored, PodError> {
        let step = "keep the images of the checkpoint";
        let snapshots = &world.snapshots;
        let rootfs = snapshots
            .rootfs(id)
            .map_err(|error| PodError::step(step, error))?;
        if let Err(error) = self
            .unpacked
            .take(IMAGES, &rootfs.upper.with_file_name(DIR))
        {
            // The failure itself is what is reported; what stays is removed at the next start.
            let _ = snapshots.remove(id);
            return Err(PodError::step(step, error));
        }
        Ok(Restored {
            streams: self.streams,
        })
    }
}

/// Why a container cannot be restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestoreError {
    #[error(
        "checkpoints are off on this node; set checkpoint.enabled to true in kelson's configuration"
    )]
    Off,
    #[error(transparent)]
    Criu(#[from] kelson_checkpoint::CriuError),
    #[error("cannot read the images of the checkpoint")]
    Images(#[source] std::io::Error),
    #[error(
        "the seccomp filter of the checkpoint is not the one that the request asks for; restore with the \
         seccomp profile and capabilities that the container had"
    )]
    Filter,
}

/// What the shim is asked for.
pub(crate) fn request(
    world: &World,
    upper: &Path,
    restored: Restored,
    filter: Option<&SeccompFilter>,
) -> Result<RestoreRequest, RestoreError> {
    let program = world.config.criu.as_deref().ok_or(RestoreError::Off)?;
    let criu = Criu::find(program)?;
    let images = upper.with_file_name(DIR);
    let found = first_filters(&images).map_err(RestoreError::Images)?;
    let wanted = filter.map(instructions);
    if !found.iter().all(|one| Some(one) == wanted.as_ref()) {
        return Err(RestoreError::Filter);
    }
    Ok(RestoreRequest {
        criu: criu.program().to_owned(),
        images,
        streams: restored.streams,
    })
}

/// A filter as the kernel has it: its bytes without the flags of loading, which come first.
fn instructions(filter: &SeccompFilter) -> Vec<u8> {
    let flags = Program::from_bytes(&filter.0).map_or(0, |_| size_of::<u32>());
    filter.0[flags..].to_vec()
}

/// Deletes the images of a container that runs: they hold its memory.
pub(crate) fn forget(upper: &Path) {
    let dir = upper.with_file_name(DIR);
    if let Err(error) = std::fs::remove_dir_all(&dir) {
        tracing::warn!(path = %dir.display(), %error, "images of a checkpoint stay until the container is removed");
    }
}

#[cfg(test)]
mod tests {
    use kelson_checkpoint::archive::BindMount;

    use super::*;
    use crate::config::Mount;

    #[test]
    fn only_absolute_paths_are_archives() {
        assert!(location("/var/c.tar").is_some());
        for image in ["busybox", "docker.io/library/busybox:1", "c.tar", ""] {
            assert!(location(image).is_none(), "{image}");
        }
    }

    /// CVE-2024-8676: what a checkpoint had mounted is asked of the request, and never taken.
    #[test]
    fn every_mount_of_the_checkpoint_must_be_in_the_request() {
        let bind = |destination: &str| BindMount {
            source: "/etc".into(),
            destination: destination.into(),
            file_type: "directory".into(),
            permissions: 0o755,
        };
        let contents = Contents {
            config: archive::Config::default(),
            binds: vec![bind("/a"), bind("/b//c/"), bind("/d")],
            deleted: Vec::new(),
            streams: [const { None }; 3],
        };
        let mut config = ContainerConfig {
            mounts: vec![Mount {
                container_path: "/b/./c".into(),
                ..Mount::default()
            }],
            tty: true,
            ..ContainerConfig::default()
        };
        let text = check(&contents, &config).unwrap_err().to_string();
        assert!(
            text.contains("\"/a\"") && text.contains("\"/d\"") && text.contains("tty"),
            "{text}"
        );
        assert!(!text.contains("/b"), "{text}");
        config.tty = false;
        let contents = Contents {
            binds: vec![bind("/b/c")],
            ..contents
        };
        check(&contents, &config).unwrap();
    }

    #[test]
    fn the_instructions_of_a_filter_come_after_its_flags() {
        let bytes = SeccompFilter([vec![1, 0, 0, 0], vec![6, 0, 0, 0, 0, 0, 255, 127]].concat());
        assert_eq!(instructions(&bytes), [6, 0, 0, 0, 0, 0, 255, 127]);
    }
}
