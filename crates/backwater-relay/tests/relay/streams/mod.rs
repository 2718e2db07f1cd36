//! Clients on connections: TCP and TLS.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use backwater_relay::{Counter, Counters, CutOff, Relay};
use backwater_stun::*;
use backwater_turn::server::DropReason;
use base64::{Engine, prelude::BASE64_STANDARD};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, pki_types::ServerName};

use crate::client::{Client, Fill, PATIENCE, channel_data, start};

mod check;
mod coturn;
mod hostile;
mod tcp;
mod tls;

pub trait Io: Read + Write {}
impl<T: Read + Write> Io for T {}

/// A client on a connection.
pub struct StreamClient {
    pub io: Box<dyn Io>,
    /// Makes the requests; its socket is not used.
    signer: Client,
    pub received: Vec<u8>,
}

impl StreamClient {
    pub fn over(io: impl Io + 'static) -> Self {
        let nowhere = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self { io: Box::new(io), signer: Client::new(nowhere, "alice", "secret", "backwater"), received: Vec::new() }
    }

    pub fn tcp(relay: SocketAddr) -> Self {
        Self::over(connect(relay))
    }

    /// The next frame, with its padding.
    pub fn frame(&mut self) -> Vec<u8> {
        loop {
            match split_frame(&self.received).expect("the relay's frames") {
                Split::Frame { len, .. } => return self.received.drain(..len).collect(),
                Split::Incomplete { .. } => {
                    let mut buffer = [0; 16 << 10];
                    let len = self.io.read(&mut buffer).expect("a frame");
                    assert!(len > 0, "the relay has ended the connection");
                    self.received.extend_from_slice(&buffer[..len]);
                }
            }
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).unwrap();
        self.io.flush().unwrap();
    }

    /// A request; the error code of the answer, if it is an error.
    pub fn request(&mut self, method: Method, fill: Fill<'_>) -> Result<Vec<u8>, u16> {
        for _ in 0..3 {
            let request = self.signer.encode(method, fill);
            self.send(&request);
            let reply = loop {
                let frame = self.frame();
                if Message::parse(&frame).is_ok_and(|m| m.class() != Class::Indication) {
                    break frame;
                }
            };
            let message = Message::parse(&reply).unwrap();
            match message.get::<ErrorCode<'_>>().unwrap().map(|e| e.code.number()) {
                None => return Ok(reply),
                Some(401 | 438) => self.signer.learn_nonce(&reply),
                Some(code) => return Err(code),
            }
        }
        Err(401)
    }

    pub fn allocate(&mut self) -> SocketAddr {
        let reply = self.request(Method::ALLOCATE, &|w| drop(w.attribute(&RequestedTransport::UDP))).unwrap();
        Message::parse(&reply).unwrap().get::<XorRelayedAddress>().unwrap().unwrap().0
    }

    pub fn bind_channel(&mut self, number: u16, peer: SocketAddr) {
        let bound = self.request(Method::CHANNEL_BIND, &|w| {
            w.attribute(&ChannelNumber::new(number).unwrap()).unwrap().attribute(&XorPeerAddress(peer)).unwrap();
        });
        bound.unwrap();
    }
}

/// ChannelData as a connection has it: padded.
pub fn padded(number: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = channel_data(number, payload);
    frame.resize(frame.len().next_multiple_of(4), 0);
    frame
}

pub fn connect(relay: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(relay).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A relay that listens for connections, in one thread.
pub fn start_tcp(args: &[&str]) -> Relay {
    start(&[&["--listen-tcp", "127.0.0.1:0", "--threads", "1"], args].concat())
}

pub fn total(relay: &Relay, counter: fn(&Counters) -> &Counter) -> u64 {
    relay.counters().iter().map(|counters| counter(counters).get()).sum()
}

pub fn ended(relay: &Relay, why: CutOff) -> u64 {
    relay.counters().iter().map(|counters| counters.cut_offs(why)).sum()
}

pub fn dropped(relay: &Relay, reason: DropReason) -> u64 {
    relay.counters().iter().map(|counters| counters.dropped(reason)).sum()
}

/// Waits until it is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < 10 * PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until the relay ends the connection, and returns what it had sent.
pub fn until_ended(mut stream: &TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    stream.set_read_timeout(Some(10 * PATIENCE)).unwrap();
    match stream.read_to_end(&mut rest) {
        Ok(_) => rest,
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
            rest
        }
    }
}

pub fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64_STANDARD.encode(der))
}

/// A certificate for `localhost` in files, which go when this does.
pub struct CertificateFiles {
    pub chain: String,
    pub key: String,
}

impl CertificateFiles {
    pub fn new() -> (Self, Arc<ClientConfig>) {
        let stem = std::env::temp_dir().join(format!("backwater-tls-{}", fastrand::u64(..)));
        let files = Self { chain: format!("{}.pem", stem.display()), key: format!("{}.key", stem.display()) };
        let config = files.replace();
        (files, config)
    }

    /// Writes another certificate, and returns what trusts it and no other.
    pub fn replace(&self) -> Arc<ClientConfig> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&self.chain, pem("CERTIFICATE", made.cert.der())).unwrap();
        std::fs::write(&self.key, pem("PRIVATE KEY", made.signing_key.serialized_der())).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        Arc::new(config.with_root_certificates(roots).with_no_client_auth())
    }

    pub fn args(&self) -> [&str; 4] {
        ["--tls-certificate", &self.chain, "--tls-key", &self.key]
    }
}

impl Drop for CertificateFiles {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.chain);
        let _ = std::fs::remove_file(&self.key);
    }
}

/// A connection with TLS. The handshake is made with the first read or write.
pub fn tls(relay: SocketAddr, config: &Arc<ClientConfig>) -> StreamOwned<ClientConnection, TcpStream> {
    let name = ServerName::try_from("localhost").unwrap();
    StreamOwned::new(ClientConnection::new(config.clone(), name).unwrap(), connect(relay))
}
