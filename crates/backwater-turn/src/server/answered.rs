//! The answers of the last 40 seconds, for copies of their requests.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::Arc,
    time::{Duration, Instant},
};

use backwater_stun::{Message, Method, TransactionId};

use crate::{FiveTuple, auth::Identity};

/// RFC 8489, section 6.3.1: how long a server answers copies of a request alike.
pub(super) const REMEMBERED: Duration = Duration::from_secs(40);

/// Bytes that the answers of one server may take, keys included. The server then forgets the oldest answer.
const MAX_BYTES: usize = 8 << 20;

/// Bytes of a table entry beside those of its answer, about.
const OVERHEAD: usize = 320;

/// The answers to authenticated requests of the last 40 seconds (RFC 8656, section 5).
///
/// A copy of a request that the network delivers late gets the same answer and changes nothing. Without it, a copy of the
/// Refresh that deleted an allocation would delete the client's next one, and a copy of an Allocate would make an allocation
/// that its client does not know of. A copy is a request that has the transaction id, and that the same user has signed.
#[derive(Default)]
pub(super) struct Answered {
    answers: HashMap<Transaction, Answer>,
    order: VecDeque<(Instant, Transaction)>,
    bytes: usize,
}

/// Identifies a request and its copies.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Transaction {
    pub(super) client: FiveTuple,
    pub(super) method: Method,
    pub(super) id: TransactionId,
}

struct Answer {
    at: Instant,
    user: Arc<Identity>,
    reply: Box<[u8]>,
}

impl Answered {
    /// Writes the answer to a copy of an answered request into `reply`, and returns its length.
    pub(super) fn to_copy(
        &self,
        now: Instant,
        of: &Transaction,
        message: &Message<'_>,
        reply: &mut [u8],
    ) -> Option<usize> {
        let answer = self.find(now, of)?;
        message.verify(&answer.user.key).ok()?;
        answer.write(reply)
    }

    /// Writes the answer to a copy that is authenticated already.
    pub(super) fn again(&self, now: Instant, of: &Transaction, user: &Identity, reply: &mut [u8]) -> Option<usize> {
        self.find(now, of).filter(|answer| answer.user.name == user.name)?.write(reply)
    }

    /// Remembers an answer.
    pub(super) fn remember(&mut self, now: Instant, to: Transaction, user: &Arc<Identity>, reply: &[u8]) {
        let bytes = reply.len() + OVERHEAD;
        while self.bytes + bytes > MAX_BYTES || self.order.front().is_some_and(|(at, _)| *at + REMEMBERED <= now) {
            let Some((_, oldest)) = self.order.pop_front() else { break };
            self.bytes -= self.answers.remove(&oldest).map_or(0, |answer| answer.reply.len() + OVERHEAD);
        }
        if let Entry::Vacant(place) = self.answers.entry(to) {
            place.insert(Answer { at: now, user: user.clone(), reply: reply.into() });
            self.order.push_back((now, to));
            self.bytes += bytes;
        }
    }

    fn find(&self, now: Instant, of: &Transaction) -> Option<&Answer> {
        self.answers.get(of).filter(|answer| now < answer.at + REMEMBERED)
    }
}

impl Answer {
    fn write(&self, reply: &mut [u8]) -> Option<usize> {
        reply.get_mut(..self.reply.len())?.copy_from_slice(&self.reply);
        Some(self.reply.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ClientAddr, Credentials, auth::Algorithm};

    #[test]
    fn answers_are_bounded_in_bytes_and_in_time() {
        let mut credentials = Credentials::new("r").unwrap();
        credentials.add_user("alice", "p").unwrap();
        let user = credentials.identities("alice", Algorithm::Md5, Duration::ZERO).next().unwrap();
        let client = ClientAddr("192.0.2.1:1".parse().unwrap());
        let client = FiveTuple { client, server: "192.0.2.2:3478".parse().unwrap() };
        let transaction = |n: u32| {
            let mut id = [0; 12];
            id[..4].copy_from_slice(&n.to_be_bytes());
            Transaction { client, method: Method::ALLOCATE, id: TransactionId(id) }
        };
        let (mut answered, now) = (Answered::default(), Instant::now());
        let mut reply = [0; 1232];
        for n in 0..50_000 {
            answered.remember(now, transaction(n), &user, &[n as u8; 1232]);
        }
        assert!(answered.bytes <= MAX_BYTES && answered.order.len() == answered.answers.len());
        assert!(answered.order.len() > 5000, "{}", answered.order.len());
        assert_eq!(answered.again(now, &transaction(49_999), &user, &mut reply), Some(1232));
        assert_eq!(reply, [49_999_u32 as u8; 1232]);
        assert_eq!(answered.again(now, &transaction(1), &user, &mut reply), None);
        let later = now + REMEMBERED;
        assert_eq!(answered.again(later, &transaction(49_999), &user, &mut reply), None);
        answered.remember(later, transaction(1), &user, b"again");
        assert_eq!((answered.order.len(), answered.answers.len(), answered.bytes), (1, 1, 5 + OVERHEAD));
    }
}
