//! Many clients of a TURN server at once, and their requests.
//!
//! On IPv4 loopback all clients share one socket, and each has an address of its own out of 127.0.0.0/8. To the server they are as
//! many 5-tuples from as many hosts. One system call sends for many of them, and a client needs no descriptor. Elsewhere each client
//! has a socket of its own.

use std::{
    collections::hash_map::RandomState,
    future::poll_fn,
    hash::{BuildHasher, Hasher},
    io::{self, IoSlice},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    task::{Context, Waker},
    time::{Duration, Instant},
};

use backwater_stun::{
    AddressFamily, ChannelNumber, Class, Code, ErrorCode, HmacKey, Lifetime, LongTermKey, Message, Method, Nonce,
    Realm, RequestedAddressFamily, RequestedTransport, TransactionId, Username, WriteError, Writer, XorPeerAddress,
    XorRelayedAddress,
};
use backwater_udp::{Backpressure, Policy, Receiver, RecvBatch, Sender, Transmit, UdpSocket};

use crate::turn::{Credential, TurnError, require, silence};

/// Clients, with or without allocations.
#[derive(Debug)]
pub struct Clients {
    server: SocketAddr,
    sockets: Vec<UdpSocket>,
    clients: Vec<Client>,
    /// The first address on loopback, and how many are assigned.
    first: Ipv4Addr,
    addresses: u32,
    user: Option<User>,
    /// Whether the server has answered any request.
    has_answered: bool,
    /// The part of the transaction ids that identifies this process and the round of requests.
    round: (u32, u32),
}

/// The address of a client, and its state at the server.
#[derive(Debug)]
pub(crate) struct Client {
    /// The index of its socket.
    pub(crate) socket: usize,
    /// Its address, where the socket has several.
    pub(crate) ip: Option<IpAddr>,
    nonce: Vec<u8>,
    relayed: Option<SocketAddr>,
    /// An authenticated Allocate request was sent, and has not been refused.
    may_be_allocated: bool,
    /// The peer of its channel.
    peer: Option<SocketAddr>,
}

/// The outcome of a round of requests, one for each client.
#[derive(Debug)]
pub struct Round {
    /// Requests that the server granted.
    pub granted: usize,
    /// The first request that the server refused.
    pub refusal: Option<TurnError>,
    /// How long the round took.
    pub elapsed: Duration,
    /// How long the probe itself worked. The rest of `elapsed` it waited for the server.
    pub busy: Duration,
}

#[derive(Debug)]
struct User {
    credential: Credential,
    realm: String,
    key: Option<HmacKey>,
}

/// One request, until it is answered.
#[derive(Clone, Copy, Debug)]
struct Transaction {
    state: State,
    sent: Instant,
    sends: u32,
    challenges: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waits,
    Open,
    Over,
}

/// The effect of a response on its transaction.
enum Answer {
    Again,
    Granted,
    Refused(TurnError),
}

/// Requests in flight: enough to keep a server busy, and few enough for a receive buffer of the system's default size.
const WINDOW: usize = 128;

/// Messages in one system call.
const MESSAGES: usize = 64;

/// Room for a request: a realm and a nonce may have 763 bytes each.
const REQUEST: usize = 2048;

/// The receive buffer to request, in bytes. The system may grant less.
const RECEIVE_BUFFER: usize = 64 << 20;

/// How long to wait for a response before the first retransmission; each wait is longer than the one before by as much. Shorter than
/// in RFC 8489 §6.2.1, since the measured servers are near.
const WAIT: Duration = Duration::from_millis(100);
/// Transmissions of a request.
const SENDS: u32 = 6;

/// Responses of 401, 438 or 437 to one request before the client gives up.
const CHALLENGES: u32 = 16;

/// The lifetime that an Allocate request asks for. A load is over by then.
const LIFETIME: Lifetime = Lifetime(3600);

/// The first client's address on loopback.
const FIRST: Ipv4Addr = Ipv4Addr::new(127, 1, 0, 1);

impl Clients {
    /// Makes `count` clients of `server`, without sending anything.
    ///
    /// # Errors
    /// The system's error: too many open files, for one.
    pub fn new(server: SocketAddr, count: usize) -> io::Result<Self> {
        Self::at(server, count, FIRST)
    }

    /// As [`new`](Self::new), with addresses from `first` on where the server is on loopback.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn at(server: SocketAddr, count: usize, first: Ipv4Addr) -> io::Result<Self> {
        let tag = RandomState::new().build_hasher().finish() as u32;
        let mut clients = Self {
            server,
            sockets: Vec::new(),
            clients: Vec::with_capacity(count),
            first,
            addresses: 0,
            user: None,
            has_answered: false,
            round: (tag, 0),
        };
        for _ in 0..count {
            let client = clients.place()?;
            clients.clients.push(client);
        }
        Ok(clients)
    }

    /// Allocates a relayed transport address for UDP for each, of the family `peers` are of.
    ///
    /// # Errors
    /// No response, or an invalid one. A refusal is in the [`Round`].
    pub async fn allocate(&mut self, credential: &Credential, peers: AddressFamily) -> Result<Round, TurnError> {
        self.user = Some(User { credential: credential.clone(), realm: String::new(), key: None });
        let which = (0..self.clients.len()).collect();
        let attributes = |_, w: &mut Writer<'_>| {
            w.attribute(&RequestedTransport::UDP)?.attribute(&LIFETIME)?;
            match peers {
                // IPv4 is the default without the attribute, which a server without IPv6 need not know.
                AddressFamily::Ipv4 => Ok(()),
                AddressFamily::Ipv6 => w.attribute(&RequestedAddressFamily(peers)).map(drop),
            }
        };
        let granted = |client: &mut Client, answer: &Message<'_>| {
            let relayed = require::<XorRelayedAddress>(answer, Method::ALLOCATE, "XOR-RELAYED-ADDRESS")?;
            client.relayed = Some(relayed.0);
            Ok(())
        };
        self.request(Method::ALLOCATE, which, attributes, granted).await
    }

    /// Binds a channel to `peer`, a function of the client's number, for each client with an allocation.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate).
    pub async fn bind_channels(
        &mut self,
        channel: ChannelNumber,
        peer: impl Fn(usize) -> SocketAddr,
    ) -> Result<Round, TurnError> {
        let which = self.allocated();
        for &number in &which {
            self.clients[number].peer = Some(peer(number));
        }
        let attributes =
            |number, w: &mut Writer<'_>| w.attribute(&channel)?.attribute(&XorPeerAddress(peer(number))).map(drop);
        self.request(Method::CHANNEL_BIND, which, attributes, |_, _| Ok(())).await
    }

    /// Ends the allocations.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate).
    pub async fn release(&mut self) -> Result<Round, TurnError> {
        self.delete(self.allocated()).await
    }

    /// Ends every allocation that the server may have made, including those whose response has not arrived. Ignores the responses.
    pub(crate) async fn give_back(&mut self) {
        let which = (0..self.len()).filter(|&number| self.clients.get(number).is_some_and(|c| c.may_be_allocated));
        let _ = self.delete(which.collect()).await;
    }

    async fn delete(&mut self, which: Vec<usize>) -> Result<Round, TurnError> {
        let attributes = |_, w: &mut Writer<'_>| w.attribute(&Lifetime(0)).map(drop);
        let granted = |client: &mut Client, _: &Message<'_>| {
            (client.relayed, client.may_be_allocated) = (None, false);
            Ok(())
        };
        self.request(Method::REFRESH, which, attributes, granted).await
    }

    /// Returns the number of clients.
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Returns whether there are no clients.
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// Returns the relayed address of a client.
    pub fn relayed(&self, number: usize) -> Option<SocketAddr> {
        self.clients.get(number)?.relayed
    }

    /// Returns the address of a client.
    pub(crate) fn local(&self, number: usize) -> Option<SocketAddr> {
        let client = self.clients.get(number)?;
        let socket = self.sockets.get(client.socket)?.local_addr();
        Some(SocketAddr::new(client.ip.unwrap_or(socket.ip()), socket.port()))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Client> {
        self.clients.iter()
    }

    pub(crate) fn sockets(&self) -> &[UdpSocket] {
        &self.sockets
    }

    fn allocated(&self) -> Vec<usize> {
        (0..self.len()).filter(|&number| self.relayed(number).is_some()).collect()
    }

    /// Returns a 5-tuple that no client has had.
    fn place(&mut self) -> io::Result<Client> {
        let ip = match self.server.ip() {
            IpAddr::V4(ip) if ip.is_loopback() => {
                self.addresses += 1;
                Some(IpAddr::from(Ipv4Addr::from_bits(self.first.to_bits() + self.addresses - 1)))
            }
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        };
        if ip.is_none() || self.sockets.is_empty() {
            self.sockets.push(generator_socket(SocketAddr::new(local_ip(self.server.ip(), ip.is_some()), 0))?);
        }
        Ok(Client {
            socket: self.sockets.len() - 1,
            ip,
            nonce: Vec::new(),
            relayed: None,
            may_be_allocated: false,
            peer: None,
        })
    }

    /// Sends one request for each of `which`, many at a time. A request without credentials is challenged, and then sent with them.
    async fn request(
        &mut self,
        method: Method,
        which: Vec<usize>,
        attributes: impl Fn(usize, &mut Writer<'_>) -> Result<(), WriteError>,
        mut granted: impl FnMut(&mut Client, &Message<'_>) -> Result<(), TurnError>,
    ) -> Result<Round, TurnError> {
        self.round.1 += 1;
        let (began, server) = (Instant::now(), self.server);
        let mut round = Round { granted: 0, refusal: None, elapsed: Duration::ZERO, busy: Duration::ZERO };
        let fresh = Transaction { state: State::Waits, sent: began, sends: 0, challenges: 0 };
        let mut transactions = vec![fresh; self.clients.len()];
        let mut ends = Ends::new(&self.sockets);
        let (mut waiting, mut left, mut under_way) = (which.iter().copied(), which.len(), 0);
        let mut batch = RecvBatch::new(MESSAGES);
        let mut to_send: Vec<usize> = Vec::new();
        let mut looked = began;
        while left > 0 {
            let turn = Instant::now();
            for number in waiting.by_ref().take(WINDOW - under_way) {
                transactions[number].state = State::Open;
                under_way += 1;
                to_send.push(number);
            }
            let mut idle = to_send.is_empty();
            for &number in &to_send {
                transactions[number].sent = turn;
                transactions[number].sends += 1;
                let client = &mut self.clients[number];
                client.may_be_allocated |= method == Method::ALLOCATE && !client.nonce.is_empty();
            }
            self.send(method, &mut ends.senders, &to_send, &transactions, &attributes).await?;
            to_send.clear();

            let mut cx = Context::from_waker(Waker::noop());
            let mut drained = false;
            for receiver in &mut ends.receivers {
                if receiver.poll_recv(&mut cx, &mut batch)?.is_pending() {
                    drained = true;
                    continue;
                }
                for datagram in batch.datagrams().filter(|d| d.source == server) {
                    idle = false;
                    let Ok(message) = Message::parse(datagram.payload) else { continue };
                    let Some(number) = self.of(&message, &transactions) else { continue };
                    self.has_answered = true;
                    match self.answer(method, number, &message, &mut transactions[number], &mut granted)? {
                        Answer::Again => {
                            transactions[number].sends = 0;
                            to_send.push(number);
                            continue;
                        }
                        Answer::Granted => round.granted += 1,
                        Answer::Refused(error) => {
                            round.refusal.get_or_insert(error);
                        }
                    }
                    transactions[number].state = State::Over;
                    (under_way, left) = (under_way - 1, left - 1);
                }
            }
            // A client that moved may have a new socket.
            ends.extend(&self.sockets);
            if idle && turn - looked > WAIT / 2 {
                looked = turn;
                for &number in &which {
                    let transaction = &transactions[number];
                    if transaction.state == State::Open && turn - transaction.sent > WAIT * transaction.sends {
                        if transaction.sends >= SENDS {
                            return Err(silence(method, self.server, &self.sockets, self.has_answered));
                        }
                        to_send.push(number);
                    }
                }
            }
            if !idle {
                round.busy += turn.elapsed();
            }
            if drained {
                // Only the reactor can tell that there is more, and it runs when this yields.
                tokio::task::yield_now().await;
            }
        }
        round.elapsed = began.elapsed();
        Ok(round)
    }

    async fn send(
        &self,
        method: Method,
        senders: &mut [Sender],
        numbers: &[usize],
        transactions: &[Transaction],
        attributes: &impl Fn(usize, &mut Writer<'_>) -> Result<(), WriteError>,
    ) -> Result<(), TurnError> {
        let mut buffers = vec![0; REQUEST * MESSAGES.min(numbers.len())];
        for group in numbers.chunk_by(|&a, &b| self.clients[a].socket == self.clients[b].socket) {
            for group in group.chunks(MESSAGES) {
                let mut slices = Vec::with_capacity(group.len());
                for (&number, buffer) in group.iter().zip(buffers.chunks_exact_mut(REQUEST)) {
                    let id = self.id(number, &transactions[number]);
                    let mut writer = Writer::new(buffer, Class::Request, method, id)?;
                    attributes(number, &mut writer)?;
                    slices.push([IoSlice::new(self.authenticate(number, writer)?)]);
                }
                let transmits = group
                    .iter()
                    .zip(&slices)
                    .map(|(&number, slices)| Transmit::new(self.server, slices).source(self.clients[number].ip));
                let mut transmits: Vec<_> = transmits.collect();
                let sender = &mut senders[self.clients[group[0]].socket];
                poll_fn(|cx| sender.poll_send_batch(cx, &mut transmits)).await?;
            }
        }
        Ok(())
    }

    /// Ends a request with its credentials, once the server has sent a challenge.
    fn authenticate<'b>(&self, number: usize, mut writer: Writer<'b>) -> Result<&'b [u8], WriteError> {
        let nonce = &self.clients[number].nonce;
        match &self.user {
            Some(User { credential, realm, key: Some(key) }) if !nonce.is_empty() => {
                writer.attribute(&Username(&credential.user))?.attribute(&Realm(realm))?.attribute(&Nonce(nonce))?;
                Ok(writer.integrity_sha1(key)?.finish())
            }
            _ => Ok(writer.finish()),
        }
    }

    fn id(&self, number: usize, transaction: &Transaction) -> TransactionId {
        let mut id = [0; 12];
        id[..4].copy_from_slice(&self.round.0.to_be_bytes());
        id[4..8].copy_from_slice(&(number as u32).to_be_bytes());
        id[8..].copy_from_slice(&(self.round.1 << 8 | transaction.challenges).to_be_bytes());
        TransactionId(id)
    }

    /// Returns the client whose open request this message answers.
    fn of(&self, message: &Message<'_>, transactions: &[Transaction]) -> Option<usize> {
        let id = message.transaction_id();
        let number = u32::from_be_bytes(*id.0[4..8].first_chunk()?) as usize;
        let transaction = transactions.get(number)?;
        (transaction.state == State::Open && id == self.id(number, transaction)).then_some(number)
    }

    fn answer(
        &mut self,
        method: Method,
        number: usize,
        message: &Message<'_>,
        transaction: &mut Transaction,
        granted: &mut impl FnMut(&mut Client, &Message<'_>) -> Result<(), TurnError>,
    ) -> Result<Answer, TurnError> {
        let (Some(user), Some(client)) = (&mut self.user, self.clients.get_mut(number)) else {
            return Ok(Answer::Again);
        };
        if message.class() == Class::SuccessResponse {
            let key = user.key.as_ref().filter(|_| !client.nonce.is_empty());
            if key.is_some_and(|key| message.verify(key).is_err()) {
                return Err(TurnError::Malformed(method, "message integrity"));
            }
            return granted(client, message).map(|()| Answer::Granted);
        }
        let error = require::<ErrorCode<'_>>(message, method, "ERROR-CODE")?;
        transaction.challenges += 1;
        let again = transaction.challenges <= CHALLENGES;
        match error.code {
            Code::UNAUTHENTICATED | Code::STALE_NONCE
                if again && (client.nonce.is_empty() || error.code == Code::STALE_NONCE) =>
            {
                client.nonce = require::<Nonce<'_>>(message, method, "NONCE")?.0.to_vec();
                let realm = require::<Realm<'_>>(message, method, "REALM")?.0;
                if user.key.is_none() || user.realm != realm {
                    let Credential { user: name, password } = &user.credential;
                    user.key = Some((&LongTermKey::md5(name, realm, password)).into());
                    realm.clone_into(&mut user.realm);
                }
                Ok(Answer::Again)
            }
            // A server may remember the last allocation of a 5-tuple for a while: RFC 8656 §7.4.
            Code::ALLOCATION_MISMATCH if again && method == Method::ALLOCATE => {
                self.clients[number] = self.place()?;
                Ok(Answer::Again)
            }
            code => {
                client.may_be_allocated &= method != Method::ALLOCATE;
                let reason = error.reason.to_owned();
                let peer = client.peer.filter(|_| method == Method::CHANNEL_BIND);
                Ok(Answer::Refused(TurnError::Refused { method, server: self.server, code, reason, peer }))
            }
        }
    }
}

/// The sender and the receiver of each socket.
struct Ends {
    senders: Vec<Sender>,
    receivers: Vec<Receiver>,
}

impl Ends {
    fn new(sockets: &[UdpSocket]) -> Self {
        let mut ends = Self { senders: Vec::new(), receivers: Vec::new() };
        ends.extend(sockets);
        ends
    }

    fn extend(&mut self, sockets: &[UdpSocket]) {
        for socket in sockets.iter().skip(self.senders.len()) {
            self.senders.push(socket.sender());
            self.receivers.push(socket.receiver());
        }
    }
}

/// A socket of a load generator. It drops what the system has no room for, since a load is a rate, not a number of datagrams.
pub(crate) fn generator_socket(local: SocketAddr) -> io::Result<UdpSocket> {
    let drops = Backpressure::new(Policy::Drop);
    UdpSocket::builder().receive_buffer(RECEIVE_BUFFER).backpressure(drops).bind(local)
}

/// Returns the address to bind to in order to reach `remote`.
fn local_ip(remote: IpAddr, any: bool) -> IpAddr {
    match remote {
        ip if ip.is_loopback() && !any => ip,
        IpAddr::V4(_) => IpAddr::from([0; 4]),
        IpAddr::V6(_) => IpAddr::from([0; 16]),
    }
}
