//! How the mounts of the host propagate: a bind mount can share only what its source shares.

use std::path::{Path, PathBuf};

use crate::config::Propagation;
use crate::world::FileError;

/// A mount of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    point: PathBuf,
    shared: bool,
    slave: bool,
}

/// The mounts of this process's namespace.
pub(crate) fn read() -> Result<Vec<Entry>, FileError> {
    let path = Path::new("/proc/self/mountinfo");
    let text = std::fs::read_to_string(path).map_err(FileError::on("read", path))?;
    Ok(parse(&text))
}

/// Whether a bind mount of `source` can propagate so; if not, what to tell.
pub(crate) fn allows(table: &[Entry], source: &Path, wanted: Propagation) -> Result<(), String> {
    let holder = table
        .iter()
        .filter(|entry| source.starts_with(&entry.point))
        // The last of several mounts on one point covers the others.
        .max_by_key(|entry| entry.point.components().count());
    let (shared, slave) = holder.map_or((false, false), |entry| (entry.shared, entry.slave));
    let (right, must) = match wanted {
        Propagation::Private => (true, ""),
        Propagation::HostToContainer => (shared || slave, "a shared or slave mount"),
        Propagation::Bidirectional => (shared, "a shared mount"),
    };
    if right {
        return Ok(());
    }
    let point = holder.map_or(Path::new("/"), |entry| &entry.point);
    Err(format!(
        "{} must be on {must}, and {} is none; make it one with mount --make-rshared",
        source.display(),
        point.display()
    ))
}

/// A mount of a process's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mounted {
    pub(crate) id: u64,
    pub(crate) point: PathBuf,
    /// The type of its file system.
    pub(crate) kind: String,
}

/// The mounts of the process whose directory in procfs this is.
pub(crate) fn of(process: &Path) -> Result<Vec<Mounted>, FileError> {
    let path = process.join("mountinfo");
    let text = std::fs::read_to_string(&path).map_err(FileError::on("read", &path))?;
    Ok(mounted(&text))
}

pub(crate) fn mounted(text: &str) -> Vec<Mounted> {
    let mounted = |line: &str| {
        let mut fields = line.split(' ');
        let id = fields.next()?.parse().ok()?;
        let point = PathBuf::from(unescape(fields.nth(3)?));
        let kind = fields.skip_while(|field| *field != "-").nth(1)?.to_owned();
        Some(Mounted { id, point, kind })
    };
    text.lines().filter_map(mounted).collect()
}

fn parse(text: &str) -> Vec<Entry> {
    text.lines().filter_map(line).collect()
}

/// `36 35 98:0 /root /point options optional… - type source options`
fn line(line: &str) -> Option<Entry> {
    let mut fields = line.split(' ').skip(4);
    let point = PathBuf::from(unescape(fields.next()?));
    let optional: Vec<&str> = fields.skip(1).take_while(|field| *field != "-").collect();
    let any = |start: &str| optional.iter().any(|field| field.starts_with(start));
    Some(Entry {
        point,
        shared: any("shared:"),
        slave: any("master:"),
    })
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
fn unescape(text: &str) -> String {
    let escapes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    escapes
        .iter()
        .fold(text.to_owned(), |text, (escape, plain)| {
            text.replace(escape, plain)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 0:5 / /shared rw shared:7 - tmpfs t rw
31 22 0:6 / /slave rw master:7 - tmpfs t rw
32 30 0:7 / /shared/with\\040space rw - tmpfs t rw
";

    #[test]
    fn the_mount_that_holds_the_source_decides() {
        let table = parse(TABLE);
        let allowed = |path: &str, wanted| allows(&table, Path::new(path), wanted).is_ok();
        assert!(allowed("/etc", Propagation::Private));
        assert!(!allowed("/etc", Propagation::HostToContainer));
        assert!(!allowed("/sharedx", Propagation::Bidirectional));
        assert!(allowed("/shared/x", Propagation::Bidirectional));
        assert!(allowed("/shared", Propagation::HostToContainer));
        assert!(allowed("/slave/x", Propagation::HostToContainer));
        assert!(!allowed("/slave/x", Propagation::Bidirectional));
        assert!(!allowed("/shared/with space/x", Propagation::Bidirectional));
    }

    #[test]
    fn the_machines_own_table_is_read() {
        assert!(
            read()
                .unwrap()
                .iter()
                .any(|entry| entry.point == Path::new("/"))
        );
    }
}
