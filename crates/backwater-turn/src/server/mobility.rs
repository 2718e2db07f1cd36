//! Mobility (RFC 8016): a client that changes its address keeps its allocation.
//!
//! A ticket names an allocation and the server (thread) that has it. A server that receives a ticket asks that server for the
//! allocation, which is handed over as a whole. From then on its peers' data goes to the client's new address. The old address and
//! the old ticket are invalid at once.

use std::{sync::Arc, time::Instant};

use backwater_stun::{Code, Integrity, Method, MobilityTicket, TransactionId};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::{
    Action, AllocationId, Server,
    allocation::Allocation,
    answer::{Answer, Refusal, replied},
    requests::{Authenticated, Refresh},
};
use crate::{FiveTuple, auth::Identity};

/// Seals and opens tickets. All servers of a relay have the same key.
pub(super) struct Tickets {
    key: Hmac<Sha256>,
}

/// The content of a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    thread: u16,
    /// A handover gives the allocation another id, so that a ticket is valid for one handover.
    id: AllocationId,
}

/// A Refresh request for an allocation that another server may have: see [`Action::Handover`].
#[derive(Debug)]
pub struct HandoverRequest {
    ticket: Ticket,
    to: FiveTuple,
    user: Arc<Identity>,
    integrity: Integrity,
    fingerprint: bool,
    transaction_id: TransactionId,
    refresh: Refresh,
}

/// Equal are a request and its retransmissions.
impl PartialEq for HandoverRequest {
    fn eq(&self, other: &Self) -> bool {
        (self.ticket, self.to, self.transaction_id) == (other.ticket, other.to, other.transaction_id)
    }
}

impl Eq for HandoverRequest {}

/// An allocation between [`Server::detach`] and [`Server::attach`].
pub struct DetachedAllocation(Box<Allocation>);

const PLAIN_LEN: usize = 10;
const TAG_LEN: usize = 16;

/// The length of a sealed ticket in characters. Text, since coturn's client ends a ticket at the first zero byte.
const TICKET_LEN: usize = ((PLAIN_LEN + TAG_LEN) * 8).div_ceil(6);

impl HandoverRequest {
    /// Returns the number of the server that has the allocation: its [`Config::thread`](super::Config::thread).
    pub fn thread(&self) -> usize {
        self.ticket.thread.into()
    }

    /// Returns the id of the allocation at that server.
    pub fn id(&self) -> AllocationId {
        self.ticket.id
    }

    /// Returns the client's new 5-tuple, which gets the response.
    pub fn to(&self) -> FiveTuple {
        self.to
    }

    fn answer(&self) -> Answer {
        Answer {
            method: Method::REFRESH,
            transaction_id: self.transaction_id,
            user: Some((self.user.clone(), self.integrity)),
            fingerprint: self.fingerprint,
        }
    }
}

impl Server {
    /// Detaches an allocation from this server. The caller hands over its sockets.
    ///
    /// # Errors
    /// The error code of the response. The server is unchanged then.
    pub fn detach(&mut self, request: &HandoverRequest) -> Result<DetachedAllocation, Code> {
        let id = request.id();
        let may_move = |a: &&Allocation| a.is_bound() && a.mobile;
        let allocation = self.allocation(id).filter(may_move).ok_or(Code::ALLOCATION_MISMATCH)?;
        if allocation.user.name != request.user.name {
            return Err(Code::WRONG_CREDENTIALS);
        }
        if request.refresh.family.is_some_and(|family| !allocation.families().get(family)) {
            return Err(Code::PEER_ADDRESS_FAMILY_MISMATCH);
        }
        let allocation = self.remove(id).ok_or(Code::ALLOCATION_MISMATCH)?;
        Ok(DetachedAllocation(Box::new(allocation)))
    }

    /// Attaches an allocation to this server, or takes the error code instead, and writes the response into `reply`. Returns the
    /// allocation's new id: the caller opens the sockets under it before the next call. Without a new id, it closes them.
    pub fn attach(
        &mut self,
        now: Instant,
        request: &HandoverRequest,
        detached: Result<DetachedAllocation, Code>,
        reply: &mut [u8],
    ) -> (Option<AllocationId>, Action) {
        let answer = request.answer();
        let (id, action) = self.attach_and_refresh(now, request, detached, &answer, reply);
        self.remember(now, request.to, &answer, &action, reply);
        (id, action)
    }

    fn attach_and_refresh(
        &mut self,
        now: Instant,
        request: &HandoverRequest,
        detached: Result<DetachedAllocation, Code>,
        answer: &Answer,
        reply: &mut [u8],
    ) -> (Option<AllocationId>, Action) {
        let here = self.clients.get(&request.to).copied();
        // A retransmission that was on its way when the first copy was answered.
        if detached.is_err()
            && let Some(len) = self.answered.again(now, &answer.transaction(request.to), &request.user, reply)
        {
            return (None, Action::Reply(len));
        }
        let id = match (detached, here) {
            (Ok(_), Some(_)) => {
                return (None, replied(answer.error(reply, Code::ALLOCATION_MISMATCH, |_| Ok(()))));
            }
            (Err(code), _) => return (None, replied(answer.error(reply, code, |_| Ok(())))),
            (Ok(DetachedAllocation(mut allocation)), None) => {
                allocation.five_tuple = request.to;
                // The other server may not have judged its permissions by new rules yet.
                allocation.review(&self.config.peers);
                self.insert(*allocation)
            }
        };
        let action = self.refresh(now, id, request.refresh, answer, reply);
        let action = action.unwrap_or_else(|refusal| match refusal {
            Refusal::Code(code) => replied(answer.error(reply, code, |_| Ok(()))),
            Refusal::Drop(reason) => Action::Drop(reason),
            Refusal::Challenge(_)
            | Refusal::Unknown(_)
            | Refusal::Forbidden(..)
            | Refusal::Unauthenticated(_)
            | Refusal::OverQuota(_) => replied(answer.error(reply, Code::SERVER_ERROR, |_| Ok(()))),
        });
        (Some(id), action)
    }

    /// Handles a Refresh request with a ticket. Returns `None` if the ticket is for the allocation that the client has here.
    pub(super) fn moves(
        &self,
        from: FiveTuple,
        here: Option<AllocationId>,
        user: &Authenticated<'_>,
        answer: &Answer,
    ) -> Result<Option<Action>, Refusal> {
        let message = &user.message;
        let Some(MobilityTicket(ticket)) = message.get()? else { return Ok(None) };
        let ticket = self.tickets.open(ticket).ok_or(Code::BAD_REQUEST)?;
        if let Some(id) = here {
            let own = self.ticket(id) == Some(ticket);
            return if own { Ok(None) } else { Err(Code::ALLOCATION_MISMATCH.into()) };
        }
        Ok(Some(Action::Handover(Box::new(HandoverRequest {
            ticket,
            to: from,
            user: user.user.clone(),
            integrity: message.integrity(),
            fingerprint: answer.fingerprint,
            transaction_id: answer.transaction_id,
            refresh: self.refresh_wanted(message)?,
        }))))
    }

    /// Returns the sealed ticket of an allocation; `None` for one without mobility.
    pub(super) fn sealed_ticket(&self, id: AllocationId) -> Option<[u8; TICKET_LEN]> {
        self.ticket(id).map(|ticket| self.tickets.seal(ticket))
    }

    fn ticket(&self, id: AllocationId) -> Option<Ticket> {
        self.allocation(id)?.mobile.then_some(Ticket { thread: self.config.thread, id })
    }
}

impl Tickets {
    pub(super) fn new(key: &[u8; 64]) -> Self {
        Self { key: KeyInit::new(&(*key).into()) }
    }

    /// Seals a ticket: a code over the content, then the content, encrypted with a key stream that the code selects.
    fn seal(&self, ticket: Ticket) -> [u8; TICKET_LEN] {
        let mut plain = [0; PLAIN_LEN];
        plain[..2].copy_from_slice(&ticket.thread.to_be_bytes());
        plain[2..6].copy_from_slice(&ticket.id.index.to_be_bytes());
        plain[6..].copy_from_slice(&ticket.id.generation.to_be_bytes());
        let code = self.code(&plain).finalize().into_bytes();
        let mut sealed = [0; PLAIN_LEN + TAG_LEN];
        let (tag, hidden) = sealed.split_at_mut(TAG_LEN);
        tag.copy_from_slice(&code[..TAG_LEN]);
        self.hide(tag, &plain, hidden);
        let mut text = [0; TICKET_LEN];
        // The buffer has exactly this length.
        let _ = BASE64_URL_SAFE_NO_PAD.encode_slice(sealed, &mut text);
        text
    }

    fn open(&self, text: &[u8]) -> Option<Ticket> {
        let mut sealed = [0; PLAIN_LEN + TAG_LEN];
        let text: &[u8; TICKET_LEN] = text.try_into().ok()?;
        BASE64_URL_SAFE_NO_PAD.decode_slice(text, &mut sealed).ok()?;
        let (tag, hidden) = sealed.split_at(TAG_LEN);
        let mut plain = [0; PLAIN_LEN];
        self.hide(tag, hidden, &mut plain);
        self.code(&plain).verify_truncated_left(tag).ok()?;
        let number = |at: usize| plain.get(at..).and_then(<[u8]>::first_chunk).map(|b| u32::from_be_bytes(*b));
        let id = AllocationId { index: number(2)?, generation: number(6)? };
        Some(Ticket { thread: u16::from_be_bytes([plain[0], plain[1]]), id })
    }

    fn code(&self, plain: &[u8]) -> Hmac<Sha256> {
        self.key.clone().chain_update("ticket").chain_update(plain)
    }

    fn hide(&self, tag: &[u8], from: &[u8], to: &mut [u8]) {
        let stream = self.key.clone().chain_update("hidden").chain_update(tag).finalize().into_bytes();
        to.iter_mut().zip(from).zip(stream).for_each(|((to, from), key)| *to = from ^ key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticket_opens_only_with_the_key_that_sealed_it() {
        let tickets = Tickets::new(&[1; 64]);
        let ticket = Ticket { thread: 3, id: AllocationId { index: 7, generation: 9 } };
        let sealed = tickets.seal(ticket);
        assert_eq!(tickets.open(&sealed), Some(ticket));
        assert_eq!(Tickets::new(&[2; 64]).open(&sealed), None);
        for bit in 0..8 * sealed.len() {
            let mut forged = sealed;
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(tickets.open(&forged), None, "bit {bit}");
        }
        for len in 0..sealed.len() {
            assert_eq!(tickets.open(&sealed[..len]), None);
        }
        assert_eq!(tickets.open(&[&sealed[..], &[0]].concat()), None);
        // Two tickets of one allocation look nothing alike.
        let next = tickets.seal(Ticket { id: AllocationId { index: 7, generation: 10 }, ..ticket });
        assert!(sealed.iter().zip(next).filter(|(a, b)| **a == *b).count() < 10);
        assert!(sealed.iter().all(u8::is_ascii_graphic));
    }
}
