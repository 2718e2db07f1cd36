use super::*;
use crate::attribute::{Data, Software, Username};

const ID: TransactionId = TransactionId([9; 12]);

fn key() -> HmacKey {
    HmacKey::new(b"password")
}

fn write(buffer: &mut [u8]) -> Result<&[u8], WriteError> {
    let mut writer = Writer::new(buffer, Class::Request, Method::BINDING, ID)?;
    writer.attribute(&Username("user"))?.attribute(&Software("12345"))?;
    Ok(writer.integrity_sha1(&key())?.integrity_sha256(&key())?.fingerprint()?.finish())
}

#[test]
fn message_has_the_computed_size() {
    let size = HEADER_LEN
        + attribute_len(&Username("user"))
        + attribute_len(&Software("12345"))
        + INTEGRITY_SHA1_LEN
        + INTEGRITY_SHA256_LEN
        + FINGERPRINT_LEN;
    for len in 0..size + 8 {
        let mut memory = [0xEE; 300];
        let (buffer, guard) = memory.split_at_mut(len);
        match write(buffer) {
            Ok(message) => assert_eq!(message.len(), size),
            Err(error) => {
                assert!(len < size);
                assert_eq!(error, WriteError::BufferTooSmall);
            }
        }
        assert!(guard.iter().all(|byte| *byte == 0xEE), "{len}");
    }
}

#[test]
fn padding_is_zero() {
    let mut buffer = [0xEE; 100];
    let message = write(&mut buffer[..]).map(<[u8]>::len);
    assert!(message.is_err());
    let mut buffer = [0xEE; 200];
    let message = write(&mut buffer).unwrap();
    assert_eq!(message[28 + 4..28 + 12], *b"12345\0\0\0");
}

#[test]
fn a_message_ends_where_its_length_field_does() {
    let mut buffer = std::vec![0; 70_000];
    let payload = std::vec![7; 65_528];
    let mut writer = Writer::new(&mut buffer, Class::Indication, Method::SEND, ID).unwrap();
    writer.attribute(&Data(&payload)).unwrap();
    assert_eq!(writer.len(), MAX_MESSAGE_LEN);
    assert_eq!(writer.attribute(&Data(b"")).err(), Some(WriteError::MessageTooLong));
    assert_eq!(writer.fingerprint().err(), Some(WriteError::MessageTooLong));

    let too_long = std::vec![7; 65_529];
    let mut writer = Writer::new(&mut buffer, Class::Indication, Method::SEND, ID).unwrap();
    assert!(matches!(writer.attribute(&Data(&too_long)).err(), Some(WriteError::Attribute(_))));
    assert_eq!(writer.len(), HEADER_LEN);
}

#[test]
fn message_without_attributes_is_a_header() {
    let mut buffer = [0xEE; 20];
    let writer = Writer::new(&mut buffer, Class::SuccessResponse, Method::REFRESH, ID).unwrap();
    assert_eq!(writer.finish(), b"\x01\x04\0\0\x21\x12\xA4\x42\x09\x09\x09\x09\x09\x09\x09\x09\x09\x09\x09\x09");
}
