//! Sparse files: the maps of old GNU headers and of the three PAX forms (0.0, 0.1 and 1.0).

use super::header::{BLOCK, Header, number};
use super::pax::{Fault, decimal};
use super::{Archive, Entry};
use crate::UnpackError;
use crate::limits::{Bound, PATH, SEGMENTS};

/// Bytes of one segment in an old GNU table.
const ROW: usize = 24;

/// A file with holes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::unpack) struct Sparse {
    /// The file's length.
    pub(in crate::unpack) length: u64,
    /// Offset and length of each piece of data, ascending; the data follow in this order.
    pub(in crate::unpack) segments: Vec<(u64, u64)>,
}

impl Sparse {
    /// Checks that the segments are ordered, inside the file, and are `stored` bytes together.
    pub(super) fn new(
        length: u64,
        segments: Vec<(u64, u64)>,
        stored: u64,
    ) -> Result<Self, &'static str> {
        let (mut end, mut sum) = (0, 0_u64);
        for &(offset, count) in &segments {
            if offset < end {
                return Err("segments of a sparse file overlap");
            }
            end = offset
                .checked_add(count)
                .filter(|end| *end <= length)
                .ok_or("segment of a sparse file lies outside it")?;
            // At most `length`: the segments do not overlap.
            sum += count;
        }
        if sum != stored {
            return Err("segments of a sparse file do not add up to its data");
        }
        Ok(Self { length, segments })
    }
}

/// Reads the rows of an old GNU table into `segments`; `None` if one is malformed.
fn old_table(table: &[u8], segments: &mut Vec<(u64, u64)>) -> Option<()> {
    for row in table.chunks_exact(ROW) {
        if row.iter().all(|&byte| byte == 0) {
            break;
        }
        let offset = u64::try_from(number(&row[..12])?).ok()?;
        let count = u64::try_from(number(&row[12..])?).ok()?;
        segments.push((offset, count));
    }
    Some(())
}

/// The `GNU.sparse.` records of an extended header.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    pub(super) name: Option<Vec<u8>>,
    pub(super) length: Option<u64>,
    /// Forms 0.0 and 0.1.
    pub(super) segments: Option<Vec<(u64, u64)>>,
    pending: Option<u64>,
    major: u64,
    minor: u64,
}

impl PaxSparse {
    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        let number =
            || decimal(value).ok_or(Fault::Malformed("record of a sparse file is not a number"));
        match key {
            b"major" => self.major = number()?,
            b"minor" => self.minor = number()?,
            b"size" | b"realsize" => self.length = Some(number()?),
            b"name" => {
                PATH.check(value.len() as u64)?;
                if value.is_empty() || value.contains(&0) {
                    return Err(Fault::Malformed("name of a sparse file is malformed"));
                }
                self.name = Some(value.to_vec());
            }
            b"offset" if self.pending.is_some() => {
                return Err(Fault::Malformed("segment of a sparse file has no length"));
            }
            b"offset" => self.pending = Some(number()?),
            b"numbytes" => {
                let offset = self.pending.take();
                let offset = offset.ok_or(Fault::Malformed("segment has no offset"))?;
                self.push(offset, number()?)?;
            }
            b"map" => {
                self.segments = Some(Vec::new());
                let mut numbers = value.split(|&byte| byte == b',').map(decimal);
                while let Some(offset) = numbers.next() {
                    let pair = offset.zip(numbers.next().flatten());
                    let (offset, count) =
                        pair.ok_or(Fault::Malformed("map of a sparse file is malformed"))?;
                    self.push(offset, count)?;
                }
            }
            // numblocks repeats what the map says.
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, offset: u64, count: u64) -> Result<(), Fault> {
        let segments = self.segments.get_or_insert_default();
        SEGMENTS.check(segments.len() as u64 + 1)?;
        segments.push((offset, count));
        Ok(())
    }

    /// Whether the last segment has an offset but no length.
    pub(super) fn is_cut(&self) -> bool {
        self.pending.is_some()
    }

    /// Whether the map is at the start of the data (form 1.0).
    pub(super) fn map_in_data(&self) -> bool {
        (self.major, self.minor) == (1, 0)
    }
}

impl Archive {
    pub(super) fn old_sparse(
        &mut self,
        header: &Header,
        entry: &mut Entry,
    ) -> Result<(), UnpackError> {
        let malformed = "map of a sparse file is malformed";
        let length = header
            .sparse_length()
            .and_then(|length| u64::try_from(length).ok());
        let length = length.filter(|_| header.is_gnu());
        let length = length.ok_or_else(|| self.malformed(malformed))?;
        let mut segments = Vec::new();
        let (table, mut more) = header.sparse_table();
        old_table(table, &mut segments).ok_or_else(|| self.malformed(malformed))?;
        while more {
            let block = self.block()?.ok_or_else(|| self.ended())?;
            let before = segments.len();
            old_table(&block[..504], &mut segments).ok_or_else(|| self.malformed(malformed))?;
            SEGMENTS.check(segments.len() as u64)?;
            more = block[504] != 0;
            if more && segments.len() - before != 21 {
                return Err(self.malformed(malformed));
            }
        }
        Bound::file(self.limits.unpacked_bytes).check(length)?;
        let sparse = Sparse::new(length, segments, entry.size);
        entry.sparse = Some(sparse.map_err(|reason| self.malformed(reason))?);
        self.expect(entry.size);
        Ok(())
    }

    pub(super) fn pax_sparse(
        &mut self,
        sparse: PaxSparse,
        entry: &mut Entry,
    ) -> Result<(), UnpackError> {
        if sparse.is_cut() {
            return Err(self.malformed("segment of a sparse file has no length"));
        }
        let in_data = sparse.map_in_data();
        let Some(segments) = (if in_data {
            Some(Vec::new())
        } else {
            sparse.segments
        }) else {
            return Ok(());
        };
        let Some(length) = sparse.length else {
            return Err(self.malformed("sparse file has no length"));
        };
        let segments = if in_data {
            self.sparse_map()?
        } else {
            segments
        };
        entry.size = self.data;
        if let Some(name) = sparse.name {
            entry.path = name;
        }
        Bound::file(self.limits.unpacked_bytes).check(length)?;
        let sparse = Sparse::new(length, segments, entry.size);
        entry.sparse = Some(sparse.map_err(|reason| self.malformed(reason))?);
        Ok(())
    }

    /// Form 1.0: a count and pairs of numbers, one a line, at the start of the data, padded.
    fn sparse_map(&mut self) -> Result<Vec<(u64, u64)>, UnpackError> {
        let mut read = 0;
        let count = self.line(&mut read)?;
        SEGMENTS.check(count)?;
        let mut segments = Vec::new();
        for _ in 0..count {
            segments.push((self.line(&mut read)?, self.line(&mut read)?));
        }
        for _ in 0..read.wrapping_neg() % BLOCK as u64 {
            self.byte()?;
        }
        Ok(segments)
    }

    fn line(&mut self, read: &mut u64) -> Result<u64, UnpackError> {
        /// Digits of the largest number.
        const LONGEST: usize = 20;
        let mut digits = Vec::with_capacity(LONGEST);
        loop {
            let byte = self.byte()?;
            *read += 1;
            match byte {
                b'\n' => break,
                byte if digits.len() < LONGEST => digits.push(byte),
                _ => return Err(self.malformed("map of a sparse file is malformed")),
            }
        }
        let number = decimal(&digits);
        number.ok_or_else(|| self.malformed("map of a sparse file is malformed"))
    }

    fn byte(&mut self) -> Result<u8, UnpackError> {
        match self.data()?.first() {
            Some(&byte) => {
                self.consume(1);
                Ok(byte)
            }
            None => Err(self.malformed("map of a sparse file is longer than its data")),
        }
    }
}
