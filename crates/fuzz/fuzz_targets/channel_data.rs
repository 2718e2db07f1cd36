//! ChannelData on datagrams: what parses is header, data, and bytes that count for nothing.
#![no_main]

use backwater_stun::{ChannelData, Frame, Protocol, Split, demultiplex, padding_len, split_frame};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|datagram: &[u8]| {
    let Ok(view) = ChannelData::parse(datagram) else { return };
    let len = view.data().len();
    assert!(matches!(demultiplex(datagram[0]), Protocol::TurnChannel | Protocol::Quic));
    assert_eq!(datagram[..4], ChannelData::header(view.channel(), len as u16));
    assert_eq!(&datagram[4..4 + len], view.data());

    // With its padding it is the same on a stream.
    let mut stream = datagram[..4 + len].to_vec();
    stream.resize(4 + len + padding_len(len), 0xAA);
    assert_eq!(split_frame(&stream), Ok(Split::Frame { frame: Frame::ChannelData(view), len: stream.len() }));
});
