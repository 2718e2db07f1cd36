//! The lines that a thread writes about its clients.

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    time::Instant,
};

use backwater_turn::{
    AuthFailure, ClientAddr, OverQuota, PeerAddr, PeerRefused, PerFamily, QuotaReason, RelayedAddr,
    server::{DropReason, Event, EventKind},
};
use tracing::{debug, info, warn};

use super::Worker;
use crate::{
    counters::{BYTES, DURATION},
    hooks::EventSender,
    log_limit::LogLimit,
};

/// Characters of a user name that the log shows. The client may send any name.
const USER_LOGGED: usize = 128;

/// Clients whose first refusal is remembered.
const MAX_REFUSED: usize = 4096;

/// What a thread remembers of the lines that it has written.
pub(crate) struct Lines {
    refusals: LogLimit,
    /// Those at `debug`, which must not use up the others' share.
    repeated: LogLimit,
    /// Clients that a line at `info` was about.
    refused: RefCell<HashSet<ClientAddr>>,
    failures: LogLimit,
    pub(super) no_port: LogLimit,
    /// By the reason: a user at its own limit does not hide that all together are at theirs.
    over_quota: [LogLimit; QuotaReason::ALL.len()],
    suppressed: LogLimit,
    unverified: LogLimit,
    /// Whether allocations are logged at `info`.
    allocations: Cell<bool>,
    events: Option<EventSender>,
}

impl Lines {
    pub(crate) fn new(allocations: bool, events: Option<EventSender>) -> Self {
        let now = Instant::now();
        Self {
            refusals: LogLimit::new(now),
            repeated: LogLimit::new(now),
            refused: RefCell::default(),
            failures: LogLimit::new(now),
            no_port: LogLimit::once_a_minute(now),
            over_quota: std::array::from_fn(|_| LogLimit::once_a_minute(now)),
            suppressed: LogLimit::once_a_minute(now),
            unverified: LogLimit::once_a_minute(now),
            allocations: Cell::new(allocations),
            events,
        }
    }

    /// Sets whether allocations are logged at `info`.
    pub(crate) fn log_allocations(&self, at_info: bool) {
        self.allocations.set(at_info);
    }

    /// Whether it is the first refusal of this client.
    fn is_first(&self, client: ClientAddr) -> bool {
        let mut refused = self.refused.borrow_mut();
        if refused.len() >= MAX_REFUSED {
            refused.clear();
        }
        refused.insert(client)
    }
}

impl Worker {
    /// Explains a 403. Browsers try each other's private candidates as a matter of course: at `info` once for each client.
    pub(super) fn log_refusal(&self, now: Instant, client: ClientAddr, peer: PeerAddr, why: &PeerRefused) {
        let by_default = matches!(why, PeerRefused::Default { .. });
        let is_first = !by_default || self.lines.is_first(client);
        let limit = if is_first { &self.lines.refusals } else { &self.lines.repeated };
        if !limit.allows(now) {
            return;
        }
        let (mut why, mut remedy) = (why.to_string(), why.remedy().to_owned());
        if by_default && self.ports.own_port(peer).is_some() {
            let ip = peer.0.ip();
            why = format!("it is this relay's own relay-address or external-address, and {why}");
            remedy = format!(
                "for clients that are to reach each other through this relay, allow-peer = [\"{ip}\"]: it opens every UDP \
                 service on that one address; behind a NAT, set external-address to the public one"
            );
        }
        if is_first {
            info!(%client, %peer, why, remedy, "peer refused with 403");
        } else {
            debug!(%client, %peer, why, remedy, "peer refused with 403");
        }
    }

    /// Says that a source gets no answers, or that its passwords are not verified.
    pub(super) fn log_limited(&self, now: Instant, client: ClientAddr, reason: DropReason) {
        if reason == DropReason::ReplyLimit && self.lines.suppressed.allows(now) {
            warn!(
                source = %client.0.ip(),
                remedy = "if many clients share that address, raise reply-limit; else it floods, or others do in its name",
                "requests that are not authenticated are not answered: their source is over reply-limit"
            );
        }
        if reason == DropReason::FailureLimit && self.lines.unverified.allows(now) {
            warn!(
                source = %client.0.ip(),
                remedy = "correct the client's password, or block the address; failure-limit is how many are verified a minute",
                "passwords are not verified: too many wrong ones came from this source or for this user name"
            );
        }
    }

    /// Says that a request was refused since a limit is reached, and which key raises it.
    pub(super) fn log_over_quota(&self, now: Instant, client: ClientAddr, OverQuota { user, reason }: &OverQuota) {
        if !self.lines.over_quota.get(*reason as usize).is_some_and(|limit| limit.allows(now)) {
            return;
        }
        let remedy = match reason {
            QuotaReason::UserAllocations => "raise max-allocations-per-user, or ask why this user has so many clients",
            QuotaReason::TotalAllocations => "raise max-allocations, or bound each user by max-allocations-per-user",
            QuotaReason::Permissions => {
                "raise max-permissions or max-permissions-per-user; no allocation has more than 256"
            }
            QuotaReason::Channels => "raise max-channels or max-channels-per-user; no allocation has more than 256",
            _ => "a limit of the configuration is reached",
        };
        let (user, code): (String, _) = (shown(user), reason.code().number());
        warn!(%client, user, limit = reason.name(), code, remedy, "a request is refused: a limit is reached");
    }

    /// Logs a failed authentication, for fail2ban and the like. The nonce has proved the client's address.
    pub(super) fn log_failure(&self, now: Instant, client: ClientAddr, failure: &AuthFailure) {
        if self.lines.failures.allows(now) {
            let user: String = shown(&failure.user);
            info!(ip = %client.0.ip(), %client, user, reason = failure.reason.name(), "authentication failed");
        }
    }

    /// Writes what has become of allocations since the last time.
    pub(crate) fn log_events(&self) {
        loop {
            let Some(event) = self.server.borrow_mut().poll_event() else { return };
            self.note(&event);
        }
    }

    /// Writes what the allocations that there still are have relayed: the relay stops.
    pub(crate) fn log_stop(&self) {
        self.log_events();
        self.server.borrow_mut().stop().for_each(|event| self.note(&event));
    }

    /// Counts, posts and writes an event.
    fn note(&self, event: &Event) {
        if let EventKind::Ended { bytes_to_peers, bytes_to_client, .. } = event.kind {
            let lasted = event.created.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
            self.counters.durations.observe(&DURATION, lasted);
            self.counters.bytes.observe(&BYTES, bytes_to_peers.saturating_add(bytes_to_client));
        }
        if let Some(events) = &self.lines.events {
            events.send(event);
        }
        self.log_event(event);
    }

    fn log_event(&self, Event { kind, client, protocol, user, relayed, .. }: &Event) {
        let transport = protocol.name();
        let PerFamily { v4, v6 } = relayed;
        let relayed = v4.iter().chain(v6).map(RelayedAddr::to_string).collect::<Vec<_>>().join(", ");
        let user: String = shown(user);
        // A level is part of a line's place in the code.
        macro_rules! line {
            ($($line:tt)*) => {
                if self.lines.allocations.get() { info!($($line)*) } else { debug!($($line)*) }
            };
        }
        match kind {
            EventKind::Made(lifetime) => {
                line!(%client, transport, user, relayed, lifetime_seconds = lifetime.as_secs(), "allocation made");
            }
            EventKind::Refreshed(lifetime) => {
                line!(%client, transport, user, relayed, lifetime_seconds = lifetime.as_secs(), "allocation refreshed");
            }
            EventKind::Ended { why, bytes_to_peers, bytes_to_client } => {
                line!(%client, transport, user, relayed, why = why.name(), bytes_to_peers, bytes_to_client, "allocation ended");
            }
        }
    }
}

fn shown(user: &str) -> String {
    user.escape_debug().take(USER_LOGGED).collect()
}
