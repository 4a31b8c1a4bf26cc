//! The errors of the store. They name the operation and the file, never the content of a record.

use std::path::{Path, PathBuf};

use crate::record::Unreadable;

/// Why a database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has the file open.
    #[error(
        "{} is in use by another process; stop the other daemon or give this one its own directories",
        path.display()
    )]
    InUse {
        /// The database file.
        path: PathBuf,
    },
    /// The file is not a database, or is damaged beyond repair.
    #[error("{} is damaged; move it away to start with empty state", path.display())]
    Damaged {
        /// The database file.
        path: PathBuf,
        /// What the database library found.
        #[source]
        source: Box<redb::DatabaseError>,
    },
    /// The file or its directory could not be opened or created.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: std::io::Error,
    },
}

impl OpenError {
    pub(crate) fn from_redb(path: &Path, error: redb::DatabaseError) -> Self {
        let path = path.to_owned();
        match error {
            redb::DatabaseError::DatabaseAlreadyOpen => Self::InUse { path },
            redb::DatabaseError::Storage(redb::StorageError::Io(source))
                if source.kind() != std::io::ErrorKind::InvalidData =>
            {
                Self::Io {
                    operation: "open the database",
                    path,
                    source,
                }
            }
            other => Self::Damaged {
                path,
                source: Box::new(other),
            },
        }
    }
}

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused the operation: usually a full or failing disk.
    #[error("cannot {operation} in {}", path.display())]
    Database {
        /// What was tried.
        operation: &'static str,
        /// The database file.
        path: PathBuf,
        /// What the database library answered.
        #[source]
        source: Box<redb::Error>,
    },
    /// The record is there, but this program cannot read it.
    #[error("{0}")]
    Unreadable(Unreadable),
    /// The record cannot be expressed as JSON (a map with keys that are not strings, for example).
    #[error("cannot encode record {key:?} of table {table}")]
    Encode {
        /// The table.
        table: &'static str,
        /// The key.
        key: String,
        /// What the encoder answered.
        #[source]
        source: serde_json::Error,
    },
    /// The encoded record is larger than [`MAX_RECORD`](crate::MAX_RECORD).
    #[error(
        "record {key:?} of table {table} has {size} bytes, more than the limit of {}",
        crate::MAX_RECORD
    )]
    TooLarge {
        /// The table.
        table: &'static str,
        /// The key.
        key: String,
        /// The encoded size in bytes.
        size: usize,
    },
}
