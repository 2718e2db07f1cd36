//! The responses of the last 40 seconds, for copies of their requests.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use backwater_stun::{Message, Method, TransactionId};

use crate::{FiveTuple, auth::Identity, quota::account_name};

/// How long a server gives copies of a request the same response (RFC 8489 §6.3.1).
pub(super) const REMEMBERED: Duration = Duration::from_secs(40);

/// Bytes that the answers of one server may take, with their keys and users. The server then forgets answers early.
const MAX_BYTES: usize = 8 << 20;

/// Bytes of one user's answers above which they may be forgotten before older ones of other users.
const SHARE: usize = MAX_BYTES / 16;

/// Bytes of the table entries of an answer, beside its reply and identity (measured: the growth of VmRSS).
const OVERHEAD: usize = 640;

/// Bytes of the table entry of a user, beside its name (measured likewise).
const USER: usize = 256;

/// The responses to authenticated requests of the last 40 seconds (RFC 8656 §5).
///
/// A copy of a request that the network delivers late gets the same answer and changes nothing. Without it, a copy of the
/// Refresh that deleted an allocation would delete the client's next one, and a copy of an Allocate would make an allocation
/// that its client does not know of. A copy is a request that has the transaction id, and that the same user has signed.
///
/// When the memory is full, the user with the most answers above a share of it loses its oldest. Without a user above its
/// share, the oldest answer of all is forgotten.
#[derive(Default)]
pub(super) struct Answered {
    answers: HashMap<Transaction, Answer>,
    /// By the order in which they came.
    order: BTreeMap<u64, Transaction>,
    users: HashMap<Box<str>, Held>,
    /// The users with more than [`SHARE`]: fewer than 16.
    above_share: Vec<Box<str>>,
    next: u64,
    bytes: usize,
}

/// The answers of one user, over all time-limited names of it.
struct Held {
    bytes: usize,
    /// Keys of [`Answered::order`], oldest first.
    order: VecDeque<u64>,
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
        while self.oldest().is_some_and(|(_, answer)| answer.at + REMEMBERED <= now) {
            self.forget_oldest();
        }
        if self.answers.contains_key(&to) {
            return;
        }
        let answer = Answer { at: now, user: user.clone(), reply: reply.into() };
        let (account, bytes) = (account_name(&user.name), answer.bytes());
        let bytes_of_user = USER + account.len();
        while self.bytes + bytes + bytes_of_user > MAX_BYTES && !self.answers.is_empty() {
            self.make_room();
        }
        let held = self.users.entry(account.into()).or_insert_with(|| {
            self.bytes += bytes_of_user;
            Held { bytes: bytes_of_user, order: VecDeque::new() }
        });
        let was_above = held.bytes > SHARE;
        held.bytes += bytes;
        held.order.push_back(self.next);
        if held.bytes > SHARE && !was_above {
            self.above_share.push(account.into());
        }
        self.bytes += bytes;
        self.order.insert(self.next, to);
        self.answers.insert(to, answer);
        self.next += 1;
    }

    /// Forgets the oldest answer of the user with most, if it has more than its share; otherwise the oldest of all.
    fn make_room(&mut self) {
        let held = |name: &str| self.users.get(name).map_or(0, |held| held.bytes);
        match self.above_share.iter().max_by_key(|name| held(name)).cloned() {
            Some(most) => self.forget_oldest_of(&most),
            None => self.forget_oldest(),
        }
    }

    fn oldest(&self) -> Option<(&Transaction, &Answer)> {
        let (_, transaction) = self.order.first_key_value()?;
        self.answers.get_key_value(transaction)
    }

    fn forget_oldest(&mut self) {
        if let Some((_, answer)) = self.oldest() {
            let user = answer.user.clone();
            self.forget_oldest_of(account_name(&user.name));
        }
    }

    fn forget_oldest_of(&mut self, account: &str) {
        let Some(held) = self.users.get_mut(account) else { return };
        let transaction = held.order.pop_front().and_then(|place| self.order.remove(&place));
        let bytes = transaction.and_then(|of| self.answers.remove(&of)).map_or(0, |answer| answer.bytes());
        let was_above = held.bytes > SHARE;
        held.bytes -= bytes;
        self.bytes -= bytes;
        if was_above && held.bytes <= SHARE {
            self.above_share.retain(|name| **name != *account);
        }
        if held.order.is_empty() {
            self.bytes -= held.bytes;
            self.users.remove(account);
        }
    }

    fn find(&self, now: Instant, of: &Transaction) -> Option<&Answer> {
        self.answers.get(of).filter(|answer| now < answer.at + REMEMBERED)
    }
}

impl Answer {
    fn bytes(&self) -> usize {
        self.reply.len() + self.user.own_bytes() + OVERHEAD
    }

    fn write(&self, reply: &mut [u8]) -> Option<usize> {
        reply.get_mut(..self.reply.len())?.copy_from_slice(&self.reply);
        Some(self.reply.len())
    }
}

#[cfg(test)]
mod tests;
