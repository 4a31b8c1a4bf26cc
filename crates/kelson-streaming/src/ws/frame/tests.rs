//! Frames that are cut anywhere, frames that are wrong, and anything at all.

use proptest::prelude::*;

use super::*;

const MASK: Option<[u8; 4]> = Some([7, 99, 0, 200]);

/// Everything that `bytes` are, when they arrive in pieces of the given lengths, then as a whole;
/// pieces of one message are put together again.
fn decode(from: Side, bytes: &[u8], cuts: &[usize]) -> Result<Vec<Event>, FrameError> {
    let mut decoder = Decoder::new(from);
    let mut buf = BytesMut::new();
    let mut events: Vec<Event> = Vec::new();
    // Control frames may stand between the parts of a message.
    let mut open: Option<usize> = None;
    let mut rest = bytes;
    for cut in cuts.iter().copied().chain([usize::MAX]) {
        let (piece, after) = rest.split_at(cut.min(rest.len()));
        rest = after;
        buf.extend_from_slice(piece);
        while let Some(event) = decoder.next(&mut buf)? {
            let Event::Piece { first, last, bytes } = event else {
                events.push(event);
                continue;
            };
            let Some(Event::Piece {
                last: end,
                bytes: whole,
                ..
            }) = open.filter(|_| !first).map(|at| &mut events[at])
            else {
                open = Some(events.len());
                events.push(Event::Piece { first, last, bytes });
                continue;
            };
            *whole = [&whole[..], &bytes].concat().into();
            *end = last;
        }
    }
    Ok(events)
}

fn everything(mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut buf = Vec::new();
    message(false, &[b"\0", b"ahoy"], mask, &mut buf);
    message(false, &[&[1; 70_000]], mask, &mut buf);
    ping(b"alive?", mask, &mut buf);
    message(true, &[&[b'x'; 300]], mask, &mut buf);
    message(false, &[], mask, &mut buf);
    let parts = buf.len();
    message(false, &[b"in two "], mask, &mut buf);
    buf[parts] &= 0x7f;
    pong(b"", mask, &mut buf);
    let second = buf.len();
    message(false, &[b"parts"], mask, &mut buf);
    buf[second] = 0x80;
    close(1000, mask, &mut buf);
    buf
}

#[test]
fn frames_are_the_same_wherever_they_are_cut() {
    for (side, mask) in [(Side::Client, MASK), (Side::Server, None)] {
        let bytes = everything(mask);
        let whole = decode(side, &bytes, &[]).unwrap();
        assert_eq!(whole.len(), 8, "{whole:?}");
        assert!(matches!(&whole[0], Event::Piece { bytes, .. } if &bytes[..] == b"\0ahoy"));
        assert!(matches!(&whole[1], Event::Piece { bytes, .. } if bytes.len() == 70_000));
        assert_eq!(whole[2], Event::Ping(Bytes::from_static(b"alive?")));
        assert!(matches!(&whole[5], Event::Piece { bytes, last: true, .. }
            if &bytes[..] == b"in two parts"));
        assert_eq!(whole[7], Event::Close(Some(1000)));
        let heads = (0..32).chain(70_000..bytes.len());
        for cut in heads {
            assert_eq!(decode(side, &bytes, &[cut]).unwrap(), whole, "cut at {cut}");
        }
        assert_eq!(decode(side, &bytes, &vec![1; bytes.len()]).unwrap(), whole);
    }
}

#[test]
fn wrong_frames_are_refused() {
    let refused = |bytes: &[u8]| decode(Side::Server, bytes, &[]).unwrap_err();
    assert_eq!(refused(&[0xc2, 0]), FrameError::Reserved(2));
    assert_eq!(refused(&[0x83, 0]), FrameError::Reserved(3));
    assert_eq!(refused(&[0x82, 0x80, 0, 0, 0, 0]), FrameError::Mask);
    assert_eq!(refused(&[0x80, 0]), FrameError::Order);
    assert_eq!(refused(&[0x02, 0, 0x82, 0]), FrameError::Order);
    assert_eq!(refused(&[0x09, 0]), FrameError::Control);
    assert_eq!(refused(&[0x89, 126, 0, 200]), FrameError::Control);
    let long = [0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(refused(&long), FrameError::Length);
    let unmasked = decode(Side::Client, &[0x82, 0], &[]).unwrap_err();
    assert_eq!(unmasked, FrameError::Mask);
}

proptest! {
    #[test]
    fn anything_is_frames_or_an_error(bytes: Vec<u8>, cuts: Vec<u8>, client: bool) {
        let cuts: Vec<usize> = cuts.iter().map(|cut| usize::from(*cut)).collect();
        let side = if client { Side::Client } else { Side::Server };
        prop_assert_eq!(decode(side, &bytes, &cuts), decode(side, &bytes, &[]));
    }

    #[test]
    fn a_message_goes_round_trip(text: bool, body: Vec<u8>, mask: Option<[u8; 4]>) {
        let mut buf = Vec::new();
        message(text, &[&body], mask, &mut buf);
        let side = if mask.is_some() { Side::Client } else { Side::Server };
        let whole = Event::Piece { first: true, last: true, bytes: body.into() };
        prop_assert_eq!(decode(side, &buf, &[]), Ok(vec![whole]));
    }
}
