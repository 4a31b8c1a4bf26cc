//! How a record is written and read back: an envelope with a version around the record's own JSON.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::MAX_RECORD;
use crate::error::StoreError;

/// A type that is kept in a [`Store`](crate::Store).
///
/// Adding an optional field keeps the version. Anything an older program would misread raises it, and
/// [`upgrade`](Record::upgrade) then reads the older form.
pub trait Record: Serialize + DeserializeOwned {
    /// The table the records of this type live in.
    const TABLE: &'static str;
    /// The version written. Starts at 1.
    const VERSION: u32;

    /// Reads `record` written as an older `version` (always below [`VERSION`](Record::VERSION)).
    ///
    /// `None` means that this program does not know that version; the record is then left alone.
    fn upgrade(version: u32, record: Value) -> Option<Result<Self, serde_json::Error>> {
        let _ = (version, record);
        None
    }
}

/// A record that is in the database and that this program cannot read.
#[derive(Debug)]
pub struct Unreadable {
    /// The table.
    pub table: &'static str,
    /// The key.
    pub key: String,
    /// Why.
    pub reason: Reason,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, key, reason } = self;
        match reason {
            Reason::UnknownVersion(version) => write!(
                f,
                "record {key:?} of table {table} has version {version}, which this program does not know"
            ),
            Reason::Malformed(_) => write!(f, "record {key:?} of table {table} is malformed"),
        }
    }
}

impl std::error::Error for Unreadable {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.reason {
            Reason::UnknownVersion(_) => None,
            Reason::Malformed(source) => Some(source),
        }
    }
}

/// Why a record cannot be read.
#[derive(Debug)]
pub enum Reason {
    /// It was written in a version this program does not know.
    UnknownVersion(u32),
    /// Its bytes are not what its version promises.
    Malformed(serde_json::Error),
}

#[derive(Serialize)]
struct Written<'a, R> {
    v: u32,
    record: &'a R,
}

#[derive(Deserialize)]
struct Version {
    v: u32,
}

#[derive(Deserialize)]
struct Body<R> {
    record: R,
}

pub(crate) fn encode<R: Record>(key: &str, record: &R) -> Result<Vec<u8>, StoreError> {
    let bytes = serde_json::to_vec(&Written {
        v: R::VERSION,
        record,
    })
    .map_err(|source| StoreError::Encode {
        table: R::TABLE,
        key: key.to_owned(),
        source,
    })?;
    if bytes.len() > MAX_RECORD {
        return Err(StoreError::TooLarge {
            table: R::TABLE,
            key: key.to_owned(),
            size: bytes.len(),
        });
    }
    Ok(bytes)
}

pub(crate) fn decode<R: Record>(bytes: &[u8]) -> Result<R, Reason> {
    let Version { v } = serde_json::from_slice(bytes).map_err(Reason::Malformed)?;
    if v == R::VERSION {
        let body: Body<R> = serde_json::from_slice(bytes).map_err(Reason::Malformed)?;
        return Ok(body.record);
    }
    if v > R::VERSION {
        return Err(Reason::UnknownVersion(v));
    }
    let body: Body<Value> = serde_json::from_slice(bytes).map_err(Reason::Malformed)?;
    match R::upgrade(v, body.record) {
        None => Err(Reason::UnknownVersion(v)),
        Some(result) => result.map_err(Reason::Malformed),
    }
}
