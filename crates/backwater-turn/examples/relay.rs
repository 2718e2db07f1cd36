//! A TURN relay in one task, to show how a `Server` is driven: the contract is in the documentation of `backwater_turn::server`.
//!
//! ```text
//! cargo run -p backwater-turn --example relay
//! ```
//!
//! It relays over IPv4 loopback, for the user `alice` with the password `secret`. It sends one datagram at a time, and loses what
//! the system refuses. The program `backwater-relay` sends batches and holds them back instead.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use backwater_stun::ChannelData;
use backwater_turn::{
    ClientAddr, Credentials, Families, FiveTuple, Limits, Now, PeerAddr, PeerRules, PerFamily, Quotas, RelayedAddr,
    RelayedPorts, ReplyLimit,
    server::{Action, AllocationId, Bind, Bound, Config, Framing, MAX_REPLY, PortRequest, Server},
};
use tokio::{net::UdpSocket, sync::mpsc, task::JoinHandle, time};

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let listener = UdpSocket::bind("127.0.0.1:3478").await?;
    println!("turn:{}?transport=udp, user alice, password secret", listener.local_addr()?);
    Relay::new(listener)?.run().await
}

/// The sockets, and the server that decides.
pub struct Relay {
    server: Server,
    listener: UdpSocket,
    relayed: HashMap<AllocationId, Relayed>,
    ports: Arc<RelayedPorts>,
    inbox: mpsc::Receiver<FromPeer>,
    to_inbox: mpsc::Sender<FromPeer>,
}

/// A relayed socket, and the task that reads it.
struct Relayed {
    socket: Arc<UdpSocket>,
    address: RelayedAddr,
    reader: JoinHandle<()>,
}

/// A datagram that a relayed socket has received.
struct FromPeer {
    via: AllocationId,
    peer: SocketAddr,
    payload: Vec<u8>,
}

/// Datagrams of peers that may wait for the relay's task.
const MAX_INBOX: usize = 64;

impl Relay {
    /// Makes a relay whose clients send to `listener`.
    pub fn new(listener: UdpSocket) -> io::Result<Self> {
        let mut credentials = Credentials::new("example.org").map_err(io::Error::other)?;
        credentials.add_user("alice", "secret").map_err(io::Error::other)?;
        let mut nonce_key = [0; 64];
        getrandom::fill(&mut nonce_key)?;
        let (now, ports) = (Instant::now(), Arc::<RelayedPorts>::default());
        let server = Server::new(Config {
            credentials: credentials.into(),
            // Loopback is refused by default, and so is every other special-purpose address.
            peers: PeerRules {
                allow: vec![IpAddr::from(Ipv4Addr::LOCALHOST).into()],
                listeners: vec![listener.local_addr()?],
                ..PeerRules::default()
            },
            families: Families { v4: true, v6: false },
            max_lifetime: Duration::from_secs(3600),
            quotas: Quotas::new(Limits { allocations: 10, ..Limits::default() }, Limits::default(), now),
            reply_limit: Some(Arc::new(ReplyLimit::new(100, now))),
            failure_limit: None,
            directory: None,
            relayed_ports: ports.clone(),
            nonce_key,
            thread: 0,
        });
        let (to_inbox, inbox) = mpsc::channel(MAX_INBOX);
        Ok(Self { server, listener, relayed: HashMap::new(), ports, inbox, to_inbox })
    }

    /// Relays until the listener fails.
    pub async fn run(mut self) -> io::Result<()> {
        let mut buffer = vec![0; 65_536];
        loop {
            let expiry = self.server.poll_timeout();
            let expired = async {
                match expiry {
                    Some(at) => time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                received = self.listener.recv_from(&mut buffer) => {
                    let (len, source) = received?;
                    self.handle_client(source, &buffer[..len]).await?;
                }
                Some(from_peer) = self.inbox.recv() => self.handle_peer(from_peer).await,
                () = expired => {
                    while let Some((id, _)) = self.server.expire(Instant::now()) {
                        self.close(id);
                    }
                }
            }
            while let Some(event) = self.server.poll_event() {
                println!("{}: {:?}", event.client, event.kind);
            }
        }
    }

    async fn handle_client(&mut self, source: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        let from = FiveTuple::udp(ClientAddr(source), self.listener.local_addr()?);
        let mut reply = [0; MAX_REPLY];
        let mut action = self.server.handle_client(now(), from, datagram, &mut reply);
        if let Action::Bind(bind) = action {
            action = self.bind(bind, &mut reply).await;
        }
        if let Action::Handover(request) = action {
            // There is one server, so that the allocation leaves and comes back under another id, with the same socket.
            let detached = self.server.detach(&request);
            let left = detached.is_ok().then(|| self.relayed.remove(&request.id())).flatten();
            let (id, outcome) = self.server.attach(Instant::now(), &request, detached, &mut reply);
            action = outcome;
            if let Some(Relayed { socket, address, reader }) = left {
                reader.abort();
                match id {
                    Some(id) => self.open(id, socket, address),
                    None => self.ports.remove(address),
                }
            }
        }
        let len = match action {
            Action::Forward { via, to: PeerAddr(to), range, .. } => {
                if let Some(relayed) = self.relayed.get(&via) {
                    let _ = relayed.socket.send_to(&datagram[range], to).await;
                }
                None
            }
            Action::Reply(len) | Action::Forbid(len, ..) | Action::OverQuota(len, _) => Some(len),
            Action::Unauthenticated(failure) => failure.reply,
            Action::Unbind(id, _, len) => {
                self.close(id);
                Some(len)
            }
            Action::Drop(_) | Action::Bind(_) | Action::Handover(_) => None,
        };
        if let Some(len) = len {
            let _ = self.listener.send_to(&reply[..len], source).await;
        }
        Ok(())
    }

    async fn handle_peer(&mut self, FromPeer { via, peer, payload }: FromPeer) {
        let peer = PeerAddr(peer);
        let Ok((client, framing)) = self.server.handle_peer(Instant::now(), via, peer, payload.len()) else { return };
        let datagram = match framing {
            Framing::Channel(channel) => [&ChannelData::header(channel, payload.len() as u16), &payload[..]].concat(),
            Framing::Indication => {
                let Ok(prefix) = self.server.data_indication(peer, payload.len()) else { return };
                [prefix.as_bytes(), &payload, prefix.padding()].concat()
            }
        };
        let _ = self.listener.send_to(&datagram, client.client.0).await;
    }

    /// Binds the socket of an allocation, and reports the outcome to the server.
    async fn bind(&mut self, bind: Bind, reply: &mut [u8]) -> Action {
        // A port of a certain kind is refused here, with 508.
        let socket = match bind.port {
            PortRequest::Any => UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.ok(),
            PortRequest::Even { .. } | PortRequest::Reserved(_) => None,
        };
        let bound = socket.and_then(|socket| Some((RelayedAddr(socket.local_addr().ok()?), socket)));
        let v4 = bound.as_ref().map(|(address, _)| *address);
        let outcome = Bound { relayed: PerFamily { v4, v6: None }, token: None };
        let action = self.server.bound(Instant::now(), bind.id, outcome, reply);
        if let (Action::Reply(_), Some((address, socket))) = (&action, bound) {
            self.open(bind.id, Arc::new(socket), address);
        }
        action
    }

    fn open(&mut self, via: AllocationId, socket: Arc<UdpSocket>, address: RelayedAddr) {
        self.ports.insert(address);
        let reader = tokio::spawn(read(via, socket.clone(), self.to_inbox.clone()));
        self.relayed.insert(via, Relayed { socket, address, reader });
    }

    fn close(&mut self, id: AllocationId) {
        if let Some(relayed) = self.relayed.remove(&id) {
            self.ports.remove(relayed.address);
            relayed.reader.abort();
        }
    }
}

/// Reads a relayed socket. An error, such as an ICMP message about an earlier datagram, does not end it.
async fn read(via: AllocationId, socket: Arc<UdpSocket>, to_inbox: mpsc::Sender<FromPeer>) {
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok((len, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let payload = buffer[..len].to_vec();
        if to_inbox.send(FromPeer { via, peer, payload }).await.is_err() {
            return;
        }
    }
}

fn now() -> Now {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Now { instant: Instant::now(), unix }
}
