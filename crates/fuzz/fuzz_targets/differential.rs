//! The same bytes to stun-types and turn-types: they agree, but for what is listed here with its reason.
//!
//! Known disagreements:
//! 1. **Trailing bytes and unaligned lengths** are errors here (RFC 8489 §5: a datagram is one message); they accept
//!    them, or read attributes beyond the header's length. So only what we accept is compared.
//! 2. **A wrong FINGERPRINT**, or one of a wrong length, is a parse error there; here it is `check_fingerprint`, so that a server can count it.
//! 3. **USERNAME over 513 bytes** is an error there; RFC 8489's limit when decoding is 763, as for the other texts.
//! 4. **NONCE** has to be UTF-8 there; here it is bytes, because a client has to give back what it got.
//! 5. **ICMP's type and code** have 8 bits each there; RFC 8656's figure gives them 7 and 9.
//! 6. **ChannelData's channel** goes up to 0xFFFE there, which takes RTP for it; RFC 5766 §11 ends at 0x7FFF.
//! 7. **ERROR-CODE's and EVEN-PORT's reserved bits** are ignored here, as RFC 8489 §14.8 says.
//! 8. **Message integrity twice**: they verify the last, we the first (RFC 8489 §14).
#![no_main]

use backwater_stun as ours;
use libfuzzer_sys::fuzz_target;
use stun_types::attribute as theirs;
use stun_types::message::{Message, StunParseError};
use turn_types::attribute as turn;
use turn_types::channel::ChannelData;

fuzz_target!(|data: &[u8]| {
    messages(data);
    messages(&plausible(data));
    channel_data(data);
});

fn messages(bytes: &[u8]) {
    let (our, their) = (ours::Message::parse(bytes), Message::from_bytes(bytes));
    // Disagreement 1.
    let Ok(our) = our else { return };
    let their = match their {
        Ok(their) => their,
        // Disagreement 2.
        Err(_) if our.check_fingerprint() == ours::FingerprintCheck::Invalid => return,
        Err(error) => panic!("we accept what they refuse: {error:?}"),
    };

    assert_eq!(our.method().number(), their.method().value());
    assert_eq!(our.class(), class(their.class()));
    let id = their.transaction_id();
    assert_eq!(u128::from(id).to_be_bytes()[4..], our.transaction_id().0);

    macro_rules! agree {
        ($our:ty, $their:ty, |$o:ident| $ov:expr, |$t:ident| $tv:expr) => {
            let our_value = our.get::<$our>();
            match (their.attribute::<$their>(), our_value) {
                (Ok($t), Ok(Some($o))) => assert_eq!($ov, $tv),
                (Err(StunParseError::MissingAttribute(_)), Ok(None)) => {}
                (Err(their), Err(_)) if !matches!(their, StunParseError::MissingAttribute(_)) => {}
                (their, our) => panic!("{}: {their:?} and {our:?}", stringify!($our)),
            }
        };
    }
    agree!(ours::Realm, theirs::Realm, |o| o.0, |t| t.realm());
    agree!(ours::Software, theirs::Software, |o| o.0, |t| t.software());
    agree!(ours::Userhash, theirs::Userhash, |o| &o.0, |t| t.hash());
    agree!(ours::XorMappedAddress, theirs::XorMappedAddress, |o| o.0, |t| t.addr(id));
    agree!(ours::AlternateServer, theirs::AlternateServer, |o| o.0, |t| t.server());
    agree!(ours::XorPeerAddress, turn::XorPeerAddress, |o| o.0, |t| t.addr(id));
    agree!(ours::XorRelayedAddress, turn::XorRelayedAddress, |o| o.0, |t| t.addr(id));
    agree!(ours::Data, turn::Data, |o| o.0, |t| t.data());
    agree!(ours::Lifetime, turn::Lifetime, |o| o.0, |t| t.seconds());
    agree!(ours::ReservationToken, turn::ReservationToken, |o| u64::from_be_bytes(o.0), |t| t.token());
    agree!(ours::RequestedTransport, turn::RequestedTransport, |o| o.0, |t| t.protocol());
    agree!(ours::EvenPort, turn::EvenPort, |o| o.reserve_next, |t| t.requested());
    // Disagreement 3.
    if our.get::<ours::Username>().ok().flatten().is_none_or(|o| o.0.len() <= 513) {
        agree!(ours::Username, theirs::Username, |o| o.0, |t| t.username());
    }
    // Disagreement 4.
    if our.get::<ours::Nonce>().ok().flatten().is_none_or(|o| std::str::from_utf8(o.0).is_ok()) {
        agree!(ours::Nonce, theirs::Nonce, |o| o.0, |t| t.nonce().as_bytes());
    }
    // Disagreement 7, where we are the ones who accept.
    if let (Ok(Some(o)), Ok(t)) = (our.get::<ours::ErrorCode>(), their.attribute::<theirs::ErrorCode>()) {
        assert_eq!((o.code.number(), o.reason), (t.code(), t.reason()));
    }

    let key = b"key";
    let verified = our.verify_truncated(&ours::HmacKey::new(key), ours::MacLength::SHORTEST);
    let credentials = stun_types::message::ShortTermCredentials::new("key".to_owned());
    let theirs = their.validate_integrity(&credentials.into());
    assert!(verified.is_err() && theirs.is_err(), "nobody has signed it: {verified:?}, {theirs:?}");
}

fn class(class: stun_types::message::MessageClass) -> ours::Class {
    use stun_types::message::MessageClass;
    match class {
        MessageClass::Request => ours::Class::Request,
        MessageClass::Indication => ours::Class::Indication,
        MessageClass::Success => ours::Class::SuccessResponse,
        MessageClass::Error => ours::Class::ErrorResponse,
    }
}

fn channel_data(bytes: &[u8]) {
    match (ours::ChannelData::parse(bytes), ChannelData::parse(bytes)) {
        (Ok(our), Ok(their)) => {
            assert_eq!((our.channel().number(), our.data()), (their.id(), their.data()));
        }
        (Ok(our), Err(error)) => panic!("we accept {our:?}, they do not: {error:?}"),
        // Disagreement 6.
        (Err(ours::ChannelDataError::Channel), Ok(their)) => assert!(their.id() > 0x7FFF),
        // Disagreement 1.
        (Err(our), Ok(_)) => panic!("they accept what we refuse: {our:?}"),
        (Err(_), Err(_)) => {}
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
