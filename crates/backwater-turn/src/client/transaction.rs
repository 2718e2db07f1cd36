//! Requests in flight: when each is sent, sent again and given up (RFC 8489 §6.2).

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use backwater_stun::{ChannelNumber, HmacKey, Integrity, IntegrityError, Message, Method, TransactionId};

use crate::Protocol;

/// Transmissions of a request over UDP: Rc (RFC 8489 §6.2.1).
const RC: u32 = 7;

/// The wait after the last transmission, in multiples of the time-out: Rm (RFC 8489 §6.2.1).
const RM: u32 = 16;

/// The wait for a response over a stream: Ti (RFC 8489 §6.2.2).
const TI: Duration = Duration::from_millis(39_500);

/// Requests in flight at most (RFC 8489 §6.2).
pub(super) const MAX_TRANSACTIONS: usize = 10;

/// The content of a request: what its response is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Allocate,
    /// Prolongs the allocation.
    Refresh,
    /// Takes the allocation to this 5-tuple, by its ticket (RFC 8016).
    Move,
    /// Ends the allocation, and the client with it.
    Delete,
    /// Ends an allocation of this 5-tuple that stands in the way of a new one.
    Abandon,
    Permission(IpAddr),
    Channel(ChannelNumber),
    /// Keeps a NAT's binding, and tells whether it is still the same one.
    Binding,
}

/// A request and its schedule.
pub(super) struct Transaction {
    pub(super) id: TransactionId,
    pub(super) purpose: Purpose,
    pub(super) bytes: Vec<u8>,
    /// How the request authenticates.
    pub(super) signature: Option<Signature>,
    /// The first transmission. Lifetimes that the response grants are counted from here, which is never too late.
    pub(super) began: Option<Instant>,
    rto: Duration,
    protocol: Protocol,
    sends: u32,
    /// The wait after the last transmission, and its end.
    wait: Duration,
    next: Option<Instant>,
}

/// The key and the attribute of a request, which its response must have too.
#[derive(Clone)]
pub(super) struct Signature {
    pub(super) key: HmacKey,
    pub(super) integrity: Integrity,
    /// The number of the challenge that the request answers.
    pub(super) challenge: u64,
}

impl Purpose {
    pub(super) fn method(self) -> Method {
        match self {
            Self::Allocate => Method::ALLOCATE,
            Self::Refresh | Self::Move | Self::Delete | Self::Abandon => Method::REFRESH,
            Self::Permission(_) => Method::CREATE_PERMISSION,
            Self::Channel(_) => Method::CHANNEL_BIND,
            Self::Binding => Method::BINDING,
        }
    }
}

impl Transaction {
    pub(super) fn new(
        id: TransactionId,
        purpose: Purpose,
        bytes: Vec<u8>,
        signature: Option<Signature>,
        rto: Duration,
        protocol: Protocol,
    ) -> Self {
        Self { id, purpose, bytes, signature, began: None, rto, protocol, sends: 0, wait: Duration::ZERO, next: None }
    }

    /// Returns whether the request is to be sent now, for the first time or again.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let may_retransmit = self.protocol == Protocol::Udp && self.sends < RC;
        self.next.is_none_or(|next| next <= now && may_retransmit)
    }

    /// Returns whether the wait for a response has ended.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.next.is_some_and(|next| next <= now) && !self.is_due(now)
    }

    /// Records a transmission.
    pub(super) fn sent(&mut self, now: Instant) {
        self.began.get_or_insert(now);
        self.sends += 1;
        self.wait = match self.protocol {
            Protocol::Tcp => TI,
            Protocol::Udp if self.sends < RC => self.rto * (1 << (self.sends - 1)),
            Protocol::Udp => self.rto * RM,
        };
        self.next = Some(now + self.wait);
    }

    /// Returns when something is to be done about the request; `None` before its first transmission.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Returns the round-trip time of a response that arrives now, or the wait before it if the request was retransmitted.
    pub(super) fn round_trip(&self, now: Instant) -> Result<Duration, Duration> {
        match self.began {
            Some(began) if self.sends == 1 => Ok(now.saturating_duration_since(began)),
            Some(_) | None => Err(self.wait),
        }
    }

    /// Returns whether a response is the server's, as far as the request lets it be known (RFC 8489 §9.2.5). `may_be_unsigned`: the
    /// response is an error that a server may have to send without knowing the user.
    pub(super) fn accepts(&self, response: &Message<'_>, may_be_unsigned: bool) -> bool {
        let Some(signature) = &self.signature else { return true };
        match response.verify(&signature.key) {
            Ok(verified) => verified.integrity() == signature.integrity,
            Err(IntegrityError::Missing) => may_be_unsigned,
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transaction(protocol: Protocol) -> Transaction {
        let id = TransactionId([0; 12]);
        Transaction::new(id, Purpose::Binding, vec![], None, Duration::from_millis(500), protocol)
    }

    /// The example of RFC 8489 §6.2.1: at 0, 0.5, 1.5, 3.5, 7.5, 15.5 and 31.5 s; given up at 39.5 s.
    #[test]
    fn datagram_is_sent_seven_times_and_given_up_after_79_time_outs() {
        let start = Instant::now();
        let mut transaction = transaction(Protocol::Udp);
        let mut sent = vec![];
        let mut now = start;
        while !transaction.is_over(now) {
            assert!(transaction.is_due(now));
            transaction.sent(now);
            sent.push((now - start).as_millis());
            now = transaction.next().unwrap();
        }
        assert_eq!(sent, [0, 500, 1500, 3500, 7500, 15_500, 31_500]);
        assert_eq!((now - start).as_millis(), 39_500);
    }

    #[test]
    fn stream_carries_a_request_once() {
        let start = Instant::now();
        let mut transaction = transaction(Protocol::Tcp);
        transaction.sent(start);
        let end = transaction.next().unwrap();
        assert_eq!(end - start, TI);
        assert!(!transaction.is_due(end) && transaction.is_over(end) && !transaction.is_over(start));
    }

    #[test]
    fn only_a_request_that_was_sent_once_measures_the_round_trip() {
        let start = Instant::now();
        let mut transaction = transaction(Protocol::Udp);
        transaction.sent(start);
        let later = start + Duration::from_millis(300);
        assert_eq!(transaction.round_trip(later), Ok(Duration::from_millis(300)));
        transaction.sent(start + Duration::from_millis(500));
        assert_eq!(transaction.round_trip(later), Err(Duration::from_millis(1000)));
    }
}
