//! A strict reader of tar archives: headers, long names and extended headers in, entries out.
//!
//! It follows POSIX.1-2001 (ustar and pax) and GNU tar, and reads what the field's writers write. It
//! decides nothing about paths and touches no file. Where readers of the field disagree, and so an
//! archive could show different files to different programs, it refuses: a lone zero block, sizes
//! or names given twice with different values, trailing data in a record. Global extended headers
//! are skipped, as the field's runtimes skip them.

mod header;
mod pax;
mod sparse;

use self::header::{BLOCK, Header};
use self::pax::{Fault, Pax};
pub(super) use self::sparse::Sparse;
use super::stream::Stream;
use crate::Limits;
use crate::UnpackError;
use crate::limits::{Bound, LINK, PATH, PAX};

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    /// Another name of the file `link` names.
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// Owner, permissions and time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Permissions with set-id and sticky bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since the epoch and nanoseconds.
    pub(crate) mtime: (i64, u32),
}

/// One entry, as the archive has it: names are not to be trusted.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) meta: Meta,
    /// Bytes of data that follow.
    pub(super) size: u64,
    pub(super) sparse: Option<Sparse>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Major and minor number of a device.
    pub(super) device: (u32, u32),
}

/// What precedes a header and belongs to it.
#[derive(Default)]
struct Extras {
    pax: Option<Pax>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

/// An archive being read.
pub(super) struct Archive {
    stream: Stream,
    /// Bytes of the current entry's data that were not read yet.
    data: u64,
    /// Padding after them.
    padding: u64,
    limits: Limits,
    /// Headers read so far; extended ones count too, so that nobody sends them for ever.
    headers: u64,
}

impl Archive {
    pub(super) fn new(stream: Stream, limits: Limits) -> Self {
        Self {
            stream,
            data: 0,
            padding: 0,
            limits,
            headers: 0,
        }
    }

    /// The next entry, `None` at the end. Data of the last one that were not read are skipped.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, UnpackError> {
        self.skip_data()?;
        let mut extras = Extras::default();
        loop {
            let Some(header) = self.header()? else {
                let alone = extras.pax.is_none() && extras.name.is_none() && extras.link.is_none();
                return if alone {
                    Ok(None)
                } else {
                    Err(self.malformed("extended header is followed by no entry"))
                };
            };
            match header.kind() {
                b'g' => self.skip_block(&header)?,
                b'x' => {
                    let data = self.body(&header)?;
                    let pax = Pax::parse(&data).map_err(|fault| match fault {
                        Fault::Malformed(reason) => self.malformed(reason),
                        Fault::Other(error) => error,
                    })?;
                    self.once(extras.pax.replace(pax).is_some())?;
                }
                b'L' => {
                    let name = self.long(&header, PATH)?;
                    self.once(extras.name.replace(name).is_some())?;
                }
                b'K' => {
                    let link = self.long(&header, LINK)?;
                    self.once(extras.link.replace(link).is_some())?;
                }
                _ => return self.entry(&header, extras).map(Some),
            }
        }
    }

    /// The next piece of the current entry's data, empty when there is no more.
    pub(super) fn data(&mut self) -> Result<&[u8], UnpackError> {
        let left = self.data;
        if left == 0 {
            return Ok(&[]);
        }
        // The borrow checker does not see that the two uses exclude each other.
        if self.stream.chunk(left).is_empty() {
            return Err(self.ended());
        }
        Ok(self.stream.chunk(left))
    }

    /// Moves past `count` bytes of the last [`data`](Self::data).
    pub(super) fn consume(&mut self, count: usize) {
        self.stream.consume(count);
        self.data -= count as u64;
    }

    /// Reads all that follows the archive's end, which is nobody's but is part of the digest.
    pub(super) fn drain(&mut self) {
        self.stream.drain();
    }

    /// An error about the current position.
    pub(super) fn malformed(&self, reason: impl Into<String>) -> UnpackError {
        self.stream.malformed(reason)
    }

    fn ended(&self) -> UnpackError {
        self.malformed("archive ends inside an entry")
    }

    fn once(&self, twice: bool) -> Result<(), UnpackError> {
        if twice {
            Err(self.malformed("entry has two extended headers of a kind"))
        } else {
            Ok(())
        }
    }

    fn skip_data(&mut self) -> Result<(), UnpackError> {
        let mut left = self.data + self.padding;
        while left > 0 {
            let count = self.stream.chunk(left).len();
            if count == 0 && left > self.padding {
                return Err(self.ended());
            }
            if count == 0 {
                // Some writers leave the very last padding out.
                break;
            }
            self.stream.consume(count);
            left -= count as u64;
        }
        self.data = 0;
        self.padding = 0;
        Ok(())
    }

    fn expect(&mut self, size: u64) {
        self.data = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    /// A block, `None` if the stream ends before it.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, UnpackError> {
        let mut block = [0; BLOCK];
        match self.stream.read(&mut block) {
            0 => Ok(None),
            BLOCK => Ok(Some(block)),
            _ => Err(self.malformed("archive ends inside a header")),
        }
    }

    /// The next header, `None` at the archive's end: two zero blocks, or no more bytes.
    fn header(&mut self) -> Result<Option<Header>, UnpackError> {
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        if block != [0; BLOCK] {
            self.headers += 1;
            Bound::entries(self.limits.entries).check(self.headers)?;
            let header = Header::check(block);
            return header
                .map(Some)
                .ok_or_else(|| self.malformed("header has a wrong checksum"));
        }
        match self.block()? {
            Some(second) if second != [0; BLOCK] => {
                Err(self.malformed("a lone zero block is followed by more"))
            }
            _ => Ok(None),
        }
    }

    fn size(&self, header: &Header) -> Result<u64, UnpackError> {
        let size = header.size().and_then(|size| u64::try_from(size).ok());
        size.ok_or_else(|| self.malformed("size is not a number"))
    }

    fn skip_block(&mut self, header: &Header) -> Result<(), UnpackError> {
        let size = self.size(header)?;
        PAX.check(size)?;
        self.expect(size);
        self.skip_data()
    }

    /// The data of an extended header.
    fn body(&mut self, header: &Header) -> Result<Vec<u8>, UnpackError> {
        let size = self.size(header)?;
        PAX.check(size)?;
        self.expect(size);
        let mut body = Vec::new();
        loop {
            let piece = self.data()?;
            let count = piece.len();
            if count == 0 {
                break;
            }
            body.extend_from_slice(piece);
            self.consume(count);
        }
        self.skip_data()?;
        Ok(body)
    }

    /// A GNU long name: its data up to the first NUL.
    fn long(&mut self, header: &Header, bound: Bound) -> Result<Vec<u8>, UnpackError> {
        let mut name = self.body(header)?;
        if let Some(end) = name.iter().position(|&byte| byte == 0) {
            name.truncate(end);
        }
        bound.check(name.len() as u64)?;
        Ok(name)
    }

    fn entry(&mut self, header: &Header, extras: Extras) -> Result<Entry, UnpackError> {
        let Extras {
            pax,
            name: long_name,
            link: long_link,
        } = extras;
        let pax = pax.unwrap_or_default();
        let path = self
            .agreed(pax.path, long_name, "name")?
            .unwrap_or_else(|| header.name());
        let link = self.agreed(pax.link, long_link, "link target")?;
        let link = link.unwrap_or_else(|| header.link().to_vec());

        let kind = match header.kind() {
            // Before ustar, a directory was a file with a slash at the end of its name.
            0 | b'0' if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                let reason = format!("entry type {:?} is not known", char::from(other));
                return Err(self.malformed(reason));
            }
        };
        let mut size = self.size(header)?;
        if kind == Kind::File {
            size = self.agreed_size(size, pax.size)?;
            Bound::file(self.limits.unpacked_bytes).check(size)?;
        } else if matches!(header.kind(), 0 | b'0') && size != 0 {
            return Err(self.malformed("name of a file with data ends with a slash"));
        } else {
            // Only files have data; old writers put other numbers there.
            size = 0;
        }

        let meta = self.meta(header, pax.uid, pax.gid, pax.mtime)?;
        let mut entry = Entry {
            kind,
            path,
            link,
            meta,
            size,
            sparse: None,
            xattrs: pax.xattrs,
            device: self.device(header, kind)?,
        };
        if header.kind() == b'S' {
            self.old_sparse(header, &mut entry)?;
        } else {
            self.expect(size);
            if kind == Kind::File && header.kind() != b'7' {
                self.pax_sparse(pax.sparse, &mut entry)?;
            }
        }
        Ok(entry)
    }

    /// Two ways to give the same name must give the same name.
    fn agreed(
        &self,
        pax: Option<Vec<u8>>,
        gnu: Option<Vec<u8>>,
        what: &str,
    ) -> Result<Option<Vec<u8>>, UnpackError> {
        match (pax, gnu) {
            (Some(pax), Some(gnu)) if pax != gnu => {
                Err(self.malformed(format!("{what} is given twice, differently")))
            }
            (pax, gnu) => Ok(pax.or(gnu)),
        }
    }

    /// The size in an extended header counts, but the header must not say something else: readers
    /// that miss one of the two would see other files. What does not fit there is written as zero
    /// or as the largest number.
    fn agreed_size(&self, header: u64, pax: Option<u64>) -> Result<u64, UnpackError> {
        const LARGEST: u64 = 0o777_7777_7777;
        match pax {
            Some(pax) if header == pax || header == 0 || header == LARGEST => Ok(pax),
            Some(_) => Err(self.malformed("size is given twice, differently")),
            None => Ok(header),
        }
    }

    fn meta(
        &self,
        header: &Header,
        uid: Option<i64>,
        gid: Option<i64>,
        mtime: Option<(i64, u32)>,
    ) -> Result<Meta, UnpackError> {
        let id = |id: Option<i64>| {
            // The highest number means "leave as it is" to the kernel.
            let id = id
                .and_then(|id| u32::try_from(id).ok())
                .filter(|id| *id != u32::MAX);
            id.ok_or_else(|| self.malformed("user or group id is not a number, or too large"))
        };
        let mode = header
            .mode()
            .ok_or_else(|| self.malformed("mode is not a number"))?;
        let mtime = mtime.or_else(|| header.mtime().map(|seconds| (seconds, 0)));
        Ok(Meta {
            mode: (mode & 0o7777) as u32,
            uid: id(uid.or_else(|| header.uid()))?,
            gid: id(gid.or_else(|| header.gid()))?,
            mtime: mtime.ok_or_else(|| self.malformed("time is not a number"))?,
        })
    }

    fn device(&self, header: &Header, kind: Kind) -> Result<(u32, u32), UnpackError> {
        if !matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
            return Ok((0, 0));
        }
        // The kernel has 12 bits for the major and 20 for the minor number.
        let fits = |number: i64, bits: u32| u32::try_from(number).ok().filter(|n| n >> bits == 0);
        let device = header.device();
        let device = device.and_then(|(major, minor)| fits(major, 12).zip(fits(minor, 20)));
        device.ok_or_else(|| self.malformed("device number is not a number, or too large"))
    }
}
