//! The uncompressed bytes on their way from the decompressor to the extractor: large buffers that
//! go round in a ring, so that memory is bounded and nothing is copied.

use std::sync::mpsc::{Receiver, Sender};

use crate::UnpackError;

/// Bytes of one buffer.
pub(super) const BUFFER: usize = 256 << 10;
/// Buffers of one layer: one in each thread's hands and some under way.
pub(super) const BUFFERS: usize = 8;

/// One buffer and how much of it is filled.
pub(super) struct Buffer {
    pub(super) data: Box<[u8]>,
    pub(super) len: usize,
}

/// The extractor's end.
pub(super) struct Stream {
    full: Receiver<Buffer>,
    empty: Sender<Buffer>,
    current: Option<Buffer>,
    position: usize,
    /// Bytes consumed since the start.
    offset: u64,
}

impl Stream {
    pub(super) fn new(full: Receiver<Buffer>, empty: Sender<Buffer>) -> Self {
        Self {
            full,
            empty,
            current: None,
            position: 0,
            offset: 0,
        }
    }

    /// The next bytes, at most `max`; empty at the end of the stream only.
    pub(super) fn chunk(&mut self, max: u64) -> &[u8] {
        while self
            .current
            .as_ref()
            .is_none_or(|buffer| self.position == buffer.len)
        {
            if let Some(buffer) = self.current.take() {
                // The decompressor may be done and gone.
                let _ = self.empty.send(buffer);
            }
            self.position = 0;
            match self.full.recv() {
                Ok(buffer) => self.current = Some(buffer),
                Err(_) => return &[],
            }
        }
        let Some(buffer) = &self.current else {
            return &[];
        };
        let rest = &buffer.data[self.position..buffer.len];
        &rest[..rest.len().min(usize::try_from(max).unwrap_or(usize::MAX))]
    }

    /// Moves past `count` bytes of the last [`chunk`](Self::chunk).
    pub(super) fn consume(&mut self, count: usize) {
        self.position += count;
        self.offset += count as u64;
    }

    /// Fills `out`; returns how many bytes there were.
    pub(super) fn read(&mut self, out: &mut [u8]) -> usize {
        let mut done = 0;
        while done < out.len() {
            let chunk = self.chunk((out.len() - done) as u64);
            if chunk.is_empty() {
                break;
            }
            let count = chunk.len();
            out[done..done + count].copy_from_slice(chunk);
            self.consume(count);
            done += count;
        }
        done
    }

    /// Reads everything that is left: it belongs to the digest although nobody looks at it.
    pub(super) fn drain(&mut self) {
        loop {
            let count = self.chunk(u64::MAX).len();
            if count == 0 {
                break;
            }
            self.consume(count);
        }
    }

    /// An error about the bytes at the current position.
    pub(super) fn malformed(&self, reason: impl Into<String>) -> UnpackError {
        UnpackError::Format {
            offset: self.offset,
            reason: reason.into(),
            source: None,
        }
    }

    #[cfg(test)]
    pub(super) fn of(data: &[u8], piece: usize) -> Self {
        let (send, full) = std::sync::mpsc::channel();
        let (empty, _) = std::sync::mpsc::channel();
        for piece in data.chunks(piece) {
            send.send(Buffer {
                data: piece.into(),
                len: piece.len(),
            })
            .unwrap();
        }
        Self::new(full, empty)
    }
}
