//! Sparse files: the maps of old GNU headers and of the three PAX forms (0.0, 0.1 and 1.0).

use super::header::number;
use super::pax::{Fault, decimal};
use crate::limits::{PATH, SEGMENTS};

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
pub(super) fn old_table(table: &[u8], segments: &mut Vec<(u64, u64)>) -> Option<()> {
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
