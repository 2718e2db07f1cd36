use backwater_stun::*;

use super::*;
use crate::Protocol;

mod allocation;
mod authentication;
mod peers;
mod random;
mod refusals;

const REALM: &str = "example.org";
const SERVER: &str = "198.51.100.1:3478";
const RELAYED: &str = "198.51.100.1:50000";
const MAPPED: &str = "192.0.2.1:40000";
const PEER: &str = "203.0.113.7:7000";
const SUCCESS: Class = Class::SuccessResponse;

type Fill<'f> = &'f dyn Fn(&mut Writer<'_>);

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn put<'a>(w: &mut Writer<'_>, attribute: &impl Attribute<'a>) {
    w.attribute(attribute).unwrap();
}

fn credential() -> Credential {
    Credential::new("alice", "secret").unwrap()
}

/// A client, the time, and a server that says what a test has it say.
struct Bench {
    client: Client,
    now: Instant,
    key: HmacKey,
    integrity: Integrity,
}

impl Bench {
    fn new() -> Self {
        Self::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut Config)) -> Self {
        let now = Instant::now();
        let mut config = Config::new(addr(SERVER), credential(), [7; 64]);
        change(&mut config);
        let key = HmacKey::from(&LongTermKey::md5("alice", REALM, "secret"));
        Self { client: Client::new(now, config), now, key, integrity: Integrity::Sha1 }
    }

    /// A client with an allocation.
    fn allocated() -> Self {
        Self::allocated_with(|_| ())
    }

    fn allocated_with(change: impl FnOnce(&mut Config)) -> Self {
        let mut b = Self::with(change);
        b.challenge();
        b.allocate(&|_| ());
        assert!(matches!(b.events()[..], [Event::Allocated(_)]));
        b
    }

    /// What the client sends now.
    fn sent(&mut self) -> Vec<Vec<u8>> {
        let mut sent = vec![];
        while let Some(Transmit { server, bytes }) = self.client.poll_transmit(self.now) {
            sent.push(bytes.to_vec());
            assert_eq!(server, self.client.server());
            assert!(sent.len() < 100, "it does not end");
        }
        assert!(self.client.poll_timeout().is_none_or(|at| at > self.now), "a timer in the past");
        sent
    }

    /// The only request that the client sends now.
    fn request(&mut self, method: Method) -> Vec<u8> {
        let mut sent = self.sent();
        assert_eq!(sent.len(), 1, "{:?}", sent.iter().map(|s| Message::parse(s).unwrap().method()).collect::<Vec<_>>());
        let message = Message::parse(&sent[0]).unwrap();
        assert!(message.is(Class::Request, method), "{}", message.method());
        sent.pop().unwrap()
    }

    fn quiet(&mut self) {
        assert_eq!(self.sent().len(), 0);
    }

    fn respond(&mut self, request: &[u8], class: Class, signed: bool, fill: Fill<'_>) -> Input {
        let request = Message::parse(request).unwrap();
        let mut buffer = [0; 2000];
        let mut w = Writer::new(&mut buffer, class, request.method(), request.transaction_id()).unwrap();
        fill(&mut w);
        let bytes = match (signed, self.integrity) {
            (false, _) => w.finish(),
            (true, Integrity::Sha1) => w.integrity_sha1(&self.key).unwrap().finish(),
            (true, Integrity::Sha256) => w.integrity_sha256(&self.key).unwrap().finish(),
        };
        self.client.handle_input(self.now, self.client.server(), bytes)
    }

    fn succeed(&mut self, request: &[u8], fill: Fill<'_>) {
        assert_eq!(self.respond(request, SUCCESS, true, fill), Input::Consumed);
    }

    fn refuse(&mut self, request: &[u8], code: Code) {
        let input = self.respond(request, Class::ErrorResponse, true, &|w| put(w, &ErrorCode::from(code)));
        assert_eq!(input, Input::Consumed);
    }

    fn challenge_with(&mut self, request: &[u8], code: Code, nonce: &[u8]) {
        self.respond(request, Class::ErrorResponse, false, &|w| {
            put(w, &ErrorCode::from(code));
            put(w, &Realm(REALM));
            put(w, &Nonce(nonce));
        });
    }

    /// Answers the first request, which has no credential.
    fn challenge(&mut self) {
        let request = self.request(Method::ALLOCATE);
        assert!(!Message::parse(&request).unwrap().contains(AttributeType::USERNAME));
        self.challenge_with(&request, Code::UNAUTHENTICATED, b"nonce");
    }

    /// Answers the Allocate request that the client sends now.
    fn allocate(&mut self, more: Fill<'_>) {
        let request = self.request(Method::ALLOCATE);
        self.succeed(&request, &|w| {
            put(w, &XorRelayedAddress(addr(RELAYED)));
            put(w, &XorMappedAddress(addr(MAPPED)));
            put(w, &Lifetime(600));
            more(w);
        });
    }

    /// Binds a channel to a peer.
    fn bound(&mut self, peer: &str) -> ChannelNumber {
        let channel = self.client.bind(self.now, addr(peer)).unwrap();
        let request = self.request(Method::CHANNEL_BIND);
        self.succeed(&request, &|_| ());
        assert_eq!(self.events(), [Event::Bound { peer: addr(peer), channel }]);
        channel
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.client.handle_timeout(self.now);
    }

    /// Lets the time pass until the client's timer.
    fn wait(&mut self) -> Duration {
        let at = self.client.poll_timeout().expect("a timer");
        let waited = at - self.now;
        self.pass(waited);
        waited
    }

    /// Lets the time pass until the client sends a request of this method, and answers its keepalives on the way.
    fn until(&mut self, method: Method) -> Vec<u8> {
        for _ in 0..200 {
            self.wait();
            for request in self.sent() {
                let message = Message::parse(&request).unwrap();
                if message.method() == method {
                    return request;
                }
                if message.method() == Method::BINDING {
                    self.respond(&request, SUCCESS, false, &|w| put(w, &XorMappedAddress(addr(MAPPED))));
                }
            }
        }
        panic!("no {method} request");
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.client.poll_event()).collect()
    }
}

fn get<'a, A: Attribute<'a>>(request: &'a [u8]) -> Option<A> {
    Message::parse(request).unwrap().get().unwrap()
}

fn has(request: &[u8], attribute: AttributeType) -> bool {
    Message::parse(request).unwrap().contains(attribute)
}
