//! Any bytes at all: nothing panics, and what is read can be written and read again.
#![no_main]

use backwater_stun::{
    AnyAttribute, AttributeSet, AttributeType, Data, FingerprintCheck, HmacKey, MacLength, Message, XorPeerAddress,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    check(data);
    check(&plausible(data));
});

fn check(bytes: &[u8]) {
    let Ok(message) = Message::parse(bytes) else { return };
    let id = message.transaction_id();
    let mut total = 20;
    for raw in message.attributes() {
        assert!(bytes.as_ptr_range().contains(&raw.value.as_ptr()) || raw.value.is_empty());
        total += 4 + raw.value.len();
        let Ok(attribute) = AnyAttribute::decode(raw, &id) else { continue };
        let mut value = vec![0xAA; attribute.value_len()];
        if attribute.encode(&id, &mut value).is_ok() {
            let again = backwater_stun::RawAttribute { attribute_type: raw.attribute_type, value: &value };
            assert_eq!(AnyAttribute::decode(again, &id), Ok(attribute));
        }
    }
    assert!(total <= bytes.len());

    for unknown in message.unknown_required(AttributeSet::REGISTERED) {
        assert!(unknown.comprehension_required() && unknown.name().is_none());
    }
    if let Some(range) = message.value_range(AttributeType::DATA) {
        assert_eq!(message.get::<Data>().unwrap().unwrap().0, &bytes[range]);
    }
    assert_eq!(message.all::<XorPeerAddress>().next().transpose(), message.get::<XorPeerAddress>());
    if message.check_fingerprint() == FingerprintCheck::Valid {
        assert!(bytes[bytes.len() - 8..].starts_with(&[0x80, 0x28]));
    }

    let key = HmacKey::new(b"the fuzzer does not know this");
    if let Ok(verified) = message.verify_truncated(&key, MacLength::SHORTEST) {
        assert!(verified.attributes().all(|raw| !matches!(raw.attribute_type.0, 0x8 | 0x1C | 0x8028)));
    }
}

/// The same bytes with a header that parses, so that the fuzzer's work goes into the attributes.
fn plausible(data: &[u8]) -> Vec<u8> {
    let len = data.len().min(65_552) & !3;
    let mut bytes = data[..len].to_vec();
    if let Some(header) = bytes.first_chunk_mut::<8>() {
        header[0] &= 0x3F;
        header[2..4].copy_from_slice(&(len.saturating_sub(20) as u16).to_be_bytes());
        header[4..].copy_from_slice(&0x2112_A442_u32.to_be_bytes());
    }
    bytes
}
