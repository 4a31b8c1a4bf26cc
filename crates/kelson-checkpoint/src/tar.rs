//! Writes tar archives: ustar (POSIX.1-1988), with extended headers (POSIX.1-2001) for what does not
//! fit and for extended attributes.

use std::io::{self, Read, Write};

/// Unit of the format.
const BLOCK: usize = 512;
/// Longest path and link target of a plain header.
const NAME: usize = 100;
/// Largest number in 11 octal digits.
const SIZE: u64 = 0o77_777_777_777;
/// Largest number in 7 octal digits.
const ID: u64 = 0o7_777_777;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file; its bytes follow.
    File,
    /// Another name of the file that the link names.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// An entry.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    /// Its path in the archive.
    pub path: &'a [u8],
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change of its contents, in seconds since 1970.
    pub mtime: i64,
    /// Bytes that follow.
    pub size: u64,
    /// Target of a link.
    pub link: &'a [u8],
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

impl<'a> Entry<'a> {
    /// A file or directory of root's, without attributes.
    pub fn plain(path: &'a [u8], kind: Kind, mode: u32, size: u64) -> Self {
        Self {
            path,
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: 0,
            size,
            link: b"",
            device: (0, 0),
            xattrs: &[],
        }
    }
}

/// An archive under way.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    /// Begins an archive.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// Writes an entry with the first `entry.size` bytes of `data`.
    ///
    /// # Errors
    /// `data` has fewer bytes, or one of both cannot be read or written.
    pub fn entry(&mut self, entry: &Entry<'_>, data: &mut dyn Read) -> io::Result<()> {
        let records = extended(entry);
        if !records.is_empty() {
            let mut header = Entry::plain(b"PaxHeaders/0", Kind::File, 0o600, records.len() as u64);
            header.mtime = entry.mtime;
            self.out.write_all(&block(&header, b'x'))?;
            self.out.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        let kind = match entry.kind {
            Kind::File => b'0',
            Kind::HardLink => b'1',
            Kind::Symlink => b'2',
            Kind::CharDevice => b'3',
            Kind::BlockDevice => b'4',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
        };
        self.out.write_all(&block(entry, kind))?;
        let copied = io::copy(&mut data.take(entry.size), &mut self.out)?;
        if copied != entry.size {
            let text = "a file became shorter while it was read";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        self.pad(entry.size)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        let zeros = [0; BLOCK];
        self.out.write_all(&zeros[..(BLOCK - rest) % BLOCK])
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn end(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }

    /// What was written to, without an end: more entries follow.
    pub fn into_inner(self) -> W {
        self.out
    }
}

/// The records of an extended header, empty when none is needed.
fn extended(entry: &Entry<'_>) -> Vec<u8> {
    let mut all = Vec::new();
    let number = |all: &mut Vec<u8>, key: &[u8], value: u64, largest: u64| {
        if value > largest {
            record(all, key, value.to_string().as_bytes());
        }
    };
    if entry.path.len() > NAME {
        record(&mut all, b"path", entry.path);
    }
    if entry.link.len() > NAME {
        record(&mut all, b"linkpath", entry.link);
    }
    number(&mut all, b"size", entry.size, SIZE);
    number(&mut all, b"uid", entry.uid.into(), ID);
    number(&mut all, b"gid", entry.gid.into(), ID);
    for (name, value) in entry.xattrs {
        record(&mut all, &[b"SCHILY.xattr.", &name[..]].concat(), value);
    }
    all
}

/// `<length> <key>=<value>\n`, where the length counts itself.
fn record(all: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    all.extend_from_slice(length.to_string().as_bytes());
    all.push(b' ');
    all.extend_from_slice(key);
    all.push(b'=');
    all.extend_from_slice(value);
    all.push(b'\n');
}

fn block(entry: &Entry<'_>, kind: u8) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    // What is cut here stands whole in the extended header.
    put(0, &entry.path[..entry.path.len().min(NAME)]);
    let octal = |value: u64, digits: usize| format!("{value:0digits$o}\0").into_bytes();
    put(100, &octal((entry.mode & 0o7777).into(), 7));
    put(108, &octal(u64::from(entry.uid).min(ID), 7));
    put(116, &octal(u64::from(entry.gid).min(ID), 7));
    put(124, &octal(entry.size.min(SIZE), 11));
    let mtime = u64::try_from(entry.mtime).unwrap_or(0).min(SIZE);
    put(136, &octal(mtime, 11));
    put(148, b"        ");
    put(156, &[kind]);
    put(157, &entry.link[..entry.link.len().min(NAME)]);
    put(257, b"ustar\x0000");
    if matches!(kind, b'3' | b'4') {
        put(329, &octal(u64::from(entry.device.0).min(ID), 7));
        put(337, &octal(u64::from(entry.device.1).min(ID), 7));
    }
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// What this writes, GNU tar reads.
    #[test]
    fn others_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        let mut writer = Writer::new(std::fs::File::create(&path).unwrap());
        let long = [b"d/", &[b'x'; 150][..]].concat();
        let none = &mut io::empty();
        writer
            .entry(&Entry::plain(b"d", Kind::Directory, 0o750, 0), none)
            .unwrap();
        let mut file = Entry::plain(&long, Kind::File, 0o4755, 5);
        let xattrs = [(b"user.k".to_vec(), b"v\n=".to_vec())];
        (file.uid, file.gid, file.mtime, file.xattrs) = (3_000_000, 7, 86_400, &xattrs);
        writer.entry(&file, &mut &b"hello and more"[..]).unwrap();
        let mut link = Entry::plain(b"l", Kind::Symlink, 0o777, 0);
        let target = [b'y'; 120];
        link.link = &target;
        writer.entry(&link, none).unwrap();
        writer.end().unwrap();

        let out = Command::new("tar")
            .args(["--numeric-owner", "--utc", "-tvf"])
            .arg(&path)
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
        // The columns are as wide as the widest of their values.
        let text = String::from_utf8_lossy(&out.stdout);
        let words: Vec<&str> = text.split_whitespace().collect();
        let text = words.join(" ");
        let wanted = format!(
            "-rwsr-xr-x 3000000/7 5 1970-01-02 00:00 d/{}",
            "x".repeat(150)
        );
        assert!(text.contains(&wanted), "{text}");
        assert!(
            text.contains(&format!("l -> {}", "y".repeat(120))),
            "{text}"
        );
        assert!(text.contains("drwxr-x--- 0/0 0 "), "{text}");
    }

    #[test]
    fn a_file_that_shrinks_is_an_error() {
        let entry = Entry::plain(b"f", Kind::File, 0o644, 10);
        assert!(
            Writer::new(Vec::new())
                .entry(&entry, &mut &b"abc"[..])
                .is_err()
        );
    }

    #[test]
    fn lengths_of_records_count_themselves() {
        for size in [1, 90, 91, 92, 93, 94, 95, 985, 990, 995] {
            let mut all = Vec::new();
            record(&mut all, b"k", &vec![b'v'; size]);
            let text = String::from_utf8(all).unwrap();
            let (length, _) = text.split_once(' ').unwrap();
            assert_eq!(length.parse::<usize>().unwrap(), text.len());
        }
    }
}
