//! The little that is read of CRIU's images themselves: the seccomp filters.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use prost::Message;

/// Name of the image of seccomp filters.
const SECCOMP: &str = "seccomp.img";
/// Two numbers that say what an image is.
const HEADER: usize = 8;
/// Largest image of filters that is read, in bytes; a filter has 32 KiB at most.
const LARGEST: u64 = 64 << 20;

#[derive(Clone, PartialEq, Message)]
struct Filters {
    #[prost(message, repeated, tag = "1")]
    filters: Vec<Filter>,
}

#[derive(Clone, PartialEq, Message)]
struct Filter {
    #[prost(bytes = "vec", required, tag = "1")]
    program: Vec<u8>,
    #[prost(uint32, optional, tag = "2")]
    before: Option<u32>,
}

/// The filters that processes got first, as arrays of `struct sock_filter`: those that were there before
/// their programs could add others. Empty when there is no image of filters.
///
/// # Errors
/// The image is there and cannot be read.
pub fn first_filters(images: &Path) -> io::Result<Vec<Vec<u8>>> {
    let file = match File::open(images.join(SECCOMP)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        let text = format!("{SECCOMP} is larger than {LARGEST} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    parse(&bytes).ok_or_else(|| {
        let text = format!("{SECCOMP} is not an image of seccomp filters");
        io::Error::new(io::ErrorKind::InvalidData, text)
    })
}

/// The header, then one message after its length.
fn parse(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (length, rest) = bytes.get(HEADER..)?.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    // A second message would be one that was not looked at.
    let message = rest.get(..length).filter(|_| rest.len() == length)?;
    let all = Filters::decode(message).ok()?.filters;
    let first = all.into_iter().filter(|filter| filter.before.is_none());
    Some(first.map(|filter| filter.program).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(filters: &[(&[u8], Option<u32>)]) -> Vec<u8> {
        let filters = filters.iter().map(|(program, before)| Filter {
            program: program.to_vec(),
            before: *before,
        });
        let message = Filters {
            filters: filters.collect(),
        }
        .encode_to_vec();
        let mut bytes = vec![1; HEADER];
        bytes.extend(u32::try_from(message.len()).unwrap().to_le_bytes());
        bytes.extend(message);
        bytes
    }

    #[test]
    fn the_first_filters_are_found() {
        let dir = tempfile::tempdir().unwrap();
        assert!(first_filters(dir.path()).unwrap().is_empty());
        let bytes = image(&[(b"a", None), (b"b", Some(0)), (b"c", None)]);
        std::fs::write(dir.path().join(SECCOMP), &bytes).unwrap();
        assert_eq!(first_filters(dir.path()).unwrap(), [b"a", b"c"]);
        for bad in [
            &bytes[..bytes.len() - 1],
            b"",
            &[bytes.clone(), bytes.clone()].concat(),
        ] {
            std::fs::write(dir.path().join(SECCOMP), bad).unwrap();
            assert!(first_filters(dir.path()).is_err());
        }
    }
}
