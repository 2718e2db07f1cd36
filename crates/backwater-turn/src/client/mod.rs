//! The client: gets an allocation from a TURN server and keeps it.
//!
//! A [`Client`] has one allocation, on one socket or connection, which are the caller's. It authenticates, allocates, refreshes the
//! allocation, its permissions and its channels, retransmits, follows a redirection, moves the allocation to another address (RFC 8016),
//! and makes another allocation when one is lost.
//!
//! # How to drive it
//!
//! | When | Call |
//! |---|---|
//! | a datagram arrives from the server, or a frame of the stream ([`split_frame`](backwater_stun::split_frame)) | [`Client::handle_input`], whose result says where a peer's payload is |
//! | [`Client::poll_timeout`] is due | [`Client::handle_timeout`] |
//! | the caller wants to reach a peer | [`Client::bind`], or [`Client::permit`] |
//! | the caller has data for a peer | [`Client::send`], which writes the header of ChannelData in front of the payload, or [`Client::send_indication`] |
//! | the socket is another one, or the host may have another address | [`Client::rebound`] |
//! | the host is about to sleep, or has woken | [`Client::refresh`] |
//! | the allocation is not needed any more | [`Client::close`], and go on until [`Event::Closed`] |
//!
//! After each call, the caller sends what [`Client::poll_transmit`] returns until it returns `None`, and reads
//! [`Client::poll_event`] until it returns `None`. [`Client::poll_timeout`] may have changed then. `send` and `send_indication` need
//! neither.
//!
//! No call waits, and what a server sends makes none panic, allocate without bound or loop. The example `examples/client.rs` is a whole
//! client.
//!
//! # What the client promises
//!
//! - It sends no data that the server would drop: [`Client::send`] fails until the server has bound the channel, and again from the
//!   moment at which the server may have forgotten it.
//! - It finds out by itself that its allocation is gone: by [`Config::keepalive`] when a NAT has given it another address, and within
//!   half of a permission's lifetime (150 s) when the server has restarted. It then makes another one, and asks for the same
//!   permissions and channels, with the same channel numbers.
//! - It asks a server that refuses or does not answer less and less often, at least once in two minutes.
//!
//! | Response | The client |
//! |---|---|
//! | 300 | asks the other server; five times at most, and none twice |
//! | 401 | authenticates; stops if it has done so already |
//! | 438 | authenticates with the new nonce. Answers three challenges a minute at most |
//! | 400, 403, 440, 442 and others below 500 | stops, for an allocation; gives a permission or a channel up, for a peer |
//! | 420 | leaves out what the server does not know of DONT-FRAGMENT and EVEN-PORT |
//! | 437 to Allocate | deletes the allocation that is in the way; if that is someone else's, asks for another local port |
//! | 437, 441 otherwise | moves the allocation by its ticket, or makes another one |
//! | 443 | gives the peer up |
//! | 486, 508 | asks again after a minute |
//! | 500 and others above | asks again after 1, 2, 4, … seconds, a minute at most |

mod auth;
mod due;
mod events;
mod outcome;
mod peers;
mod request;
mod rto;
mod transaction;

use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
    time::{Duration, Instant},
};

use arrayvec::ArrayVec;
use backwater_stun::{
    AttributeType, CHANNEL_HEADER_LEN, ChannelData, ChannelNumber, Class, DataPrefix, FingerprintCheck, Icmp, Message,
    Method, XorPeerAddress,
};

pub use auth::{Credential, InvalidCredential};
pub use events::{Allocated, Event, Failure, Loss, MAX_EVENTS};
pub use peers::{MAX_PEERS, TooManyPeers};

use crate::{Families, Protocol, random::TransactionIds, server::PortRequest};
use auth::Authentication;
use events::Events;
use peers::Peers;
use rto::Rto;
use transaction::{Purpose, Transaction};

/// Redirections that a client follows (RFC 8489 §10).
const MAX_REDIRECTS: usize = 5;

/// Configures a [`Client`]. [`Config::new`] gives every field but those that it is given its usual value.
#[derive(Clone, Debug)]
pub struct Config {
    /// The server.
    pub server: SocketAddr,
    /// The protocol between the client and the server. For [`Protocol::Tcp`], with TLS or without, the connection is there when the
    /// client is made.
    pub protocol: Protocol,
    /// Who allocates.
    pub credential: Credential,
    /// The address families of the relayed addresses. IPv4, unless set. A server may grant one of two: see [`Allocated::missing`].
    pub families: Families,
    /// The port of the relayed address.
    pub port: PortRequest,
    /// The lifetime to ask for. `None`: the server's default, which is ten minutes or more.
    pub lifetime: Option<Duration>,
    /// Asks the server not to fragment what it sends to peers (RFC 8656 §14).
    pub dont_fragment: bool,
    /// Asks for a ticket that lets the allocation move to another address of the client (RFC 8016).
    pub mobility: bool,
    /// Sends USERHASH in place of USERNAME where the server accepts it (RFC 8489 §14.4).
    pub hide_username: bool,
    /// The client sends a Binding request when it has sent nothing, or received nothing, for so long. It keeps a NAT's binding and
    /// shows that it has changed. `None`: never. 15 s unless set, as in RFC 8445 §11.
    pub keepalive: Option<Duration>,
    /// Random bytes, from which transaction ids are made: no two clients may have the same.
    pub seed: [u8; 64],
}

/// A message for the server.
#[derive(Debug, PartialEq, Eq)]
pub struct Transmit<'a> {
    /// The server that the message is for.
    pub server: SocketAddr,
    /// The message.
    pub bytes: &'a [u8],
}

/// What a datagram or a frame was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Data from a peer: the payload is this part of the input.
    Data {
        /// The peer.
        peer: SocketAddr,
        /// The payload's place in the input.
        payload: Range<usize>,
    },
    /// A message for the client.
    Consumed,
    /// Not for the client: from another address, of another protocol, or a response to nothing that is in flight.
    Ignored,
}

/// Why data cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The server has not bound the channel, or has not permitted the peer, or may have forgotten it.
    #[error("the server has not granted the channel or the permission")]
    NotGranted,
    /// There is no allocation at the moment.
    #[error("there is no allocation")]
    NoAllocation,
    /// The payload is too long for a message, or the buffer has no room for the header.
    #[error("the payload does not fit into a message")]
    Length,
}

/// A TURN client without its socket. See the [module](self) for how to drive it.
pub struct Client {
    config: Config,
    server: SocketAddr,
    /// The servers that have redirected the client.
    redirected: ArrayVec<SocketAddr, MAX_REDIRECTS>,
    authentication: Authentication,
    transaction_ids: TransactionIds,
    rto: Rto,
    phase: Phase,
    peers: Peers,
    transactions: Vec<Transaction>,
    events: Events,
    /// Attempts to allocate that have failed in a row, which double the pause before the next one.
    failures: u32,
    /// Responses of 437 to Allocate requests in a row.
    mismatches: u32,
    /// Whether the server may have an allocation for this 5-tuple.
    may_be_allocated: bool,
    /// Whether there is a connection, if the protocol has any.
    connected: bool,
    last_sent: Instant,
    last_received: Instant,
    /// When something is to be done.
    next: Option<Instant>,
}

/// The state of the allocation.
enum Phase {
    /// An Allocate request is in flight, or follows at once.
    Allocating,
    Allocated(Allocation),
    /// The next attempt is at this time.
    Waiting(Instant),
    /// Nothing more can be done without the caller.
    Failed,
    /// The allocation is being deleted, wherever the ticket says that it is.
    Closing(Option<Box<[u8]>>),
    Closed,
}

struct Allocation {
    since: Instant,
    /// The end of the lifetime, in the worst case.
    expires: Instant,
    /// When to refresh; `None` while the server refuses the credential.
    refresh_at: Option<Instant>,
    /// The address that the server sees, as far as this client knows.
    mapped: Option<SocketAddr>,
    ticket: Option<Box<[u8]>>,
    /// Whether the allocation is on its way to this 5-tuple, so that no data may be sent.
    moving: bool,
}

impl Config {
    /// Returns the usual configuration: a relayed address for IPv4, over UDP.
    pub fn new(server: SocketAddr, credential: Credential, seed: [u8; 64]) -> Self {
        Self {
            server,
            protocol: Protocol::Udp,
            credential,
            families: Families { v4: true, v6: false },
            port: PortRequest::Any,
            lifetime: None,
            dont_fragment: false,
            mobility: false,
            hide_username: false,
            keepalive: Some(Duration::from_secs(15)),
            seed,
        }
    }
}

impl Client {
    /// Makes a client, which asks for an allocation at once.
    pub fn new(now: Instant, config: Config) -> Self {
        let mut client = Self {
            server: config.server,
            redirected: ArrayVec::new(),
            authentication: Authentication::new(config.credential.clone(), config.hide_username),
            transaction_ids: TransactionIds::new(&config.seed, 0),
            rto: Rto::new(now),
            phase: Phase::Allocating,
            peers: Peers::default(),
            transactions: Vec::new(),
            events: Events::default(),
            failures: 0,
            mismatches: 0,
            may_be_allocated: false,
            connected: true,
            last_sent: now,
            last_received: now,
            next: None,
            config,
        };
        client.drive(now);
        client
    }

    /// Handles a datagram from the network, or a frame of the stream with its padding. Data of a peer stays where it is.
    #[inline]
    pub fn handle_input(&mut self, now: Instant, from: SocketAddr, input: &[u8]) -> Input {
        if from != self.server {
            return Input::Ignored;
        }
        match input.first() {
            Some(0x40..=0x7F) => self.channel_data(now, input),
            Some(0..=3) => self.message(now, input),
            Some(_) | None => Input::Ignored,
        }
    }

    /// Does what is due by the clock.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(at) = self.transactions.iter().position(|transaction| transaction.is_over(now)) {
            let transaction = self.transactions.swap_remove(at);
            self.no_response(now, &transaction);
        }
        self.drive(now);
    }

    /// Returns the next message to send to the server; `None`: none for now.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit<'_>> {
        let Some(at) = self.transactions.iter().position(|t| t.is_due(now) && self.connected) else {
            self.schedule();
            return None;
        };
        self.last_sent = now;
        let transaction = self.transactions.get_mut(at)?;
        self.may_be_allocated |= transaction.purpose == Purpose::Allocate;
        transaction.sent(now);
        Some(Transmit { server: self.server, bytes: &transaction.bytes })
    }

    /// Returns the next unread event, the oldest first. The latest [`MAX_EVENTS`] are kept.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop()
    }

    /// Returns when to call [`handle_timeout`](Self::handle_timeout) next; `None`: not before another call.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    /// Wants data from and to an address: asks for a permission as long as the client lives. Does nothing if the client has asked already,
    /// unless the server has refused.
    ///
    /// # Errors
    /// [`TooManyPeers`].
    pub fn permit(&mut self, now: Instant, peer: IpAddr) -> Result<(), TooManyPeers> {
        self.peers.permit(now, peer)?;
        self.drive(now);
        Ok(())
    }

    /// Wants a channel to a peer, and a permission with it, as long as the client lives. Returns its number, which stays the same.
    /// [`Event::Bound`] says when it can be used.
    ///
    /// # Errors
    /// [`TooManyPeers`].
    pub fn bind(&mut self, now: Instant, peer: SocketAddr) -> Result<ChannelNumber, TooManyPeers> {
        let channel = self.peers.bind(now, peer)?;
        self.drive(now);
        Ok(channel)
    }

    /// Stops to refresh a permission. The server forgets it within five minutes; the client drops data from there at once.
    pub fn forget(&mut self, peer: IpAddr) {
        self.peers.forget_permission(peer);
    }

    /// Stops to refresh a channel. The server forgets it within ten minutes; the client drops data from there at once.
    pub fn release(&mut self, now: Instant, channel: ChannelNumber) {
        self.peers.release(now, channel);
    }

    /// Makes ChannelData of a payload without copying it: `buffer` is [`CHANNEL_HEADER_LEN`] bytes for the header, then the payload. Over
    /// a stream, [`padding_len`](backwater_stun::padding_len) zero bytes follow, which are the caller's.
    ///
    /// # Errors
    /// See [`SendError`].
    #[inline]
    pub fn send(&mut self, now: Instant, channel: ChannelNumber, buffer: &mut [u8]) -> Result<(), SendError> {
        let (header, payload) = buffer.split_first_chunk_mut::<CHANNEL_HEADER_LEN>().ok_or(SendError::Length)?;
        let len = u16::try_from(payload.len()).map_err(|_| SendError::Length)?;
        self.check_allocated(now)?;
        let granted = self.peers.channel(channel).is_some_and(|channel| channel.grant.is_granted(now));
        if !granted {
            return Err(SendError::NotGranted);
        }
        *header = ChannelData::header(channel, len);
        self.last_sent = now;
        Ok(())
    }

    /// Returns the start and the padding of a Send indication with `len` bytes of payload for a peer that has a permission. It needs no
    /// channel, and has 32 bytes more than ChannelData (44 with IPv6).
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send_indication(&mut self, now: Instant, peer: SocketAddr, len: usize) -> Result<DataPrefix, SendError> {
        self.check_allocated(now)?;
        if !self.peers.is_permitted(now, peer.ip()) {
            return Err(SendError::NotGranted);
        }
        self.last_sent = now;
        DataPrefix::send(self.transaction_ids.next_id(), peer, len).map_err(|_| SendError::Length)
    }

    /// Asks for everything again now: the allocation, the permissions and the channels. Before the host sleeps, so that they last as long as
    /// they can; after it has woken, or when data has stopped to flow, since it shows what is gone.
    pub fn refresh(&mut self, now: Instant) {
        if let Phase::Allocated(allocation) = &mut self.phase {
            allocation.refresh_at = allocation.refresh_at.map(|_| now);
            self.peers.renew(now);
        }
        if let Phase::Waiting(at) = &mut self.phase {
            *at = now;
        }
        self.drop_unanswered();
        self.drive(now);
    }

    /// The socket or the connection is another one, or the client's address may have changed. The client moves its allocation if it has
    /// a ticket, and else makes another one.
    pub fn rebound(&mut self, now: Instant) {
        if let Phase::Allocated(allocation) = &mut self.phase {
            allocation.mapped = None;
        }
        self.leave(now);
        self.connected = true;
        (self.last_sent, self.last_received) = (now, now);
        if matches!(self.phase, Phase::Waiting(_)) {
            self.phase = Phase::Allocating;
        }
        self.drive(now);
    }

    /// The connection to the server has ended. The client waits until [`rebound`](Self::rebound) says that there is another one.
    pub fn disconnected(&mut self, now: Instant) {
        self.leave(now);
        self.connected = false;
        self.schedule();
    }

    /// Replaces the user name and the password, for the next allocation and for requests from now on. Starts a client again that has
    /// [failed](Event::Failed).
    ///
    /// A server refreshes an allocation for the user who made it. With another user name, it answers 441, and the client makes another
    /// allocation.
    pub fn set_credential(&mut self, now: Instant, credential: Credential) {
        self.authentication.set_credential(credential);
        match &mut self.phase {
            Phase::Failed => self.phase = Phase::Allocating,
            Phase::Allocated(allocation) => {
                // The nonce is asked for anew, with the next request.
                allocation.refresh_at.get_or_insert(now);
            }
            Phase::Allocating | Phase::Waiting(_) | Phase::Closing(_) | Phase::Closed => {}
        }
        self.drive(now);
    }

    /// Deletes the allocation (RFC 8656 §8), and ends with [`Event::Closed`].
    pub fn close(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Closing(_) | Phase::Closed) {
            return;
        }
        self.transactions.clear();
        self.peers.revoke();
        let phase = std::mem::replace(&mut self.phase, Phase::Closing(None));
        if let Phase::Allocated(Allocation { moving: true, ticket, .. }) = phase {
            self.phase = Phase::Closing(ticket);
        }
        if !self.may_be_allocated || !self.connected {
            self.closed();
        }
        self.drive(now);
    }

    /// Returns whether there is an allocation that data can be sent through.
    pub fn is_allocated(&self) -> bool {
        matches!(&self.phase, Phase::Allocated(allocation) if !allocation.moving)
    }

    /// Returns whether the client is done: see [`close`](Self::close).
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    /// Returns the server that the client talks to, which another one may have named.
    pub fn server(&self) -> SocketAddr {
        self.server
    }

    /// Returns the smoothed round-trip time to the server, without retransmitted requests; `None` before the first measurement.
    pub fn round_trip(&self) -> Option<Duration> {
        self.rto.round_trip()
    }

    #[inline]
    fn check_allocated(&self, now: Instant) -> Result<(), SendError> {
        match &self.phase {
            Phase::Allocated(allocation) if !allocation.moving && now < allocation.expires => Ok(()),
            Phase::Allocated(_)
            | Phase::Allocating
            | Phase::Waiting(_)
            | Phase::Failed
            | Phase::Closing(_)
            | Phase::Closed => Err(SendError::NoAllocation),
        }
    }

    #[inline]
    fn channel_data(&mut self, now: Instant, input: &[u8]) -> Input {
        let Ok(message) = ChannelData::parse(input) else { return Input::Ignored };
        // Data may overtake the response that binds the channel.
        let Some(channel) = self.peers.channel(message.channel()) else { return Input::Ignored };
        self.last_received = now;
        let end = CHANNEL_HEADER_LEN + message.data().len();
        Input::Data { peer: channel.peer, payload: CHANNEL_HEADER_LEN..end }
    }

    fn message(&mut self, now: Instant, input: &[u8]) -> Input {
        let Ok(message) = Message::parse(input) else { return Input::Ignored };
        if message.check_fingerprint() == FingerprintCheck::Invalid {
            return Input::Ignored;
        }
        match message.class() {
            Class::Indication if message.method() == Method::DATA => self.data_indication(now, &message),
            Class::SuccessResponse | Class::ErrorResponse => {
                let input = self.response(now, &message);
                self.drive(now);
                input
            }
            Class::Request | Class::Indication => Input::Ignored,
        }
    }

    /// Handles a Data indication, with data or with an ICMP message (RFC 8656 §11.4, §11.6). From an address without a permission, it is
    /// dropped.
    fn data_indication(&mut self, now: Instant, message: &Message<'_>) -> Input {
        let Ok(Some(XorPeerAddress(peer))) = message.get() else { return Input::Ignored };
        if !self.peers.is_wanted(peer.ip()) || message.unknown_required(request::UNDERSTOOD).next().is_some() {
            return Input::Ignored;
        }
        self.last_received = now;
        if let Ok(Some(icmp)) = message.get::<Icmp>() {
            self.events.push(Event::Icmp { peer, icmp });
            return Input::Consumed;
        }
        match message.value_range(AttributeType::DATA) {
            Some(payload) => Input::Data { peer, payload },
            None => Input::Ignored,
        }
    }
}

#[cfg(test)]
mod tests;
