//! The indices by which peers name their sessions with this host (WireGuard, section 5.4.2).

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    io,
};

/// Gives each session a random index, and finds the peer of an index.
///
/// A peer writes the index into each datagram that it sends here. Somebody who sees those must not learn from it which peer it is or
/// that two sessions are the same peer's. And an ICMP message about such a datagram quotes it: a peer believes only one with the right index.
#[derive(Debug, Default)]
pub(crate) struct SessionIndices {
    /// The peer's number by the index.
    peers: HashMap<u32, usize, BuildHasherDefault<Spread>>,
}

/// Spreads an index: it is random and chosen here, so that nobody can make many fall together.
#[derive(Debug, Default)]
pub(crate) struct Spread(u64);

impl SessionIndices {
    /// Assigns an index that no session has.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub(crate) fn assign(&mut self, peer: usize) -> io::Result<u32> {
        // A peer has five at most: hardly an index is drawn twice.
        loop {
            let mut bytes = [0; 4];
            getrandom::fill(&mut bytes)?;
            let index = u32::from_le_bytes(bytes);
            if let std::collections::hash_map::Entry::Vacant(vacant) = self.peers.entry(index) {
                vacant.insert(peer);
                return Ok(index);
            }
        }
    }

    /// Frees the index of a session that is over.
    pub(crate) fn release(&mut self, index: u32) {
        self.peers.remove(&index);
    }

    /// Returns the peer whose session has this index.
    #[inline]
    pub(crate) fn peer(&self, index: u32) -> Option<usize> {
        self.peers.get(&index).copied()
    }

    /// Returns the number of indices in use.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.peers.len()
    }
}

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    #[inline]
    fn write_u32(&mut self, index: u32) {
        // Fibonacci hashing: the table takes the upper bits, too.
        self.0 = u64::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const SESSIONS: usize = 4096;

    #[test]
    fn each_index_leads_to_its_peer_and_a_released_one_to_none() {
        let mut indices = SessionIndices::default();
        let assigned: Vec<_> = (0..SESSIONS).map(|peer| indices.assign(peer).unwrap()).collect();
        assert!(assigned.iter().enumerate().all(|(peer, index)| indices.peer(*index) == Some(peer)));
        assert_eq!(assigned.iter().collect::<HashSet<_>>().len(), SESSIONS, "no two sessions have the same");
        indices.release(assigned[7]);
        assert_eq!((indices.peer(assigned[7]), indices.peer(assigned[8])), (None, Some(8)));
        assert_eq!(indices.len(), SESSIONS - 1);
    }

    #[test]
    fn sessions_of_one_peer_have_nothing_in_common() {
        let mut indices = SessionIndices::default();
        let assigned: Vec<_> = (0..SESSIONS).map(|_| indices.assign(0).unwrap()).collect();
        let steps: HashSet<_> = assigned.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
        assert!(steps.len() > SESSIONS - 20, "{} different steps", steps.len());
        // All 32 bits vary, each of them about as often as not.
        for bit in 0..32 {
            let ones = assigned.iter().filter(|index| **index >> bit & 1 == 1).count();
            assert!(ones.abs_diff(SESSIONS / 2) < SESSIONS / 8, "bit {bit}: {ones} ones");
        }
    }
}
