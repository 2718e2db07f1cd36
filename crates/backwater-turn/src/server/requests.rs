//! Requests and their responses.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arrayvec::ArrayVec;
use backwater_stun::{
    AddressFamily, AlgorithmMismatch, AttributeType, ChannelNumber, Code, IntegrityError, Lifetime, Message, Method,
    MobilityTicket, Nonce, PasswordAlgorithm, Realm, RequestedAddressFamily, Userhash, Username, Verified,
    XorMappedAddress, XorPeerAddress,
};

use super::{
    Action, AllocationId, DropReason, Ending, Event, EventKind, MAX_PEERS, Server, UNDERSTOOD,
    allocation::{Allocation, BindError, Full},
    answer::{Answer, MAX_UNKNOWN, Refusal},
};
use crate::{
    AuthFailure, AuthFailureReason, Families, FiveTuple, Now, PeerAddr, PeerRules, QuotaReason, ReplyLimit,
    auth::{Algorithm, Identity, Lookup, NonceCheck},
};

/// The lifetime of an allocation unless the client asks for more (RFC 8656 §3.2).
const DEFAULT_LIFETIME: Duration = Duration::from_secs(600);

/// An authenticated request.
pub(super) struct Authenticated<'a> {
    pub(super) message: Verified<'a>,
    pub(super) user: Arc<Identity>,
}

/// The attributes of a Refresh request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refresh {
    /// The lifetime; zero deletes the allocation.
    lifetime: Duration,
    /// Refresh only this family.
    pub(super) family: Option<AddressFamily>,
    /// Whether the client wants a ticket.
    ticket: bool,
}

impl Server {
    pub(super) fn request(
        &mut self,
        now: Now,
        from: FiveTuple,
        message: &Message<'_>,
        fingerprint: bool,
        reply: &mut [u8],
    ) -> Action {
        if !from.is_proven()
            && self.config.relayed_ports.contains(from.client.0)
            && self.config.peers.is_relayed(from.client.0.ip())
        {
            return Action::Drop(DropReason::Loop);
        }
        let mut answer =
            Answer { method: message.method(), transaction_id: message.transaction_id(), user: None, fingerprint };
        let result = match message.method() {
            Method::BINDING => {
                self.may_answer_stranger(now.instant, from).and_then(|()| binding(from, message, &answer, reply))
            }
            Method::ALLOCATE | Method::REFRESH | Method::CREATE_PERMISSION | Method::CHANNEL_BIND => {
                let transaction = answer.transaction(from);
                if let Some(len) = self.answered.to_copy(now.instant, &transaction, message, reply) {
                    return Action::Reply(len);
                }
                if message.method() == Method::ALLOCATE
                    && let Some(action) = self.answer_copy(&from, message, reply)
                {
                    return action;
                }
                match self.authenticate(now, from, message) {
                    Ok(user) => {
                        answer.user = Some((user.user.clone(), user.message.integrity()));
                        self.authenticated(now.instant, from, user, &answer, reply)
                    }
                    Err(Refusal::Unauthenticated(failure)) => {
                        return self.unauthenticated(now, from, failure, message, &answer, reply);
                    }
                    Err(refusal) => self.may_answer_stranger(now.instant, from).and(Err(refusal)),
                }
            }
            _ => Err(Refusal::Drop(DropReason::Method)),
        };
        let action = result.unwrap_or_else(|refusal| self.refuse(now, message, from, refusal, &answer, reply));
        if let (Action::Reply(len), None) = (&action, &answer.user)
            && amplifies(from, message, *len)
        {
            return Action::Drop(DropReason::Amplification);
        }
        self.remember(now.instant, from, &answer, &action, reply);
        action
    }

    /// Counts a failed authentication, and challenges the client again.
    fn unauthenticated(
        &self,
        now: Now,
        from: FiveTuple,
        mut failure: Box<AuthFailure>,
        message: &Message<'_>,
        answer: &Answer,
        reply: &mut [u8],
    ) -> Action {
        if let Some(limit) = &self.config.failure_limit {
            // Other failures are no guesses of the user's password, and their name may be anything.
            let user = (failure.reason == AuthFailureReason::WrongPassword).then_some(&*failure.user);
            limit.failed(from.client.0.ip(), user, now.instant);
        }
        if self.may_answer_stranger(now.instant, from).is_ok()
            && let Action::Reply(len) =
                self.refuse(now, message, from, Refusal::Challenge(Code::UNAUTHENTICATED), answer, reply)
            && !amplifies(from, message, len)
        {
            failure.reply = Some(len);
        }
        Action::Unauthenticated(failure)
    }

    /// Remembers the response to an authenticated request.
    pub(super) fn remember(&mut self, now: Instant, client: FiveTuple, answer: &Answer, action: &Action, reply: &[u8]) {
        let (Action::Reply(len) | Action::Unbind(_, _, len) | Action::Forbid(len, ..) | Action::OverQuota(len, _)) =
            *action
        else {
            return;
        };
        if let (Some((user, _)), Some(reply)) = (&answer.user, reply.get(..len)) {
            self.answered.remember(now, answer.transaction(client), user, reply);
        }
    }

    /// Returns whether an unauthenticated request gets a response. A client with an allocation always does, and so does a connection:
    /// its source is not forged.
    fn may_answer_stranger(&self, now: Instant, from: FiveTuple) -> Result<(), Refusal> {
        let allowed = |limit: &ReplyLimit| limit.allows(from.client.0.ip(), now) || self.clients.contains_key(&from);
        let limit = self.config.reply_limit.as_ref();
        if from.is_proven() || limit.is_none_or(|limit| allowed(limit)) {
            Ok(())
        } else {
            Err(DropReason::ReplyLimit.into())
        }
    }

    /// Authenticates a request (RFC 8489 §9.2.4). The nonce is checked first: this costs least, and rules out a spoofed source.
    fn authenticate<'a>(&self, now: Now, from: FiveTuple, message: &Message<'a>) -> Result<Authenticated<'a>, Refusal> {
        if !message.contains(AttributeType::MESSAGE_INTEGRITY)
            && !message.contains(AttributeType::MESSAGE_INTEGRITY_SHA256)
        {
            return Err(Refusal::Challenge(Code::UNAUTHENTICATED));
        }
        let (name, hash) = (message.get::<Username<'_>>()?, message.get::<Userhash>()?);
        let (Some(Realm(realm)), Some(Nonce(nonce))) = (message.get()?, message.get()?) else {
            return Err(Code::BAD_REQUEST.into());
        };
        if name.is_none() && hash.is_none() {
            return Err(Code::BAD_REQUEST.into());
        }
        match self.nonces.check(nonce, from.client, now.unix) {
            NonceCheck::Valid => {}
            NonceCheck::Stale => return Err(Refusal::Challenge(Code::STALE_NONCE)),
        }
        let algorithm = match self.config.credentials.algorithms().accept(message.get()?, message.get()?) {
            Ok(PasswordAlgorithm::SHA256) => Algorithm::Sha256,
            Ok(_) => Algorithm::Md5,
            Err(AlgorithmMismatch) => return Err(Code::BAD_REQUEST.into()),
        };
        let credentials = &self.config.credentials;
        let hashed = hash.and_then(|hash| credentials.by_hash(&hash));
        let name = name.map(|Username(name)| name).or(hashed).unwrap_or_default();
        let failed =
            |reason| Refusal::Unauthenticated(Box::new(AuthFailure { user: name.into(), reason, reply: None }));
        let in_realm = realm == credentials.realm();
        let verify = |user: Arc<Identity>| match message.verify(&user.key) {
            Ok(message) => Some(Ok(Authenticated { message, user })),
            Err(IntegrityError::Mismatch) => None,
            Err(_) => Some(Err(Refusal::Code(Code::BAD_REQUEST))),
        };
        // The identity of this client's allocation is tried before the limit, so that guesses from the same address do not lock the
        // client out. After a change of the credentials, it is whom the user name stands for now, whether it has expired or not.
        let known = self.clients.get(&from).and_then(|&id| self.allocation(id));
        let known = known.map(|a| &a.user).filter(|user| *user.name == *name && user.algorithm == algorithm);
        if let Some(known) = known.filter(|_| in_realm) {
            let verified = if credentials.has(known) {
                verify(known.clone())
            } else {
                let elsewhere = self.config.directory.as_ref().and_then(|d| d.known(name, algorithm, now.instant));
                credentials.identities(name, algorithm, Duration::ZERO).chain(elsewhere).find_map(verify)
            };
            if let Some(result) = verified {
                return result;
            }
        }
        let limit = self.config.failure_limit.as_ref();
        if limit.is_some_and(|limit| !limit.allows(from.client.0.ip(), name, now.instant)) {
            return Err(DropReason::FailureLimit.into());
        }
        if !in_realm {
            return Err(failed(AuthFailureReason::WrongRealm));
        }
        let mut reason = credentials.why_nobody(name, now.unix);
        let mut known = false;
        for user in credentials.identities(name, algorithm, now.unix) {
            if let Some(result) = verify(user) {
                return result;
            }
            (reason, known) = (AuthFailureReason::WrongPassword, true);
        }
        if let Some(directory) = self.config.directory.as_ref().filter(|_| !known && !name.is_empty()) {
            match directory.find(name, algorithm, from.client.0.ip(), now.instant) {
                Lookup::Asked => return Err(DropReason::Lookup.into()),
                Lookup::User(user) => match verify(user) {
                    Some(result) => return result,
                    None => reason = AuthFailureReason::WrongPassword,
                },
                Lookup::Nobody => {}
            }
        }
        Err(failed(reason))
    }

    fn authenticated(
        &mut self,
        now: Instant,
        from: FiveTuple,
        user: Authenticated<'_>,
        answer: &Answer,
        reply: &mut [u8],
    ) -> Result<Action, Refusal> {
        refuse_unknown(&user.message.unverified())?;
        let id = self.clients.get(&from).copied();
        if answer.method == Method::ALLOCATE {
            return self.allocate(now, from, id, user, answer, reply);
        }
        if answer.method == Method::REFRESH
            && let Some(moves) = self.moves(from, id, &user, answer)?
        {
            return Ok(moves);
        }
        let id = id.ok_or(Code::ALLOCATION_MISMATCH)?;
        match self.allocation(id) {
            Some(a) if *a.user.name != *user.user.name => return Err(Code::WRONG_CREDENTIALS.into()),
            Some(a) if !a.is_bound() => return Err(Refusal::Drop(DropReason::InProgress)),
            Some(_) => self.keep_identity(id, &user.user),
            None => return Err(Code::ALLOCATION_MISMATCH.into()),
        }
        match answer.method {
            Method::REFRESH => return self.refresh(now, id, self.refresh_wanted(&user.message)?, answer, reply),
            Method::CREATE_PERMISSION => self.create_permission(now, id, &user.message)?,
            _ => self.channel_bind(now, id, &user.message)?,
        }
        Ok(Action::Reply(answer.success(reply, |_| Ok(()))?))
    }

    /// Remembers the identity of an allocation's user, if that of the allocation is not valid any more.
    fn keep_identity(&mut self, id: AllocationId, user: &Arc<Identity>) {
        let credentials = self.config.credentials.clone();
        if let Some(allocation) = self.allocation_mut(id).filter(|a| !credentials.has(&a.user)) {
            allocation.user = user.clone();
        }
    }

    /// Answers a Refresh request (RFC 8656 §8.2).
    pub(super) fn refresh(
        &mut self,
        now: Instant,
        id: AllocationId,
        wanted: Refresh,
        answer: &Answer,
        reply: &mut [u8],
    ) -> Result<Action, Refusal> {
        let Refresh { lifetime, family, ticket } = wanted;
        let ticket = if ticket { self.sealed_ticket(id) } else { None };
        let success = |reply: &mut [u8]| {
            answer.success(reply, |w| {
                w.attribute(&Lifetime(lifetime.as_secs() as u32))?;
                if let Some(ticket) = ticket {
                    w.attribute(&MobilityTicket(&ticket))?;
                }
                Ok(())
            })
        };
        let allocation = self.allocation(id).ok_or(Code::ALLOCATION_MISMATCH)?;
        let families = match family {
            None => allocation.families(),
            Some(family) if *allocation.families().get(family) => Families::only(family),
            Some(_) => return Err(Code::PEER_ADDRESS_FAMILY_MISMATCH.into()),
        };
        let len = success(reply)?;
        if lifetime.is_zero() {
            self.remember_allocate(now, id);
            self.close(id, families, Ending::Deleted);
            return Ok(Action::Unbind(id, families, len));
        }
        if let Some(allocation) = self.allocation_mut(id) {
            for family in families.iter() {
                *allocation.expires.get_mut(family) = Some(now + lifetime);
            }
            allocation.purge(now);
        }
        if let Some(allocation) = self.allocations.get(id.index()) {
            self.events.push(Event::new(EventKind::Refreshed(lifetime), allocation));
        }
        self.queue_expiry(id);
        Ok(Action::Reply(len))
    }

    /// Answers a CreatePermission request (RFC 8656 §10.2).
    fn create_permission(&mut self, now: Instant, id: AllocationId, message: &Verified<'_>) -> Result<(), Refusal> {
        let mut peers = ArrayVec::<IpAddr, MAX_PEERS>::new();
        for peer in message.all::<XorPeerAddress>() {
            let peer = self.own_family(id, peer.map_err(|_| Code::BAD_REQUEST)?)?;
            self.config.peers.check_ip(peer.0.ip()).map_err(|why| Refusal::Forbidden(peer, why))?;
            peers.try_push(peer.0.ip()).map_err(|_| QuotaReason::Permissions)?;
        }
        if peers.is_empty() {
            return Err(Code::BAD_REQUEST.into());
        }
        let (allocation, rules) = self.allocation_and_rules(id).ok_or(Code::ALLOCATION_MISMATCH)?;
        Ok(allocation.permit(&peers, now, rules).map_err(|Full| QuotaReason::Permissions)?)
    }

    /// Answers a ChannelBind request (RFC 8656 §12.2).
    fn channel_bind(&mut self, now: Instant, id: AllocationId, message: &Verified<'_>) -> Result<(), Refusal> {
        let number = message.get::<ChannelNumber>().map_err(|_| Code::BAD_REQUEST)?.ok_or(Code::BAD_REQUEST)?;
        let peer = message.get::<XorPeerAddress>().map_err(|_| Code::BAD_REQUEST)?.ok_or(Code::BAD_REQUEST)?;
        let peer = self.own_family(id, peer)?;
        if peer.0.port() == 0 {
            return Err(Code::BAD_REQUEST.into());
        }
        self.config.peers.check(peer).map_err(|why| Refusal::Forbidden(peer, why))?;
        let (allocation, rules) = self.allocation_and_rules(id).ok_or(Code::ALLOCATION_MISMATCH)?;
        allocation.bind(number, peer, now, rules).map_err(|error| match error {
            BindError::Conflict => Code::BAD_REQUEST.into(),
            BindError::Full(reason) => reason.into(),
        })
    }

    fn allocation_and_rules(&mut self, id: AllocationId) -> Option<(&mut Allocation, &PeerRules)> {
        let allocation = self.allocations.get_mut(id.index()).filter(|a| a.generation == id.generation)?;
        Some((allocation, &self.config.peers))
    }

    /// Returns the peer's address if the allocation has a socket of its family.
    fn own_family(&self, id: AllocationId, XorPeerAddress(peer): XorPeerAddress) -> Result<PeerAddr, Refusal> {
        match self.allocation(id) {
            Some(a) if *a.families().get(AddressFamily::of(&peer)) => Ok(PeerAddr(peer)),
            _ => Err(Code::PEER_ADDRESS_FAMILY_MISMATCH.into()),
        }
    }

    pub(super) fn refresh_wanted(&self, message: &Verified<'_>) -> Result<Refresh, Refusal> {
        let wanted = message.get::<Lifetime>()?;
        Ok(Refresh {
            lifetime: if wanted == Some(Lifetime(0)) { Duration::ZERO } else { self.lifetime(wanted) },
            family: message.get()?.map(|RequestedAddressFamily(family)| family),
            ticket: message.contains(AttributeType::MOBILITY_TICKET),
        })
    }

    /// Returns the granted lifetime: between the default and the server's limit (RFC 8656 §7.2).
    pub(super) fn lifetime(&self, wanted: Option<Lifetime>) -> Duration {
        let wanted = wanted.map_or(DEFAULT_LIFETIME, |Lifetime(seconds)| Duration::from_secs(seconds.into()));
        wanted.min(self.config.max_lifetime).max(DEFAULT_LIFETIME)
    }
}

/// Returns whether a response is more than 4.5 times as long as a request whose source may be forged. Nobody can direct more than that
/// at somebody else.
pub(super) fn amplifies(from: FiveTuple, request: &Message<'_>, answer: usize) -> bool {
    !from.is_proven() && 2 * answer > 9 * request.as_bytes().len()
}

/// Answers a Binding request with the client's address (RFC 8489 §12).
fn binding(from: FiveTuple, message: &Message<'_>, answer: &Answer, reply: &mut [u8]) -> Result<Action, Refusal> {
    refuse_unknown(message)?;
    Ok(Action::Reply(answer.success(reply, |w| w.attribute(&XorMappedAddress(from.client.0)).map(drop))?))
}

fn refuse_unknown(message: &Message<'_>) -> Result<(), Refusal> {
    let unknown: ArrayVec<_, MAX_UNKNOWN> = message.unknown_required(UNDERSTOOD).take(MAX_UNKNOWN).collect();
    if unknown.is_empty() { Ok(()) } else { Err(Refusal::Unknown(unknown)) }
}
