//! Anything is WebSocket frames or an error, the same however it is cut; the first byte says where.
#![no_main]

use bytes::BytesMut;
use kelson_streaming::ws::{Decoder, Event, FrameError, Side};
use libfuzzer_sys::fuzz_target;

/// The events of `pieces`, with messages in one heap, because their cuts depend on how they arrive.
fn decode(side: Side, pieces: &[&[u8]]) -> Result<(Vec<Event>, Vec<u8>), FrameError> {
    let (mut decoder, mut buf) = (Decoder::new(side), BytesMut::new());
    let (mut events, mut data) = (Vec::new(), Vec::new());
    for piece in pieces {
        buf.extend_from_slice(piece);
        while let Some(event) = decoder.next(&mut buf)? {
            match event {
                Event::Piece { bytes, .. } => data.extend_from_slice(&bytes),
                other => events.push(other),
            }
        }
    }
    Ok((events, data))
}

fuzz_target!(|input: &[u8]| {
    let Some((cut, bytes)) = input.split_first() else {
        return;
    };
    let (first, second) = bytes.split_at(usize::from(*cut).min(bytes.len()));
    for side in [Side::Client, Side::Server] {
        assert_eq!(decode(side, &[bytes]), decode(side, &[first, second]));
    }
});
