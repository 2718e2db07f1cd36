//! The allocations, as an operator sees them.

use std::{fmt, num::ParseIntError, ops::Range, str::FromStr, time::Instant};

use super::{AllocationId, Ending, Server, allocation::Allocation};
use crate::{Families, FiveTuple, PerFamily, RelayedAddr};

/// An allocation, as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Session<'a> {
    /// Identifies the allocation at its server.
    pub id: AllocationId,
    /// The client's current address, and the listener that it uses.
    pub five_tuple: FiveTuple,
    /// The user name.
    pub user: &'a str,
    /// The relayed addresses: one, or one of each family.
    pub relayed: PerFamily<Option<RelayedAddr>>,
    /// When the allocation was created.
    pub created: Instant,
    /// When its first relayed address expires, unless the client refreshes it.
    pub expires: Option<Instant>,
    /// Payload bytes from the client.
    pub bytes_to_peers: u64,
    /// Payload bytes to the client.
    pub bytes_to_client: u64,
    /// Permissions, including expired ones that are not removed yet.
    pub permissions: usize,
    /// Channels, including expired ones that are not removed yet.
    pub channels: usize,
}

impl Server {
    /// Returns the allocations whose [index](AllocationId::index) is in the range, in the order of the index. Allocations whose sockets
    /// are being bound are left out.
    pub fn sessions(&self, indices: Range<usize>) -> impl Iterator<Item = Session<'_>> {
        let indices = indices.start..indices.end.min(self.indices());
        indices.filter_map(|index| Some(session(index, self.allocations.get(index)?))).filter(|s| s.relayed.any())
    }

    /// Returns a number above every allocation's [index](AllocationId::index).
    pub fn indices(&self) -> usize {
        self.allocations.capacity()
    }

    /// Returns an allocation; `None` if it has ended.
    pub fn session(&self, id: AllocationId) -> Option<Session<'_>> {
        self.allocation(id).filter(|allocation| allocation.is_bound()).map(|allocation| session(id.index(), allocation))
    }

    /// Ends an allocation for the operator, with an event, and returns the families whose sockets the caller must close. Returns `None`
    /// if the allocation has ended, or its sockets are being bound. The client is not told; its next Refresh is answered with 437.
    pub fn end(&mut self, id: AllocationId) -> Option<Families> {
        let families = self.allocation(id).filter(|allocation| allocation.is_bound())?.families();
        self.close(id, families, Ending::Operator);
        Some(families)
    }
}

fn session(index: usize, allocation: &Allocation) -> Session<'_> {
    let (bytes_to_peers, bytes_to_client) = allocation.traffic.bytes();
    let (permissions, channels) = allocation.peers();
    let families = allocation.families();
    let relayed = allocation.granted.relayed;
    Session {
        id: AllocationId { index: index as u32, generation: allocation.generation },
        five_tuple: allocation.five_tuple,
        user: &allocation.user.name,
        // A family that was deleted by itself is gone.
        relayed: PerFamily { v4: relayed.v4.filter(|_| families.v4), v6: relayed.v6.filter(|_| families.v6) },
        created: allocation.created,
        expires: allocation.next_expiry(),
        bytes_to_peers,
        bytes_to_client,
        permissions,
        channels,
    }
}

impl PerFamily<Option<RelayedAddr>> {
    fn any(&self) -> bool {
        self.v4.is_some() || self.v6.is_some()
    }
}

/// As text, `INDEX-GENERATION`.
impl fmt::Display for AllocationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.index, self.generation)
    }
}

/// An allocation's id from its text. It may belong to no allocation.
impl FromStr for AllocationId {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        let (index, generation) = text.split_once('-').unwrap_or((text, ""));
        Ok(Self { index: index.parse()?, generation: generation.parse()? })
    }
}
