//! Frames that are cut anywhere, frames that are wrong, and anything at all.

use proptest::prelude::*;

use super::*;

/// Everything that `bytes` are, when they arrive in pieces of the given lengths, then as a whole.
fn decode(bytes: &[u8], cuts: &[usize]) -> Result<Vec<Frame>, FrameError> {
    let mut decoder = Decoder::new();
    let mut buf = BytesMut::new();
    let mut frames = Vec::new();
    let mut rest = bytes;
    for cut in cuts.iter().copied().chain([usize::MAX]) {
        let (piece, after) = rest.split_at(cut.min(rest.len()));
        rest = after;
        buf.extend_from_slice(piece);
        while let Some(frame) = decoder.next(&mut buf)? {
            frames.push(frame);
        }
    }
    Ok(join(frames))
}

/// Puts the pieces of data frames together again.
fn join(frames: Vec<Frame>) -> Vec<Frame> {
    let mut joined: Vec<Frame> = Vec::new();
    for frame in frames {
        match (joined.last_mut(), frame) {
            (
                Some(Frame::Data { stream, fin, bytes }),
                Frame::Data {
                    stream: next,
                    fin: last,
                    bytes: more,
                },
            ) if *stream == next && !*fin => {
                *bytes = [&bytes[..], &more].concat().into();
                *fin = last;
            }
            (_, frame) => joined.push(frame),
        }
    }
    joined
}

fn everything() -> Vec<u8> {
    let mut encoder = Encoder::new().unwrap();
    let headers = vec![("streamtype".to_owned(), "data".to_owned())];
    let mut buf = Vec::new();
    for message in [
        Out::Open {
            stream: 1,
            headers: headers.clone(),
        },
        Out::Accept { stream: 1 },
        Out::Data {
            stream: 1,
            bytes: Bytes::from_static(b"all hands on deck"),
            fin: false,
        },
        Out::Open { stream: 3, headers },
        Out::Pong(Bytes::from_static(&[0, 0, 0, 7])),
        Out::Data {
            stream: 3,
            bytes: Bytes::new(),
            fin: true,
        },
        Out::Reset {
            stream: 1,
            status: status::CANCEL,
        },
        Out::Goodbye {
            fault: false,
            last_stream: 3,
        },
    ] {
        encoder.encode(message, &mut buf).unwrap();
    }
    buf.extend([
        0x80, 3, 0, 4, 0, 0, 0, 12, 0, 0, 0, 1, 1, 0, 0, 7, 0, 1, 0, 0,
    ]);
    buf.extend([0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 1, 0]);
    buf.extend([0x80, 3, 0, 99, 0, 0, 0, 1, 5]);
    buf
}

#[test]
fn frames_are_the_same_wherever_they_are_cut() {
    let bytes = everything();
    let whole = decode(&bytes, &[]).unwrap();
    assert_eq!(whole.len(), 11, "{whole:?}");
    assert!(
        matches!(&whole[0], Frame::SynStream { stream: 1, fin: false, headers }
        if super::super::headers::value(headers, "streamtype") == Some("data"))
    );
    assert_eq!(whole[4], Frame::Ping(7));
    assert_eq!(whole[10], Frame::Unknown(99));
    for cut in 0..bytes.len() {
        assert_eq!(decode(&bytes, &[cut]).unwrap(), whole, "cut at {cut}");
    }
    assert_eq!(decode(&bytes, &vec![1; bytes.len()]).unwrap(), whole);
}

#[test]
fn wrong_frames_are_refused() {
    let refused = |bytes: &[u8]| decode(bytes, &[]).unwrap_err();
    let long = [0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff];
    assert_eq!(refused(&long), FrameError::FrameTooLong);
    assert_eq!(
        refused(&[0x80, 2, 0, 6, 0, 0, 0, 4]),
        FrameError::Version(2)
    );
    assert_eq!(
        refused(&[0, 0, 0, 0, 0, 0, 0, 1, 9]),
        FrameError::StreamZero
    );
    let zero = [0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1];
    assert_eq!(refused(&zero), FrameError::StreamZero);
    let short_ping = [0x80, 3, 0, 6, 0, 0, 0, 2, 0, 1];
    assert_eq!(refused(&short_ping), FrameError::Malformed(PING));
    let settings = [0x80, 3, 0, 4, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff];
    assert_eq!(refused(&settings), FrameError::Malformed(SETTINGS));
    let no_block = [0x80, 3, 0, 1, 0, 0, 0, 10, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    assert_eq!(refused(&no_block), FrameError::Header);
}

#[test]
fn a_bomb_in_a_small_frame_is_refused() {
    let headers = vec![("a".to_owned(), "\0".repeat(10 << 20))];
    let mut bytes = Vec::new();
    Encoder::new()
        .unwrap()
        .syn_stream(1, &headers, &mut bytes)
        .unwrap();
    assert!(bytes.len() < MAX_CONTROL_FRAME);
    assert_eq!(decode(&bytes, &[]).unwrap_err(), FrameError::HeadersTooLong);
}

#[test]
fn a_data_frame_of_any_length_needs_no_buffer_of_its_own() {
    let mut decoder = Decoder::new();
    let mut buf = BytesMut::from(&[0, 0, 0, 1, 1, 0xff, 0xff, 0xff][..]);
    assert_eq!(decoder.next(&mut buf).unwrap(), None);
    let mut left = 0x00ff_ffff;
    while left > 0 {
        let piece = 60_000.min(left);
        left -= piece;
        buf.extend_from_slice(&vec![7; piece]);
        let Some(Frame::Data { fin, bytes, .. }) = decoder.next(&mut buf).unwrap() else {
            panic!("no data");
        };
        assert_eq!((bytes.len(), fin), (piece, left == 0));
    }
}

proptest! {
    #[test]
    fn anything_is_frames_or_an_error(bytes: Vec<u8>, cuts: Vec<u8>) {
        let cuts: Vec<usize> = cuts.iter().map(|cut| usize::from(*cut)).collect();
        prop_assert_eq!(decode(&bytes, &cuts), decode(&bytes, &[]));
    }

    #[test]
    fn true_frames_with_a_wrong_byte_never_panic(place: prop::sample::Index, byte: u8) {
        let mut bytes = everything();
        let place = place.index(bytes.len());
        bytes[place] = byte;
        let whole = decode(&bytes, &[]);
        prop_assert_eq!(decode(&bytes, &[place]), whole);
    }
}
