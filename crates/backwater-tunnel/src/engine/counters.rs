//! What is counted. The loop alone writes, so these are plain numbers.

use serde::{Deserialize, Serialize};

/// Of the device and of datagrams that belong to no peer.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Packets read from the device; one of many segments counts once.
    pub device_read: u64,
    /// Packets written to the device; joined ones are counted each.
    pub device_written: u64,
    /// Packets that the device refused.
    pub device_refused: u64,
    /// Packets from the device that could not be understood.
    pub device_malformed: u64,
    /// Packets that no peer's `AllowedIPs` cover.
    pub no_peer: u64,
    /// Packets to a peer whose address is not known.
    pub no_endpoint: u64,
    /// Packets that are too large for the path.
    pub too_big: u64,
    /// Datagrams that are no WireGuard message, or are for no session of ours.
    pub strange: u64,
    /// Handshakes that were refused: not meant for us, by nobody we know, or too many.
    pub handshakes_refused: u64,
    /// Cookies sent instead of an answer, since too many handshakes came.
    pub cookies_sent: u64,
}

/// Of one peer.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct PeerCounters {
    /// Bytes of packets to it, before encryption.
    pub bytes_sent: u64,
    /// Bytes of packets from it, after decryption.
    pub bytes_received: u64,
    /// Data datagrams to it.
    pub datagrams_sent: u64,
    /// Datagrams that the transport dropped, whatever the reason.
    pub datagrams_dropped: u64,
    /// Data datagrams from it that were good.
    pub datagrams_received: u64,
    /// Data datagrams that it has numbered and that have not come, those still under way included: lost, or never sent.
    pub datagrams_missing: u64,
    /// Times that a train was held for want of room.
    pub held: u64,
    /// Datagrams that were seen before or are too old.
    pub replayed: u64,
    /// Datagrams that do not decrypt, or not to an IP packet.
    pub invalid: u64,
    /// Packets from addresses that its `AllowedIPs` do not cover.
    pub source_not_allowed: u64,
    /// Packets dropped since they were not ECN-capable and the datagram says congestion experienced (RFC 6040).
    pub congested: u64,
    /// Sessions begun.
    pub handshakes: u64,
}

/// What has not come of the datagrams that a peer has numbered (WireGuard, section 5.4.6).
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    session: u8,
    next: u64,
}

impl Numbers {
    /// A good datagram has come; returns by how many more, or fewer, are missing than before. What comes of a session after
    /// the next has been used, and what was lost of the end of one, is not told.
    pub(crate) fn come(&mut self, payload: &[u8]) -> i64 {
        let Some(&[session, _, _, _, ref number @ ..]) = payload.get(4..).and_then(<[u8]>::first_chunk::<12>) else {
            return 0;
        };
        let number = u64::from_le_bytes(*number);
        match session.wrapping_sub(self.session) {
            0 => {}
            later @ 1..128 => (self.session, self.next) = (self.session.wrapping_add(later), 0),
            _ => return 0,
        }
        if number < self.next {
            return -1;
        }
        let skipped = number - self.next;
        self.next = number.saturating_add(1);
        i64::try_from(skipped).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_has_numbered_and_has_not_come_is_missing() {
        let mut numbers = Numbers::default();
        let mut come = |session: u8, number: u64| {
            let mut payload = [4, 0, 0, 0, session, 7, 7, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1];
            payload[8..16].copy_from_slice(&number.to_le_bytes());
            numbers.come(&payload)
        };
        assert_eq!([(0, 0), (0, 1), (0, 4), (0, 3)].map(|(session, number)| come(session, number)), [0, 0, 2, -1]);
        // A new session begins anew, and the one before is over.
        assert_eq!([(1, 1), (0, 5), (1, 2), (129, 0)].map(|(session, number)| come(session, number)), [1, 0, 0, 0]);
        assert_eq!([(255, 0), (2, u64::MAX)].map(|(session, number)| come(session, number)), [0, i64::MAX]);
        assert_eq!(Numbers::default().come(&[4; 15]), 0);
    }
}
