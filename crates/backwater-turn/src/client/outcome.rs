//! What responses, and their absence, do to the client.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use backwater_stun::{
    AddressErrorCode, AlternateDomain, AlternateServer, AttributeType, Class, Code, ErrorCode, Lifetime, Message,
    MobilityTicket, ReservationToken, UnknownAttributes, XorMappedAddress, XorRelayedAddress,
};

use super::{
    Allocated, Allocation, Client, Event, Failure, Input, Loss, Phase,
    auth::Answer,
    request::{MAX_TICKET, UNDERSTOOD},
    transaction::{Purpose, Transaction},
};
use crate::{PerFamily, Protocol, server::PortRequest};

/// The pause after a refusal for want of room (RFC 8656 §7.4).
const FULL: Duration = Duration::from_secs(60);

/// The pause after the local address was refused as one that is in use (RFC 8656 §7.4).
const IN_USE: Duration = Duration::from_secs(120);

/// The pause after a failed attempt, doubled with each further one.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest such pause.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// The pause before a refresh, a permission or a channel is asked for again that had no response.
const AGAIN: Duration = Duration::from_secs(5);

/// The bounds of a lifetime that is believed. A server that grants less would be asked without a pause.
const LIFETIMES: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(86_400));

/// An allocation that ends sooner than this counts as a failed attempt.
const SHORT: Duration = Duration::from_secs(60);

/// Local addresses that are tried before the client pauses for two minutes (RFC 8656 §7.4).
const MAX_MISMATCHES: u32 = 3;

impl Client {
    pub(super) fn response(&mut self, now: Instant, message: &Message<'_>) -> Input {
        let id = message.transaction_id();
        let is_sent = |t: &Transaction| t.id == id && t.began.is_some() && t.purpose.method() == message.method();
        let Some(at) = self.transactions.iter().position(is_sent) else { return Input::Ignored };
        let is_error = message.class() == Class::ErrorResponse;
        let code = if is_error { message.get::<ErrorCode<'_>>().ok().flatten() } else { None };
        let unsigned = code.is_some_and(|error| may_be_unsigned(error.code));
        if self.transactions.get(at).is_none_or(|transaction| !transaction.accepts(message, unsigned)) {
            // As if it had not arrived (RFC 8489 §9.2.5).
            return Input::Ignored;
        }
        let transaction = self.transactions.swap_remove(at);
        self.last_received = now;
        match transaction.round_trip(now) {
            Ok(round_trip) => self.rto.measured(now, round_trip),
            Err(waited) => self.rto.ambiguous(now, waited),
        }
        if message.unknown_required(UNDERSTOOD).next().is_some() || is_error && code.is_none() {
            self.malformed(now, &transaction);
        } else if let Some(error) = code {
            self.refused(now, &transaction, message, error);
        } else {
            self.succeeded(now, &transaction, message);
        }
        Input::Consumed
    }

    fn succeeded(&mut self, now: Instant, transaction: &Transaction, message: &Message<'_>) {
        let began = transaction.began.unwrap_or(now);
        match transaction.purpose {
            Purpose::Allocate => self.allocated(now, began, transaction, message),
            Purpose::Refresh | Purpose::Move => self.refreshed(now, began, transaction.purpose, message),
            Purpose::Delete => self.closed(),
            Purpose::Abandon => self.may_be_allocated = false,
            Purpose::Permission(ip) => {
                if let Some(permission) = self.peers.permission_mut(ip)
                    && permission.grant.granted(now, began)
                {
                    self.events.push(Event::Permitted(ip));
                }
            }
            Purpose::Channel(number) => {
                if let Some(channel) = self.peers.channel_mut(number)
                    && channel.grant.granted(now, began)
                {
                    self.events.push(Event::Bound { peer: channel.peer, channel: number });
                }
            }
            Purpose::Binding => self.bound_to(now, message),
        }
    }

    fn allocated(&mut self, now: Instant, began: Instant, transaction: &Transaction, message: &Message<'_>) {
        let mut relayed = PerFamily::<Option<SocketAddr>>::default();
        for XorRelayedAddress(address) in message.all::<XorRelayedAddress>().flatten() {
            let family = backwater_stun::AddressFamily::of(&address);
            if *self.config.families.get(family) || matches!(self.config.port, PortRequest::Reserved(_)) {
                relayed.get_mut(family).get_or_insert(address);
            }
        }
        if relayed.v4.is_none() && relayed.v6.is_none() {
            return self.malformed(now, transaction);
        }
        let lifetime = granted_lifetime(message);
        let mapped = message.get().ok().flatten().map(|XorMappedAddress(address)| address);
        let missing = message.get::<AddressErrorCode<'_>>().ok().flatten();
        self.phase = Phase::Allocated(Allocation {
            since: now,
            expires: began + lifetime,
            refresh_at: Some(began + lifetime / 2),
            mapped,
            ticket: ticket(message).filter(|_| self.config.mobility),
            moving: false,
        });
        self.mismatches = 0;
        self.redirected.clear();
        self.peers.reset(now);
        // A token is good for one allocation.
        if let PortRequest::Reserved(_) = self.config.port {
            self.config.port = PortRequest::Any;
        }
        self.events.push(Event::Allocated(Allocated {
            relayed,
            mapped,
            lifetime,
            token: message.get().ok().flatten().map(|ReservationToken(token)| token),
            missing: missing.map(|error| (error.family, error.code)),
        }));
    }

    fn refreshed(&mut self, now: Instant, began: Instant, purpose: Purpose, message: &Message<'_>) {
        let Phase::Allocated(allocation) = &mut self.phase else { return };
        if let Ok(Some(Lifetime(0))) = message.get() {
            return self.lost(now, Loss::Unknown);
        }
        let lifetime = granted_lifetime(message);
        allocation.expires = began + lifetime;
        allocation.refresh_at = Some(began + lifetime / 2);
        if let Some(ticket) = ticket(message).filter(|_| self.config.mobility) {
            allocation.ticket = Some(ticket);
        }
        self.failures = 0;
        if purpose == Purpose::Move {
            allocation.moving = false;
            self.peers.renew(now);
            self.events.push(Event::Moved);
        }
    }

    /// Compares the address that the server sees with the one that the allocation was made from.
    ///
    /// A Refresh request would not do: at the new address, the server may have an allocation that the client has left there.
    fn bound_to(&mut self, now: Instant, message: &Message<'_>) {
        let Ok(Some(XorMappedAddress(mapped))) = message.get() else { return };
        let Phase::Allocated(allocation) = &mut self.phase else { return };
        // After a move from an unknown address to an unknown one, this one may be a third.
        let has_ticket = allocation.ticket.is_some();
        if allocation.mapped.replace(mapped).map_or(has_ticket, |before| before != mapped) {
            self.leave(now);
        }
    }

    fn refused(&mut self, now: Instant, transaction: &Transaction, message: &Message<'_>, error: ErrorCode<'_>) {
        let ErrorCode { code, reason } = error;
        if transaction.purpose == Purpose::Binding {
            return;
        }
        if code == Code::UNAUTHENTICATED || code == Code::STALE_NONCE {
            return self.challenged(now, transaction, message, code);
        }
        match transaction.purpose {
            Purpose::Allocate => self.allocate_refused(now, message, error),
            Purpose::Delete => self.closed(),
            Purpose::Abandon if code == Code::ALLOCATION_MISMATCH => self.may_be_allocated = false,
            Purpose::Abandon => self.address_in_use(now),
            Purpose::Move => self.lost(now, Loss::Refused(code)),
            Purpose::Refresh | Purpose::Permission(_) | Purpose::Channel(_)
                if code == Code::ALLOCATION_MISMATCH || code == Code::WRONG_CREDENTIALS =>
            {
                self.unknown_to_server(now, code);
            }
            Purpose::Refresh => self.refresh_at(now + MAX_PAUSE),
            Purpose::Permission(ip) => {
                let due = is_temporary(code).then_some(now + FULL);
                if let Some(permission) = self.peers.permission_mut(ip) {
                    permission.grant.not_granted(due);
                    let peer = SocketAddr::new(ip, 0);
                    self.events.push(Event::PeerRefused { peer, code, reason: reason.to_owned() });
                }
            }
            Purpose::Channel(number) => {
                let due = is_temporary(code).then_some(now + FULL);
                if let Some(channel) = self.peers.channel_mut(number) {
                    channel.grant.not_granted(due);
                    let peer = channel.peer;
                    self.events.push(Event::PeerRefused { peer, code, reason: reason.to_owned() });
                }
            }
            Purpose::Binding => {}
        }
    }

    fn challenged(&mut self, now: Instant, transaction: &Transaction, message: &Message<'_>, code: Code) {
        let purpose = transaction.purpose;
        match (self.authentication.challenged(now, code, message, transaction.signature.as_ref()), purpose) {
            (Answer::Retry, _) => self.begin(now, purpose),
            // Data flows on until the allocation expires, but nothing is asked for.
            (Answer::Refused(why), Purpose::Refresh | Purpose::Permission(_) | Purpose::Channel(_)) => {
                self.transactions.clear();
                self.peers.nothing_asked();
                if let Phase::Allocated(allocation) = &mut self.phase {
                    allocation.refresh_at = None;
                }
                self.events.push(Event::Failed(why));
            }
            (Answer::Refused(_), Purpose::Delete) => self.closed(),
            (Answer::Refused(why), _) => self.failed(why),
            (Answer::Wait(at), Purpose::Refresh) => self.refresh_at(at),
            (Answer::Wait(at), Purpose::Permission(_) | Purpose::Channel(_)) => self.ask_again(purpose, at),
            (Answer::Wait(_), Purpose::Delete) => self.closed(),
            (Answer::Wait(at), Purpose::Allocate | Purpose::Abandon) => self.phase = Phase::Waiting(at),
            (Answer::Wait(_), Purpose::Move) => self.lost(now, Loss::Refused(code)),
            (Answer::Wait(_), Purpose::Binding) => {}
        }
    }

    /// Handles an error response to an Allocate request (RFC 8656 §7.4).
    fn allocate_refused(&mut self, now: Instant, message: &Message<'_>, error: ErrorCode<'_>) {
        let ErrorCode { code, reason } = error;
        match code {
            Code::TRY_ALTERNATE => self.redirected(now, message),
            Code::ALLOCATION_MISMATCH | Code::WRONG_CREDENTIALS => {
                self.mismatches += 1;
                if self.mismatches == 1 {
                    // Most likely it is the client's own: its response was lost, or the program has been restarted.
                    self.begin(now, Purpose::Abandon);
                } else {
                    self.address_in_use(now);
                }
            }
            Code::UNKNOWN_ATTRIBUTE if self.leave_out(message) => {}
            _ if is_temporary(code) => {
                let is_full = code == Code::ALLOCATION_QUOTA_REACHED || code == Code::INSUFFICIENT_CAPACITY;
                let retry_in = self.pause(now, if is_full { FULL } else { PAUSE });
                self.events.push(Event::Refused { code, reason: reason.to_owned(), retry_in });
            }
            _ => self.failed(Failure::Refused { code, reason: reason.to_owned() }),
        }
    }

    /// Leaves out of the next Allocate request what the server does not know. Returns whether that is anything.
    fn leave_out(&mut self, message: &Message<'_>) -> bool {
        let Ok(Some(unknown)) = message.get::<UnknownAttributes<'_>>() else { return false };
        let dont_fragment = self.config.dont_fragment && unknown.iter().any(|t| t == AttributeType::DONT_FRAGMENT);
        let is_even = matches!(self.config.port, PortRequest::Even { .. });
        let even_port = is_even && unknown.iter().any(|t| t == AttributeType::EVEN_PORT);
        self.config.dont_fragment &= !dont_fragment;
        if even_port {
            self.config.port = PortRequest::Any;
        }
        dont_fragment || even_port
    }

    /// Turns to the server that a 300 names (RFC 8489 §10).
    fn redirected(&mut self, now: Instant, message: &Message<'_>) {
        let Ok(Some(AlternateServer(to))) = message.get() else {
            return self.failed(Failure::Malformed);
        };
        let is_known = to == self.server || self.redirected.contains(&to);
        let is_unusable = to.is_ipv4() != self.server.is_ipv4() || to.port() == 0 || to.ip().is_unspecified();
        if is_known || is_unusable || to.ip().is_multicast() || self.redirected.try_push(self.server).is_err() {
            return self.failed(Failure::Redirects);
        }
        let domain = message.get::<AlternateDomain<'_>>().ok().flatten().map(|AlternateDomain(name)| name.to_owned());
        self.server = to;
        self.authentication.reset();
        self.rto.reset(now);
        (self.mismatches, self.may_be_allocated) = (0, false);
        self.events.push(Event::Redirected { server: to, domain });
        self.connected = self.config.protocol == Protocol::Udp;
    }

    /// Turns back to the first server, if another one that it has named does not answer.
    fn turn_back(&mut self) {
        if self.server != self.config.server {
            self.server = self.config.server;
            self.redirected.clear();
            self.authentication.reset();
            self.connected = self.config.protocol == Protocol::Udp;
            self.events.push(Event::Redirected { server: self.server, domain: None });
        }
    }

    /// Someone else has an allocation for this 5-tuple.
    fn address_in_use(&mut self, now: Instant) {
        self.may_be_allocated = false;
        if self.mismatches <= MAX_MISMATCHES {
            self.events.push(Event::AddressInUse);
        } else {
            self.mismatches = 0;
        }
        self.phase = Phase::Waiting(now + IN_USE);
    }

    /// The server does not know the allocation under this 5-tuple, or knows it as someone else's.
    fn unknown_to_server(&mut self, now: Instant, code: Code) {
        if let Phase::Allocated(allocation) = &mut self.phase
            && allocation.ticket.is_some()
            && code == Code::ALLOCATION_MISMATCH
        {
            allocation.moving = true;
            allocation.mapped = None;
            self.transactions.clear();
            self.peers.nothing_asked();
            return;
        }
        let mismatch = code == Code::ALLOCATION_MISMATCH;
        self.may_be_allocated = !mismatch;
        self.lost(now, if mismatch { Loss::Unknown } else { Loss::Refused(code) });
    }

    pub(super) fn no_response(&mut self, now: Instant, transaction: &Transaction) {
        self.rto.reset(now);
        if transaction.purpose != Purpose::Delete {
            self.events.push(Event::NoResponse(transaction.purpose.method()));
        }
        self.unanswered(now, transaction);
    }

    /// A response cannot be understood.
    fn malformed(&mut self, now: Instant, transaction: &Transaction) {
        self.unanswered(now, transaction);
    }

    fn unanswered(&mut self, now: Instant, transaction: &Transaction) {
        match transaction.purpose {
            Purpose::Allocate | Purpose::Abandon => {
                self.pause(now, PAUSE);
                self.turn_back();
            }
            Purpose::Refresh => self.refresh_at(now + AGAIN),
            Purpose::Move => self.lost(now, Loss::Expired),
            Purpose::Permission(_) | Purpose::Channel(_) => self.ask_again(transaction.purpose, now + AGAIN),
            Purpose::Delete => self.closed(),
            // The next one follows after an interval.
            Purpose::Binding => (self.last_sent, self.last_received) = (now, now),
        }
    }

    fn refresh_at(&mut self, at: Instant) {
        if let Phase::Allocated(allocation) = &mut self.phase {
            allocation.refresh_at = Some(at);
        }
    }

    fn ask_again(&mut self, purpose: Purpose, at: Instant) {
        if let Purpose::Permission(ip) = purpose
            && let Some(permission) = self.peers.permission_mut(ip)
        {
            permission.grant.not_granted(Some(at));
        }
        if let Purpose::Channel(number) = purpose
            && let Some(channel) = self.peers.channel_mut(number)
        {
            channel.grant.not_granted(Some(at));
        }
    }

    /// The allocation is gone. The client makes another one, at once unless this one was short-lived.
    pub(super) fn lost(&mut self, now: Instant, why: Loss) {
        let Phase::Allocated(allocation) = &self.phase else { return };
        let is_short = now.saturating_duration_since(allocation.since) < SHORT;
        self.transactions.clear();
        self.peers.revoke();
        self.events.push(Event::Lost(why));
        self.phase = Phase::Allocating;
        if !is_short {
            self.failures = 0;
        } else if why != Loss::Rebound {
            self.pause(now, PAUSE);
        }
    }

    /// Waits before the next Allocate request: `first` after the first failure, and twice as long after each further one. Returns
    /// how long.
    fn pause(&mut self, now: Instant, first: Duration) -> Duration {
        let pause = (first * (1 << self.failures.min(6))).min(MAX_PAUSE);
        self.failures = self.failures.saturating_add(1);
        // Clients of a server that has failed do not all come back at the same moment: up to a quarter is added.
        let random = self.transaction_ids.next_id().0[0];
        let pause = pause + pause * u32::from(random) / 1024;
        self.phase = Phase::Waiting(now + pause);
        pause
    }

    pub(super) fn failed(&mut self, why: Failure) {
        if matches!(self.phase, Phase::Closing(_)) {
            return self.closed();
        }
        self.transactions.clear();
        self.peers.revoke();
        self.phase = Phase::Failed;
        self.events.push(Event::Failed(why));
    }

    pub(super) fn closed(&mut self) {
        self.transactions.clear();
        self.phase = Phase::Closed;
        self.events.push(Event::Closed);
    }
}

/// Errors that a server may have to send before it knows the user, and so without message integrity.
fn may_be_unsigned(code: Code) -> bool {
    [Code::BAD_REQUEST, Code::UNAUTHENTICATED, Code::UNKNOWN_ATTRIBUTE, Code::STALE_NONCE, Code::SERVER_ERROR]
        .contains(&code)
}

/// Errors that may be over after a while.
fn is_temporary(code: Code) -> bool {
    code == Code::ALLOCATION_QUOTA_REACHED || code.number() >= 500
}

fn granted_lifetime(message: &Message<'_>) -> Duration {
    let seconds = match message.get() {
        Ok(Some(Lifetime(seconds))) => seconds,
        Ok(None) | Err(_) => 600,
    };
    Duration::from_secs(seconds.into()).clamp(LIFETIMES.0, LIFETIMES.1)
}

fn ticket(message: &Message<'_>) -> Option<Box<[u8]>> {
    let MobilityTicket(ticket) = message.get().ok().flatten()?;
    (!ticket.is_empty() && ticket.len() <= MAX_TICKET).then(|| ticket.into())
}
