//! The RFCs' own messages: RFC 5769 §2, and RFC 8489 appendix B.1 as erratum 6268 corrects it.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use backwater_stun::*;

const SHORT_TERM_PASSWORD: &[u8] = b"VOkJxbRl1RmTxUk/WvJxBt";
const USERNAME: &str = "\u{30DE}\u{30C8}\u{30EA}\u{30C3}\u{30AF}\u{30B9}";

#[test]
fn rfc5769_2_1_request() {
    let message = Message::parse(include_bytes!("vectors/rfc5769_2_1.bin")).unwrap();
    assert_eq!((message.class(), message.method()), (Class::Request, Method::BINDING));
    assert_eq!(message.check_fingerprint(), FingerprintCheck::Valid);
    let verified = message.verify(&HmacKey::new(SHORT_TERM_PASSWORD)).unwrap();
    assert_eq!(verified.integrity(), Integrity::Sha1);
    assert_eq!(verified.get().unwrap(), Some(Software("STUN test client")));
    assert_eq!(verified.get().unwrap(), Some(Priority(0x6E00_01FF)));
    assert_eq!(verified.get().unwrap(), Some(IceControlled(0x932F_F9B1_5126_3B36)));
    assert_eq!(verified.get().unwrap(), Some(Username("evtj:h6vY")));
    assert_eq!(message.verify(&HmacKey::new(b"another")).err(), Some(IntegrityError::Mismatch));
}

#[test]
fn rfc5769_2_2_and_2_3_responses() {
    let cases: [(&[u8], &str); 2] = [
        (include_bytes!("vectors/rfc5769_2_2.bin"), "192.0.2.1:32853"),
        (include_bytes!("vectors/rfc5769_2_3.bin"), "[2001:db8:1234:5678:11:2233:4455:6677]:32853"),
    ];
    for (bytes, address) in cases {
        let message = Message::parse(bytes).unwrap();
        assert_eq!((message.class(), message.method()), (Class::SuccessResponse, Method::BINDING));
        assert_eq!(message.check_fingerprint(), FingerprintCheck::Valid);
        let verified = message.verify(&HmacKey::new(SHORT_TERM_PASSWORD)).unwrap();
        assert_eq!(verified.get().unwrap(), Some(Software("test vector")));
        assert_eq!(verified.get().unwrap(), Some(XorMappedAddress(address.parse::<SocketAddr>().unwrap())));
    }
}

#[test]
fn rfc5769_2_4_long_term() {
    let message = Message::parse(include_bytes!("vectors/rfc5769_2_4.bin")).unwrap();
    assert_eq!(message.check_fingerprint(), FingerprintCheck::Absent);
    let key = LongTermKey::md5(USERNAME, "example.org", "TheMatrIX");
    let verified = message.verify(&HmacKey::from(&key)).unwrap();
    assert_eq!(verified.get().unwrap(), Some(Username(USERNAME)));
    assert_eq!(verified.get().unwrap(), Some(Nonce(b"f//499k954d6OL34oL9FSTvy64sA")));
    assert_eq!(verified.get().unwrap(), Some(Realm("example.org")));
}

#[test]
fn rfc8489_b1_sha256() {
    let bytes = include_bytes!("vectors/rfc8489_b1_erratum6268.bin");
    let message = Message::parse(bytes).unwrap();
    let key = LongTermKey::sha256(USERNAME, "example.org", "TheMatrIX");
    let verified = message.verify(&HmacKey::from(&key)).unwrap();
    assert_eq!(verified.integrity(), Integrity::Sha256);
    assert_eq!(verified.get().unwrap(), Some(PasswordAlgorithm::SHA256));
    assert_eq!(verified.get().unwrap(), Some(Userhash::new(USERNAME, "example.org")));
    let nonce = verified.get::<Nonce<'_>>().unwrap().unwrap();
    assert!(nonce.security_features().unwrap().username_anonymity);

    // Our own writer makes the very same bytes.
    let mut buffer = [0; 200];
    let mut writer = Writer::new(&mut buffer, message.class(), message.method(), message.transaction_id()).unwrap();
    for raw in verified.attributes() {
        match raw.attribute_type {
            AttributeType::USERHASH => copy::<Userhash>(&verified, &mut writer),
            AttributeType::NONCE => copy::<Nonce<'_>>(&verified, &mut writer),
            AttributeType::REALM => copy::<Realm<'_>>(&verified, &mut writer),
            AttributeType::PASSWORD_ALGORITHM => copy::<PasswordAlgorithm<'_>>(&verified, &mut writer),
            other => panic!("unexpected {other}"),
        }
    }
    assert_eq!(writer.integrity_sha256(&HmacKey::from(&key)).unwrap().finish(), bytes);
}

fn copy<'a, A: Attribute<'a>>(from: &Verified<'a>, to: &mut Writer<'_>) {
    to.attribute(&from.get::<A>().unwrap().unwrap()).unwrap();
}
