//! Explains a STUN message or a ChannelData, given in hexadecimal, attribute by attribute.
//!
//! ```text
//! cargo run -p backwater-stun --example decode -- 000100002112a442b7e7a701bc34d686fa87dfae
//! cargo run -p backwater-stun --example decode -- --password secret < message.hex
//! ```

use std::io::Read;
use std::process::ExitCode;

use backwater_stun::*;

const USAGE: &str = "usage: decode [--password PASSWORD] [HEX]\n\
    HEX may have spaces and colons; without it, it is read from standard input.\n\
    With a password the message integrity is verified, by the password itself (short-term credentials) and, if the\n\
    message has USERNAME and REALM, by the long-term keys made of all three.";

fn main() -> ExitCode {
    let mut password = None;
    let mut hex = String::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--help" | "-h" => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            "--password" => password = arguments.next(),
            part => hex.push_str(part),
        }
    }
    if hex.is_empty() && std::io::stdin().read_to_string(&mut hex).is_err() {
        return fail("standard input is not text");
    }
    let Some(bytes) = from_hex(&hex) else { return fail("this is not hexadecimal") };

    match bytes.first().map(|first| demultiplex(*first)) {
        None => fail("there are no bytes"),
        Some(Protocol::Stun) => match Message::parse(&bytes) {
            Ok(message) => {
                explain(&message, password.as_deref());
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error.to_string()),
        },
        Some(Protocol::TurnChannel | Protocol::Quic) => match ChannelData::parse(&bytes) {
            Ok(view) => {
                println!("ChannelData, channel {}, {} bytes of data", view.channel(), view.data().len());
                println!("    {}", dump(view.data()));
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error.to_string()),
        },
        Some(other @ (Protocol::Zrtp | Protocol::Dtls | Protocol::Rtp | Protocol::Unassigned)) => {
            fail(&format!("by its first byte this is not STUN but {other:?}"))
        }
    }
}

fn explain(message: &Message<'_>, password: Option<&str>) {
    let id = message.transaction_id();
    println!("{} {}, transaction {id}, {} bytes", message.method(), message.class(), message.as_bytes().len());
    for raw in message.attributes() {
        let optional = if raw.attribute_type.comprehension_required() { "" } else { ", optional" };
        println!("  {} ({:#06x}, {} bytes{optional})", raw.attribute_type, raw.attribute_type.0, raw.value.len());
        println!("    {}", value(raw, &id));
    }

    println!("FINGERPRINT: {:?}", message.check_fingerprint());
    let unknown: Vec<_> = message.unknown_required(AttributeSet::REGISTERED).collect();
    if !unknown.is_empty() {
        println!("A server would answer 420 for {unknown:?}");
    }
    if let Some(password) = password {
        for (name, key) in keys(message, password) {
            match message.verify_truncated(&key, MacLength::SHORTEST) {
                Ok(verified) => println!("Integrity ({name}): valid, {:?}", verified.integrity()),
                Err(error) => println!("Integrity ({name}): {error}"),
            }
        }
    }
}

fn value(raw: RawAttribute<'_>, id: &TransactionId) -> String {
    use AnyAttribute as A;
    match AnyAttribute::decode(raw, id) {
        Ok(A::Unknown(raw)) => format!("unknown: {}", dump(raw.value)),
        Ok(A::Nonce(Nonce(text))) => format!("\"{}\"", text.escape_ascii()),
        // Bytes that mean nothing to a reader.
        Ok(A::Data(_) | A::AccessToken(_) | A::MobilityTicket(_) | A::Padding(_) | A::ReservationToken(_))
        | Ok(A::Userhash(_) | A::MessageIntegrity(_) | A::MessageIntegritySha256(_) | A::Fingerprint(_)) => {
            dump(raw.value)
        }
        Ok(attribute) => {
            // `Any(Type(value))`, of which the inner part is enough.
            let text = format!("{attribute:?}");
            text.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(&text).to_owned()
        }
        Err(error) => format!("{error}: {}", dump(raw.value)),
    }
}

/// What a password can amount to for this message.
fn keys(message: &Message<'_>, password: &str) -> Vec<(&'static str, HmacKey)> {
    let mut keys = vec![("short-term", HmacKey::new(password.as_bytes()))];
    if let (Ok(Some(Username(user))), Ok(Some(Realm(realm)))) = (message.get(), message.get()) {
        let md5 = LongTermKey::md5(user, realm, password);
        let sha256 = LongTermKey::sha256(user, realm, password);
        keys.extend([("long-term, MD5", HmacKey::from(&md5)), ("long-term, SHA-256", HmacKey::from(&sha256))]);
    }
    keys
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| !c.is_whitespace() && *c != ':')
        .map(|c| c.to_digit(16).map(|digit| digit as u8))
        .collect::<Option<_>>()?;
    let (pairs, odd) = digits.as_chunks();
    odd.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

fn dump(bytes: &[u8]) -> String {
    const MOST: usize = 48;
    let mut text: String = bytes.iter().take(MOST).map(|byte| format!("{byte:02x}")).collect();
    if bytes.len() > MOST {
        text.push_str(&format!("… and {} bytes more", bytes.len() - MOST));
    }
    text
}

fn fail(message: &str) -> ExitCode {
    eprintln!("decode: {message}\n{USAGE}");
    ExitCode::from(2)
}
