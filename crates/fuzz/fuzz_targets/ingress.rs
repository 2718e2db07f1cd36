//! What the relay makes of a connection's bytes does not depend on the pieces that they arrive in, and is bounded: the header of the PROXY
//! protocol, and the frames before and after an allocation.
#![no_main]
#![allow(dead_code, reason = "the relay's own files")]

#[path = "../../backwater-relay/src/ingress/stream/frames.rs"]
mod frames;
#[path = "../../backwater-relay/src/ingress/stream/proxy.rs"]
mod proxy;

use frames::{FrameError, Frames, MAX_BEFORE_ALLOCATION};
use libfuzzer_sys::fuzz_target;
use proxy::{Header, MAX_HEADER};

/// A client has its allocation after so many frames.
type AllocatedAfter = u8;

fuzz_target!(|input: (AllocatedAfter, Vec<u8>, Vec<u8>)| {
    let (allocated_after, cuts, stream) = input;
    let allocated_after = usize::from(allocated_after % 4);
    header(&stream);
    assert_eq!(read(&pieces(&cuts, &stream), allocated_after), read(&[&stream], allocated_after));
});

fn pieces<'s>(cuts: &[u8], mut rest: &'s [u8]) -> Vec<&'s [u8]> {
    let mut pieces = Vec::new();
    for &cut in cuts {
        let (piece, tail) = rest.split_at(usize::from(cut).min(rest.len()));
        pieces.push(piece);
        rest = tail;
    }
    pieces.push(rest);
    pieces
}

/// A header is known by its bytes alone, and no sooner than they are all there.
fn header(stream: &[u8]) {
    let whole = proxy::parse(stream);
    let needed = match whole {
        Header::Complete { len, .. } => {
            assert!((16..=MAX_HEADER).contains(&len) && len <= stream.len());
            len
        }
        Header::Incomplete => {
            assert!(stream.len() < MAX_HEADER);
            stream.len() + 1
        }
        Header::Invalid => return,
    };
    for cut in [0, 1, 11, 12, 15, 16, needed - 1].into_iter().filter(|cut| *cut < needed) {
        assert_eq!(proxy::parse(&stream[..cut.min(stream.len())]), Header::Incomplete);
    }
    assert!(needed > stream.len() || proxy::parse(&stream[..needed]) == whole);
}

/// The frames, and whether no other one can follow, by the loop of the relay. Which error it is depends on how much has arrived.
fn read(pieces: &[&[u8]], allocated_after: usize) -> (Vec<Vec<u8>>, bool) {
    let (mut frames, mut found) = (Frames::default(), Vec::new());
    for &piece in pieces {
        if piece_of(&mut frames, piece, allocated_after, &mut found).is_err() {
            return (found, true);
        }
    }
    (found, false)
}

fn piece_of(
    frames: &mut Frames,
    mut bytes: &[u8],
    allocated_after: usize,
    found: &mut Vec<Vec<u8>>,
) -> Result<(), FrameError> {
    let is_allocated = |found: &[Vec<u8>]| found.len() >= allocated_after;
    if let Some(frame) = frames.complete(&mut bytes, || is_allocated(found))? {
        push(found, frame, allocated_after);
    }
    while let Some(len) = frames::next(bytes, || is_allocated(found))? {
        assert!(len > 0 && len <= bytes.len());
        push(found, bytes[..len].to_vec(), allocated_after);
        bytes = &bytes[len..];
    }
    frames.keep(bytes);
    Ok(())
}

fn push(found: &mut Vec<Vec<u8>>, frame: Vec<u8>, allocated_after: usize) {
    assert!(frame.len() % 4 == 0 && (frame.len() <= MAX_BEFORE_ALLOCATION || found.len() >= allocated_after));
    found.push(frame);
}
