//! The server: decides what a relay does with each datagram.
//!
//! # How to drive it
//!
//! The caller owns the sockets, the clock and the threads. It makes these calls:
//!
//! | When | Call | Then |
//! |---|---|---|
//! | a client's datagram arrives at a listener, or a frame of its connection (with its padding) | [`Server::handle_client`] | carry out the [`Action`] |
//! | a peer's datagram, or a GRO batch of them, arrives at a relayed socket | [`Server::handle_peer`] | send it to the client in the [`Framing`] that is returned; [`Server::data_indication`] writes the header of a Data indication |
//! | the network returns an ICMP error to a relayed socket | [`Server::icmp_indication`] | send the indication to the client |
//! | a client's connection ends | [`Server::client_gone`] | close the sockets that it names |
//! | [`Server::poll_timeout`] is due | [`Server::expire`], until it returns `None` | close the sockets that it names |
//!
//! After each call, [`Server::poll_event`] returns what a log may record, until it returns `None`. [`Server::poll_timeout`] may
//! have changed after each call.
//!
//! [`Action::Bind`] is the only action with an outcome to report: the caller binds the sockets, and calls [`Server::bound`], which
//! writes the response. The example `examples/relay.rs` is a whole relay in one task.
//!
//! A server has no lock and is used by one thread. Several servers share what [`Config`] holds in an `Arc`.
//! An allocation moves between them with [`Server::detach`] and [`Server::attach`].

mod allocate;
mod allocation;
mod answer;
mod answered;
mod data;
mod events;
mod mobility;
mod reconfigure;
mod requests;
mod sessions;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use backwater_stun::{AttributeSet, AttributeType, ChannelNumber, Class, FingerprintCheck, Message, Method};
use foldhash::fast::RandomState;
use slab::Slab;

use allocation::Allocation;
pub use allocation::MAX_PEERS;
pub use events::{Ending, Event, EventKind};
pub use mobility::{DetachedAllocation, HandoverRequest};
pub use sessions::Session;

use crate::{
    AuthFailure, Credentials, Directory, FailureLimit, Families, FiveTuple, Now, OverQuota, PeerAddr, PeerRefused,
    PeerRules, PerFamily, Quotas, RelayedAddr, RelayedPorts, ReplyLimit, auth::Nonces, random::TransactionIds,
};

/// The longest reply in bytes: IPv6's minimum MTU (RFC 8200 §5) less its headers, so that no reply is fragmented.
pub const MAX_REPLY: usize = 1232;

/// How long a reserved port is kept for its token (RFC 8656 §7.2).
pub const RESERVED_FOR: Duration = Duration::from_secs(30);

/// Configures a [`Server`].
#[derive(Clone, Debug)]
pub struct Config {
    /// The users, who may allocate. Shared by the servers of a relay.
    pub credentials: Arc<Credentials>,
    /// Who knows other users. Shared by the servers of a relay. `None`: nobody.
    pub directory: Option<Arc<Directory>>,
    /// The peers that users may reach.
    pub peers: PeerRules,
    /// The address families that the server relays.
    pub families: Families,
    /// The longest lifetime of an allocation; never less than the default of ten minutes.
    pub max_lifetime: Duration,
    /// What each user, and all users together, may have. Shared by the servers of a relay.
    pub quotas: Arc<Quotas>,
    /// How many responses a source gets that has not authenticated. Shared by the servers of a relay. `None`: no limit.
    pub reply_limit: Option<Arc<ReplyLimit>>,
    /// How many wrong passwords the server verifies for a source and for a user name. Shared by the servers of a relay.
    /// `None`: no limit.
    pub failure_limit: Option<Arc<FailureLimit>>,
    /// The relayed ports of all servers of a relay. The server drops requests that come from one of them.
    pub relayed_ports: Arc<RelayedPorts>,
    /// Random bytes, from which the keys of nonces, tickets and transaction ids are made. Servers with the same bytes accept each
    /// other's nonces and tickets.
    pub nonce_key: [u8; 64],
    /// The number of this server among those that share the key. A ticket (RFC 8016) names it.
    pub thread: u16,
}

/// Identifies an allocation. An id is not reused, its [`index`](Self::index) is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AllocationId {
    index: u32,
    generation: u32,
}

impl AllocationId {
    /// Returns a small number for a table of the caller's. It is reused after the allocation has ended.
    pub fn index(self) -> usize {
        self.index as usize
    }
}

/// What the caller does after [`Server::handle_client`]. "Reply" means: send so many bytes of the reply buffer to the source of
/// the datagram.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a part of the datagram to a peer, from the relayed socket of the allocation.
    Forward {
        /// The allocation.
        via: AllocationId,
        /// The peer.
        to: PeerAddr,
        /// The payload's place in the datagram.
        range: Range<usize>,
        /// Whether the DF bit must be set: for a Send indication with DONT-FRAGMENT (RFC 8656 §14). Else it need not be.
        dont_fragment: bool,
    },
    /// Reply with so many bytes.
    Reply(usize),
    /// Bind sockets, then call [`Server::bound`], which writes the reply.
    Bind(Bind),
    /// Close the allocation's sockets of these families, and reply with so many bytes.
    Unbind(AllocationId, Families, usize),
    /// Move an allocation to this server: [`Server::detach`] at the server [`HandoverRequest::thread`], which may be this one,
    /// then [`Server::attach`] here, which writes the reply.
    Handover(Box<HandoverRequest>),
    /// The request has not authenticated: reply if [`AuthFailure::reply`] says so, and tell the operator.
    Unauthenticated(Box<AuthFailure>),
    /// Drop the datagram and count it.
    Drop(DropReason),
    /// The peer is forbidden: reply with so many bytes (403), and tell the operator why.
    Forbid(usize, PeerAddr, Box<PeerRefused>),
    /// A quota is reached: reply with so many bytes (486 or 508), and tell the operator which.
    OverQuota(usize, Box<OverQuota>),
}

/// The sockets that [`Action::Bind`] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind {
    /// The allocation.
    pub id: AllocationId,
    /// One socket for each of these families. Empty for a reserved port, whose socket exists already.
    pub families: Families,
    /// The port.
    pub port: PortRequest,
}

/// The outcome of [`Action::Bind`]. The default says that no socket could be bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    /// The addresses of the sockets, as peers see them.
    pub relayed: PerFamily<Option<RelayedAddr>>,
    /// The token of the next port, if the request reserves it.
    pub token: Option<[u8; 8]>,
}

/// Which port a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortRequest {
    /// Any.
    Any,
    /// An even one (RFC 8656 §7.1).
    Even {
        /// Whether the next port is to be reserved for [`RESERVED_FOR`], under a token.
        reserve_next: bool,
    },
    /// The one that was reserved under this token.
    Reserved([u8; 8]),
}

/// How a peer's datagram is framed for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// As ChannelData: a header of four bytes in front of the payload.
    Channel(ChannelNumber),
    /// As a Data indication.
    Indication,
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident $name:literal,)*) => {
        /// Why a datagram is dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum DropReason {
            $($(#[$doc])* $variant,)*
        }

        impl DropReason {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name in metrics.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

drop_reasons! {
    /// Neither STUN nor ChannelData, by its first byte.
    Protocol "protocol",
    /// Not a well-formed STUN message.
    Malformed "malformed",
    /// FINGERPRINT is wrong.
    Fingerprint "fingerprint",
    /// A response, or an indication other than Send.
    Unexpected "unexpected",
    /// A request with a method that this server does not have.
    Method "method",
    /// An indication that has an unknown comprehension-required attribute, or lacks one of its own.
    Indication "indication",
    /// Not a well-formed ChannelData message.
    ChannelData "channel_data",
    /// The 5-tuple has no allocation.
    NoAllocation "no_allocation",
    /// The channel is not bound.
    NoChannel "no_channel",
    /// The peer has no permission.
    NoPermission "no_permission",
    /// The peer is the relay's own listener.
    Peer "peer",
    /// An ICMP message of a type that clients are not told about.
    Icmp "icmp",
    /// A copy of a request whose response is not written yet.
    InProgress "in_progress",
    /// A request of a user whom [`Config::directory`] has been asked about.
    Lookup "lookup",
    /// A request from one of the relay's own relayed addresses.
    Loop "loop",
    /// The limit of bytes per second is reached, the user's or the relay's.
    Bandwidth "bandwidth",
    /// An unauthenticated request from a source that has had as many responses as [`Config::reply_limit`] allows.
    ReplyLimit "reply_limit",
    /// A request whose password is not verified, since [`Config::failure_limit`] is reached for its source or its user name.
    FailureLimit "failure_limit",
    /// The time to live or hop limit is used up. The datagram may circle between relays.
    HopLimit "hop_limit",
    /// An unauthenticated request whose response would be more than 4.5 times as long.
    Amplification "amplification",
    /// The client's connection takes too little: the datagram has no room in its queue, or has waited for as long as the policy lets it.
    SlowClient "slow_client",
    /// The client's connection has ended.
    ClientGone "client_gone",
    /// A reply is longer than [`MAX_REPLY`], or a payload does not fit into an indication.
    TooLong "too_long",
}

/// The comprehension-required attributes that the server understands.
const UNDERSTOOD: AttributeSet = AttributeSet::of(&[
    AttributeType::USERNAME,
    AttributeType::USERHASH,
    AttributeType::PASSWORD_ALGORITHM,
    AttributeType::REALM,
    AttributeType::NONCE,
    AttributeType::CHANNEL_NUMBER,
    AttributeType::LIFETIME,
    AttributeType::XOR_PEER_ADDRESS,
    AttributeType::DATA,
    AttributeType::REQUESTED_ADDRESS_FAMILY,
    AttributeType::EVEN_PORT,
    AttributeType::REQUESTED_TRANSPORT,
    AttributeType::DONT_FRAGMENT,
    AttributeType::RESERVATION_TOKEN,
]);

/// A TURN server over UDP and TCP, without its sockets.
pub struct Server {
    config: Config,
    nonces: Nonces,
    tickets: mobility::Tickets,
    clients: HashMap<FiveTuple, AllocationId, RandomState>,
    allocations: Slab<Allocation>,
    /// When an allocation may have expired.
    expiries: BinaryHeap<Reverse<(Instant, AllocationId)>>,
    answered: answered::Answered,
    generation: u32,
    transaction_ids: TransactionIds,
    events: events::Events,
    /// The client of the last ChannelData. The next one is most likely from the same client.
    recent: Option<(FiveTuple, AllocationId)>,
    /// Whether any limit of bytes per second is set.
    metered: bool,
    /// The index of the next allocation whose permissions are judged by new rules.
    review: Option<usize>,
    refuses_new: bool,
}

impl Server {
    /// Makes a server without allocations.
    pub fn new(config: Config) -> Self {
        Self {
            nonces: Nonces::new(&config.nonce_key, config.credentials.features(config.directory.is_some())),
            metered: config.quotas.is_metered(),
            review: None,
            refuses_new: false,
            tickets: mobility::Tickets::new(&config.nonce_key),
            transaction_ids: TransactionIds::new(&config.nonce_key, config.thread),
            config,
            clients: HashMap::default(),
            allocations: Slab::new(),
            expiries: BinaryHeap::new(),
            answered: answered::Answered::default(),
            generation: 0,
            events: events::Events::default(),
            recent: None,
        }
    }

    /// Returns the number of allocations, including those whose socket is being bound.
    pub fn allocations(&self) -> usize {
        self.allocations.len()
    }

    /// Returns whether this 5-tuple has an allocation.
    pub fn has_allocation(&self, client: FiveTuple) -> bool {
        self.clients.contains_key(&client)
    }

    /// Refuses every new Allocate request with 508 from now on. Existing allocations continue.
    pub fn refuse_new(&mut self) {
        self.refuses_new = true;
    }

    /// Handles a datagram from a client, and returns what the caller must do. Writes a reply into `reply`, which has
    /// [`MAX_REPLY`] bytes.
    #[inline]
    pub fn handle_client(&mut self, now: Now, from: FiveTuple, datagram: &[u8], reply: &mut [u8]) -> Action {
        match datagram.first() {
            // RFC 9443 gives 0x50 to 0x7F to QUIC, which a relay's port does not receive. Clients of RFC 5766 bind channels there.
            Some(0x40..=0x7F) => self.channel_data(now.instant, &from, datagram),
            Some(0..=3) => self.stun(now, from, datagram, reply),
            Some(_) | None => Action::Drop(DropReason::Protocol),
        }
    }

    /// Returns when to call [`expire`](Self::expire) next; `None` without allocations.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.expiries.peek().map(|Reverse((at, _))| *at)
    }

    /// Ends an expired allocation, or its part of one family, and returns which sockets the caller must close. Returns `None`
    /// when nothing else has expired.
    pub fn expire(&mut self, now: Instant) -> Option<(AllocationId, Families)> {
        while let Some(&Reverse((at, id))) = self.expiries.peek() {
            if at > now {
                return None;
            }
            self.expiries.pop();
            let Some(allocation) = self.allocation_mut(id).filter(|a| a.queued_for == Some(at)) else { continue };
            allocation.queued_for = None;
            let due = allocation.expires.map(|at| at.is_some_and(|at| at <= now));
            if due.any() {
                self.close(id, due, Ending::Expired);
            }
            self.queue_expiry(id);
            if due.any() {
                return Some((id, due));
            }
        }
        None
    }

    /// Ends what a client held whose connection is gone, and returns which sockets the caller must close. An allocation with mobility
    /// stays until it expires, for its client to return with the ticket from elsewhere (RFC 8016).
    pub fn client_gone(&mut self, client: FiveTuple) -> Option<(AllocationId, Families)> {
        let id = self.clients.get(&client).copied()?;
        let allocation = self.allocation(id)?;
        if allocation.mobile {
            self.clients.remove(&client);
            self.recent = None;
            return None;
        }
        let families = allocation.families();
        self.close(id, families, Ending::Disconnected);
        Some((id, families))
    }

    fn stun(&mut self, now: Now, from: FiveTuple, datagram: &[u8], reply: &mut [u8]) -> Action {
        let Ok(message) = Message::parse(datagram) else {
            return Action::Drop(DropReason::Malformed);
        };
        match (message.class(), message.method()) {
            (Class::Indication, Method::SEND) => self.send_indication(now.instant, &from, &message),
            (Class::Request, _) => match message.check_fingerprint() {
                FingerprintCheck::Invalid => Action::Drop(DropReason::Fingerprint),
                FingerprintCheck::Valid => self.request(now, from, &message, true, reply),
                FingerprintCheck::Absent => self.request(now, from, &message, false, reply),
            },
            (Class::Indication | Class::SuccessResponse | Class::ErrorResponse, _) => {
                Action::Drop(DropReason::Unexpected)
            }
        }
    }

    fn allocation(&self, id: AllocationId) -> Option<&Allocation> {
        self.allocations.get(id.index()).filter(|a| a.generation == id.generation)
    }

    fn allocation_mut(&mut self, id: AllocationId) -> Option<&mut Allocation> {
        self.allocations.get_mut(id.index()).filter(|a| a.generation == id.generation)
    }

    fn insert(&mut self, mut allocation: Allocation) -> AllocationId {
        self.generation = self.generation.wrapping_add(1);
        allocation.generation = self.generation;
        // Another server may have set it.
        allocation.queued_for = None;
        let five_tuple = allocation.five_tuple;
        let index = self.allocations.insert(allocation) as u32;
        let id = AllocationId { index, generation: self.generation };
        self.clients.insert(five_tuple, id);
        self.queue_expiry(id);
        id
    }

    /// Queues an allocation for the time of its next expiry. A refresh for longer is queued when the old entry is due. A refresh
    /// for less, which is never less than the default, adds an entry.
    fn queue_expiry(&mut self, id: AllocationId) {
        if let Some(allocation) = self.allocation_mut(id)
            && let Some(expiry) = allocation.next_expiry()
            && allocation.queued_for.is_none_or(|at| expiry < at)
        {
            allocation.queued_for = Some(expiry);
            self.expiries.push(Reverse((expiry, id)));
        }
    }

    /// Ends these families of an allocation, and the allocation when none is left. Returns whether one is left.
    fn close(&mut self, id: AllocationId, families: Families, why: Ending) -> bool {
        let left = self.allocation_mut(id).is_some_and(|allocation| allocation.close(families));
        if !left && let Some(allocation) = self.remove(id).filter(Allocation::is_bound) {
            self.events.push(Event::ended(why, &allocation));
        }
        left
    }

    fn remove(&mut self, id: AllocationId) -> Option<Allocation> {
        self.allocation(id)?;
        let allocation = self.allocations.remove(id.index());
        // The addresses of a connection that is gone may be another one's by now.
        if self.clients.get(&allocation.five_tuple) == Some(&id) {
            self.clients.remove(&allocation.five_tuple);
        }
        self.recent = None;
        // The queue still holds the entries of allocations that were deleted early. This bounds their number.
        if self.expiries.len() > 2 * self.allocations.len() + 64 {
            let allocations = &self.allocations;
            let counts = |at: Instant, id: AllocationId| {
                allocations.get(id.index()).is_some_and(|a| a.generation == id.generation && a.queued_for == Some(at))
            };
            self.expiries.retain(|Reverse((at, id))| counts(*at, *id));
        }
        Some(allocation)
    }
}

#[cfg(test)]
mod tests;
