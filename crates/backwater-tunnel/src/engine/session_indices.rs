//! The indices by which peers name their sessions with this host (WireGuard, section 5.4.2).

use std::io;

/// Bits of an index that the protocol's library counts up with each handshake. The upper 24 bits are the peer's number.
const HANDSHAKE_BITS: u32 = 8;

/// Assigns random numbers to peers, and finds the peer of a session's index.
///
/// A peer writes the index into each datagram that it sends here, so an ICMP message about such a datagram quotes it. A peer
/// believes only a message with the right index: it must not follow from the number of peers or from another peer's index.
#[derive(Debug, Default)]
pub(crate) struct SessionIndices {
    /// Each peer's number and its place in the configuration, sorted by the number.
    peers: Vec<(u32, usize)>,
}

impl SessionIndices {
    /// Assigns a random number of 24 bits, which no other peer has, to a peer.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub(crate) fn assign(&mut self, peer: usize) -> io::Result<u32> {
        // There are at most 1,024 peers: hardly a number is drawn twice.
        loop {
            let mut bytes = [0; 4];
            getrandom::fill(&mut bytes)?;
            let number = u32::from_le_bytes(bytes) >> HANDSHAKE_BITS;
            if let Err(at) = self.find(number) {
                self.peers.insert(at, (number, peer));
                return Ok(number);
            }
        }
    }

    /// Frees the number of a peer.
    pub(crate) fn remove(&mut self, peer: usize) {
        self.peers.retain(|&(_, of)| of != peer);
    }

    /// Returns the peer that a session with this index would belong to.
    #[inline]
    pub(crate) fn peer(&self, index: u32) -> Option<usize> {
        let at = self.find(index >> HANDSHAKE_BITS).ok()?;
        self.peers.get(at).map(|&(_, peer)| peer)
    }

    fn find(&self, number: u32) -> Result<usize, usize> {
        self.peers.binary_search_by_key(&number, |&(number, _)| number)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// As many as a configuration has at most.
    const PEERS: usize = 1024;

    fn assigned() -> (SessionIndices, Vec<u32>) {
        let mut indices = SessionIndices::default();
        let numbers = (0..PEERS).map(|peer| indices.assign(peer).unwrap()).collect();
        (indices, numbers)
    }

    #[test]
    fn each_index_leads_to_its_peer_and_an_unused_one_to_none() {
        let (indices, numbers) = assigned();
        for (peer, &number) in numbers.iter().enumerate() {
            assert!(number < 1 << 24);
            for handshake in [0, 1, 255] {
                assert_eq!(indices.peer(number << 8 | handshake), Some(peer));
            }
        }
        let used: HashSet<_> = numbers.iter().collect();
        assert_eq!(used.len(), PEERS, "no two peers have the same");
        let unused = (0..=PEERS as u32).find(|number| !used.contains(number)).unwrap();
        assert_eq!(indices.peer(unused << 8), None);
    }

    #[test]
    fn index_of_a_removed_peer_leads_to_none() {
        let (mut indices, numbers) = assigned();
        indices.remove(7);
        assert_eq!(indices.peer(numbers[7] << 8), None);
        assert_eq!(indices.peer(numbers[8] << 8), Some(8));
        assert_eq!(indices.assign(7).map(|number| indices.peer(number << 8)).unwrap(), Some(7));
    }

    #[test]
    fn indices_do_not_follow_from_the_order_of_the_peers_or_from_another_run() {
        let ((_, first), (_, second)) = (assigned(), assigned());
        let steps: HashSet<_> = first.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
        // Of 1,023 random steps one may come twice.
        assert!(steps.len() > PEERS - 20, "{} steps", steps.len());
        let same = first.iter().zip(&second).filter(|(a, b)| a == b).count();
        assert!(same < 3, "{same} peers have the same number in two runs");
        // All 24 bits vary.
        let (ones, zeros) = first.iter().fold((0, 0), |(ones, zeros), number| (ones | number, zeros | !number));
        assert_eq!((ones & 0xff_ffff, zeros & 0xff_ffff), (0xff_ffff, 0xff_ffff));
    }
}
