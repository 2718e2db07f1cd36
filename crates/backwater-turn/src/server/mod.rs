//! The server: what a relay decides.
//!
//! The owner feeds it every datagram from a client ([`Server::from_client`]) and asks it about every datagram from a
//! peer ([`Server::from_peer`]); it acts on the [`Action`] that comes back, and closes the sockets that
//! [`Server::expire`] names when [`Server::poll_timeout`] is due.

mod allocate;
mod allocation;
mod answer;
mod answered;
mod data;
mod events;
mod mobility;
mod requests;

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
pub use mobility::{Move, Moved};

use crate::{
    AuthFailure, Credentials, FailureLimit, Families, FiveTuple, Now, OverQuota, PeerAddr, PeerRefused, PeerRules,
    PerFamily, Quotas, RelayedAddr, RelayedPorts, ReplyLimit, auth::Nonces, random::TransactionIds,
};

/// The longest reply in bytes: an IPv6 path's least MTU less its headers, so that no reply is ever a fragment.
pub const MAX_REPLY: usize = 1232;

/// How long a port is kept that was set aside (RFC 8656, section 7.2).
pub const RESERVED_FOR: Duration = Duration::from_secs(30);

/// What the server is to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who may use it.
    pub credentials: Credentials,
    /// Whom its users may talk to.
    pub peers: PeerRules,
    /// The families that it can relay.
    pub families: Families,
    /// The longest lifetime of an allocation; never less than the default of ten minutes.
    pub max_lifetime: Duration,
    /// What users may have. Shared by the servers of a relay.
    pub quotas: Arc<Quotas>,
    /// How many answers a source gets that has not authenticated; shared too. `None`: as many as it asks for.
    pub reply_limit: Option<Arc<ReplyLimit>>,
    /// How many wrong passwords the server verifies for a source and for a user name; shared too. `None`: any number.
    pub failure_limit: Option<Arc<FailureLimit>>,
    /// The relayed ports of all threads. The server drops requests that come from one of them.
    pub relayed_ports: Arc<RelayedPorts>,
    /// Random. Keys the nonces, tickets and transaction ids. Servers that share it take each other's.
    pub nonce_key: [u8; 64],
    /// Which of the servers that share the key this is: what a ticket (RFC 8016) says.
    pub thread: u16,
}

/// Names an allocation. Never used again for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AllocationId {
    index: u32,
    generation: u32,
}

impl AllocationId {
    /// A small number for a table beside the server's; used again after the allocation is gone.
    pub fn index(self) -> usize {
        self.index as usize
    }
}

/// What to do with a client's datagram.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Send `range` of the datagram to a peer, from the socket of the allocation.
    Forward {
        /// Whose socket.
        via: AllocationId,
        /// Where to.
        to: PeerAddr,
        /// Which bytes.
        range: Range<usize>,
        /// Whether it may not be fragmented on its way to the peer: a Send indication with DONT-FRAGMENT (RFC 8656,
        /// section 14). Anything else may.
        dont_fragment: bool,
    },
    /// Send so many bytes of the reply buffer to where the datagram came from.
    Reply(usize),
    /// Bind sockets, then call [`Server::bound`]; the client is answered then.
    Bind(Bind),
    /// Close these sockets of an allocation, and reply as above.
    Unbind(AllocationId, Families, usize),
    /// Have [`Move::thread`] give an allocation to this server: [`Server::give`] there, then [`Server::take`] here, which
    /// answers. It may be this thread.
    Move(Box<Move>),
    /// The credentials are not good: send so many bytes of the reply buffer, if any, and tell the operator.
    Unauthenticated(Box<AuthFailure>),
    /// Nothing, but count it.
    Drop(DropReason),
    /// Refused with 403: reply as above, and tell the operator why.
    Forbid(usize, PeerAddr, Box<PeerRefused>),
    /// Refused with 486 or 508 since a limit is reached: reply as above, and tell the operator which.
    OverQuota(usize, Box<OverQuota>),
}

/// Sockets to be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind {
    /// For this allocation.
    pub id: AllocationId,
    /// One of each of these families; none if the port was reserved, which brings its own.
    pub families: Families,
    /// On which port.
    pub port: PortRequest,
}

/// What came of [`Action::Bind`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    /// The addresses of the sockets that could be bound.
    pub relayed: PerFamily<Option<RelayedAddr>>,
    /// What the next port was set aside under, if it was asked for.
    pub token: Option<[u8; 8]>,
}

/// Which port a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortRequest {
    /// Any.
    Any,
    /// An even one; with `reserve_next`, the odd one above it is to be set aside for [`RESERVED_FOR`].
    Even {
        /// Whether a token for the next port is wanted.
        reserve_next: bool,
    },
    /// The one that was set aside under this token.
    Reserved([u8; 8]),
}

/// How a peer's datagram goes to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Behind the four bytes of a ChannelData header.
    Channel(ChannelNumber),
    /// In a Data indication.
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
    /// A request with a method that TURN over UDP does not have.
    Method "method",
    /// An indication that has an unknown comprehension-required attribute, or lacks one of its own.
    Indication "indication",
    /// Not a well-formed ChannelData message.
    ChannelData "channel_data",
    /// The client has no allocation.
    NoAllocation "no_allocation",
    /// The channel is not bound.
    NoChannel "no_channel",
    /// The peer has no permission.
    NoPermission "no_permission",
    /// The peer is the relay's own listener.
    Peer "peer",
    /// An ICMP message of a type that clients are not told about.
    Icmp "icmp",
    /// The same request is being worked on.
    InProgress "in_progress",
    /// A request from one of the relay's own relayed addresses.
    Loop "loop",
    /// Over the limit of bytes a second, the user's or the relay's.
    Bandwidth "bandwidth",
    /// A request from a source that has had its share of answers and has not authenticated.
    ReplyLimit "reply_limit",
    /// A request whose password is not verified, since its source or its user name has had too many wrong ones.
    FailureLimit "failure_limit",
    /// Its time to live or hop limit is used up: it has circled between relays, or its sender wanted it to come no further.
    HopLimit "hop_limit",
    /// An unauthenticated request whose answer would be more than 4.5 times as long.
    Amplification "amplification",
    /// The reply would not fit; or the payload would not, into an indication.
    TooLong "too_long",
}

/// The attributes that the server understands in what it is sent.
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

/// A TURN server over UDP, without its sockets.
pub struct Server {
    config: Config,
    nonces: Nonces,
    tickets: mobility::Tickets,
    clients: HashMap<FiveTuple, AllocationId, RandomState>,
    allocations: Slab<Allocation>,
    /// When to look at an allocation.
    expiries: BinaryHeap<Reverse<(Instant, AllocationId)>>,
    answered: answered::Answered,
    generation: u32,
    transaction_ids: TransactionIds,
    events: events::Events,
    /// The client of the last ChannelData: they come in runs.
    recent: Option<(FiveTuple, AllocationId)>,
    /// Whether bytes are counted at all.
    metered: bool,
    refuses_new: bool,
}

impl Server {
    /// A server without allocations.
    pub fn new(config: Config) -> Self {
        Self {
            nonces: Nonces::new(&config.nonce_key, config.credentials.features()),
            metered: config.quotas.is_metered(),
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

    /// How many allocations there are, those included whose socket is being bound.
    pub fn allocations(&self) -> usize {
        self.allocations.len()
    }

    /// Whether the client of this 5-tuple has an allocation.
    pub fn has_allocation(&self, client: FiveTuple) -> bool {
        self.clients.contains_key(&client)
    }

    /// Answers every new Allocate request with 508 from here on. Allocations that exist go on.
    pub fn refuse_new(&mut self) {
        self.refuses_new = true;
    }

    /// What to do with a datagram from a client. A reply is written into `reply`, of [`MAX_REPLY`] bytes.
    #[inline]
    pub fn from_client(&mut self, now: Now, from: FiveTuple, datagram: &[u8], reply: &mut [u8]) -> Action {
        match datagram.first() {
            // RFC 9443 leaves 0x50 to 0x7F to QUIC, which does not come to a relay; RFC 5766's clients have channels there.
            Some(0x40..=0x7F) => self.channel_data(now.instant, &from, datagram),
            Some(0..=3) => self.stun(now, from, datagram, reply),
            Some(_) | None => Action::Drop(DropReason::Protocol),
        }
    }

    /// When [`expire`](Self::expire) has something to do, at the earliest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.expiries.peek().map(|Reverse((at, _))| *at)
    }

    /// Removes what has expired of an allocation; these sockets of it are to be closed. Call it until there is none.
    pub fn expire(&mut self, now: Instant) -> Option<(AllocationId, Families)> {
        while let Some(&Reverse((at, id))) = self.expiries.peek() {
            if at > now {
                return None;
            }
            self.expiries.pop();
            let Some(allocation) = self.allocation_mut(id).filter(|a| a.looked_at == Some(at)) else { continue };
            allocation.looked_at = None;
            let due = allocation.expires.map(|at| at.is_some_and(|at| at <= now));
            if due.any() {
                self.close(id, due, Ending::Expired);
            }
            self.look_in_time(id);
            if due.any() {
                return Some((id, due));
            }
        }
        None
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
        // One that comes from another server was looked at there.
        allocation.looked_at = None;
        let five_tuple = allocation.five_tuple;
        let index = self.allocations.insert(allocation) as u32;
        let id = AllocationId { index, generation: self.generation };
        self.clients.insert(five_tuple, id);
        self.look_in_time(id);
        id
    }

    /// Sees to it that an allocation is looked at when it expires. One that is refreshed for longer is put back then; one
    /// for less, which is never less than the default, gets an entry more: the next could only be later.
    fn look_in_time(&mut self, id: AllocationId) {
        if let Some(allocation) = self.allocation_mut(id)
            && let Some(expiry) = allocation.next_expiry()
            && allocation.looked_at.is_none_or(|at| expiry < at)
        {
            allocation.looked_at = Some(expiry);
            self.expiries.push(Reverse((expiry, id)));
        }
    }

    /// Takes these families from an allocation, and removes it when that was all. Returns whether something is left.
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
        self.clients.remove(&allocation.five_tuple);
        self.recent = None;
        // An entry of an allocation that was deleted early stays until its time. They must not pile up.
        if self.expiries.len() > 2 * self.allocations.len() + 64 {
            let allocations = &self.allocations;
            let counts = |at: Instant, id: AllocationId| {
                allocations.get(id.index()).is_some_and(|a| a.generation == id.generation && a.looked_at == Some(at))
            };
            self.expiries.retain(|Reverse((at, id))| counts(*at, *id));
        }
        Some(allocation)
    }
}

#[cfg(test)]
mod tests;
