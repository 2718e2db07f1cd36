//! Lower bounds, written by hand for exactly these inputs: what the machine takes when nothing else is done.

use std::net::SocketAddr;

use crate::input::{ID, PASSWORD, PRIORITY, TIE_BREAKER, USERNAME};
use crate::{Answer, Codec, FLOOR, operation};

pub(crate) fn codec() -> Codec {
    let key: &'static Key = Box::leak(Box::new(Key::new(PASSWORD.as_bytes())));
    let buffer: *mut [u8; 1400] = Box::leak(Box::new([0; 1400]));
    // SAFETY: the operations run one after the other, and each answer is used before the next one.
    let buffer = move || unsafe { &mut *buffer };
    Codec {
        name: FLOOR,
        rows: [
            operation!(|input| Answer::Address(address(&input.success, 0x0020).unwrap())),
            operation!(|input| {
                assert!(fingerprint_matches(&input.success));
                Answer::Address(address(&input.success, 0x0020).unwrap())
            }),
            operation!(|input| {
                let bytes = &input.success[..];
                assert!(fingerprint_matches(bytes));
                let before = bytes.len() - 32;
                assert_eq!(key.mac(&bytes[..before], before as u16 + 4), bytes[before + 4..before + 24]);
                Answer::Address(address(bytes, 0x0020).unwrap())
            }),
            operation!(|_input| {
                let buffer = buffer();
                buffer[..20].copy_from_slice(b"\x00\x01\x00\x4C\x21\x12\xA4\x42............");
                buffer[8..20].copy_from_slice(&ID.0);
                buffer[20..36].copy_from_slice(b"\x00\x06\x00\x09.........\0\0\0");
                buffer[24..33].copy_from_slice(USERNAME.as_bytes());
                buffer[36..44].copy_from_slice(b"\x00\x24\x00\x04....");
                buffer[40..44].copy_from_slice(&PRIORITY.to_be_bytes());
                buffer[44..56].copy_from_slice(b"\x80\x2A\x00\x08........");
                buffer[48..56].copy_from_slice(&TIE_BREAKER.to_be_bytes());
                let mac = key.mac(&buffer[..56], 60);
                buffer[56..60].copy_from_slice(b"\x00\x08\x00\x14");
                buffer[60..80].copy_from_slice(&mac);
                buffer[2..4].copy_from_slice(&68_u16.to_be_bytes());
                let crc = crc32fast::hash(&buffer[..80]) ^ 0x5354_554E;
                buffer[80..84].copy_from_slice(b"\x80\x28\x00\x04");
                buffer[84..88].copy_from_slice(&crc.to_be_bytes());
                Answer::Written(&buffer[..88])
            }),
            operation!(|input| {
                let [c0, c1, l0, l1, data @ ..] = &input.channel_data[..] else { panic!() };
                let channel = u16::from_be_bytes([*c0, *c1]);
                assert_eq!(channel >> 12, 4);
                Answer::Channel(channel, &data[..usize::from(u16::from_be_bytes([*l0, *l1]))])
            }),
            operation!(|input| {
                let bytes = &input.send[..];
                assert_eq!(bytes[..2], [0, 0x16]);
                let (peer, data) = peer_and_data(bytes).unwrap();
                Answer::Payload(address_in(peer).unwrap(), data)
            }),
            operation!(|input| {
                let buffer = buffer();
                let SocketAddr::V4(peer) = input.address else { panic!() };
                buffer[..8].copy_from_slice(b"\x00\x17\x04\xC0\x21\x12\xA4\x42");
                buffer[8..20].copy_from_slice(&ID.0);
                buffer[20..26].copy_from_slice(b"\x00\x12\x00\x08\x00\x01");
                buffer[26..28].copy_from_slice(&(peer.port() ^ 0x2112).to_be_bytes());
                buffer[28..32].copy_from_slice(&(peer.ip().to_bits() ^ 0x2112_A442).to_be_bytes());
                buffer[32..36].copy_from_slice(b"\x00\x13\x04\xB0");
                buffer[36..1236].copy_from_slice(&input.payload[..1200]);
                Answer::Written(&buffer[..1236])
            }),
        ],
    }
}

/// The attributes of a message, if its header is in order.
fn attributes(bytes: &[u8]) -> Option<&[u8]> {
    let length = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
    let is_stun = bytes[4..8] == *b"\x21\x12\xA4\x42" && bytes[0] < 0x40;
    if is_stun && bytes.len() == 20 + length { Some(&bytes[20..]) } else { None }
}

/// The first value of a type. The bounds of all are checked first: looking for the value meanwhile is slower.
#[inline(always)]
fn value(bytes: &[u8], attribute: u32) -> Option<&[u8]> {
    let attributes = attributes(bytes)?;
    let head = |at: usize| {
        let head = u32::from_be_bytes(*attributes.get(at..)?.first_chunk()?);
        Some((head >> 16, (head & 0xFFFF) as usize))
    };
    let mut at = 0;
    while let Some((_, len)) = head(at) {
        at += 4 + ((len + 3) & !3);
    }
    if at != attributes.len() {
        return None;
    }
    let mut at = 0;
    loop {
        let (found, len) = head(at)?;
        if found == attribute {
            return attributes.get(at + 4..at + 4 + len);
        }
        at += 4 + ((len + 3) & !3);
    }
}

/// Both values of a Send indication, in one walk.
fn peer_and_data(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (mut peer, mut data) = (None, None);
    let mut rest = attributes(bytes)?;
    while let Some(([t0, t1, l0, l1], tail)) = rest.split_first_chunk() {
        let len = usize::from(u16::from_be_bytes([*l0, *l1]));
        match u16::from_be_bytes([*t0, *t1]) {
            0x0012 if peer.is_none() => peer = tail.get(..len),
            0x0013 if data.is_none() => data = tail.get(..len),
            _ => {}
        }
        rest = tail.get((len + 3) & !3..)?;
    }
    peer.zip(data)
}

/// Part of the operation, as with the peers: what a call returns through memory takes as long again as the reading.
#[inline(always)]
fn address(bytes: &[u8], attribute: u32) -> Option<SocketAddr> {
    address_in(value(bytes, attribute)?)
}

fn address_in(value: &[u8]) -> Option<SocketAddr> {
    let &[_, 1, p0, p1, a, b, c, d] = value else { return None };
    let ip = u32::from_be_bytes([a, b, c, d]) ^ 0x2112_A442;
    Some(SocketAddr::from((ip.to_be_bytes(), u16::from_be_bytes([p0, p1]) ^ 0x2112)))
}

fn fingerprint_matches(bytes: &[u8]) -> bool {
    let (before, sent) = bytes.split_at(bytes.len() - 8);
    let sent = u32::from_be_bytes([sent[4], sent[5], sent[6], sent[7]]);
    crc32fast::hash(before) ^ 0x5354_554E == sent
}

/// HMAC-SHA1's two states.
struct Key {
    inner: [u32; 5],
    outer: [u32; 5],
}

impl Key {
    fn new(key: &[u8]) -> Self {
        let state = |pad: u8| {
            let mut block = [pad; 64];
            block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
            let mut state = [0x6745_2301, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476, 0xC3D2_E1F0];
            sha1::block_api::compress(&mut state, &[block]);
            state
        };
        Self { inner: state(0x36), outer: state(0x5C) }
    }

    /// For messages up to 119 bytes.
    fn mac(&self, message: &[u8], length: u16) -> [u8; 20] {
        let mut blocks = [[0; 64]; 2];
        let flat = blocks.as_flattened_mut();
        flat[..message.len()].copy_from_slice(message);
        flat[2..4].copy_from_slice(&length.to_be_bytes());
        flat[message.len()] = 0x80;
        let count = if message.len() < 56 { 1 } else { 2 };
        flat[count * 64 - 8..count * 64].copy_from_slice(&((64 + message.len() as u64) * 8).to_be_bytes());
        let mut inner = self.inner;
        sha1::block_api::compress(&mut inner, &blocks[..count]);

        let mut block = [0; 64];
        block.chunks_exact_mut(4).zip(inner).for_each(|(to, word)| to.copy_from_slice(&word.to_be_bytes()));
        block[20] = 0x80;
        block[56..].copy_from_slice(&(84_u64 * 8).to_be_bytes());
        let mut outer = self.outer;
        sha1::block_api::compress(&mut outer, &[block]);
        let mut mac = [0; 20];
        mac.chunks_exact_mut(4).zip(outer).for_each(|(to, word)| to.copy_from_slice(&word.to_be_bytes()));
        mac
    }
}
