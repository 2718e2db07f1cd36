//! Whether GSO batches are sent as such, and to which destinations not.

use std::{
    hash::{BuildHasher, RandomState},
    net::{IpAddr, SocketAddr},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::now;

/// Segmentation offload of a socket: whether the kernel has it, and the destinations to which it was refused lately.
///
/// A refusal concerns the route: its device has no checksum offload, its MTU is smaller than a segment, or IPsec is on it. Batches to
/// other destinations go on. Routes and devices change, so a destination is tried again after a minute.
pub(crate) struct Segmentation {
    supported: bool,
    /// Made at the first refusal.
    refusals: OnceLock<Box<Refusals>>,
}

impl Segmentation {
    pub(crate) fn new(supported: bool) -> Self {
        Self { supported, refusals: OnceLock::new() }
    }

    /// Whether the kernel has it.
    pub(crate) fn is_supported(&self) -> bool {
        self.supported
    }

    /// Whether a GSO batch with segments of so many bytes may be offered for this destination.
    #[inline]
    pub(crate) fn allows(&self, to: &SocketAddr, segment: usize) -> bool {
        self.supported && self.refusals.get().is_none_or(|refusals| refusals.allow(to.ip(), segment))
    }

    /// Remembers that batches with segments of `segment` bytes and more are refused for this destination.
    #[cold]
    pub(crate) fn refused(&self, to: &SocketAddr, segment: usize) {
        self.refusals.get_or_init(Box::default).add(to.ip(), segment);
    }
}

/// How long a refusal is remembered, in seconds.
const REMEMBERED: u64 = 60;

/// A hash table of fixed size: a destination has a place in one of the groups, in which the newest replaces the oldest.
#[derive(Default)]
struct Refusals {
    hasher: RandomState,
    groups: [[Refusal; 4]; 16],
}

/// All zeroes: none.
#[derive(Default)]
struct Refusal {
    /// The destination's hash: one of another destination that is equal costs that one its batches for a minute.
    to: AtomicU64,
    /// Until when, in seconds as [`now`] counts them, and in the low 16 bits from which segment size on.
    what: AtomicU64,
}

impl Refusals {
    fn allow(&self, to: IpAddr, segment: usize) -> bool {
        let (to, group) = self.place(to);
        group.iter().all(|refusal| {
            let what = refusal.what.load(Relaxed);
            refusal.to.load(Relaxed) != to || (segment as u64) < what & 0xffff || now() >= what >> 16
        })
    }

    fn add(&self, to: IpAddr, segment: usize) {
        let (to, group) = self.place(to);
        let same = group.iter().find(|refusal| refusal.to.load(Relaxed) == to);
        let oldest = || group.iter().min_by_key(|refusal| refusal.what.load(Relaxed));
        if let Some(refusal) = same.or_else(oldest) {
            refusal.to.store(to, Relaxed);
            refusal.what.store((now() + REMEMBERED) << 16 | segment.min(0xffff) as u64, Relaxed);
        }
    }

    fn place(&self, to: IpAddr) -> (u64, &[Refusal; 4]) {
        let hash = self.hasher.hash_one(to);
        (hash, &self.groups[hash as usize % self.groups.len()])
    }
}

#[cfg(test)]
mod tests;
