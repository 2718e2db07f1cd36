//! A stream cut into pieces anywhere yields the frames that it yields in one piece.
#![no_main]

use backwater_stun::{Frame, MAX_FRAME_LEN, Split, split_frame};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<u8>, Vec<u8>)| {
    let (cuts, stream) = input;
    let whole = frames(&[&stream]);
    let mut pieces = Vec::new();
    let mut rest = &stream[..];
    for cut in cuts {
        let (piece, tail) = rest.split_at(usize::from(cut).min(rest.len()));
        pieces.push(piece);
        rest = tail;
    }
    pieces.push(rest);
    assert_eq!(frames(&pieces), whole);
});

/// The frames, each as its bytes with what it is, and whether the stream broke.
fn frames(pieces: &[&[u8]]) -> (Vec<(Option<u16>, Vec<u8>)>, bool) {
    let mut frames = Vec::new();
    let mut held: Vec<u8> = Vec::new();
    for piece in pieces {
        held.extend_from_slice(piece);
        loop {
            match split_frame(&held) {
                Ok(Split::Frame { frame, len }) => {
                    assert!(len > 0 && len <= held.len() && len % 4 == 0);
                    frames.push(match frame {
                        Frame::Message(bytes) => (None, bytes.to_vec()),
                        Frame::ChannelData(view) => (Some(view.channel().number()), view.data().to_vec()),
                    });
                    held.drain(..len);
                }
                Ok(Split::Incomplete { needed }) => {
                    assert!(needed > held.len() && needed <= MAX_FRAME_LEN);
                    break;
                }
                Err(_) => return (frames, true),
            }
        }
    }
    (frames, false)
}
