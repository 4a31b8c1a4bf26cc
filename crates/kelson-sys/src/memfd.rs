//! Sealed copies of files in memory: what runs from one cannot be overwritten, whoever holds it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Result;

const SEALS: SealFlags = SealFlags::SEAL
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);

/// Copies the file at `path` into a memfd named `name`, executable and sealed against every
/// change. The descriptor is close-on-exec.
pub fn sealed_copy_of(path: &Path, name: &str) -> Result<OwnedFd> {
    let source = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let size = rustix::fs::fstat(&source)?.st_size.cast_unsigned();
    let copy = create(name)?;
    let mut left = size;
    while left > 0 {
        let chunk = usize::try_from(left).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::sendfile(&copy, &source, None, chunk)? {
            0 => break,
            n => left = left.saturating_sub(n as u64),
        }
    }
    rustix::fs::fcntl_add_seals(&copy, SEALS)?;
    Ok(copy)
}

/// A sealed memfd with `contents`.
pub fn sealed(name: &str, contents: &[u8]) -> Result<OwnedFd> {
    let copy = create(name)?;
    let mut rest = contents;
    while !rest.is_empty() {
        rest = &rest[rustix::io::write(&copy, rest)?..];
    }
    rustix::fs::fcntl_add_seals(&copy, SEALS)?;
    Ok(copy)
}

/// Whether the file behind `fd` is sealed against every change.
pub fn is_sealed(fd: impl AsFd) -> bool {
    rustix::fs::fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(SEALS))
}

/// A memfd; kernels before 6.3 do not know the flag that says it is meant to be executed.
fn create(name: &str) -> Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create(name, flags | MemfdFlags::EXEC) {
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create(name, flags),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_whole_and_cannot_be_changed() {
        let path = Path::new("/proc/self/exe");
        let copy = sealed_copy_of(path, "test").unwrap();
        assert!(is_sealed(&copy));
        let size = rustix::fs::stat(path).unwrap().st_size;
        assert_eq!(rustix::fs::fstat(&copy).unwrap().st_size, size);
        assert_eq!(
            rustix::io::pwrite(&copy, b"x", 0).unwrap_err(),
            rustix::io::Errno::PERM
        );
        assert_eq!(
            rustix::fs::ftruncate(&copy, 0).unwrap_err(),
            rustix::io::Errno::PERM
        );
    }

    #[test]
    fn a_plain_file_is_not_sealed() {
        assert!(!is_sealed(std::fs::File::open("/proc/self/exe").unwrap()));
    }
}
