//! Durable state: versioned records in one embedded database file.
//!
//! A [`Store`] is a file with named tables of records. A record is a Rust type that says which table it
//! lives in, which version it is written as, and how older versions are read ([`Record`]). On disk it is
//! JSON: `{"v": <version>, "record": {…}}`.
//!
//! Every commit is durable when the call returns, and a [`Batch`] is all or nothing; `kill -9` at any
//! instruction leaves the last commit. Records of a version this program does not know are never changed
//! or deleted by a scan: they are reported ([`Unreadable`]) and stay for the program that knows them.
//!
//! Calls are synchronous and short (tens of microseconds on tmpfs, a file-system sync on a disk); an async
//! caller that stores on a disk moves them to a blocking thread.
//!
//! This crate never knows what a record means.

mod error;
mod record;

use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{ReadableDatabase, ReadableTable, TableDefinition};

pub use error::{OpenError, StoreError};
pub use record::{Reason, Record, Unreadable};

/// Pages kept in memory. The records of a node are a few MiB at most.
const CACHE_BYTES: usize = 4 << 20;

/// Largest encoded record, in bytes. A larger one is a mistake of the caller ([`StoreError::TooLarge`]).
pub const MAX_RECORD: usize = 8 << 20;

/// An open database file. Cheap to clone; closed when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Store {
    db: Arc<redb::Database>,
    path: Arc<Path>,
}

/// What [`Store::scan`] found in a table.
#[derive(Debug)]
pub struct Scan<R> {
    /// Records this program can read, by key in byte order.
    pub records: Vec<(String, R)>,
    /// Records left alone because this program cannot read them.
    pub unreadable: Vec<Unreadable>,
}

/// A set of changes that are committed together or not at all.
#[derive(Debug, Default)]
pub struct Batch {
    changes: Vec<Change>,
}

#[derive(Debug)]
struct Change {
    table: &'static str,
    key: String,
    /// `None` deletes the key.
    value: Option<Vec<u8>>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds "write `record` under `key`", replacing what is there.
    pub fn put<R: Record>(&mut self, key: &str, record: &R) -> Result<&mut Self, StoreError> {
        let value = record::encode(key, record)?;
        self.changes.push(Change {
            table: R::TABLE,
            key: key.to_owned(),
            value: Some(value),
        });
        Ok(self)
    }

    /// Adds "delete `key` from the table of `R`". A key that is not there is no error.
    pub fn delete<R: Record>(&mut self, key: &str) -> &mut Self {
        self.changes.push(Change {
            table: R::TABLE,
            key: key.to_owned(),
            value: None,
        });
        self
    }

    /// Adds all changes of `other` after those of this batch.
    pub fn append(&mut self, mut other: Self) {
        self.changes.append(&mut other.changes);
    }

    /// Whether a commit would change nothing.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

impl Store {
    /// Opens the database at `path`, creating it (mode 0600) and its directory (mode 0700) when missing.
    ///
    /// A file that was open when its process was killed is repaired here. Only one process can have a file
    /// open ([`OpenError::InUse`]).
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        if let Some(parent) = path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)
                .map_err(|source| OpenError::Io {
                    operation: "create directory",
                    path: parent.to_owned(),
                    source,
                })?;
        }
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|source| OpenError::Io {
                operation: "open",
                path: path.to_owned(),
                source,
            })?;
        let db = redb::Builder::new()
            .set_cache_size(CACHE_BYTES)
            .create_file(file)
            .map_err(|source| OpenError::from_redb(path, source))?;
        Ok(Self {
            db: Arc::new(db),
            path: Arc::from(path),
        })
    }

    /// The file this store is kept in.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads one record; `None` when the key is not there.
    ///
    /// A record that is there but cannot be read is [`StoreError::Unreadable`].
    pub fn get<R: Record>(&self, key: &str) -> Result<Option<R>, StoreError> {
        let value = self.read("read a record", |transaction| {
            let Some(table) = open_table::<R>(transaction)? else {
                return Ok(None);
            };
            Ok(table.get(key)?.map(|guard| guard.value().to_vec()))
        })?;
        match value {
            None => Ok(None),
            Some(bytes) => record::decode::<R>(&bytes).map(Some).map_err(|reason| {
                StoreError::Unreadable(Unreadable {
                    table: R::TABLE,
                    key: key.to_owned(),
                    reason,
                })
            }),
        }
    }

    /// Reads a whole table from one consistent state of the database.
    pub fn scan<R: Record>(&self) -> Result<Scan<R>, StoreError> {
        self.read("read a table", |transaction| {
            let mut scan = Scan {
                records: Vec::new(),
                unreadable: Vec::new(),
            };
            let Some(table) = open_table::<R>(transaction)? else {
                return Ok(scan);
            };
            for entry in table.iter()? {
                let (key, value) = entry?;
                let key = key.value().to_owned();
                match record::decode::<R>(value.value()) {
                    Ok(record) => scan.records.push((key, record)),
                    Err(reason) => {
                        scan.unreadable.push(Unreadable {
                            table: R::TABLE,
                            key,
                            reason,
                        });
                    }
                }
            }
            Ok(scan)
        })
    }

    /// Writes one record durably, replacing what is there.
    pub fn put<R: Record>(&self, key: &str, record: &R) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        batch.put(key, record)?;
        self.commit(batch)
    }

    /// Deletes one record durably. A key that is not there is no error.
    pub fn delete<R: Record>(&self, key: &str) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        batch.delete::<R>(key);
        self.commit(batch)
    }

    /// Makes all changes of `batch` durable at once. An empty batch does nothing.
    pub fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        self.try_commit(&batch)
            .map_err(|source| StoreError::Database {
                operation: "commit",
                path: self.path.to_path_buf(),
                source: Box::new(source),
            })
    }

    fn try_commit(&self, batch: &Batch) -> Result<(), redb::Error> {
        let mut transaction = self.db.begin_write()?;
        transaction.set_durability(redb::Durability::Immediate)?;
        for change in &batch.changes {
            let mut table = transaction.open_table(definition(change.table))?;
            match &change.value {
                Some(value) => table.insert(change.key.as_str(), value.as_slice())?,
                None => table.remove(change.key.as_str())?,
            };
        }
        transaction.commit()?;
        Ok(())
    }

    fn read<T>(
        &self,
        operation: &'static str,
        body: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let attempt = || body(&self.db.begin_read()?);
        attempt().map_err(|source| StoreError::Database {
            operation,
            path: PathBuf::from(&*self.path),
            source: Box::new(source),
        })
    }
}

fn definition(name: &str) -> TableDefinition<'_, &'static str, &'static [u8]> {
    TableDefinition::new(name)
}

type ReadTable = redb::ReadOnlyTable<&'static str, &'static [u8]>;

/// The table of `R`, or `None` when nothing was ever written to it.
fn open_table<R: Record>(
    transaction: &redb::ReadTransaction,
) -> Result<Option<ReadTable>, redb::Error> {
    match transaction.open_table(definition(R::TABLE)) {
        Ok(table) => Ok(Some(table)),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
