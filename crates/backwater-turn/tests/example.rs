//! The example relay, as a client uses it.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::{net::UdpSocket, time::Duration};

use backwater_stun::{
    ChannelData, ChannelNumber, Class, Data, ErrorCode, HmacKey, LongTermKey, Message, Method, Nonce, Realm,
    RequestedTransport, TransactionId, Username, Writer, XorPeerAddress, XorRelayedAddress,
};

#[path = "../examples/relay.rs"]
#[allow(dead_code)]
mod relay;

/// A client with the nonce of its last response.
struct Client {
    socket: UdpSocket,
    nonce: Vec<u8>,
}

impl Client {
    /// Sends a request until it is not refused with 401, and returns the success response.
    fn request(&mut self, method: Method, fill: impl Fn(&mut Writer<'_>)) -> Vec<u8> {
        let key = HmacKey::from(&LongTermKey::md5("alice", "example.org", "secret"));
        for _ in 0..2 {
            let id = TransactionId::random(getrandom::fill).unwrap();
            let mut buffer = [0; 500];
            let mut writer = Writer::new(&mut buffer, Class::Request, method, id).unwrap();
            fill(&mut writer);
            let request = if self.nonce.is_empty() {
                writer.finish()
            } else {
                writer.attribute(&Username("alice")).unwrap().attribute(&Realm("example.org")).unwrap();
                writer.attribute(&Nonce(&self.nonce)).unwrap();
                writer.integrity_sha1(&key).unwrap().finish()
            };
            self.socket.send(request).unwrap();
            let bytes = self.receive();
            let response = Message::parse(&bytes).unwrap();
            assert_eq!(response.transaction_id(), id);
            if response.class() == Class::SuccessResponse {
                return bytes;
            }
            let error: ErrorCode<'_> = response.get().unwrap().unwrap();
            assert_eq!(error.code.number(), 401);
            self.nonce = response.get::<Nonce<'_>>().unwrap().unwrap().0.to_vec();
        }
        panic!("{method} was refused twice");
    }

    fn receive(&self) -> Vec<u8> {
        let mut buffer = [0; 2000];
        let len = self.socket.recv(&mut buffer).unwrap();
        buffer[..len].to_vec()
    }
}

fn bound() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    socket
}

#[test]
fn example_relays_between_a_client_and_a_peer() {
    let listener = bound();
    let server = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            listener.set_nonblocking(true).unwrap();
            relay::Relay::new(tokio::net::UdpSocket::from_std(listener).unwrap()).unwrap().run().await
        })
    });
    let mut client = Client { socket: bound(), nonce: Vec::new() };
    client.socket.connect(server).unwrap();
    let peer = bound();
    let peer_address = peer.local_addr().unwrap();

    let response = client.request(Method::ALLOCATE, |w| {
        w.attribute(&RequestedTransport::UDP).unwrap();
    });
    let relayed: XorRelayedAddress = Message::parse(&response).unwrap().get().unwrap().unwrap();
    client.request(Method::CREATE_PERMISSION, |w| {
        w.attribute(&XorPeerAddress(peer_address)).unwrap();
    });

    peer.send_to(b"to the client", relayed.0).unwrap();
    let indication = client.receive();
    let indication = Message::parse(&indication).unwrap();
    assert!(indication.is(Class::Indication, Method::DATA));
    assert_eq!(indication.get(), Ok(Some(XorPeerAddress(peer_address))));
    assert_eq!(indication.get(), Ok(Some(Data(b"to the client"))));

    let channel = ChannelNumber::MIN;
    client.request(Method::CHANNEL_BIND, |w| {
        w.attribute(&channel).unwrap().attribute(&XorPeerAddress(peer_address)).unwrap();
    });
    client.socket.send(&[&ChannelData::header(channel, 11)[..], b"to the peer"].concat()).unwrap();
    let mut buffer = [0; 100];
    let (len, source) = peer.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], source), (&b"to the peer"[..], relayed.0));
    peer.send_to(b"back", relayed.0).unwrap();
    let datagram = client.receive();
    let received = ChannelData::parse(&datagram).unwrap();
    assert_eq!((received.channel(), received.data()), (channel, &b"back"[..]));
}
