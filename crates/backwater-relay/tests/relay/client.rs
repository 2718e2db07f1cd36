//! A relay in this process, a client for it, blocking and with no more than the tests need, and a peer.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use backwater_relay::{Arguments, Config, Relay};
use backwater_stun::*;

pub struct Client {
    pub socket: UdpSocket,
    user: String,
    key: HmacKey,
    realm: String,
    nonce: Vec<u8>,
    relayed: Option<SocketAddr>,
}

/// How long an answer may take: an idle machine's takes less than a millisecond.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub type Fill<'f> = &'f dyn Fn(&mut Writer<'_>);

impl Client {
    pub fn new(server: SocketAddr, user: &str, password: &str, realm: &str) -> Self {
        let any = if server.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
        Self::at(any.parse().unwrap(), server, user, password, realm)
    }

    /// A client with this address.
    pub fn at(local: SocketAddr, server: SocketAddr, user: &str, password: &str, realm: &str) -> Self {
        let socket = UdpSocket::bind(local).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let key = HmacKey::from(&LongTermKey::md5(user, realm, password));
        Self { socket, user: user.to_owned(), key, realm: realm.to_owned(), nonce: Vec::new(), relayed: None }
    }

    /// Goes on from another address, as after a change of networks.
    pub fn move_elsewhere(&mut self) {
        let server = self.socket.peer_addr().unwrap();
        self.socket = UdpSocket::bind(if server.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" }).unwrap();
        self.socket.connect(server).unwrap();
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }

    /// A request, with credentials once there is a nonce.
    pub fn encode(&self, method: Method, fill: Fill<'_>) -> Vec<u8> {
        let mut id = [0; 12];
        getrandom::fill(&mut id).unwrap();
        let mut buffer = [0; 2000];
        let mut w = Writer::new(&mut buffer, Class::Request, method, TransactionId(id)).unwrap();
        fill(&mut w);
        if self.nonce.is_empty() {
            return w.finish().to_vec();
        }
        w.attribute(&Username(&self.user)).unwrap().attribute(&Realm(&self.realm)).unwrap();
        w.attribute(&Nonce(&self.nonce)).unwrap();
        w.integrity_sha1(&self.key).unwrap().finish().to_vec()
    }

    /// Takes the nonce of a 401 that came by another way than [`request`](Self::request).
    pub fn learn_nonce(&mut self, challenge: &[u8]) {
        self.nonce = Message::parse(challenge).unwrap().get::<Nonce<'_>>().unwrap().unwrap().0.to_vec();
    }

    /// Sends a request and returns the response.
    pub fn exchange(&mut self, method: Method, fill: Fill<'_>) -> Vec<u8> {
        let request = self.encode(method, fill);
        let id = Message::parse(&request).unwrap().transaction_id();
        self.socket.send(&request).unwrap();
        let mut reply = [0; 2000];
        loop {
            let len = match self.socket.recv(&mut reply) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                received => received.expect("an answer"),
            };
            let message = Message::parse(&reply[..len]);
            if message.is_ok_and(|m| m.transaction_id() == id) {
                return reply[..len].to_vec();
            }
        }
    }

    /// A request; the error code of the answer, if it is an error.
    pub fn request(&mut self, method: Method, fill: Fill<'_>) -> Result<Vec<u8>, u16> {
        for _ in 0..3 {
            let reply = self.exchange(method, fill);
            let message = Message::parse(&reply).unwrap();
            let code = message.get::<ErrorCode<'_>>().unwrap().map(|e| e.code.number());
            match code {
                None => {
                    message.verify(&self.key).unwrap();
                    return Ok(reply);
                }
                Some(401 | 438) => self.nonce = message.get::<Nonce<'_>>().unwrap().unwrap().0.to_vec(),
                Some(code) => return Err(code),
            }
        }
        Err(401)
    }

    pub fn try_allocate(&mut self, fill: Fill<'_>) -> Result<Vec<u8>, u16> {
        self.request(Method::ALLOCATE, &|w| {
            w.attribute(&RequestedTransport::UDP).unwrap();
            fill(w);
        })
    }

    /// Allocates, and returns the relayed address.
    pub fn allocate(&mut self) -> SocketAddr {
        let reply = self.try_allocate(&|_| ()).unwrap();
        let relayed = Message::parse(&reply).unwrap().get::<XorRelayedAddress>().unwrap().unwrap().0;
        *self.relayed.insert(relayed)
    }

    /// The address that [`allocate`](Self::allocate) returned.
    pub fn relayed(&self) -> SocketAddr {
        self.relayed.unwrap()
    }

    pub fn bind_channel(&mut self, number: u16, peer: SocketAddr) -> Result<Vec<u8>, u16> {
        self.request(Method::CHANNEL_BIND, &|w| {
            w.attribute(&ChannelNumber::new(number).unwrap()).unwrap().attribute(&XorPeerAddress(peer)).unwrap();
        })
    }

    pub fn permit(&mut self, peer: SocketAddr) -> Result<Vec<u8>, u16> {
        self.request(Method::CREATE_PERMISSION, &|w| {
            w.attribute(&XorPeerAddress(peer)).unwrap();
        })
    }
}

pub fn start(args: &[&str]) -> Relay {
    let base = ["relay", "--listen", "127.0.0.1:0", "--user", "alice:secret", "--allow-peer", "127.0.0.0/8"];
    let args = base.iter().chain(args).copied();
    let matches = Arguments::command().try_get_matches_from(args).unwrap();
    Relay::start(&Config::new(&Arguments::read(&matches, []).unwrap()).unwrap()).unwrap()
}

pub fn client(relay: &Relay) -> Client {
    Client::new(relay.local_addrs()[0], "alice", "secret", "backwater")
}

pub fn peer() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let addr = socket.local_addr().unwrap();
    (socket, addr)
}

/// A relay on IPv4 and IPv6 loopback.
pub fn start_dual(args: &[&str]) -> Relay {
    let both = ["--listen", "[::1]:0", "--allow-peer", "::1"];
    start(&[&both[..], args].concat())
}

pub fn peer6() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("[::1]:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let addr = socket.local_addr().unwrap();
    (socket, addr)
}

pub fn channel_data(number: u16, payload: &[u8]) -> Vec<u8> {
    let header = ChannelData::header(ChannelNumber::new(number).unwrap(), payload.len() as u16);
    [&header[..], payload].concat()
}
