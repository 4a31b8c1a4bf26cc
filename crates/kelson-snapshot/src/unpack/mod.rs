//! Unpacks one layer: the bytes flow once, through three threads.
//!
//! ```text
//! blob ─ count, hash ─ decompress ─▶ hash ─▶ read tar, write files
//!            ▲  caller's thread              │
//!            └────────── buffers ◀───────────┘
//! ```
//! The buffers go round, so memory is bounded by their number, and a slow disk slows the download.

mod blob;
mod extract;
mod layer;
mod name;
mod stream;
mod tar;
#[cfg(test)]
mod tests;

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread;

use sha2::{Digest as _, Sha256};

use self::blob::{Blob, Decoder};
pub(crate) use self::extract::Extracted;
use self::stream::{BUFFER, BUFFERS, Buffer, Stream};
pub(crate) use self::tar::Meta;
use crate::limits::Bound;
use crate::{Digest, Expected, Limits, UnpackError, Which};

/// Unpacks `blob` into `root`, an empty directory into which nobody else writes, and checks both
/// digests. After an error the directory holds an unknown part of the layer.
pub(crate) fn unpack(
    blob: &mut (dyn Read + Send),
    expected: &Expected,
    limits: &Limits,
    root: OwnedFd,
) -> Result<Extracted, UnpackError> {
    let mut blob = Blob::new(blob, *expected);
    let (to_hash, hashing) = sync_channel(BUFFERS);
    let (to_extract, extracting) = channel();
    let (give_back, empty) = channel();
    for _ in 0..BUFFERS {
        let buffer = Buffer {
            data: vec![0; BUFFER].into_boxed_slice(),
            len: 0,
        };
        // The other end is in this function.
        let _ = give_back.send(buffer);
    }
    let (decompressed, digest, extracted) = thread::scope(|scope| {
        let hasher = scope.spawn(move || hash(&hashing, &to_extract));
        let extractor = scope.spawn(move || {
            let stream = Stream::new(extracting, give_back);
            extract::extract(&mut tar::Archive::new(stream, *limits), root)
        });
        let decompressed = decompress(&mut blob, limits, &empty, to_hash);
        (decompressed, join(hasher), join(extractor))
    });
    decompressed?;
    match extracted {
        Err(error @ UnpackError::Format { .. }) => {
            // A blob that is damaged on the way is worth another try; one that was made badly is not.
            blob.finish()?;
            Err(error)
        }
        Err(error) => Err(error),
        Ok(extracted) => {
            blob.finish()?;
            let expected = *expected.diff_id.digest();
            if digest != expected {
                let which = Which::Uncompressed;
                return Err(UnpackError::DigestMismatch {
                    which,
                    expected,
                    got: digest,
                });
            }
            Ok(extracted)
        }
    }
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Fills buffers until the blob ends or the extractor has gone away.
fn decompress(
    blob: &mut Blob<'_>,
    limits: &Limits,
    empty: &Receiver<Buffer>,
    full: SyncSender<Buffer>,
) -> Result<(), UnpackError> {
    let mut total = 0;
    let result = pump(blob, limits, empty, &full, &mut total);
    drop(full);
    match result {
        Err(Stop::Read(error)) => {
            let error = blob.explain(total, error);
            if let UnpackError::Format { .. } = error {
                // Whether the bytes are the right ones matters more than what is wrong with them.
                blob.finish()?;
            }
            Err(error)
        }
        Err(Stop::Other(error)) => Err(error),
        Ok(()) => Ok(()),
    }
}

enum Stop {
    Read(io::Error),
    Other(UnpackError),
}

fn pump(
    blob: &mut Blob<'_>,
    limits: &Limits,
    empty: &Receiver<Buffer>,
    full: &SyncSender<Buffer>,
    total: &mut u64,
) -> Result<(), Stop> {
    let bound = Bound::unpacked(limits.unpacked_bytes);
    let mut decoder = Decoder::detect(blob).map_err(Stop::Other)?;
    while let Ok(mut buffer) = empty.recv() {
        buffer.len = 0;
        while buffer.len < buffer.data.len() {
            match decoder.read(&mut buffer.data[buffer.len..]) {
                Ok(0) => {
                    *total += buffer.len as u64;
                    bound.check(*total).map_err(Stop::Other)?;
                    // Nobody left to take it is reported by the one who left.
                    let _ = full.send(buffer);
                    return Ok(());
                }
                Ok(count) => buffer.len += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Stop::Read(error)),
            }
        }
        *total += buffer.len as u64;
        bound.check(*total).map_err(Stop::Other)?;
        if full.send(buffer).is_err() {
            break;
        }
    }
    Ok(())
}

/// Hashes the buffers on their way to the extractor.
fn hash(full: &Receiver<Buffer>, onward: &std::sync::mpsc::Sender<Buffer>) -> Digest {
    let mut hash = Sha256::new();
    for buffer in full {
        hash.update(&buffer.data[..buffer.len]);
        if onward.send(buffer).is_err() {
            break;
        }
    }
    Digest::from_bytes(hash.finalize().into())
}
