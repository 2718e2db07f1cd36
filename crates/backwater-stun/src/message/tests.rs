use std::net::SocketAddr;
use std::string::String;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::attribute::*;
use crate::{Writer, padding_len};

const ID: TransactionId = TransactionId([9; 12]);

/// A message of these attributes as they are, whatever they are.
fn message(attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42];
    bytes.extend(ID.0);
    for (number, value) in attributes {
        bytes.extend(number.to_be_bytes());
        bytes.extend((value.len() as u16).to_be_bytes());
        bytes.extend(*value);
        bytes.extend(&[0xEE; 3][..padding_len(value.len())]);
    }
    set_length(&mut bytes);
    bytes
}

fn set_length(bytes: &mut [u8]) {
    let length = (bytes.len() - 20) as u16;
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
}

fn key() -> HmacKey {
    HmacKey::new(b"VOkJxbRl1RmTxUk/WvJxBt")
}

#[test]
fn malformed_message_is_refused() {
    let good = message(&[]);
    assert!(Message::parse(&good).is_ok());
    for len in 0..20 {
        let error = Message::parse(&good[..len]).unwrap_err();
        assert_eq!(error, ParseError::Truncated);
    }
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        Message::parse(&bytes).unwrap_err()
    };
    for first in [0x40, 0x80, 0xC0] {
        assert_eq!(changed(0, first), ParseError::NotStun);
    }
    assert_eq!(changed(4, 0x22), ParseError::NotStun);
    assert_eq!(changed(3, 2), ParseError::UnalignedLength);
    assert_eq!(changed(3, 4), ParseError::Truncated);
    assert_eq!(Message::parse(&[&good[..], &[0]].concat()).unwrap_err(), ParseError::TrailingBytes);
}

#[test]
fn unknown_attributes_are_kept_and_reported() {
    let bytes = message(&[(0x7FFF, b"abc"), (0xC001, b""), (0x0006, b"user"), (0x0030, b"")]);
    let parsed = Message::parse(&bytes).unwrap();
    let all: Vec<_> = parsed.attributes().map(|raw| (raw.attribute_type.0, raw.value)).collect();
    assert_eq!(all, [(0x7FFF, &b"abc"[..]), (0xC001, b""), (0x0006, b"user"), (0x0030, b"")]);
    let unknown: Vec<_> = parsed.unknown_required(AttributeSet::REGISTERED).collect();
    assert_eq!(unknown, [AttributeType(0x7FFF), AttributeType(0x0030)]);
    let understood = AttributeSet::of(&[AttributeType::REALM]);
    assert_eq!(parsed.unknown_required(understood).count(), 3);
    let with_private = AttributeSet::of(&[AttributeType(0x7FFF), AttributeType::USERNAME]);
    assert!(parsed.unknown_required(with_private).eq([AttributeType(0x0030)]));
}

#[test]
fn first_of_two_attributes_counts_even_if_unreadable() {
    let bytes = message(&[(0x000D, &[0, 0, 0, 1]), (0x000D, &[0, 0, 0, 2]), (0x0006, b"\xFF"), (0x0006, b"user")]);
    let parsed = Message::parse(&bytes).unwrap();
    assert_eq!(parsed.get(), Ok(Some(Lifetime(1))));
    let error = parsed.get::<Username<'_>>().unwrap_err();
    assert_eq!(error, AttributeError { attribute: AttributeType::USERNAME, kind: crate::AttributeErrorKind::Utf8 });
    assert_eq!(parsed.get::<Realm<'_>>(), Ok(None));
    let all: Result<Vec<Lifetime>, _> = parsed.all().collect();
    assert_eq!(all, Ok(vec![Lifetime(1), Lifetime(2)]));
}

#[test]
fn the_first_data_counts_and_none_after_the_integrity() {
    let data = |attributes: &[(u16, &[u8])]| {
        let bytes = message(attributes);
        let parsed = Message::parse(&bytes).unwrap();
        let value = parsed.get::<Data<'_>>().unwrap().map(|data| data.0.to_vec());
        let range = parsed.value_range(AttributeType::DATA).map(|range| bytes[range].to_vec());
        assert_eq!(value, range);
        value
    };
    assert_eq!(data(&[(0x0006, b"user"), (0x0013, b"one"), (0x0013, b"two")]), Some(b"one".to_vec()));
    assert_eq!(data(&[(0x0013, b""), (0x0013, b"two"), (0x0008, &[0; 20])]), Some(vec![]));
    assert_eq!(data(&[(0x0013, b"one"), (0x0008, &[0; 20]), (0x0013, b"two")]), Some(b"one".to_vec()));
    assert_eq!(data(&[(0x0008, &[0; 20]), (0x0013, b"one")]), None);
    assert_eq!(data(&[(0x001C, &[0; 32]), (0x0013, b"one"), (0x8028, &[0; 4])]), None);
    assert_eq!(data(&[(0x0006, b"user"), (0x8028, &[0; 4])]), None);
    assert_eq!(data(&[]), None);
}

#[test]
fn value_range_is_the_payload() {
    let mut buffer = [0; 100];
    let mut writer = Writer::new(&mut buffer, Class::Indication, Method::SEND, ID).unwrap();
    let peer = SocketAddr::from(([192, 0, 2, 1], 7));
    writer.attribute(&XorPeerAddress(peer)).unwrap().attribute(&Data(b"payload")).unwrap();
    let parsed = Message::parse(writer.finish()).unwrap();
    assert_eq!(parsed.value_range(AttributeType::DATA), Some(36..43));
    assert_eq!(&parsed.as_bytes()[36..43], b"payload");
    assert_eq!(parsed.value_range(AttributeType::REALM), None);
}

#[test]
fn sha256_integrity_takes_precedence() {
    let mut buffer = [0; 200];
    let mut writer = Writer::new(&mut buffer, Class::Request, Method::BINDING, ID).unwrap();
    writer.attribute(&Username("user")).unwrap();
    let both = writer.integrity_sha1(&key()).unwrap().integrity_sha256(&key()).unwrap().fingerprint().unwrap();
    let mut bytes = both.finish().to_vec();
    let verified = Message::parse(&bytes).unwrap().verify(&key()).unwrap();
    assert_eq!(verified.integrity(), Integrity::Sha256);
    assert_eq!(Message::parse(&bytes).unwrap().attributes().count(), 4);
    // With SHA-256 broken, a good SHA-1 is no way out.
    let end = bytes.len() - 8;
    bytes[end - 1] ^= 1;
    assert_eq!(Message::parse(&bytes).unwrap().verify(&key()).err(), Some(IntegrityError::Mismatch));
}

#[test]
fn mac_shorter_than_the_caller_allows_is_refused() {
    for sent in [16, 20, 24, 28, 32] {
        let mut buffer = [0; 100];
        let writer = Writer::new(&mut buffer, Class::Request, Method::BINDING, ID).unwrap();
        let sent = MacLength::new(sent).unwrap();
        let writer = writer.integrity_sha256_truncated(&key(), sent).unwrap();
        let parsed = Message::parse(writer.finish()).unwrap();
        for shortest in [16, 20, 24, 28, 32] {
            let shortest = MacLength::new(shortest).unwrap();
            let result = parsed.verify_truncated(&key(), shortest).map(|_| ());
            assert_eq!(result, if sent >= shortest { Ok(()) } else { Err(IntegrityError::Truncated) });
        }
        assert_eq!(parsed.verify(&key()).is_ok(), sent == MacLength::FULL);
    }
    for len in [0, 12, 15, 17, 33, 36] {
        assert_eq!(MacLength::new(len), None);
        let value = vec![0; len];
        let bytes = message(&[(0x001C, &value)]);
        let result = Message::parse(&bytes).unwrap().verify_truncated(&key(), MacLength::SHORTEST);
        assert_eq!(result.err(), Some(IntegrityError::Malformed), "{len}");
    }
}

#[test]
fn missing_or_malformed_integrity_is_an_error() {
    let bytes = message(&[(0x0006, b"user")]);
    assert_eq!(Message::parse(&bytes).unwrap().verify(&key()).err(), Some(IntegrityError::Missing));
    for len in [0, 19, 21, 32] {
        let value = vec![0; len];
        let bytes = message(&[(0x0008, &value)]);
        assert_eq!(Message::parse(&bytes).unwrap().verify(&key()).err(), Some(IntegrityError::Malformed), "{len}");
    }
    let bytes = message(&[(0x8028, &[0; 5])]);
    assert_eq!(Message::parse(&bytes).unwrap().check_fingerprint(), FingerprintCheck::Invalid);
}

/// The defects that mutation has found in other codecs, one test each.
mod defects {
    use super::*;

    #[test]
    fn an_unpadded_last_attribute_is_an_error() {
        let mut bytes = message(&[(0x0006, b"user"), (0x0014, b"realm")]);
        bytes.truncate(bytes.len() - 3);
        assert_eq!(Message::parse(&bytes).unwrap_err(), ParseError::Truncated);
        set_length(&mut bytes);
        assert_eq!(Message::parse(&bytes).unwrap_err(), ParseError::UnalignedLength);
    }

    #[test]
    fn lengths_near_the_top_do_not_wrap() {
        for length in 0xFFEC..=0xFFFF_u16 {
            let mut bytes = message(&[(0x0013, b"")]);
            bytes[2..4].copy_from_slice(&length.to_be_bytes());
            assert!(Message::parse(&bytes).is_err(), "header {length:#x}");

            let mut bytes = message(&[(0x0013, b"")]);
            bytes[22..24].copy_from_slice(&length.to_be_bytes());
            assert_eq!(Message::parse(&bytes).unwrap_err(), ParseError::AttributeOverrun, "attribute {length:#x}");
        }
        // The longest message there can be is fine.
        let longest = message(&[(0x0013, &[7; 65_528])]);
        assert_eq!(longest.len(), crate::MAX_MESSAGE_LEN);
        assert_eq!(Message::parse(&longest).unwrap().get::<Data<'_>>().unwrap().unwrap().0.len(), 65_528);
    }

    #[test]
    fn attributes_beyond_the_headers_length_are_not_part_of_the_message() {
        let mut bytes = message(&[(0x0006, b"user"), (0x0014, b"real")]);
        bytes[3] = 8;
        assert_eq!(Message::parse(&bytes).unwrap_err(), ParseError::TrailingBytes);
        // Nor may an attribute reach over its end.
        let mut bytes = message(&[(0x0006, b"user")]);
        bytes[23] = 5;
        assert_eq!(Message::parse(&bytes).unwrap_err(), ParseError::AttributeOverrun);
    }

    #[test]
    fn what_follows_the_integrity_is_ignored() {
        let mut buffer = [0; 200];
        let mut writer = Writer::new(&mut buffer, Class::Request, Method::ALLOCATE, ID).unwrap();
        writer.attribute(&Username("user")).unwrap();
        let mut bytes = writer.integrity_sha1(&key()).unwrap().finish().to_vec();
        let forged = message(&[(0x0006, b"root"), (0x000D, &[0, 0, 0, 9]), (0x7FFF, b"")]);
        bytes.extend(&forged[20..]);
        set_length(&mut bytes);

        let parsed = Message::parse(&bytes).unwrap();
        let verified = parsed.verify(&key()).unwrap();
        assert_eq!(verified.get(), Ok(Some(Username("user"))));
        assert_eq!((verified.get::<Lifetime>(), parsed.get::<Lifetime>()), (Ok(None), Ok(None)));
        assert!(!parsed.contains(AttributeType::LIFETIME) && !verified.contains(AttributeType::LIFETIME));
        assert_eq!(parsed.unknown_required(AttributeSet::REGISTERED).count(), 0);
        assert_eq!(verified.attributes().count(), 1);
        assert_eq!(parsed.all::<Username<'_>>().count(), 1);
        assert_eq!(parsed.value_range(AttributeType::LIFETIME), None);
        assert_eq!(parsed.attributes().map(|raw| raw.attribute_type.0).collect::<Vec<_>>(), [6, 8]);
    }

    #[test]
    fn what_follows_sha256_integrity_is_ignored_even_sha1() {
        let mac = [0; 20];
        let bytes = message(&[(0x001C, &[0; 32]), (0x0008, &mac), (0x000D, &[0; 4]), (0x001C, &[1; 32])]);
        let parsed = Message::parse(&bytes).unwrap();
        assert_eq!(parsed.attributes().map(|raw| raw.attribute_type.0).collect::<Vec<_>>(), [0x1C]);
        assert_eq!(parsed.get::<MessageIntegrity>(), Ok(None));
        assert_eq!(parsed.get(), Ok(Some(MessageIntegritySha256(&[0; 32]))));
    }

    #[test]
    fn nothing_follows_the_fingerprint() {
        let bytes = message(&[(0x8028, &[0; 4]), (0x0006, b"user")]);
        assert_eq!(Message::parse(&bytes).unwrap_err(), ParseError::AfterFingerprint);
        let bytes = message(&[(0x8028, &[0; 4]), (0x8028, &[0; 4])]);
        assert_eq!(Message::parse(&bytes).unwrap_err(), ParseError::AfterFingerprint);
        let bytes = message(&[(0x8028, &[0; 4]), (0x0008, &[0; 20])]);
        assert_eq!(Message::parse(&bytes).unwrap_err(), ParseError::AfterFingerprint);
        let mut bytes = message(&[(0x8028, &[0; 4])]);
        bytes[23] = 5;
        assert_eq!(Message::parse(&bytes).unwrap_err(), ParseError::AttributeOverrun);
    }

    #[test]
    fn sha256_integrity_is_32_bytes_of_sha256() {
        use hmac::{Hmac, KeyInit, Mac};
        let mut buffer = [0; 100];
        let writer = Writer::new(&mut buffer, Class::Request, Method::BINDING, ID).unwrap();
        let bytes = writer.integrity_sha256(&key()).unwrap().finish();
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(b"VOkJxbRl1RmTxUk/WvJxBt").unwrap();
        mac.update(&bytes[..20]);
        assert_eq!(bytes[20..24], [0x00, 0x1C, 0, 32]);
        assert_eq!(bytes[24..], mac.finalize().into_bytes()[..]);
    }

    #[test]
    fn codes_are_compared_in_constant_time() {
        // That `subtle` does the comparing is the proof; here only that each byte of the code counts.
        let mut buffer = [0; 100];
        let writer = Writer::new(&mut buffer, Class::Request, Method::BINDING, ID).unwrap();
        let bytes = writer.integrity_sha1(&key()).unwrap().finish().to_vec();
        for at in 24..44 {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x80;
            assert_eq!(Message::parse(&bytes).unwrap().verify(&key()).err(), Some(IntegrityError::Mismatch));
        }
    }
}

/// An attribute's value as random as its type allows.
fn value(attribute_type: AttributeType) -> impl Strategy<Value = (AttributeType, Vec<u8>)> {
    let rule = attribute_type.length_rule().unwrap();
    let len = usize::from(rule.min)..=usize::from(rule.max_written.min(40));
    let text = "[a-zé]{0,20}".prop_map(String::into_bytes);
    let bytes = prop::collection::vec(any::<u8>(), len);
    prop_oneof![text, bytes].prop_map(move |value| (attribute_type, value))
}

fn ordinary_type() -> impl Strategy<Value = AttributeType> {
    let special =
        [AttributeType::MESSAGE_INTEGRITY, AttributeType::MESSAGE_INTEGRITY_SHA256, AttributeType::FINGERPRINT];
    let ordinary: Vec<_> = AttributeType::REGISTERED.iter().copied().filter(|t| !special.contains(t)).collect();
    prop::sample::select(ordinary)
}

#[derive(Debug, Clone)]
struct Random {
    class: Class,
    method: Method,
    id: TransactionId,
    values: Vec<(AttributeType, Vec<u8>)>,
    sha1: bool,
    sha256: bool,
    fingerprint: bool,
}

fn random() -> impl Strategy<Value = Random> {
    let class =
        prop::sample::select(vec![Class::Request, Class::Indication, Class::SuccessResponse, Class::ErrorResponse]);
    let values = prop::collection::vec(ordinary_type().prop_flat_map(value), 0..8);
    (class, 0_u16..=0xFFF, any::<[u8; 12]>(), values, any::<[bool; 3]>()).prop_map(
        |(class, method, id, values, [sha1, sha256, fingerprint])| {
            let method = Method::new(method).unwrap();
            Random { class, method, id: TransactionId(id), values, sha1, sha256, fingerprint }
        },
    )
}

impl Random {
    /// Those values that can be read as attributes.
    fn attributes(&self) -> Vec<AnyAttribute<'_>> {
        self.values
            .iter()
            .map(|(attribute_type, value)| RawAttribute { attribute_type: *attribute_type, value })
            .filter_map(|raw| AnyAttribute::decode(raw, &self.id).ok())
            .collect()
    }

    fn write(&self) -> Vec<u8> {
        let mut buffer = [0xEE; 1000];
        let mut writer = Writer::new(&mut buffer, self.class, self.method, self.id).unwrap();
        for attribute in self.attributes() {
            let before = writer.len();
            attribute.push_to(&mut writer).unwrap();
            assert_eq!(writer.len(), before + 4 + padded_len(attribute.value_len()));
        }
        let fingerprint = self.fingerprint;
        macro_rules! end {
            ($writer:expr) => {
                if fingerprint { $writer.fingerprint().unwrap().finish() } else { $writer.finish() }
            };
        }
        let bytes = match (self.sha1, self.sha256) {
            (false, false) => end!(writer),
            (true, false) => end!(writer.integrity_sha1(&key()).unwrap()),
            (false, true) => end!(writer.integrity_sha256(&key()).unwrap()),
            (true, true) => end!(writer.integrity_sha1(&key()).unwrap().integrity_sha256(&key()).unwrap()),
        };
        bytes.to_vec()
    }

    fn is_protected(&self) -> bool {
        self.sha1 || self.sha256
    }
}

proptest! {
    #[test]
    fn written_message_is_read_back(random in random()) {
        let bytes = random.write();
        let parsed = Message::parse(&bytes).unwrap();
        prop_assert_eq!((parsed.class(), parsed.method()), (random.class, random.method));
        prop_assert!(parsed.is(random.class, random.method));
        prop_assert_eq!(parsed.transaction_id(), random.id);
        let expected = if random.fingerprint { FingerprintCheck::Valid } else { FingerprintCheck::Absent };
        prop_assert_eq!(parsed.check_fingerprint(), expected);
        let read: Vec<_> = parsed.ordinary().map(|(_, raw)| AnyAttribute::decode(raw, &random.id).unwrap()).collect();
        prop_assert_eq!(read, random.attributes());
        match parsed.verify(&key()) {
            Ok(verified) => {
                prop_assert!(random.is_protected());
                prop_assert_eq!(verified.integrity() == Integrity::Sha256, random.sha256);
                prop_assert_eq!(verified.attributes().count(), random.attributes().len());
            }
            Err(error) => {
                prop_assert!(!random.is_protected());
                prop_assert_eq!(error, IntegrityError::Missing);
            }
        }
    }

    #[test]
    fn truncated_or_extended_message_is_refused(random in random(), extra in 1_usize..30) {
        let bytes = random.write();
        for len in 0..bytes.len() {
            prop_assert!(Message::parse(&bytes[..len]).is_err());
        }
        let longer = [&bytes[..], &vec![0; extra]].concat();
        prop_assert_eq!(Message::parse(&longer).unwrap_err(), ParseError::TrailingBytes);
    }

    #[test]
    fn flipped_bit_is_detected(random in random(), bit: prop::sample::Index) {
        let bytes = random.write();
        let mut flipped = bytes.clone();
        let bit = bit.index(bytes.len() * 8);
        flipped[bit / 8] ^= 1 << (bit % 8);
        let Ok(parsed) = Message::parse(&flipped) else { return Ok(()) };
        if random.fingerprint {
            prop_assert_ne!(parsed.check_fingerprint(), FingerprintCheck::Valid);
        }
        if let Ok(verified) = parsed.verify(&key()) {
            // Then the bit was in what the integrity does not cover, and nothing that it covers has changed.
            let original = Message::parse(&bytes).unwrap();
            let original = original.verify(&key()).unwrap();
            prop_assert!(verified.attributes().eq(original.attributes()));
            prop_assert_eq!((verified.class(), verified.method()), (random.class, random.method));
            prop_assert_eq!(verified.transaction_id(), random.id);
        }
    }

    #[test]
    fn random_bytes_cause_no_panic_in_the_parser(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut framed = message(&[]);
        framed.extend(&bytes[..bytes.len() & !3]);
        set_length(&mut framed);
        for bytes in [&bytes[..], &framed] {
            let Ok(parsed) = Message::parse(bytes) else { continue };
            for raw in parsed.attributes() {
                let _ = AnyAttribute::decode(raw, &parsed.transaction_id());
            }
            let _ = (parsed.check_fingerprint(), parsed.verify(&key()).is_ok());
        }
    }
}
