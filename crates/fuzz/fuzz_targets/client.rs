//! Whatever a server may answer to a TURN client, in whatever order and at whatever time: responses in form with any attributes, signed
//! and not, copies, broken ones, indications, data, time. Nothing panics, the client asks for nothing without an end, keeps nothing
//! without a bound, and always has a timer in the future or has stopped.
#![no_main]

mod input;

use std::{
    net::{IpAddr, SocketAddr},
    sync::LazyLock,
    time::{Duration, Instant},
};

use backwater_stun::*;
use backwater_turn::{
    Families,
    client::{Client, Config, Credential, Event, Input as Received, MAX_EVENTS, Transmit},
    server::PortRequest,
};
use input::Input;
use libfuzzer_sys::fuzz_target;

const REALM: &str = "example.org";

/// Steps of one run.
const STEPS: usize = 300;

/// Requests that are sent at once at most: ten in flight, each of which may be followed by another.
const MAX_SENT: usize = 30;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);
static KEYS: LazyLock<[HmacKey; 2]> = LazyLock::new(|| {
    let (md5, sha256) = (LongTermKey::md5("alice", REALM, "secret"), LongTermKey::sha256("alice", REALM, "secret"));
    [HmacKey::from(&md5), HmacKey::from(&sha256)]
});

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let mut world = World::new(&mut input);
    for _ in 0..STEPS {
        if input.0.is_empty() {
            break;
        }
        world.step(&mut input);
    }
});

struct World {
    client: Client,
    now: Instant,
    /// The last requests: a server answers them, some twice.
    requests: Vec<Vec<u8>>,
    next: usize,
}

impl World {
    fn new(input: &mut Input<'_>) -> Self {
        let flags = input.byte();
        let credential = Credential::new("alice", "secret").unwrap();
        let mut config = Config::new(server(0), credential, [7; 64]);
        config.families = Families { v4: flags & 1 == 0 || flags & 2 == 0, v6: flags & 2 != 0 };
        config.mobility = flags & 4 != 0;
        config.hide_username = flags & 8 != 0;
        config.dont_fragment = flags & 16 != 0;
        config.port = match flags >> 6 {
            0 | 1 => PortRequest::Any,
            2 => PortRequest::Even { reserve_next: flags & 32 != 0 },
            _ => PortRequest::Reserved([flags; 8]),
        };
        config.lifetime = (flags & 32 != 0).then(|| Duration::from_secs(input.short().into()));
        let mut world = Self { client: Client::new(*START, config), now: *START, requests: Vec::new(), next: 0 };
        world.drain();
        world
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let what = input.byte();
        match what & 15 {
            0..=7 => {
                if let Some(bytes) = self.response(input) {
                    self.arrives(&bytes);
                }
            }
            8 => {
                let bytes = indication(input);
                self.arrives(&bytes);
            }
            9 => {
                let number = ChannelNumber::new(0x4000 + u16::from(input.byte() & 7)).unwrap();
                let payload = input.bytes(40);
                let bytes = [&ChannelData::header(number, payload.len() as u16), payload].concat();
                self.arrives(&bytes);
            }
            10 => {
                let bytes = input.bytes(120);
                self.arrives(bytes);
            }
            11 => {
                let _ = self.client.bind(self.now, peer(input));
            }
            12 => {
                let _ = self.client.permit(self.now, peer(input).ip());
                let peer = peer(input);
                let _ = self.client.send_indication(self.now, peer, usize::from(input.short()));
            }
            13 => match what >> 4 {
                0..=3 => self.client.rebound(self.now),
                4..=6 => self.client.disconnected(self.now),
                7..=9 => self.client.refresh(self.now),
                10 | 11 => self.client.forget(peer(input).ip()),
                12 | 13 => {
                    self.client.release(self.now, ChannelNumber::new(0x4000 + u16::from(input.byte() & 7)).unwrap())
                }
                14 => self.client.set_credential(self.now, Credential::new("alice", "secret").unwrap()),
                _ => self.client.close(self.now),
            },
            14 => {
                self.now += Duration::from_millis(u64::from(input.short()) * u64::from(input.byte()));
                self.timeout();
            }
            _ => {
                if let Some(at) = self.client.poll_timeout() {
                    self.now = self.now.max(at);
                    self.timeout();
                }
            }
        }
        self.drain();
    }

    fn timeout(&mut self) {
        self.client.handle_timeout(self.now);
        self.drain();
        assert!(self.client.poll_timeout().is_none_or(|at| at > self.now), "a timer in the past");
    }

    fn drain(&mut self) {
        let mut sent = 0;
        while let Some(Transmit { bytes, .. }) = self.client.poll_transmit(self.now) {
            assert!(Message::parse(bytes).is_ok_and(|message| message.class() == Class::Request));
            if self.requests.len() < 12 {
                self.requests.push(bytes.to_vec());
            } else {
                self.requests[self.next % 12] = bytes.to_vec();
            }
            self.next += 1;
            sent += 1;
            assert!(sent <= MAX_SENT, "requests without end");
        }
        let mut events = 0;
        while let Some(event) = self.client.poll_event() {
            events += 1;
            assert!(events <= MAX_EVENTS);
            if let Event::Closed = event {
                assert!(self.client.is_closed());
            }
        }
        if self.client.is_closed() {
            assert!(sent == 0 || events > 0);
            assert!(self.client.poll_timeout().is_none());
        }
    }

    fn arrives(&mut self, bytes: &[u8]) {
        let from = self.client.server();
        if let Received::Data { payload, .. } = self.client.handle_input(self.now, from, bytes) {
            assert!(payload.end <= bytes.len());
        }
        // From elsewhere, it is nobody's.
        let elsewhere = SocketAddr::from(([192, 0, 2, 66], 9));
        assert_eq!(self.client.handle_input(self.now, elsewhere, bytes), Received::Ignored);
    }

    /// A response to one of the last requests.
    fn response(&self, input: &mut Input<'_>) -> Option<Vec<u8>> {
        let request = self.requests.get(input.below(self.requests.len().max(1)))?;
        let request = Message::parse(request).unwrap();
        let flags = input.byte();
        let class = if flags & 1 == 0 { Class::SuccessResponse } else { Class::ErrorResponse };
        let mut buffer = [0; 4000];
        let mut w = Writer::new(&mut buffer, class, request.method(), request.transaction_id()).unwrap();
        if class == Class::ErrorResponse && flags & 2 == 0 {
            let code = Code::REGISTERED[input.below(Code::REGISTERED.len())];
            w.attribute(&ErrorCode::from(code)).unwrap();
        }
        // What most responses have, so that the client gets far.
        if class == Class::SuccessResponse && flags & 2 == 0 && request.method() == Method::ALLOCATE {
            w.attribute(&XorRelayedAddress(server(1))).unwrap();
            w.attribute(&Lifetime(600)).unwrap();
        }
        if class == Class::ErrorResponse && flags & 4 == 0 {
            w.attribute(&Realm(REALM)).unwrap().attribute(&Nonce(&[input.byte(); 4])).unwrap();
        }
        for _ in 0..input.below(5) {
            attribute(input, &mut w);
        }
        let signed = request.contains(AttributeType::MESSAGE_INTEGRITY)
            || request.contains(AttributeType::MESSAGE_INTEGRITY_SHA256);
        let mut bytes = match (signed && flags & 8 == 0, request.contains(AttributeType::PASSWORD_ALGORITHM)) {
            (false, _) => w.finish().to_vec(),
            (true, algorithms) => {
                let key = match request.get::<PasswordAlgorithm<'_>>() {
                    Ok(Some(PasswordAlgorithm::SHA256)) => &KEYS[1],
                    _ => &KEYS[0],
                };
                if algorithms == (flags & 16 == 0) {
                    w.integrity_sha256(key).unwrap().finish().to_vec()
                } else {
                    w.integrity_sha1(key).unwrap().finish().to_vec()
                }
            }
        };
        if flags >> 5 == 7 {
            let place = usize::from(input.short()) % bytes.len();
            bytes[place] ^= input.byte() | 1;
        }
        Some(bytes)
    }
}

fn attribute(input: &mut Input<'_>, w: &mut Writer<'_>) {
    let text = "x".repeat(input.below(3) * 100);
    let result = match input.byte() % 20 {
        0 => w.attribute(&XorRelayedAddress(server(input.byte()))).map(drop),
        1 => w.attribute(&XorMappedAddress(server(input.byte()))).map(drop),
        2 => w.attribute(&AlternateServer(server(input.byte()))).map(drop),
        3 => w.attribute(&AlternateDomain(&text)).map(drop),
        4 => w.attribute(&Lifetime(u32::from(input.short()) << (input.byte() & 16))).map(drop),
        5 => w.attribute(&Realm(&text)).map(drop),
        6 => w.attribute(&Nonce(input.bytes(200))).map(drop),
        7 => w.attribute(&Nonce(b"obMatJos2AAAD0123")).map(drop),
        8 => w.attribute(&PasswordAlgorithms::SHA256_MD5).map(drop),
        9 => w.attribute(&PasswordAlgorithms::MD5).map(drop),
        10 => w.attribute(&MobilityTicket(input.bytes(255))).map(drop),
        11 => w.attribute(&ReservationToken([3; 8])).map(drop),
        12 => w.attribute(&UnknownAttributes::new(&[AttributeType::DONT_FRAGMENT])).map(drop),
        13 => w.attribute(&UnknownAttributes::new(&[AttributeType::EVEN_PORT])).map(drop),
        14 => {
            let code = Code::REGISTERED[input.below(Code::REGISTERED.len())];
            w.attribute(&AddressErrorCode { family: AddressFamily::Ipv6, code, reason: "" }).map(drop)
        }
        15 => w.attribute(&UseCandidate).map(drop),
        16 => w.attribute(&Data(input.bytes(60))).map(drop),
        17 => w.attribute(&XorPeerAddress(peer(input))).map(drop),
        18 => w.attribute(&ErrorCode { code: Code::SERVER_ERROR, reason: &text }).map(drop),
        _ => w.attribute(&Software(&text)).map(drop),
    };
    // A text may be too long to write.
    let _ = result;
}

fn indication(input: &mut Input<'_>) -> Vec<u8> {
    let mut buffer = [0; 400];
    let mut w = Writer::new(&mut buffer, Class::Indication, Method::DATA, TransactionId([5; 12])).unwrap();
    let flags = input.byte();
    if flags & 1 == 0 {
        w.attribute(&XorPeerAddress(peer(input))).unwrap();
    }
    if flags & 2 == 0 {
        w.attribute(&Data(input.bytes(60))).unwrap();
    }
    if flags & 12 == 0 {
        w.attribute(&Icmp { icmp_type: flags >> 4, code: 1, data: 2 }).unwrap();
    }
    w.finish().to_vec()
}

fn peer(input: &mut Input<'_>) -> SocketAddr {
    let n = input.byte();
    SocketAddr::new(IpAddr::from([203, 0, 113, n & 7]), 7000 + u16::from(n >> 3 & 3))
}

/// One of a few addresses that a server may name: of servers, of clients, and of nobody.
fn server(n: u8) -> SocketAddr {
    match n >> 5 {
        0..=3 => SocketAddr::from(([198, 51, 100, n & 31], 3478)),
        4 => SocketAddr::from((std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()), 3478)),
        5 => SocketAddr::from(([0, 0, 0, 0], 3478)),
        6 => SocketAddr::from(([224, 0, 0, 1], 3478)),
        _ => SocketAddr::from(([192, 0, 2, n & 31], 0)),
    }
}
