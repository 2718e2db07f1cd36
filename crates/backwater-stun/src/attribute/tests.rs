use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::AttributeErrorKind::{Family, Length, Utf8, Value};
use crate::Writer;

const ID: TransactionId = TransactionId([0xB7, 0xE7, 0xA7, 0x01, 0xBC, 0x34, 0xD6, 0x86, 0xFA, 0x87, 0xDF, 0xAE]);

/// One value of every type, and its bytes.
fn every_attribute() -> Vec<(AnyAttribute<'static>, &'static [u8])> {
    use AnyAttribute as A;
    let v4 = "192.0.2.1:32853".parse().unwrap();
    let v6 = "[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse().unwrap();
    let plain_v4 = b"\0\x01\x80\x55\xC0\0\x02\x01";
    let plain_v6 = b"\0\x02\x80\x55\x20\x01\x0D\xB8\x12\x34\x56\x78\0\x11\x22\x33\x44\x55\x66\x77";
    // The two of RFC 5769 §2.2 and §2.3.
    let xor_v4 = b"\0\x01\xA1\x47\xE1\x12\xA6\x43";
    let xor_v6 = b"\0\x02\xA1\x47\x01\x13\xA9\xFA\xA5\xD3\xF1\x79\xBC\x25\xF4\xB5\xBE\xD2\xB9\xD9";
    let no_parameters = PasswordAlgorithm::SHA256;
    let with_parameters = PasswordAlgorithm { number: 9, parameters: b"abc" };
    vec![
        (A::MappedAddress(MappedAddress(v4)), plain_v4),
        (A::MappedAddress(MappedAddress(v6)), plain_v6),
        (A::ChangeRequest(ChangeRequest { ip: true, port: false }), &[0, 0, 0, 4]),
        (A::ChangeRequest(ChangeRequest { ip: false, port: true }), &[0, 0, 0, 2]),
        (A::Username(Username("us\u{e9}r")), b"us\xC3\xA9r"),
        (A::MessageIntegrity(MessageIntegrity([7; 20])), &[7; 20]),
        (A::ErrorCode(Code::STALE_NONCE.into()), b"\0\0\x04\x26Stale Nonce"),
        (A::ErrorCode(ErrorCode { code: Code::new(699).unwrap(), reason: "" }), b"\0\0\x06\x63"),
        (
            A::UnknownAttributes(UnknownAttributes::new(&[AttributeType(0x7FFF), AttributeType::DATA])),
            &[0x7F, 0xFF, 0, 0x13],
        ),
        (A::ChannelNumber(ChannelNumber::MAX), &[0x4F, 0xFF, 0, 0]),
        (A::Lifetime(Lifetime(600)), &[0, 0, 2, 0x58]),
        (A::XorPeerAddress(XorPeerAddress(v4)), xor_v4),
        (A::XorPeerAddress(XorPeerAddress(v6)), xor_v6),
        (A::Data(Data(b"\x00\xFF")), b"\x00\xFF"),
        (A::Realm(Realm("example.org")), b"example.org"),
        (A::Nonce(Nonce(b"\xFFnonce")), b"\xFFnonce"),
        (A::XorRelayedAddress(XorRelayedAddress(v6)), xor_v6),
        (A::RequestedAddressFamily(RequestedAddressFamily(AddressFamily::Ipv6)), &[2, 0, 0, 0]),
        (A::EvenPort(EvenPort { reserve_next: true }), &[0x80]),
        (A::EvenPort(EvenPort { reserve_next: false }), &[0]),
        (A::RequestedTransport(RequestedTransport::UDP), &[17, 0, 0, 0]),
        (A::DontFragment(DontFragment), &[]),
        (A::AccessToken(AccessToken(b"token")), b"token"),
        (A::MessageIntegritySha256(MessageIntegritySha256(&[7; 16])), &[7; 16]),
        (A::PasswordAlgorithm(no_parameters), &[0, 2, 0, 0]),
        (A::PasswordAlgorithm(with_parameters), b"\0\x09\0\x03abc"),
        (A::Userhash(Userhash([7; 32])), &[7; 32]),
        (A::XorMappedAddress(XorMappedAddress(v4)), xor_v4),
        (A::ReservationToken(ReservationToken([7; 8])), &[7; 8]),
        (A::Priority(Priority(0x6E00_01FF)), &[0x6E, 0, 1, 0xFF]),
        (A::UseCandidate(UseCandidate), &[]),
        (A::Padding(Padding(&[0; 9])), &[0; 9]),
        (A::ResponsePort(ResponsePort(3478)), &[0x0D, 0x96, 0, 0]),
        (A::ConnectionId(ConnectionId(0x0102_0304)), &[1, 2, 3, 4]),
        (A::AdditionalAddressFamily(AdditionalAddressFamily(AddressFamily::Ipv4)), &[1, 0, 0, 0]),
        (
            A::AddressErrorCode(AddressErrorCode {
                family: AddressFamily::Ipv6,
                code: Code::ADDRESS_FAMILY_NOT_SUPPORTED,
                reason: "no",
            }),
            b"\x02\0\x04\x28no",
        ),
        (A::PasswordAlgorithms(PasswordAlgorithms::SHA256_MD5), &[0, 2, 0, 0, 0, 1, 0, 0]),
        (A::AlternateDomain(AlternateDomain("example.org")), b"example.org"),
        (A::Icmp(Icmp { icmp_type: 3, code: 4, data: 1500 }), &[0, 0, 6, 4, 0, 0, 5, 0xDC]),
        (A::Icmp(Icmp { icmp_type: 127, code: 511, data: 0 }), &[0, 0, 0xFF, 0xFF, 0, 0, 0, 0]),
        (A::Software(Software("test vector")), b"test vector"),
        (A::AlternateServer(AlternateServer(v4)), plain_v4),
        (A::TransactionTransmitCounter(TransactionTransmitCounter { request: 3, response: 1 }), &[0, 0, 3, 1]),
        (A::CacheTimeout(CacheTimeout(60)), &[0, 0, 0, 60]),
        (A::Fingerprint(Fingerprint(0x0102_0304)), &[1, 2, 3, 4]),
        (A::IceControlled(IceControlled(0x0102_0304_0506_0708)), &[1, 2, 3, 4, 5, 6, 7, 8]),
        (A::IceControlling(IceControlling(0x0102_0304_0506_0708)), &[1, 2, 3, 4, 5, 6, 7, 8]),
        (A::ResponseOrigin(ResponseOrigin(v6)), plain_v6),
        (A::OtherAddress(OtherAddress(v4)), plain_v4),
        (A::EcnCheck(EcnCheck { ecf: 2, valid: true }), &[0, 0, 0, 5]),
        (A::ThirdPartyAuthorization(ThirdPartyAuthorization("auth.example")), b"auth.example"),
        (A::MobilityTicket(MobilityTicket(b"ticket")), b"ticket"),
    ]
}

fn decode(attribute_type: AttributeType, value: &[u8]) -> Result<AnyAttribute<'_>, AttributeErrorKind> {
    AnyAttribute::decode(RawAttribute { attribute_type, value }, &ID).map_err(|error| {
        assert_eq!(error.attribute, attribute_type);
        error.kind
    })
}

#[test]
fn every_attribute_has_the_bytes_of_its_definition() {
    let every = every_attribute();
    // In the order of the registry, so that none can be missing.
    let mut types = AttributeType::REGISTERED.iter().peekable();
    for (attribute, bytes) in every {
        let found = types.peek().filter(|t| decode(***t, bytes) == Ok(attribute)).is_some();
        if !found {
            types.next();
        }
        let attribute_type = **types.peek().unwrap();
        assert_eq!(decode(attribute_type, bytes), Ok(attribute));
        assert_eq!(attribute.value_len(), bytes.len(), "{attribute_type}");
        let mut out = vec![0xAA; bytes.len()];
        attribute.encode(&ID, &mut out).unwrap();
        assert_eq!(out, bytes, "{attribute_type}");
        assert!(attribute_type.length_rule().unwrap().writes(bytes.len()), "{attribute_type}");

        // A slice that is not what was asked for is an error, or is left alone; it is no panic.
        for len in [0, 1, 3, 5, 19, 40] {
            let _ = attribute.encode(&ID, &mut vec![0; len]);
        }
    }
    types.next();
    assert_eq!(types.next(), None, "an attribute has no example");
}

#[test]
fn length_outside_the_rule_is_refused() {
    for &attribute_type in AttributeType::REGISTERED {
        let rule = attribute_type.length_rule().unwrap();
        for len in (0..=40).chain([255, 256, 509, 510, 763, 764, 767, 768, 65_532, 65_535]) {
            // ASCII, and a valid code, family and algorithm list as far as one value can be all of them.
            let result = decode(attribute_type, &vec![1; len]).map(|_| ());
            if !rule.reads(len) {
                assert_eq!(result, Err(Length), "{attribute_type} of {len} bytes");
            }
        }
    }
}

#[test]
fn invalid_values_are_refused() {
    for (attribute_type, value, kind) in [
        (AttributeType::XOR_PEER_ADDRESS, &[0, 0, 0, 0, 1, 2, 3, 4][..], Family),
        (AttributeType::XOR_PEER_ADDRESS, &[0, 3, 0, 0, 1, 2, 3, 4], Family),
        (AttributeType::XOR_PEER_ADDRESS, &[0, 2, 0, 0, 1, 2, 3, 4], Length),
        (AttributeType::XOR_PEER_ADDRESS, &[0, 1, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8], Length),
        (AttributeType::REQUESTED_ADDRESS_FAMILY, &[3, 0, 0, 0], Family),
        (AttributeType::ADDRESS_ERROR_CODE, &[0, 0, 4, 0], Family),
        (AttributeType::USERNAME, b"\xFF", Utf8),
        (AttributeType::ERROR_CODE, b"\0\0\x04\0\xFF", Utf8),
        (AttributeType::ERROR_CODE, b"\0\0\x02\0", Value),
        (AttributeType::ERROR_CODE, b"\0\0\x07\0", Value),
        (AttributeType::ERROR_CODE, b"\0\0\x04\x64", Value),
        (AttributeType::CHANNEL_NUMBER, b"\x3F\xFF\0\0", Value),
        (AttributeType::CHANNEL_NUMBER, b"\x80\0\0\0", Value),
        (AttributeType::UNKNOWN_ATTRIBUTES, b"\0\x01\0", Length),
        (AttributeType::PASSWORD_ALGORITHM, b"\0\x01\0\x01", Length),
        (AttributeType::PASSWORD_ALGORITHM, b"\0\x01\0\0\0\0\0\0", Length),
        (AttributeType::PASSWORD_ALGORITHMS, b"\0\x01\0\0\0", Length),
    ] {
        assert_eq!(decode(attribute_type, value).map(|_| ()), Err(kind), "{attribute_type} {value:x?}");
    }
}

#[test]
fn reserved_bits_are_ignored() {
    assert_eq!(
        decode(AttributeType::ERROR_CODE, b"\xFF\xFF\xFC\x01"),
        Ok(AnyAttribute::ErrorCode(ErrorCode { code: Code::UNAUTHENTICATED, reason: "" }))
    );
    assert_eq!(decode(AttributeType::EVEN_PORT, &[0xFF]), Ok(AnyAttribute::EvenPort(EvenPort { reserve_next: true })));
    assert_eq!(
        decode(AttributeType::CHANNEL_NUMBER, &[0x40, 0, 0xFF, 0xFF]),
        Ok(AnyAttribute::ChannelNumber(ChannelNumber::MIN))
    );
    assert_eq!(decode(AttributeType::RESPONSE_PORT, &[0, 1]), Ok(AnyAttribute::ResponsePort(ResponsePort(1))));
}

#[test]
fn written_lengths_are_stricter_than_read_ones() {
    let long = "x".repeat(600);
    let id = ID;
    let mut buffer = [0; 1000];
    let mut writer = Writer::new(&mut buffer, crate::Class::Request, crate::Method::BINDING, id).unwrap();
    let refused = |attribute| Err(crate::WriteError::Attribute(AttributeError { attribute, kind: Length }));
    assert_eq!(writer.attribute(&Username(&long[..510])).map(|_| ()), refused(AttributeType::USERNAME));
    assert_eq!(writer.attribute(&Software(&long[..128])).map(|_| ()), refused(AttributeType::SOFTWARE));
    let reason = ErrorCode { code: Code::FORBIDDEN, reason: &long[..128] };
    assert_eq!(writer.attribute(&reason).map(|_| ()), refused(AttributeType::ERROR_CODE));
    assert_eq!(writer.len(), 20);
    writer.attribute(&Username(&long[..509])).unwrap().attribute(&Software(&long[..127])).unwrap();
    assert!(decode(AttributeType::USERNAME, &long.as_bytes()[..600]).is_ok());

    // What does not fit into its bits.
    let icmp = Icmp { icmp_type: 128, code: 0, data: 0 };
    assert_eq!(icmp.encode(&id, &mut [0; 8]), Err(Value));
    assert_eq!(EcnCheck { ecf: 4, valid: true }.encode(&id, &mut [0; 4]), Err(Value));
}

#[test]
fn codes_are_those_of_the_registry() {
    assert_eq!(Code::REGISTERED.len(), 18);
    for code in Code::REGISTERED {
        assert_eq!(Code::new(code.number()), Some(*code));
        assert!(!code.reason().is_empty());
    }
    assert_eq!((Code::new(299), Code::new(700)), (None, None));
    assert_eq!(Code::new(699).map(Code::reason), Some(""));
}

#[test]
fn set_contains_exactly_its_members() {
    // 0x40 and 0x7FFF are comprehension-required and not in the registry: a private attribute may have such a type.
    let members: &'static [_] =
        &[AttributeType::DATA, AttributeType(0x40), AttributeType(0x7FFF), AttributeType::SOFTWARE];
    let set = AttributeSet::of(members);
    for number in 0..=u16::MAX {
        let attribute = AttributeType(number);
        assert_eq!(set.contains(attribute), members.contains(&attribute), "{attribute}");
        let is_registered = AttributeType::REGISTERED.contains(&attribute);
        assert_eq!(AttributeSet::REGISTERED.contains(attribute), is_registered, "{attribute}");
    }
    assert_eq!(std::format!("{set:?}"), "{DATA, 0x0040, 0x7fff, SOFTWARE}");
}

proptest! {
    #[test]
    fn attribute_round_trips(
        attribute_type in prop::sample::select(AttributeType::REGISTERED),
        value in prop::collection::vec(any::<u8>(), 0..48),
        id: [u8; 12],
    ) {
        let id = TransactionId(id);
        let raw = RawAttribute { attribute_type, value: &value };
        if let Ok(attribute) = AnyAttribute::decode(raw, &id) {
            let mut out = vec![0; attribute.value_len()];
            attribute.encode(&id, &mut out).unwrap();
            let again = AnyAttribute::decode(RawAttribute { attribute_type, value: &out }, &id);
            prop_assert_eq!(again, Ok(attribute));
        }
    }
}
