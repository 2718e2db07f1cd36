//! A stream may be cut anywhere.
#![allow(clippy::unwrap_used)]

use backwater_stun::*;
use proptest::prelude::*;

#[derive(Debug, Clone, PartialEq)]
enum Owned {
    Message(Vec<u8>),
    ChannelData(u16, Vec<u8>),
}

fn frame() -> impl Strategy<Value = Owned> {
    let message = prop::collection::vec(any::<u8>(), 0..40).prop_map(|data| {
        let mut buffer = [0; 100];
        let id = TransactionId([3; 12]);
        let mut writer = Writer::new(&mut buffer, Class::Indication, Method::SEND, id).unwrap();
        writer.attribute(&Data(&data)).unwrap();
        Owned::Message(writer.finish().to_vec())
    });
    let channel_data = (0x4000_u16..=0x4FFF, prop::collection::vec(any::<u8>(), 0..40));
    prop_oneof![message, channel_data.prop_map(|(channel, data)| Owned::ChannelData(channel, data))]
}

impl Owned {
    fn append_to(&self, stream: &mut Vec<u8>) {
        match self {
            Self::Message(bytes) => stream.extend(bytes),
            Self::ChannelData(channel, data) => {
                stream.extend(ChannelData::header(ChannelNumber::new(*channel).unwrap(), data.len() as u16));
                stream.extend(data);
                stream.extend(&[0; 3][..padding_len(data.len())]);
            }
        }
    }
}

proptest! {
    #[test]
    fn frames_survive_any_cut(
        frames in prop::collection::vec(frame(), 0..6),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let mut stream = Vec::new();
        frames.iter().for_each(|frame| frame.append_to(&mut stream));
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).chain([stream.len()]).collect();
        cuts.sort_unstable();

        let (mut read, mut from, mut held) = (Vec::new(), 0, Vec::new());
        for to in cuts {
            held.extend_from_slice(&stream[from..to]);
            from = to;
            loop {
                match split_frame(&held).unwrap() {
                    Split::Frame { frame, len } => {
                        read.push(match frame {
                            Frame::Message(bytes) => Owned::Message(bytes.to_vec()),
                            Frame::ChannelData(view) => Owned::ChannelData(view.channel().number(), view.data().to_vec()),
                        });
                        held.drain(..len);
                    }
                    Split::Incomplete { needed } => {
                        prop_assert!(needed > held.len());
                        break;
                    }
                }
            }
        }
        prop_assert!(held.is_empty());
        prop_assert_eq!(read, frames);
    }
}
