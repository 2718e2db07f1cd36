//! An independent decoder, Wireshark's, sees in our messages what we have written, and nothing to complain about.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use backwater_stun::*;

const ID: TransactionId = TransactionId([0xB7, 0xE7, 0xA7, 0x01, 0xBC, 0x34, 0xD6, 0x86, 0xFA, 0x87, 0xDF, 0xAE]);

#[test]
fn tshark_agrees() {
    let Some(version) = tshark_version() else {
        let missing = "tshark is not installed (Debian: apt-get install tshark)";
        assert!(std::env::var_os("CI").is_none(), "{missing}");
        eprintln!("skipped: {missing}");
        return;
    };
    let messages = messages();
    let datagrams: Vec<_> = messages.iter().map(|(bytes, _)| &bytes[..]).collect();
    let capture = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stun.pcap");
    std::fs::write(&capture, pcap(&datagrams)).unwrap();

    let fields = ["stun.type", "stun.id", "stun.att.type", "stun.att.crc32.status", "_ws.expert.message"];
    let values = [
        "stun.att.username",
        "stun.att.realm",
        "stun.att.ipv4",
        "stun.att.ipv6",
        "stun.att.port",
        "stun.att.lifetime",
        "stun.att.error.class",
        "stun.att.error",
        "stun.att.software",
        "stun.att.channelnum",
        "stun.att.priority",
    ];
    let mut command = Command::new("tshark");
    command.args(["-n", "-T", "fields", "-E", "separator=;", "-E", "aggregator=,", "-r"]).arg(&capture);
    for field in fields.iter().chain(&values) {
        command.args(["-e", field]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), messages.len(), "{version}: {text}");

    for (line, (bytes, expected)) in text.lines().zip(&messages) {
        let columns: Vec<_> = line.split(';').collect();
        let [message_type, id, types, crc, expert, seen @ ..] = &columns[..] else { panic!("{line}") };
        assert_eq!(*expert, "", "{version} complains: {line}");
        let Ok(message) = Message::parse(bytes) else {
            // ChannelData: nothing of a message is there.
            assert_eq!((*message_type, *types), ("", ""), "{line}");
            continue;
        };
        assert_eq!(number(message_type), u64::from(u16::from_be_bytes([bytes[0], bytes[1]])), "{line}");
        assert_eq!(*id, ID.to_string().as_str(), "{line}");
        let ours: Vec<_> = message.attributes().map(|raw| u64::from(raw.attribute_type.0)).collect();
        let theirs: Vec<_> = types.split(',').filter(|t| !t.is_empty()).map(number).collect();
        assert_eq!(theirs, ours, "{version}: {line}");
        if message.contains(AttributeType::FINGERPRINT) {
            assert_eq!(*crc, "1", "{version} does not agree with our FINGERPRINT: {line}");
        }
        for (name, value) in *expected {
            let at = values.iter().position(|field| field == name).unwrap();
            assert_eq!(seen[at], *value, "{version}, {name}: {line}");
        }
    }
}

fn tshark_version() -> Option<String> {
    let output = Command::new("tshark").arg("--version").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next()?.to_owned())
}

fn number(text: &str) -> u64 {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).unwrap(),
        None => text.parse().unwrap(),
    }
}

/// Packets of IPv4 and UDP to STUN's port.
fn pcap(datagrams: &[&[u8]]) -> Vec<u8> {
    const LINKTYPE_IPV4: u32 = 228;
    let mut file = Vec::new();
    for word in [0xA1B2_C3D4_u32, 0x0002_0004, 0, 0, 65_535, LINKTYPE_IPV4] {
        file.extend(word.to_be_bytes());
    }
    for datagram in datagrams {
        let len = 28 + datagram.len() as u16;
        for word in [0, 0, u32::from(len), u32::from(len)] {
            file.extend(word.to_be_bytes());
        }
        let [l0, l1] = len.to_be_bytes();
        let [u0, u1] = (len - 20).to_be_bytes();
        file.extend([0x45, 0, l0, l1, 0, 0, 0, 0, 64, 17, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1]);
        file.extend([0xC0, 0, 0x0D, 0x96, u0, u1, 0, 0]);
        file.extend(*datagram);
    }
    file
}

type Expected = &'static [(&'static str, &'static str)];

/// Every attribute of the registry in some message, with what tshark is to say about its fields.
fn messages() -> Vec<(Vec<u8>, Expected)> {
    macro_rules! message {
        ($class:ident $method:ident [$($attribute:expr),* $(,)?] $(.$end:ident($($key:expr)?))*) => {{
            let mut buffer = [0; 1400];
            let mut writer = Writer::new(&mut buffer, Class::$class, Method::$method, ID).unwrap();
            $(writer.attribute(&$attribute).unwrap();)*
            writer$(.$end($($key)?).unwrap())*.finish().to_vec()
        }};
    }
    let v4: SocketAddr = "192.0.2.1:32853".parse().unwrap();
    let v6: SocketAddr = "[2001:db8::1]:3478".parse().unwrap();
    let key = &HmacKey::new(b"VOkJxbRl1RmTxUk/WvJxBt");
    let family = AddressFamily::Ipv6;
    let mut send = DataPrefix::send(ID, v6, 5).unwrap().as_bytes().to_vec();
    send.extend(b"hello\0\0\0");
    let mut channel_data = ChannelData::header(ChannelNumber::MIN, 5).to_vec();
    channel_data.extend(b"hello");

    vec![
        (
            message!(Request BINDING [
                Username("evtj:h6vY"), Priority(0x6E00_01FF), UseCandidate, IceControlling(1), Software("backwater"),
                TransactionTransmitCounter { request: 1, response: 0 },
            ].integrity_sha1(key).fingerprint()),
            &[("stun.att.username", "evtj:h6vY"), ("stun.att.software", "backwater")],
        ),
        (
            message!(SuccessResponse BINDING [XorMappedAddress(v4), IceControlled(1)].fingerprint()),
            &[("stun.att.ipv4", "192.0.2.1"), ("stun.att.port", "32853")],
        ),
        (
            message!(SuccessResponse ALLOCATE [
                XorRelayedAddress(v6), XorMappedAddress(v4), Lifetime(600), ReservationToken([7; 8]),
                AddressErrorCode { family, code: Code::ADDRESS_FAMILY_NOT_SUPPORTED, reason: "no" },
                MobilityTicket(b"ticket"),
            ].integrity_sha1(key).integrity_sha256(key).fingerprint()),
            &[
                ("stun.att.ipv6", "2001:db8::1"),
                ("stun.att.ipv4", "192.0.2.1"),
                ("stun.att.port", "3478,32853"),
                ("stun.att.lifetime", "600"),
            ],
        ),
        (
            message!(ErrorResponse ALLOCATE [
                ErrorCode::from(Code::UNAUTHENTICATED), Realm("example.org"), Nonce(b"obMatJos2AAADnonce"),
                PasswordAlgorithms::SHA256_MD5, ThirdPartyAuthorization("auth.example"),
            ].fingerprint()),
            &[("stun.att.error.class", "4"), ("stun.att.error", "1"), ("stun.att.realm", "example.org")],
        ),
        (
            message!(ErrorResponse REFRESH [
                ErrorCode::from(Code::UNKNOWN_ATTRIBUTE), UnknownAttributes::new(&[AttributeType(0x7FFF)]),
            ]),
            &[("stun.att.error.class", "4"), ("stun.att.error", "20")],
        ),
        (
            message!(ErrorResponse BINDING [
                ErrorCode::from(Code::TRY_ALTERNATE), AlternateServer(v4), AlternateDomain("example.org"),
            ]),
            &[("stun.att.error.class", "3"), ("stun.att.ipv4", "192.0.2.1")],
        ),
        (
            message!(Request ALLOCATE [
                RequestedTransport::UDP, EvenPort { reserve_next: true }, DontFragment,
                RequestedAddressFamily(family), Userhash::new("user", "realm"), Realm("realm"), Nonce(b"nonce"),
                PasswordAlgorithms::SHA256, PasswordAlgorithm::SHA256, AccessToken(b"token"),
            ].integrity_sha256(key).fingerprint()),
            &[("stun.att.realm", "realm")],
        ),
        (message!(Request ALLOCATE [RequestedTransport::UDP, AdditionalAddressFamily(family)]), &[]),
        (message!(Request CHANNEL_BIND [ChannelNumber::MIN, XorPeerAddress(v4)]), &[("stun.att.ipv4", "192.0.2.1")]),
        (
            message!(Request CREATE_PERMISSION [XorPeerAddress(v4), XorPeerAddress(v6)]),
            &[("stun.att.ipv4", "192.0.2.1"), ("stun.att.ipv6", "2001:db8::1"), ("stun.att.port", "32853,3478")],
        ),
        (send, &[("stun.att.ipv6", "2001:db8::1")]),
        // Wireshark 4.0 looks for ICMP's type and code in the bytes that RFC 8656 §18.13 reserves; no figure is compared.
        (message!(Indication DATA [XorPeerAddress(v4), Icmp { icmp_type: 3, code: 4, data: 1500 }]), &[]),
        (message!(Indication DATA [XorPeerAddress(v4), Data(b"12345")]), &[]),
        (message!(Request CONNECTION_BIND [ConnectionId(7)]), &[]),
        (
            message!(Request BINDING [
                ChangeRequest { ip: true, port: true }, Padding(&[0; 16]), ResponsePort(3478),
                EcnCheck { ecf: 1, valid: true },
            ]),
            &[],
        ),
        (
            message!(SuccessResponse BINDING [
                MappedAddress(v4), ResponseOrigin(v4), OtherAddress(v6), CacheTimeout(60),
            ]),
            &[("stun.att.ipv4", "192.0.2.1,192.0.2.1"), ("stun.att.ipv6", "2001:db8::1")],
        ),
        (channel_data, &[]),
    ]
}
