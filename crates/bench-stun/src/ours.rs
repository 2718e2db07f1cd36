//! backwater-stun.

use backwater_stun::*;

use crate::input::{ID, Input, PASSWORD, PRIORITY, TIE_BREAKER, USERNAME};
use crate::{Answer, Codec, OURS, operation};

pub(crate) fn codec() -> Codec {
    let key: &'static HmacKey = Box::leak(Box::new(HmacKey::new(PASSWORD.as_bytes())));
    let buffer: *mut [u8; 1400] = Box::leak(Box::new([0; 1400]));
    // SAFETY: the operations run one after the other, and each answer is used before the next one.
    let buffer = move || unsafe { &mut *buffer };
    Codec {
        name: OURS,
        rows: [
            operation!(|input| {
                let message = Message::parse(&input.success).unwrap();
                Answer::Address(message.get::<XorMappedAddress>().unwrap().unwrap().0)
            }),
            operation!(|input| {
                let message = Message::parse(&input.success).unwrap();
                assert_eq!(message.check_fingerprint(), FingerprintCheck::Valid);
                Answer::Address(message.get::<XorMappedAddress>().unwrap().unwrap().0)
            }),
            operation!(|input| {
                let message = Message::parse(&input.success).unwrap();
                assert_eq!(message.check_fingerprint(), FingerprintCheck::Valid);
                let verified = message.verify(key).unwrap();
                Answer::Address(verified.get::<XorMappedAddress>().unwrap().unwrap().0)
            }),
            operation!(|_input| Answer::Written(request(buffer(), key).unwrap())),
            operation!(|input| {
                let view = ChannelData::parse(&input.channel_data).unwrap();
                Answer::Channel(view.channel().number(), view.data())
            }),
            operation!(|input| {
                let message = Message::parse(&input.send).unwrap();
                assert!(message.is(Class::Indication, Method::SEND));
                let peer = message.get::<XorPeerAddress>().unwrap().unwrap();
                Answer::Payload(peer.0, message.get::<Data<'_>>().unwrap().unwrap().0)
            }),
            operation!(|input| Answer::Written(indication(buffer(), input).unwrap())),
        ],
    }
}

fn request<'b>(buffer: &'b mut [u8], key: &HmacKey) -> Result<&'b [u8], WriteError> {
    let mut writer = Writer::new(buffer, Class::Request, Method::BINDING, ID)?;
    writer.attribute(&Username(USERNAME))?.attribute(&Priority(PRIORITY))?.attribute(&IceControlling(TIE_BREAKER))?;
    Ok(writer.integrity_sha1(key)?.fingerprint()?.finish())
}

fn indication<'b>(buffer: &'b mut [u8], input: &Input) -> Result<&'b [u8], WriteError> {
    let mut writer = Writer::new(buffer, Class::Indication, Method::DATA, ID)?;
    writer.attribute(&XorPeerAddress(input.address))?.attribute(&Data(&input.payload))?;
    Ok(writer.finish())
}
