//! Terminal sizes on their own stream: JSON objects, one after the other.

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;

use crate::outbox::Writer;
use crate::pipe::Reader;

/// Bytes of one size, at most, with white space around it.
const MAX_SIZE: usize = 4096;

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Characters in a line.
    #[serde(rename = "Width")]
    pub columns: u16,
    /// Lines.
    #[serde(rename = "Height")]
    pub rows: u16,
}

/// The sizes that a client tells.
#[derive(Debug)]
pub struct Sizes {
    reader: Reader,
    text: Vec<u8>,
}

impl Sizes {
    pub(crate) fn new(reader: Reader) -> Self {
        Self {
            reader,
            text: Vec::new(),
        }
    }

    /// The next size; sizes with a zero are passed over. `None` when there will be no more, also
    /// because something else than a size came. Safe to cancel.
    pub async fn next(&mut self) -> Option<Size> {
        loop {
            let mut sizes = serde_json::Deserializer::from_slice(&self.text).into_iter::<Size>();
            let size = sizes.next();
            let taken = sizes.byte_offset();
            match size {
                Some(Ok(size)) => {
                    self.text.drain(..taken);
                    if size.columns > 0 && size.rows > 0 {
                        return Some(size);
                    }
                    continue;
                }
                Some(Err(error)) if !error.is_eof() => return None,
                Some(Err(_)) | None => {}
            }
            if self.text.len() > MAX_SIZE {
                return None;
            }
            let piece = self.reader.next().await.ok().flatten()?;
            self.text.extend_from_slice(&piece);
        }
    }
}

/// Tells the size of the client's terminal.
#[derive(Debug)]
pub struct Resizer(pub(crate) Writer);

impl Resizer {
    /// Tells a size.
    ///
    /// # Errors
    /// When the connection is over.
    pub async fn resize(&mut self, size: Size) -> std::io::Result<()> {
        let mut text = serde_json::to_vec(&size)?;
        text.push(b'\n');
        self.0.write_all(&text).await
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::pipe::pipe;

    async fn sizes(pieces: &[&'static str]) -> Vec<(u16, u16)> {
        let (feeder, reader) = pipe();
        for piece in pieces {
            feeder.push(Bytes::from_static(piece.as_bytes())).await;
        }
        feeder.end(Ok(()));
        let mut sizes = Sizes::new(reader);
        let mut all = Vec::new();
        while let Some(size) = sizes.next().await {
            all.push((size.columns, size.rows));
        }
        all
    }

    #[tokio::test]
    async fn sizes_are_read_however_they_are_cut() {
        let one = "{\"Width\":80,\"Height\":24}\n";
        assert_eq!(
            sizes(&[one, "{\"Width\":9,", "\"Height\":3}"]).await,
            [(80, 24), (9, 3)]
        );
        assert_eq!(
            sizes(&["{\"Width\":1,\"Height\":2}{\"Width\":3,\"Height\":4}"])
                .await
                .len(),
            2
        );
    }

    #[tokio::test]
    async fn zero_sizes_are_passed_over_and_nonsense_ends() {
        let zero = "{\"Width\":0,\"Height\":24}";
        assert_eq!(sizes(&[zero, "{\"Width\":8,\"Height\":8}"]).await, [(8, 8)]);
        assert_eq!(sizes(&["[1]", "{\"Width\":8,\"Height\":8}"]).await, []);
        assert_eq!(sizes(&["{\"Width\":70000,\"Height\":1}"]).await, []);
    }

    #[tokio::test]
    async fn a_size_without_end_is_given_up() {
        let spaces: &'static str = Box::leak(" ".repeat(MAX_SIZE + 1).into_boxed_str());
        assert_eq!(sizes(&[spaces, "{\"Width\":8,\"Height\":8}"]).await, []);
    }
}
