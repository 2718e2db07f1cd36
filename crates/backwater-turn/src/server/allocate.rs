//! The Allocate request (RFC 8656 §7.2).

use std::time::Instant;

use backwater_stun::{
    AdditionalAddressFamily, AddressErrorCode, AddressFamily, Code, EvenPort, Lifetime, Message, Method,
    MobilityTicket, RequestedAddressFamily, RequestedTransport, ReservationToken, Verified, XorMappedAddress,
    XorRelayedAddress,
};

use super::{
    Action, AllocationId, Bind, Bound, DropReason, Event, EventKind, MAX_REPLY, PortRequest, RESERVED_FOR, Server,
    allocation::{Allocation, Granted},
    answer::{Answer, Refusal, replied},
    requests::Authenticated,
};
use crate::{
    Families, FiveTuple, PerFamily, QuotaReason, address::DRAFT_ADDITIONAL_ADDRESS_FAMILY, quota::QuotaReached,
};

impl Server {
    /// Takes the outcome of [`Action::Bind`], and writes the response into `reply`: a success if any socket is bound; else 508,
    /// and the allocation ends.
    ///
    /// Returns [`Action::Reply`], or [`Action::Drop`] if the allocation has ended meanwhile: the caller then closes the sockets.
    pub fn bound(&mut self, now: Instant, id: AllocationId, bound: Bound, reply: &mut [u8]) -> Action {
        let Some(allocation) = self.allocation_mut(id) else {
            return Action::Drop(DropReason::NoAllocation);
        };
        let (client, answer) = (allocation.five_tuple, allocation.answer());
        let any = bound.relayed.v4.is_some() || bound.relayed.v6.is_some();
        allocation.claim.reserved(bound.token.filter(|_| any), now + RESERVED_FOR);
        let action = self.bound_or_not(id, bound, &answer, reply);
        // An allocation keeps its own response while it exists. With a ticket, which changes, the response is kept apart.
        if self.allocation(id).is_none_or(|allocation| allocation.mobile) {
            self.remember(now, client, &answer, &action, reply);
        }
        action
    }

    /// Answers a copy of the Allocate request that created the client's allocation, even if the nonce is stale by now.
    pub(super) fn answer_copy(&self, from: &FiveTuple, message: &Message<'_>, reply: &mut [u8]) -> Option<Action> {
        let &id = self.clients.get(from)?;
        let allocation = self.allocation(id).filter(|a| !a.mobile && a.is_bound())?;
        let is_copy = allocation.granted.transaction_id == message.transaction_id();
        (is_copy && message.verify(&allocation.user.key).is_ok()).then(|| self.allocated(id, reply))
    }

    /// Remembers the response to the Allocate request of an allocation that is about to be deleted.
    pub(super) fn remember_allocate(&mut self, now: Instant, id: AllocationId) {
        let mut reply = [0; MAX_REPLY];
        let action = self.allocated(id, &mut reply);
        if let Some(allocation) = self.allocation(id).filter(|a| !a.mobile) {
            let (client, answer) = (allocation.five_tuple, allocation.answer());
            self.remember(now, client, &answer, &action, &reply);
        }
    }

    fn bound_or_not(&mut self, id: AllocationId, bound: Bound, answer: &Answer, reply: &mut [u8]) -> Action {
        let Some(allocation) = self.allocation_mut(id) else {
            return Action::Drop(DropReason::NoAllocation);
        };
        let found = bound.relayed.map(|relayed| relayed.is_some());
        if !found.any() {
            self.remove(id);
            return replied(answer.error(reply, Code::INSUFFICIENT_CAPACITY, |_| Ok(())));
        }
        let asked = allocation.families();
        if let Some(family) = missing(asked, found) {
            allocation.granted.refused = Some((family, Code::INSUFFICIENT_CAPACITY));
        }
        // A reserved port has its family already.
        let until = allocation.next_expiry();
        allocation.expires = found.map(|found| until.filter(|_| found));
        allocation.granted.relayed = bound.relayed;
        allocation.granted.token = bound.token;
        if let Some(allocation) = self.allocations.get(id.index()) {
            self.events.push(Event::new(EventKind::Made(allocation.granted.lifetime), allocation));
        }
        self.allocated(id, reply)
    }

    pub(super) fn allocate(
        &mut self,
        now: Instant,
        from: FiveTuple,
        existing: Option<AllocationId>,
        user: Authenticated<'_>,
        answer: &Answer,
        reply: &mut [u8],
    ) -> Result<Action, Refusal> {
        let message = &user.message;
        if let Some((id, allocation)) = existing.and_then(|id| Some((id, self.allocation(id)?))) {
            if allocation.granted.transaction_id != message.transaction_id() {
                return Err(Code::ALLOCATION_MISMATCH.into());
            }
            return Ok(self.allocated(id, reply));
        }
        match message.get::<RequestedTransport>()? {
            None => return Err(Code::BAD_REQUEST.into()),
            Some(RequestedTransport::UDP) => {}
            Some(_) => return Err(Code::UNSUPPORTED_TRANSPORT_PROTOCOL.into()),
        }
        let (asked, port) = wishes(message)?;
        let families = asked.and(self.config.families);
        if !families.any() && !matches!(port, PortRequest::Reserved(_)) {
            return Err(Code::ADDRESS_FAMILY_NOT_SUPPORTED.into());
        }
        // Only a Refresh request may have a ticket that is not empty (RFC 8016).
        let mobile = match message.get()? {
            Some(MobilityTicket([])) => true,
            Some(MobilityTicket([..])) => return Err(Code::BAD_REQUEST.into()),
            None => false,
        };
        let refused = missing(asked, families).map(|family| (family, Code::ADDRESS_FAMILY_NOT_SUPPORTED));
        let integrity = message.integrity();
        let lifetime = self.lifetime(message.get::<Lifetime>()?);
        if self.refuses_new {
            return Err(Code::INSUFFICIENT_CAPACITY.into());
        }
        let (claim, user) = self.config.quotas.claim(user.user, port, now).map_err(|reached| match reached {
            QuotaReached::User => QuotaReason::UserAllocations,
            QuotaReached::Total => QuotaReason::TotalAllocations,
        })?;
        let granted = Granted {
            transaction_id: answer.transaction_id,
            integrity,
            fingerprint: answer.fingerprint,
            lifetime,
            relayed: PerFamily::default(),
            token: None,
            refused,
        };
        let expected = if families.any() { families } else { asked };
        let mut allocation = Allocation::new(from, expected, (user, claim), granted, now);
        allocation.mobile = mobile;
        let id = self.insert(allocation);
        let families = if matches!(port, PortRequest::Reserved(_)) { Families::default() } else { families };
        Ok(Action::Bind(Bind { id, families, port }))
    }

    /// Writes the success response, the first time and for each retransmission of the request.
    fn allocated(&self, id: AllocationId, reply: &mut [u8]) -> Action {
        let Some(allocation) = self.allocation(id) else {
            return Action::Drop(DropReason::NoAllocation);
        };
        if !allocation.is_bound() {
            return Action::Drop(DropReason::InProgress);
        }
        let granted = &allocation.granted;
        replied(allocation.answer().success(reply, |w| {
            for relayed in granted.relayed.v4.into_iter().chain(granted.relayed.v6) {
                w.attribute(&XorRelayedAddress(relayed.0))?;
            }
            w.attribute(&Lifetime(granted.lifetime.as_secs() as u32))?;
            if let Some(token) = granted.token {
                w.attribute(&ReservationToken(token))?;
            }
            if let Some((family, code)) = granted.refused {
                w.attribute(&AddressErrorCode { family, code, reason: code.reason() })?;
            }
            if let Some(ticket) = self.sealed_ticket(id) {
                w.attribute(&MobilityTicket(&ticket))?;
            }
            w.attribute(&XorMappedAddress(allocation.five_tuple.client.0)).map(drop)
        }))
    }
}

impl Allocation {
    /// Returns how the allocation's Allocate request is answered.
    fn answer(&self) -> Answer {
        let Granted { transaction_id, integrity, fingerprint, .. } = self.granted;
        Answer { method: Method::ALLOCATE, transaction_id, user: Some((self.user.clone(), integrity)), fingerprint }
    }
}

/// Returns the family that was not found, if both were asked for.
fn missing(asked: Families, found: Families) -> Option<AddressFamily> {
    let missing = asked.and(found.map(|found| !found));
    if asked.v4 && asked.v6 { missing.iter().next() } else { None }
}

/// Returns the families and the port that a request asks for.
fn wishes(message: &Verified<'_>) -> Result<(Families, PortRequest), Refusal> {
    let family = message.get::<RequestedAddressFamily>()?.map(|RequestedAddressFamily(family)| family);
    let draft = || message.attributes().find(|raw| raw.attribute_type == DRAFT_ADDITIONAL_ADDRESS_FAMILY);
    let additional = match message.get::<AdditionalAddressFamily>()? {
        None => draft().map(|raw| raw.decode(&message.transaction_id())).transpose()?,
        given => given,
    };
    let additional = additional.map(|AdditionalAddressFamily(family)| family);
    let even = message.get::<EvenPort>()?;
    let token = message.get::<ReservationToken>()?;
    let port = match (even, token) {
        (Some(_), Some(_)) => return Err(Code::BAD_REQUEST.into()),
        (None, Some(_)) if family.is_some() || additional.is_some() => return Err(Code::BAD_REQUEST.into()),
        (None, Some(ReservationToken(token))) => PortRequest::Reserved(token),
        (Some(EvenPort { reserve_next }), None) => PortRequest::Even { reserve_next },
        (None, None) => PortRequest::Any,
    };
    let families = match (family, additional) {
        (family, None) => Families::only(family.unwrap_or(AddressFamily::Ipv4)),
        // The additional family is always IPv6. The next port cannot be reserved for both families.
        (None, Some(AddressFamily::Ipv6)) if port != (PortRequest::Even { reserve_next: true }) => {
            Families { v4: true, v6: true }
        }
        (_, Some(_)) => return Err(Code::BAD_REQUEST.into()),
    };
    Ok((families, port))
}
