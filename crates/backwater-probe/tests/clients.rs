//! Many clients against a server that makes difficulties.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    collections::HashMap,
    net::{SocketAddr, UdpSocket},
    thread,
    time::Duration,
};

use backwater_probe::{
    clients::Clients,
    load::{Direction, Session, Setup, Via},
    turn::{Credential, TurnError},
};
use backwater_stun::{
    AddressFamily, ChannelNumber, Class, Code, ErrorCode, HmacKey, Lifetime, LongTermKey, Message, Method, Nonce,
    Realm, Username, Writer, XorPeerAddress, XorRelayedAddress,
};

const REALM: &str = "example.org";

/// What happens in an exchange with a client.
#[derive(Default)]
struct Seen {
    requests: usize,
    stale: bool,
    relayed: Option<SocketAddr>,
}

fn credential(password: &str) -> Credential {
    Credential { user: "user".to_owned(), password: password.to_owned() }
}

/// A server that loses every seventh request, takes each nonce for stale once, does not like addresses that end in 5, and
/// has room for `capacity`. It ends when nobody has asked for a while, and returns whom it still holds.
fn server(capacity: usize) -> (SocketAddr, thread::JoinHandle<usize>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let address = socket.local_addr().unwrap();
    let key = HmacKey::from(&LongTermKey::md5("user", REALM, "secret"));
    let serve = move || {
        let (mut clients, mut granted, mut requests) = (HashMap::<SocketAddr, Seen>::new(), 0, 0);
        let (mut buffer, mut answer) = ([0; 2048], [0; 2048]);
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            requests += 1;
            if requests % 7 == 0 {
                continue;
            }
            let request = Message::parse(&buffer[..len]).unwrap();
            let client = clients.entry(from).or_default();
            client.requests += 1;
            let nonce = if client.stale { b"second" } else { b"first " };
            let refuse = |code, reason| (Class::ErrorResponse, Some(ErrorCode { code, reason }));
            let (class, error) = if request.get::<Username<'_>>().unwrap().is_none() {
                refuse(Code::UNAUTHENTICATED, "Unauthenticated")
            } else if request.verify(&key).is_err() {
                refuse(Code::UNAUTHENTICATED, "Wrong password")
            } else if !client.stale && request.method() == Method::CHANNEL_BIND {
                client.stale = true;
                refuse(Code::STALE_NONCE, "Stale Nonce")
            } else if request.method() == Method::ALLOCATE && from.ip().to_string().ends_with('5') {
                refuse(Code::ALLOCATION_MISMATCH, "Allocation Mismatch")
            } else if request.method() == Method::ALLOCATE && client.relayed.is_none() && granted == capacity {
                refuse(Code::INSUFFICIENT_CAPACITY, "Insufficient Capacity")
            } else {
                (Class::SuccessResponse, None)
            };
            let nonce = if client.stale { b"second" } else { nonce };
            let mut writer = Writer::new(&mut answer, class, request.method(), request.transaction_id()).unwrap();
            let bytes = if let Some(error) = error {
                writer.attribute(&error).unwrap().attribute(&Realm(REALM)).unwrap().attribute(&Nonce(nonce)).unwrap();
                writer.finish()
            } else {
                if request.method() == Method::ALLOCATE {
                    granted += usize::from(client.relayed.is_none());
                    let relayed = SocketAddr::from(([192, 0, 2, 1], 49_152 + granted as u16));
                    let relayed = *client.relayed.get_or_insert(relayed);
                    writer.attribute(&XorRelayedAddress(relayed)).unwrap();
                } else if request.method() == Method::CHANNEL_BIND {
                    assert_ne!(request.get::<XorPeerAddress>().unwrap().unwrap().0.port(), 0);
                } else {
                    assert_eq!(request.get::<Lifetime>().unwrap(), Some(Lifetime(0)));
                    client.relayed = None;
                }
                writer.integrity_sha1(&key).unwrap().finish()
            };
            socket.send_to(bytes, from).unwrap();
        }
        clients.values().filter(|client| client.relayed.is_some()).count()
    };
    (address, thread::spawn(serve))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn every_client_gets_what_it_asks_for() {
    let (address, server) = server(usize::MAX);
    runtime().block_on(async {
        let mut clients = Clients::new(address, 300).unwrap();
        let round = clients.allocate(&credential("secret"), AddressFamily::Ipv4).await.unwrap();
        assert!(round.refusal.is_none() && round.granted == 300, "{round:?}");
        assert!(round.busy <= round.elapsed, "{round:?}");
        let mut relayed: Vec<_> = (0..300).map(|i| clients.relayed(i).unwrap()).collect();
        relayed.sort_unstable();
        relayed.dedup();
        assert_eq!(relayed.len(), 300, "each its own");
        let peer = |i: usize| SocketAddr::from(([192, 0, 2, i as u8], 9));
        let round = clients.bind_channels(ChannelNumber::MIN, peer).await.unwrap();
        assert!(round.refusal.is_none() && round.granted == 300, "{round:?}");
        let round = clients.release().await.unwrap();
        assert!(round.refusal.is_none() && round.granted == 300, "{round:?}");
        assert!((0..300).all(|i| clients.relayed(i).is_none()));
    });
    assert_eq!(server.join().unwrap(), 0, "released");
}

/// The clients' sockets are received on by the session where the load ends at them, and by the requests that end the allocations.
#[test]
fn a_session_ends_its_allocations_whichever_way_the_load_goes() {
    let servers = [Direction::Up, Direction::Down, Direction::Across].map(|direction| {
        let (address, server) = server(usize::MAX);
        let via = Via::Turn(address, credential("secret"));
        let setup = Setup { via, direction, clients: 2, peer: ([127, 0, 0, 1], 0).into(), plain_sink: false };
        runtime().block_on(async { Session::open(&setup).await.unwrap().close().await.unwrap() });
        (direction, server)
    });
    for (direction, server) in servers {
        assert_eq!(server.join().unwrap(), 0, "{direction:?}");
    }
}

#[test]
fn refusals_are_reported_and_the_others_served() {
    let (address, server) = server(40);
    runtime().block_on(async {
        let mut clients = Clients::new(address, 50).unwrap();
        let round = clients.allocate(&credential("secret"), AddressFamily::Ipv4).await.unwrap();
        assert_eq!(round.granted, 40);
        assert!(
            matches!(round.refusal, Some(TurnError::Refused { code: Code::INSUFFICIENT_CAPACITY, .. })),
            "{round:?}"
        );
        let mut wrong = Clients::new(address, 2).unwrap();
        let round = wrong.allocate(&credential("guess"), AddressFamily::Ipv4).await.unwrap();
        assert_eq!(round.granted, 0);
        assert!(matches!(round.refusal, Some(TurnError::Refused { code: Code::UNAUTHENTICATED, .. })), "{round:?}");
    });
    assert_eq!(server.join().unwrap(), 40);
}

#[test]
fn silent_server_is_an_error() {
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap();
    let error = runtime().block_on(async {
        let mut clients = Clients::new(nobody.local_addr().unwrap(), 2).unwrap();
        clients.allocate(&credential("secret"), AddressFamily::Ipv4).await.unwrap_err()
    });
    assert!(matches!(error, TurnError::NoAnswer(Method::ALLOCATE, _)), "{error}");
}
