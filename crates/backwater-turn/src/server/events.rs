//! Events of allocations, for a log.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use super::{Server, allocation::Allocation};
use crate::{ClientAddr, PerFamily, Protocol, RelayedAddr, unread::Unread};

/// Unread events that are kept. A caller that reads them after each call never has as many.
const MAX_EVENTS: usize = 1024;

/// An event of an allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The client's current address.
    pub client: ClientAddr,
    /// The protocol that the client uses.
    pub protocol: Protocol,
    /// The user name.
    pub user: Box<str>,
    /// The relayed addresses that the allocation was created with: one, or one of each family.
    pub relayed: PerFamily<Option<RelayedAddr>>,
    /// When the allocation was created.
    pub created: Instant,
}

/// What happened to an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The allocation was created, with this lifetime.
    Made(Duration),
    /// The allocation, or its part of one family, was refreshed, with this lifetime.
    Refreshed(Duration),
    /// The allocation ended.
    Ended {
        /// The reason.
        why: Ending,
        /// Payload bytes from the client.
        bytes_to_peers: u64,
        /// Payload bytes to the client.
        bytes_to_client: u64,
    },
}

/// Why an allocation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// A Refresh request with a LIFETIME of zero.
    Deleted,
    /// The lifetime ended without a refresh.
    Expired,
    /// The operator ended it: [`Server::end`].
    Operator,
    /// The client's connection ended.
    Disconnected,
    /// The server stopped.
    Stopped,
}

impl Ending {
    /// Returns the word for logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::Expired => "expired",
            Self::Operator => "operator",
            Self::Disconnected => "disconnected",
            Self::Stopped => "stopped",
        }
    }
}

/// The payload bytes of an allocation.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    to_peers: Cell<u64>,
    to_client: Cell<u64>,
}

impl Traffic {
    #[inline]
    pub(super) fn to_peers(&self, bytes: usize) {
        self.to_peers.set(self.to_peers.get() + bytes as u64);
    }

    /// Returns the bytes to peers and to the client.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.to_peers.get(), self.to_client.get())
    }

    #[inline]
    pub(super) fn to_client(&self, bytes: usize) {
        self.to_client.set(self.to_client.get() + bytes as u64);
    }
}

pub(super) type Events = Unread<Event, MAX_EVENTS>;

impl Event {
    pub(super) fn new(kind: EventKind, allocation: &Allocation) -> Self {
        Self {
            kind,
            client: allocation.five_tuple.client,
            protocol: allocation.five_tuple.protocol,
            user: allocation.user.name.clone(),
            relayed: allocation.granted.relayed,
            created: allocation.created,
        }
    }

    pub(super) fn ended(why: Ending, allocation: &Allocation) -> Self {
        let (bytes_to_peers, bytes_to_client) = allocation.traffic.bytes();
        let kind = EventKind::Ended { why, bytes_to_peers, bytes_to_client };
        Self::new(kind, allocation)
    }
}

impl Server {
    /// Returns the next unread event, the oldest first. The latest 1,024 are kept.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop()
    }

    /// Ends all allocations, for a caller that closes all sockets itself. Returns an event for each, in no order.
    pub fn stop(&mut self) -> impl Iterator<Item = Event> {
        self.clients.clear();
        self.expiries.clear();
        self.recent = None;
        let allocations = self.allocations.drain().filter(Allocation::is_bound);
        allocations.map(|allocation| Event::ended(Ending::Stopped, &allocation))
    }
}
