//! Tar archives as the programs in containers write and read them: ustar with GNU long names, and with
//! extended headers (POSIX.1-2001) when reading. What is read is not to be trusted.

use std::io::{self, ErrorKind, Read, Write};

/// Unit of the format.
const BLOCK: usize = 512;
/// The longest name and link, in bytes.
pub(super) const MAX_NAME: u64 = 4096;
/// The longest extended header, in bytes.
pub(super) const MAX_EXTENDED: u64 = 64 << 10;
/// Bytes of a name in a plain header.
const NAME: usize = 100;
/// Largest number in 11 octal digits.
const MAX_OCTAL: u64 = 0o77_777_777_777;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    /// Another name of the file that the link names.
    HardLink,
    Symlink,
    Directory,
    /// A device, a pipe, or something that is not known.
    Other,
}

/// An entry; its data follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    /// Seconds since 1970.
    pub(super) mtime: u64,
    /// Bytes of data.
    pub(super) size: u64,
}

fn broken(what: impl Into<String>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what.into())
}

/// An archive being read. Reading from it reads the data of the last entry.
#[derive(Debug)]
pub(super) struct Reader<R> {
    from: R,
    /// Data of the last entry that were not read yet, and the padding behind them.
    left: u64,
    padding: u64,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(from: R) -> Self {
        Self {
            from,
            left: 0,
            padding: 0,
        }
    }

    /// The next entry; none at the end. Data of the last one that were not read are skipped.
    pub(super) fn entry(&mut self) -> io::Result<Option<Entry>> {
        let (mut name, mut link, mut size) = (None, None, None);
        loop {
            self.skip()?;
            let mut block = [0; BLOCK];
            match self.from.read_exact(&mut block) {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                    return Err(broken("the archive ends without an end"));
                }
                read => read?,
            }
            if block == [0; BLOCK] {
                // Whoever writes the archive must not wait for a reader.
                io::copy(&mut self.from, &mut io::sink())?;
                return Ok(None);
            }
            if number(&block[148..156]) != Some(checksum(&block)) {
                return Err(broken("a header of the archive has a wrong checksum"));
            }
            self.expect(number(&block[124..136]).ok_or_else(|| broken("a size is no number"))?);
            match block[156] {
                b'g' => {}
                b'L' => name = Some(self.text(MAX_NAME, "name")?),
                b'K' => link = Some(self.text(MAX_NAME, "link")?),
                b'x' => {
                    for (key, value) in records(&self.text(MAX_EXTENDED, "extended header")?)? {
                        match &key[..] {
                            b"path" => name = Some(value),
                            b"linkpath" => link = Some(value),
                            b"size" => size = Some(decimal(&value)?),
                            key if key.starts_with(b"GNU.sparse") => {
                                return Err(broken("sparse files cannot be copied"));
                            }
                            _ => {}
                        }
                    }
                }
                kind => {
                    self.expect(size.unwrap_or(self.left));
                    let link = link.unwrap_or_else(|| until_zero(&block[157..257]).to_vec());
                    let name = name.unwrap_or_else(|| name_of(&block));
                    return self.finish(kind, name, link, &block).map(Some);
                }
            }
        }
    }

    fn finish(
        &mut self,
        kind: u8,
        name: Vec<u8>,
        link: Vec<u8>,
        block: &[u8; BLOCK],
    ) -> io::Result<Entry> {
        let kind = match kind {
            0 | b'0' if name.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'5' => Kind::Directory,
            b'S' => return Err(broken("sparse files cannot be copied")),
            _ => Kind::Other,
        };
        if !matches!(kind, Kind::File | Kind::Other) {
            // Old writers put other numbers there.
            self.expect(0);
        }
        for (text, what) in [(&name, "name"), (&link, "link")] {
            if text.len() as u64 > MAX_NAME {
                return Err(broken(format!("a {what} of more than {MAX_NAME} bytes")));
            }
        }
        let mode = number(&block[100..108]).unwrap_or(0o600) & 0o777;
        Ok(Entry {
            kind,
            name,
            link,
            mode: u32::try_from(mode).unwrap_or(0o600),
            mtime: number(&block[136..148]).unwrap_or(0),
            size: self.left,
        })
    }

    fn expect(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn skip(&mut self) -> io::Result<()> {
        let left = self.left.saturating_add(self.padding);
        self.expect(0);
        match io::copy(&mut (&mut self.from).take(left), &mut io::sink())? {
            count if count < left => Err(broken("the archive ends inside an entry")),
            _ => Ok(()),
        }
    }

    /// The data of an entry that are a text, up to a zero at their end.
    fn text(&mut self, limit: u64, what: &str) -> io::Result<Vec<u8>> {
        if self.left > limit + 1 {
            return Err(broken(format!("a {what} of more than {limit} bytes")));
        }
        let mut text = Vec::new();
        self.read_to_end(&mut text)?;
        if text.last() == Some(&0) {
            text.pop();
        }
        Ok(text)
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let count = self.from.read(&mut buffer[..most])?;
        if count == 0 && most > 0 {
            return Err(broken("the archive ends inside an entry"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// Octal digits, or the binary form of GNU for what does not fit.
fn number(field: &[u8]) -> Option<u64> {
    if let Some((0x80, rest)) = field.split_first() {
        let (high, low) = rest.split_at(rest.len().saturating_sub(8));
        let fits = high.iter().all(|byte| *byte == 0);
        return fits.then(|| low.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)));
    }
    let text = std::str::from_utf8(until_zero(field)).ok()?.trim();
    match text {
        "" => Some(0),
        _ => u64::from_str_radix(text, 8).ok(),
    }
}

fn decimal(text: &[u8]) -> io::Result<u64> {
    let number = std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok());
    number.ok_or_else(|| broken("a size in an extended header is no number"))
}

fn until_zero(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn name_of(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_zero(&block[..NAME]);
    let prefix = match &block[257..263] {
        b"ustar\0" => until_zero(&block[345..500]),
        _ => b"",
    };
    match prefix {
        b"" => name.to_vec(),
        _ => [prefix, b"/", name].concat(),
    }
}

fn checksum(block: &[u8; BLOCK]) -> u64 {
    let spaces = u64::from(b' ') * 8;
    let all = block[..148].iter().chain(&block[156..]);
    all.map(|byte| u64::from(*byte)).sum::<u64>() + spaces
}

/// The records of an extended header: `<length> <key>=<value>\n`, where the length counts itself.
fn records(mut text: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut all = Vec::new();
    while !text.is_empty() {
        let record = || {
            let space = text.iter().position(|byte| *byte == b' ')?;
            let length: usize = std::str::from_utf8(&text[..space]).ok()?.parse().ok()?;
            let record = text.get(space + 1..length)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|byte| *byte == b'=')?;
            Some((length, &record[..equals], &record[equals + 1..]))
        };
        let (length, key, value) = record().ok_or_else(|| broken("a broken extended header"))?;
        all.push((key.to_vec(), value.to_vec()));
        text = &text[length..];
    }
    Ok(all)
}

/// An archive being written. Owners are left to who unpacks it.
#[derive(Debug)]
pub(super) struct Writer<W> {
    to: W,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(to: W) -> Self {
        Self { to }
    }

    /// Writes an entry with the first `entry.size` bytes of `data`.
    pub(super) fn entry(&mut self, entry: &Entry, data: &mut impl Read) -> io::Result<()> {
        for (text, kind) in [(&entry.name, b'L'), (&entry.link, b'K')] {
            if text.len() > NAME {
                let size = text.len() as u64 + 1;
                let long = header(b"././@LongLink", b"", kind, 0o644, 0, size);
                self.to.write_all(&long)?;
                self.to.write_all(text)?;
                self.to.write_all(&[0])?;
                self.pad(size)?;
            }
        }
        let kind = match entry.kind {
            Kind::File => b'0',
            Kind::HardLink => b'1',
            Kind::Symlink => b'2',
            Kind::Directory => b'5',
            Kind::Other => return Err(broken("neither a file, a directory nor a link")),
        };
        let Entry {
            name,
            link,
            mode,
            mtime,
            size,
            ..
        } = entry;
        self.to
            .write_all(&header(name, link, kind, *mode, *mtime, *size))?;
        let copied = io::copy(&mut data.take(*size), &mut self.to)?;
        if copied != *size {
            return Err(broken("a file became shorter while it was read"));
        }
        self.pad(*size)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = usize::try_from(size.wrapping_neg() % BLOCK as u64).unwrap_or(0);
        self.to.write_all(&[0; BLOCK][..rest])
    }

    /// Ends the archive.
    pub(super) fn end(mut self) -> io::Result<()> {
        self.to.write_all(&[0; 2 * BLOCK])?;
        self.to.flush()
    }
}

fn header(name: &[u8], link: &[u8], kind: u8, mode: u32, mtime: u64, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    // What is cut here stands whole in front of it.
    put(0, &name[..name.len().min(NAME)]);
    put(100, format!("{:07o}\0", mode & 0o7777).as_bytes());
    put(108, b"0000000\x000000000\0");
    if size <= MAX_OCTAL {
        put(124, format!("{size:011o}\0").as_bytes());
    } else {
        put(124, &[0x80, 0, 0, 0]);
        put(128, &size.to_be_bytes());
    }
    put(136, format!("{:011o}\0", mtime.min(MAX_OCTAL)).as_bytes());
    put(156, &[kind]);
    put(157, &link[..link.len().min(NAME)]);
    put(257, b"ustar  \0");
    let sum = checksum(&block);
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn entry(kind: Kind, name: &str, link: &str, size: u64) -> Entry {
        Entry {
            kind,
            name: name.into(),
            link: link.into(),
            mode: 0o640,
            mtime: 86_400,
            size,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let (long, far) = ("d/".to_owned() + &"x".repeat(300), "y".repeat(150));
        let entries = [
            (entry(Kind::Directory, "d", "", 0), ""),
            (entry(Kind::File, &long, "", 5), "hello"),
            (entry(Kind::Symlink, "l", &far, 0), ""),
            (entry(Kind::HardLink, "h", "d", 0), ""),
            (entry(Kind::File, "empty", "", 0), ""),
        ];
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        for (entry, data) in &entries {
            writer.entry(entry, &mut data.as_bytes()).unwrap();
        }
        writer.end().unwrap();
        let mut reader = Reader::new(&bytes[..]);
        for (entry, data) in &entries {
            assert_eq!(reader.entry().unwrap().as_ref(), Some(entry));
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            assert_eq!(&text, data);
        }
        assert_eq!(reader.entry().unwrap(), None);
        // However it is cut off, that is seen.
        for length in 0..bytes.len() - 2 * BLOCK + 1 {
            let mut reader = Reader::new(&bytes[..length]);
            while let Ok(entry) = reader.entry() {
                assert!(entry.is_some(), "{length}");
            }
        }
    }

    #[test]
    fn large_files_have_their_size() {
        let size = 9 << 30;
        let header = header(b"f", b"", b'0', 0o644, 0, size);
        assert_eq!(number(&header[124..136]), Some(size));
        assert_eq!(number(b"\x80\x01\0\0\0\0\0\0\0\0\0\0"), None);
        assert_eq!(number(b"12x4567\0"), None);
        assert_eq!(number(b" 17 \0\0"), Some(15));
    }

    #[test]
    fn limits_hold() {
        let read = |kind, text: &str| {
            let head = header(b"x", b"", kind, 0, 0, text.len() as u64);
            let mut bytes = [&head[..], text.as_bytes()].concat();
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
            bytes.extend(header(b"f", b"", b'0', 0, 0, 0));
            Reader::new(&bytes[..]).entry()
        };
        let name = |length: usize| "n".repeat(length);
        assert_eq!(read(b'L', &name(4096)).unwrap().unwrap().name.len(), 4096);
        for (kind, length, limit) in [
            (b'L', 4098, "4096"),
            (b'K', 4098, "4096"),
            (b'x', 70_000, "65536"),
        ] {
            let error = read(kind, &name(length)).unwrap_err().to_string();
            assert!(error.contains(limit), "{error}");
        }
        let path = format!("{} path={}\n", 5011, name(5000));
        assert!(read(b'x', &path).unwrap_err().to_string().contains("4096"));
        assert_eq!(read(b'x', "10 path=b\n").unwrap().unwrap().name, b"b");
        for bad in [
            "10 path=b",
            "99 path=b\n",
            "x path=b\n",
            "3 \n",
            "7 path\n",
            "12 size=abc\n",
        ] {
            assert!(read(b'x', bad).is_err(), "{bad:?}");
        }
        assert!(
            read(b'x', "22 GNU.sparse.major=1\n")
                .unwrap_err()
                .to_string()
                .contains("sparse")
        );
    }

    /// What this writes, and what others write.
    #[test]
    fn other_programs_agree() {
        let dir = tempfile::tempdir().unwrap();
        let long = format!("d/{}", "x".repeat(200));
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        let none = &mut io::empty();
        writer
            .entry(&entry(Kind::Directory, "d", "", 0), none)
            .unwrap();
        writer
            .entry(&entry(Kind::File, &long, "", 5), &mut &b"hello"[..])
            .unwrap();
        writer.end().unwrap();
        for program in ["tar", "busybox tar"] {
            let out = dir.path().join(program.replace(' ', "-"));
            std::fs::create_dir(&out).unwrap();
            let script = format!("{program} xof - && {program} cf - d");
            let mut child = std::process::Command::new("sh")
                .args(["-c", &script])
                .current_dir(&out)
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(&bytes).unwrap();
            let output = child.wait_with_output().unwrap();
            if output.status.code() == Some(127) {
                eprintln!("skipped: {program} is not there");
                continue;
            }
            assert_eq!(std::fs::read_to_string(out.join(&long)).unwrap(), "hello");
            let mut reader = Reader::new(&output.stdout[..]);
            assert_eq!(reader.entry().unwrap().unwrap().kind, Kind::Directory);
            let file = reader.entry().unwrap().unwrap();
            assert_eq!((file.name, file.size), (long.clone().into_bytes(), 5));
            assert_eq!(reader.entry().unwrap(), None);
        }
    }
}
