//! The numbers that a hostile or absurd layer meets. Each is named in the error that it causes.

/// Limits of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the uncompressed tar stream. It is what guards against compression bombs.
    pub unpacked_bytes: u64,
    /// Entries of the archive.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { unpacked_bytes: 256 << 30, entries: 10_000_000 }
    }
}
