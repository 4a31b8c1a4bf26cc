//! Files that look to a compressor like those of real images, the same on every machine and in every run.

use anyhow::Result;
use kelson_image::layout::ImageBuilder;

/// Mean size of a file, in bytes.
const MEAN: u64 = 56 << 10;
/// How far back a repetition may reach: what gzip can see.
const WINDOW: u64 = 32 << 10;
/// Bits of a literal byte's alphabet: programs and text use far fewer values than 256.
const ALPHABET: u64 = 6;

/// A layer of about so many bytes below `/usr/share/bench/<name>`, as a tar archive.
pub(super) fn layer(name: &str, bytes: u64, seed: u64) -> Result<Vec<u8>> {
    let mut random = Random(seed | 1);
    let mut builder = ImageBuilder::new();
    let mut written = 0;
    let mut number = 0_u32;
    while written < bytes {
        let size = size(&mut random).min(bytes - written);
        let path = format!(
            "/usr/share/bench/{name}/{:02x}/{:x}/file-{number}",
            number / 256,
            number % 16
        );
        builder = builder.bytes(&path, &file(&mut random, size), 0o644)?;
        if number.is_multiple_of(20) {
            builder = builder.symlink(&format!("{path}.link"), &format!("file-{number}"))?;
        }
        written += size;
        number += 1;
    }
    Ok(builder.into_tar())
}

/// xorshift64*: fast, and good enough for bytes that nobody trusts.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `limit`, which is small.
    fn below(&mut self, limit: u64) -> u64 {
        ((self.next() >> 32) * limit) >> 32
    }
}

/// Most files are small, and most bytes are in large files.
fn size(random: &mut Random) -> u64 {
    match random.below(100) {
        0..70 => 200 + random.below(MEAN / 4),
        70..97 => MEAN / 4 + random.below(MEAN),
        _ => MEAN * 2 + random.below(MEAN * 40),
    }
}

/// Alternates short runs of new bytes with repetitions of what was there before.
fn file(random: &mut Random, size: u64) -> Vec<u8> {
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    let mut bytes: Vec<u8> = Vec::with_capacity(size + 64);
    while bytes.len() < size {
        let word = random.next();
        let mut literals = random.next();
        for _ in 0..1 + (word & 7) {
            // The product of two values makes small ones frequent.
            let (a, b) = (literals & 63, (literals >> ALPHABET) & 63);
            bytes.push(u8::try_from((a * b) >> 5).unwrap_or_default());
            literals = literals.rotate_right(11);
        }
        let near = (bytes.len() as u64).min(WINDOW);
        let distance = 1 + ((((word >> 16) & 0xffff) * near) >> 16).min(near - 1);
        let from = bytes.len() - usize::try_from(distance).unwrap_or(1);
        let length = 3 + usize::try_from(word >> 8 & 31).unwrap_or_default();
        for at in from..from + length {
            bytes.push(bytes[at]);
        }
    }
    bytes.truncate(size);
    bytes
}

#[cfg(test)]
mod tests {
    use kelson_image::layout::{LayerFormat, StoredLayer};

    use super::*;

    #[test]
    fn a_layer_is_always_the_same_and_compresses_like_a_real_one() {
        let make = |seed| layer("a", 2 << 20, seed).unwrap();
        let tar = make(7);
        assert_eq!(tar, make(7));
        assert_ne!(tar, make(8));
        let length = tar.len();
        assert!((2 << 20..5 << 19).contains(&length), "{length}");
        for format in [LayerFormat::GzipDefault, LayerFormat::Zstd] {
            let stored = StoredLayer::new(tar.clone(), format).bytes.len();
            // Debian's base image: 2.6 with gzip.
            assert!(
                (length / 4..length / 2).contains(&stored),
                "{format:?}: {stored} of {length}"
            );
        }
    }
}
