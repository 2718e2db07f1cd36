//! The peers, each used as its documentation shows, with whatever it lets one keep between two messages kept.

use std::net::SocketAddr;

use crate::input::{ID, PASSWORD, PRIORITY, TIE_BREAKER, USERNAME};
use crate::{Answer, Codec, operation};

pub(crate) fn codecs() -> Vec<Codec> {
    vec![stun_types_codec(), stun_rs_codec(), stun_codec_codec(), rtc_codec(), turn_server_codec(), is_codec()]
}

/// A buffer that answers may point into.
fn buffer<T>(value: T) -> impl Fn() -> &'static mut T + Copy {
    let value: *mut T = Box::leak(Box::new(value));
    // SAFETY: the operations run one after the other, and each answer is used before the next one.
    move || unsafe { &mut *value }
}

fn stun_types_codec() -> Codec {
    use stun_types::attribute::*;
    use stun_types::message::*;
    use turn_types::attribute::{Data, XorPeerAddress};
    use turn_types::channel::ChannelData;

    let credentials = MessageIntegrityCredentials::from(ShortTermCredentials::new(PASSWORD.to_owned()));
    let key: &'static IntegrityKey = Box::leak(Box::new(credentials.make_key(IntegrityAlgorithm::Sha1)));
    let mut id = [0; 16];
    id[4..].copy_from_slice(&ID.0);
    let id = TransactionId::from(u128::from_be_bytes(id));
    let out = buffer([0_u8; 1400]);
    let read = |message: &Message<'_>| {
        Answer::Address(message.attribute::<XorMappedAddress>().unwrap().addr(message.transaction_id()))
    };
    Codec {
        name: "stun-types + turn-types",
        rows: [
            // Parsing checks FINGERPRINT in any case.
            operation!(|input| read(&Message::from_bytes(&input.success).unwrap())),
            operation!(|input| read(&Message::from_bytes(&input.success).unwrap())),
            operation!(|input| {
                let message = Message::from_bytes(&input.success).unwrap();
                message.validate_integrity_with_key(key).unwrap();
                read(&message)
            }),
            operation!(|_input| {
                let out = out();
                let message_type = MessageType::from_class_method(MessageClass::Request, BINDING);
                let mut message = Message::builder(message_type, id, MessageWriteMutSlice::new(&mut out[..]));
                message.add_attribute(&Username::new(USERNAME).unwrap()).unwrap();
                let priority = PRIORITY.to_be_bytes();
                message.add_attribute(&RawAttribute::new(AttributeType::new(0x0024), &priority)).unwrap();
                let tie_breaker = TIE_BREAKER.to_be_bytes();
                message.add_attribute(&RawAttribute::new(AttributeType::new(0x802A), &tie_breaker)).unwrap();
                message.add_message_integrity_with_key(key, IntegrityAlgorithm::Sha1).unwrap();
                message.add_fingerprint().unwrap();
                let len = message.finish();
                Answer::Written(&out[..len])
            }),
            operation!(|input| {
                let view = ChannelData::parse(&input.channel_data).unwrap();
                let len = view.data().len();
                Answer::Channel(view.id(), &input.channel_data[4..4 + len])
            }),
            operation!(|input| {
                let message = Message::from_bytes(&input.send).unwrap();
                assert!(message.has_class(MessageClass::Indication));
                let peer = message.attribute::<XorPeerAddress>().unwrap().addr(message.transaction_id());
                let (offset, data) = message.attribute_and_offset::<Data<'_>>().unwrap();
                Answer::Payload(peer, &input.send[offset + 4..][..data.data().len()])
            }),
            operation!(|input| {
                let out = out();
                let message_type = MessageType::from_class_method(MessageClass::Indication, turn_types::message::DATA);
                let mut message = Message::builder(message_type, id, MessageWriteMutSlice::new(&mut out[..]));
                message.add_attribute(&XorPeerAddress::new(input.address, id)).unwrap();
                message.add_attribute(&Data::new(&input.payload)).unwrap();
                let len = message.finish();
                Answer::Written(&out[..len])
            }),
        ],
    }
}

fn stun_rs_codec() -> Codec {
    use stun_rs::attributes::ice::{IceControlling, Priority};
    use stun_rs::attributes::stun::{Fingerprint, MessageIntegrity, UserName, XorMappedAddress};
    use stun_rs::attributes::turn::{Data, XorPeerAddress};
    use stun_rs::methods::{BINDING, DATA};
    use stun_rs::{
        DecoderContextBuilder, HMACKey, MessageClass, MessageDecoder, MessageDecoderBuilder, MessageEncoder,
        MessageEncoderBuilder, StunMessage, StunMessageBuilder, TransactionId,
    };

    let key = HMACKey::new_short_term(PASSWORD).unwrap();
    let plain: &'static MessageDecoder = Box::leak(Box::new(MessageDecoderBuilder::default().build()));
    let context = DecoderContextBuilder::default().with_key(key.clone()).with_validation().build();
    let validating: &'static MessageDecoder =
        Box::leak(Box::new(MessageDecoderBuilder::default().with_context(context).build()));
    let encoder: &'static MessageEncoder = Box::leak(Box::new(MessageEncoderBuilder::default().build()));
    let out = buffer([0_u8; 1400]);
    let read = |message: &StunMessage| {
        let address = message.get::<XorMappedAddress>().unwrap().as_xor_mapped_address().unwrap();
        Answer::Address(*address.socket_address())
    };
    Codec {
        name: "stun-rs",
        rows: [
            operation!(|input| read(&plain.decode(&input.success).unwrap().0)),
            None,
            operation!(|input| read(&validating.decode(&input.success).unwrap().0)),
            operation!(|_input| {
                let message = StunMessageBuilder::new(BINDING, MessageClass::Request)
                    .with_transaction_id(TransactionId::from(ID.0))
                    .with_attribute(UserName::new(USERNAME).unwrap())
                    .with_attribute(Priority::from(PRIORITY))
                    .with_attribute(IceControlling::from(TIE_BREAKER))
                    .with_attribute(MessageIntegrity::new(key.clone()))
                    .with_attribute(Fingerprint::default())
                    .build();
                let out = out();
                let len = encoder.encode(out, &message).unwrap();
                Answer::Written(&out[..len])
            }),
            None,
            operation!(|input| {
                let (message, _) = plain.decode(&input.send).unwrap();
                let peer = message.get::<XorPeerAddress>().unwrap().as_xor_peer_address().unwrap();
                let data = message.get::<Data>().unwrap().as_data().unwrap().as_bytes();
                // It has copied the payload; the answer is what the input has, to outlive the message.
                assert_eq!(data.len(), 1200);
                Answer::Payload(*peer.socket_address(), &input.send[36..][..data.len()])
            }),
            operation!(|input| {
                let message = StunMessageBuilder::new(DATA, MessageClass::Indication)
                    .with_transaction_id(TransactionId::from(ID.0))
                    .with_attribute(XorPeerAddress::from(input.address))
                    .with_attribute(Data::new(&input.payload[..]))
                    .build();
                let out = out();
                let len = encoder.encode(out, &message).unwrap();
                Answer::Written(&out[..len])
            }),
        ],
    }
}

mod stun_codec_attributes {
    use stun_codec::define_attribute_enums;
    use stun_codec::rfc5245::attributes::*;
    use stun_codec::rfc5389::attributes::*;
    use stun_codec::rfc5766::attributes::*;

    define_attribute_enums!(
        Attribute,
        AttributeDecoder,
        AttributeEncoder,
        [
            Username,
            MessageIntegrity,
            XorMappedAddress,
            Software,
            Fingerprint,
            Priority,
            IceControlling,
            XorPeerAddress,
            Data
        ]
    );
}

fn stun_codec_codec() -> Codec {
    use bytecodec::{DecodeExt, EncodeExt};
    use stun_codec::rfc5245::attributes::{IceControlling, Priority};
    use stun_codec::rfc5389::attributes::{Fingerprint, MessageIntegrity, Username, XorMappedAddress};
    use stun_codec::rfc5389::methods::BINDING;
    use stun_codec::rfc5766::attributes::{Data, XorPeerAddress};
    use stun_codec::rfc5766::methods::DATA;
    use stun_codec::{Message, MessageClass, MessageDecoder, MessageEncoder, TransactionId};

    use self::stun_codec_attributes::Attribute;

    let decode = |bytes: &[u8]| -> Message<Attribute> {
        MessageDecoder::<Attribute>::new().decode_from_bytes(bytes).unwrap().unwrap()
    };
    let read =
        |message: &Message<Attribute>| Answer::Address(message.get_attribute::<XorMappedAddress>().unwrap().address());
    let out = buffer(Vec::new());
    let encode = move |message| {
        let out = out();
        *out = MessageEncoder::<Attribute>::new().encode_into_bytes(message).unwrap();
        Answer::Written(&out[..])
    };
    Codec {
        name: "stun_codec",
        rows: [
            // Parsing checks FINGERPRINT in any case.
            operation!(|input| read(&decode(&input.success))),
            operation!(|input| read(&decode(&input.success))),
            operation!(|input| {
                let message = decode(&input.success);
                let integrity = message.get_attribute::<MessageIntegrity>().unwrap();
                assert!(integrity.check_short_term_credential(PASSWORD).is_ok());
                read(&message)
            }),
            operation!(|_input| {
                let mut message = Message::new(MessageClass::Request, BINDING, TransactionId::new(ID.0));
                message.add_attribute(Username::new(USERNAME.to_owned()).unwrap());
                message.add_attribute(Priority::new(PRIORITY));
                message.add_attribute(IceControlling::new(TIE_BREAKER));
                let integrity = MessageIntegrity::new_short_term_credential(&message, PASSWORD).unwrap();
                message.add_attribute(integrity);
                let fingerprint = Fingerprint::new(&message).unwrap();
                message.add_attribute(fingerprint);
                encode(message)
            }),
            None,
            operation!(|input| {
                let message = decode(&input.send);
                let peer = message.get_attribute::<XorPeerAddress>().unwrap().address();
                let len = message.get_attribute::<Data>().unwrap().data().len();
                Answer::Payload(peer, &input.send[36..][..len])
            }),
            operation!(|input| {
                let mut message = Message::new(MessageClass::Indication, DATA, TransactionId::new(ID.0));
                message.add_attribute(XorPeerAddress::new(input.address));
                message.add_attribute(Data::new(input.payload.clone()).unwrap());
                encode(message)
            }),
        ],
    }
}

fn rtc_codec() -> Codec {
    use rtc_stun::attributes::{ATTR_ICE_CONTROLLING, ATTR_PRIORITY, ATTR_USERNAME};
    use rtc_stun::fingerprint::FINGERPRINT;
    use rtc_stun::integrity::MessageIntegrity;
    use rtc_stun::message::*;
    use rtc_stun::textattrs::TextAttribute;
    use rtc_stun::xoraddr::XorMappedAddress;
    use rtc_turn::proto::chandata::ChannelData;
    use rtc_turn::proto::data::Data;
    use rtc_turn::proto::peeraddr::PeerAddress;

    let provider: &'static _ = Box::leak(Box::new(crypto::default_provider().unwrap()));
    let key = PASSWORD.as_bytes();
    let out = buffer(Message::new());
    let begin = |message: &mut Message, method, class| {
        message.reset();
        message.transaction_id = TransactionId(ID.0);
        message.set_type(MessageType::new(method, class));
        message.write_header();
    };
    let decode = |message: &mut Message, bytes: &[u8]| message.unmarshal_binary(bytes).unwrap();
    let read = |message: &Message| {
        let mut address = XorMappedAddress::default();
        address.get_from(message).unwrap();
        Answer::Address(SocketAddr::new(address.ip, address.port))
    };
    Codec {
        name: "rtc-stun / rtc-turn",
        rows: [
            operation!(|input| {
                let mut message = Message::new();
                decode(&mut message, &input.success);
                read(&message)
            }),
            operation!(|input| {
                let mut message = Message::new();
                decode(&mut message, &input.success);
                FINGERPRINT.check(&message).unwrap();
                read(&message)
            }),
            operation!(|input| {
                let mut message = Message::new();
                decode(&mut message, &input.success);
                FINGERPRINT.check(&message).unwrap();
                MessageIntegrity::check(&mut message, key, provider.crypto()).unwrap();
                read(&message)
            }),
            operation!(|_input| {
                let message = out();
                begin(message, METHOD_BINDING, CLASS_REQUEST);
                TextAttribute::new(ATTR_USERNAME, USERNAME.to_owned()).add_to(message).unwrap();
                message.add(ATTR_PRIORITY, &PRIORITY.to_be_bytes());
                message.add(ATTR_ICE_CONTROLLING, &TIE_BREAKER.to_be_bytes());
                let integrity = MessageIntegrity::new_raw_integrity_with_provider(key, provider.crypto());
                integrity.add_to(message).unwrap();
                FINGERPRINT.add_to(message).unwrap();
                Answer::Written(&message.raw)
            }),
            operation!(|input| {
                let mut view = ChannelData { raw: input.channel_data.clone(), ..Default::default() };
                view.decode().unwrap();
                Answer::Channel(view.number.0, &input.channel_data[4..][..view.data.len()])
            }),
            operation!(|input| {
                let mut message = Message::new();
                decode(&mut message, &input.send);
                let (mut peer, mut data) = (PeerAddress::default(), Data::default());
                peer.get_from(&message).unwrap();
                data.get_from(&message).unwrap();
                Answer::Payload(SocketAddr::new(peer.ip, peer.port), &input.send[36..][..data.0.len()])
            }),
            operation!(|input| {
                let message = out();
                begin(message, METHOD_DATA, CLASS_INDICATION);
                PeerAddress { ip: input.address.ip(), port: input.address.port() }.add_to(message).unwrap();
                Data(input.payload.clone()).add_to(message).unwrap();
                Answer::Written(&message.raw)
            }),
        ],
    }
}

fn turn_server_codec() -> Codec {
    use bytes::BytesMut;
    use turn_server::codec::Decoder;
    use turn_server::codec::crypto::Password;
    use turn_server::codec::message::attributes::*;
    use turn_server::codec::message::methods::*;
    use turn_server::codec::message::{Message, MessageEncoder};

    let mut key = [0; 16];
    key.copy_from_slice(PASSWORD.as_bytes());
    let key: &'static Password = Box::leak(Box::new(Password::Md5(key)));
    let decoder = buffer(Decoder::default());
    let out = buffer(BytesMut::with_capacity(1400));
    let decode =
        move |bytes: &'static [u8]| -> Message<'static> { decoder().decode(bytes).unwrap().into_message().unwrap() };
    Codec {
        name: "turn-server's codec",
        rows: [
            operation!(|input| Answer::Address(decode(&input.success).get::<XorMappedAddress>().unwrap())),
            None,
            // It does not check FINGERPRINT.
            operation!(|input| {
                let message = decode(&input.success);
                message.verify(key).unwrap();
                Answer::Address(message.get::<XorMappedAddress>().unwrap())
            }),
            operation!(|_input| {
                let out = out();
                let mut message = MessageEncoder::new(BINDING_REQUEST, &ID.0, out);
                message.append::<UserName>(USERNAME);
                message.append::<Priority>(PRIORITY);
                message.append::<IceControlling>(TIE_BREAKER);
                message.flush(Some(key)).unwrap();
                Answer::Written(&out[..])
            }),
            operation!(|input| {
                let view = decoder().decode(&input.channel_data).unwrap().into_channel_data().unwrap();
                Answer::Channel(view.number(), view.bytes())
            }),
            operation!(|input| {
                let message = decode(&input.send);
                assert!(matches!(message.method(), SEND_INDICATION));
                let peer = message.get::<XorPeerAddress>().unwrap();
                Answer::Payload(peer, message.get::<Data>().unwrap())
            }),
            operation!(|input| {
                let out = out();
                let mut message = MessageEncoder::new(DATA_INDICATION, &ID.0, out);
                message.append::<XorPeerAddress>(input.address);
                message.append::<Data>(&input.payload[..]);
                message.flush(None).unwrap();
                Answer::Written(&out[..])
            }),
        ],
    }
}

fn is_codec() -> Codec {
    use is::stun::{StunMessage, TransId};
    use str0m_proto::Sha1HmacProvider;

    let hmac = |key: &[u8], parts: &[&[u8]]| is::DefaultSha1HmacProvider.sha1_hmac(key, parts);
    let id = |bytes: &'static [u8]| -> TransId { StunMessage::parse(bytes).unwrap().trans_id() };
    // The only way to a given transaction id is a message that has it.
    let id = id(Box::leak(Box::new(crate::input::Input::new())).success.as_slice());
    let out = buffer([0_u8; 1400]);
    Codec {
        name: "str0m's is",
        rows: [
            operation!(|input| Answer::Address(StunMessage::parse(&input.success).unwrap().mapped_address().unwrap())),
            None,
            // It does not check FINGERPRINT.
            operation!(|input| {
                let message = StunMessage::parse(&input.success).unwrap();
                assert!(message.verify(PASSWORD.as_bytes(), hmac));
                Answer::Address(message.mapped_address().unwrap())
            }),
            operation!(|_input| {
                let message = StunMessage::binding_request(USERNAME, id, true, TIE_BREAKER, PRIORITY, false);
                let out = out();
                let len = message.to_bytes(Some(PASSWORD.as_bytes()), out, hmac).unwrap();
                Answer::Written(&out[..len])
            }),
            None,
            operation!(|input| {
                let message = StunMessage::parse(&input.send).unwrap();
                assert!(message.is_send_indication());
                Answer::Payload(message.xor_peer_address().unwrap(), message.data().unwrap())
            }),
            // It adds FINGERPRINT to whatever it writes, so this row would not be the same message.
            None,
        ],
    }
}
