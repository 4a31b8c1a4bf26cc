//! What a container mounts that comes from images: images as volumes, and directories that its own image
//! declares as volumes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kelson_snapshot::ChainId;
use kelson_sys::root::{Root, kind_and_device};
use rustix::fs::FileType;

use crate::config::ContainerConfig;
use crate::error::{Cause, ErrorKind, PodError};
use crate::outside::ImageFacts;
use crate::spec::mounts::target;
use crate::world::World;

/// Most volumes that an image may declare.
const MAX_DECLARED: usize = 128;
/// Longest path of one, in bytes.
const MAX_PATH: usize = 4096;

/// Directories of the root that the runtime fills.
const RUNTIMES: &[&str] = &["dev", "proc", "sys"];

/// An image that is mounted.
pub(super) struct ImageVolume {
    /// The number of the mount in the request.
    pub(super) mount: usize,
    /// With a digest when it has one, else the id.
    pub(super) reference: String,
    /// The directories of its layers, the top first.
    pub(super) lower: Vec<PathBuf>,
    /// Its top layer, which has to stay.
    pub(super) top: Option<ChainId>,
    _hold: ImageFacts,
}

/// The images among the mounts of a request. They stay while the result lives.
pub(super) fn find(world: &World, config: &ContainerConfig) -> Result<Vec<ImageVolume>, PodError> {
    let mut volumes = Vec::new();
    for (n, mount) in config.mounts.iter().enumerate() {
        let Some(spec) = &mount.image_volume else {
            continue;
        };
        let failed = |field: &str, problem: String, kind, source: Option<Cause>| {
            let field = format!("mounts[{n}].{field}");
            PodError::ImageVolume {
                field,
                problem,
                kind,
                source,
            }
        };
        let image = world.images.find(&spec.image).ok_or_else(|| {
            let problem = format!("image {:?} is not here; pull it first", spec.image);
            failed("image", problem, ErrorKind::NotFound, None)
        })?;
        if image.chain.is_empty() {
            let problem = format!("image {:?} has no layers to mount", spec.image);
            return Err(failed("image", problem, ErrorKind::Invalid, None));
        }
        let broken = |error| {
            let problem = "its layers cannot be used".to_owned();
            failed("image", problem, ErrorKind::Internal, Some(Arc::new(error)))
        };
        let lower = world.snapshots.tree(&image.chain).map_err(broken)?;
        if !mount.image_sub_path.is_empty() {
            let view = world.snapshots.view(&image.chain).map_err(broken)?;
            let root = Root::from_fd(view, "the image");
            check_sub_path(&root, &mount.image_sub_path).map_err(|(problem, source)| {
                failed("image_sub_path", problem, ErrorKind::Invalid, source)
            })?;
        }
        volumes.push(ImageVolume {
            mount: n,
            reference: image.reference.clone(),
            lower,
            top: image.chain.last().copied(),
            _hold: image,
        });
    }
    Ok(volumes)
}

/// A part of an image that can be mounted is a directory or a regular file.
fn check_sub_path(image: &Root, path: &str) -> Result<(), (String, Option<Cause>)> {
    let found = image.open_path(Path::new(path)).map_err(|error| {
        let cause: Cause = Arc::new(error);
        (format!("the image has no {path:?}"), Some(cause))
    })?;
    match kind_and_device(std::os::fd::AsFd::as_fd(&found)) {
        Ok((FileType::Directory | FileType::RegularFile, _)) => Ok(()),
        Ok(_) => Err((
            format!("{path:?} is neither a directory nor a file of the image"),
            None,
        )),
        Err(errno) => Err((format!("cannot look at {path:?}"), Some(Arc::new(errno)))),
    }
}

/// The directories that the image declares as volumes and that the container gets copies of: not those at
/// or below which the request mounts something else.
pub(super) fn declared(
    world: &World,
    config: &ContainerConfig,
    image: &ImageFacts,
) -> Result<Vec<String>, PodError> {
    if !world.config.image_volumes {
        return Ok(Vec::new());
    }
    if image.volumes.len() > MAX_DECLARED {
        let text = format!("the image declares more than {MAX_DECLARED} volumes");
        return Err(PodError::Image(text, None));
    }
    let mut all = Vec::new();
    for path in &image.volumes {
        let parts = || path.split('/').filter(|part| !matches!(*part, "" | "."));
        let long = path.len() > MAX_PATH || path.contains('\0');
        if long || parts().next().is_none() || parts().any(|part| part == "..") {
            let short: String = path.chars().take(80).collect();
            let text = format!(
                "the image declares the volume {short:?}, which is no place below its root"
            );
            return Err(PodError::Image(text, None));
        }
        // What the runtime mounts there decides about security and is not an image's to replace.
        if let Some(own) = parts().next().filter(|first| RUNTIMES.contains(first)) {
            let text = format!("the image declares a volume in /{own}, which is the runtime's");
            return Err(PodError::Image(text, None));
        }
        let place = target(path);
        let covered = config
            .mounts
            .iter()
            .any(|mount| place.starts_with(target(&mount.container_path)));
        let path = place.display().to_string();
        if !covered && !all.contains(&path) {
            all.push(path);
        }
    }
    all.sort();
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_an_image_is_in_it_and_no_device() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("etc")).unwrap();
        std::fs::write(at("etc/file"), "").unwrap();
        std::os::unix::fs::symlink("/etc/file", at("link")).unwrap();
        std::os::unix::fs::symlink("/../../../../proc/self/status", at("out")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("fifo"),
            FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        let root = Root::open(dir.path()).unwrap();
        for good in ["etc", "etc/", "etc/file", "link"] {
            assert!(check_sub_path(&root, good).is_ok(), "{good}");
        }
        for bad in ["missing", "etc/file/below", "out", "fifo"] {
            assert!(check_sub_path(&root, bad).is_err(), "{bad}");
        }
    }
}
