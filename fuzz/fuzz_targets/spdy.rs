//! Anything is SPDY frames or an error, the same however it is cut; the first byte says where.
#![no_main]

use bytes::BytesMut;
use kelson_streaming::spdy::{Decoder, Frame, FrameError};
use libfuzzer_sys::fuzz_target;

/// The frames of `pieces`, with data in one heap, because its cuts depend on how it arrives.
fn decode(pieces: &[&[u8]]) -> Result<(Vec<Frame>, Vec<u8>), FrameError> {
    let (mut decoder, mut buf) = (Decoder::new(), BytesMut::new());
    let (mut frames, mut data) = (Vec::new(), Vec::new());
    for piece in pieces {
        buf.extend_from_slice(piece);
        while let Some(frame) = decoder.next(&mut buf)? {
            match frame {
                Frame::Data { bytes, .. } => data.extend_from_slice(&bytes),
                other => frames.push(other),
            }
        }
    }
    Ok((frames, data))
}

fuzz_target!(|input: &[u8]| {
    let Some((cut, bytes)) = input.split_first() else {
        return;
    };
    let (first, second) = bytes.split_at(usize::from(*cut).min(bytes.len()));
    assert_eq!(decode(&[bytes]), decode(&[first, second]));
});
